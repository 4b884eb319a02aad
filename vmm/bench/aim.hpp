// The aims with which a benchmark compares its figures.
#pragma once

#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "vmm/bench/statistics.hpp"

namespace vmm::bench {

/// One aim, and the measured value for it.
struct Aim {
    /// The unit of `value` and `bound`.
    enum class Kind { kRatio, kSeconds, kCount };
    enum class Wanted { kAtMost, kAtLeast };

    std::string name; ///< "restore full, 4K pages: ready, over the bare read"
    Kind kind = Kind::kRatio;
    Statistics value{}; ///< over the runs; a ratio is of two figures of the same round
    double bound = 0;
    Wanted wanted = Wanted::kAtMost;

    /// Whether the median is within the bound.
    [[nodiscard]] bool is_met() const noexcept {
        return wanted == Wanted::kAtMost ? value.median <= bound : value.median >= bound;
    }
};

/// The values of a figure in each round, in order; nothing: that round has no value.
using RoundValues = std::vector<std::optional<double>>;

/// Collects aims, and leaves out aims for which nothing was measured.
class AimList {
  public:
    void add(std::string name, Aim::Kind kind, const RoundValues& values, double bound,
             Aim::Wanted wanted = Aim::Wanted::kAtMost);
    [[nodiscard]] std::vector<Aim> take() && { return std::move(aims_); }

  private:
    std::vector<Aim> aims_;
};

/// A table of lines of at most 120 characters.
[[nodiscard]] std::string aims_table(const std::vector<Aim>& aims);
[[nodiscard]] nlohmann::ordered_json to_json_parts(const std::vector<Aim>& aims);

} // namespace vmm::bench
