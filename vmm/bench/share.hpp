// A share of a benchmark's cells, for hosts that measure one matrix together.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "vmm/bench/cell.hpp"

namespace vmm::bench {

/// Share `index` of `of` equal shares, counted from 1.
struct Share {
    unsigned index = 1; ///< 1 to `of`
    unsigned of = 1;    ///< 1 to kMostShares

    static constexpr unsigned kMostShares = 10'000;

    friend bool operator==(const Share&, const Share&) = default;
};

/// "2/4"
[[nodiscard]] std::string to_string(const Share& share);
/// The reverse of to_string(); nothing if `text` is no share.
[[nodiscard]] std::optional<Share> parse_share(std::string_view text);

/// The cells of the share, in the order of `all`. They are dealt out one by one, so that each share has some of each
/// shape. All shares together have each cell once, and the same arguments give the same cells. The result is empty if
/// there are more shares than cells and none is left for this one.
[[nodiscard]] std::vector<Cell> cells_of_share(const std::vector<Cell>& all, const Share& share);

} // namespace vmm::bench
