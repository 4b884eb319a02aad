// What a benchmark holds its figures against.
#pragma once

#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "vmm/bench/statistics.hpp"

namespace vmm::bench {

/// One aim beside what was measured for it.
struct Aim {
    /// How `value` and `bound` are to be read.
    enum class Kind { kRatio, kSeconds, kCount };
    enum class Wanted { kAtMost, kAtLeast };

    std::string name; ///< "restore full, 4K pages: ready, over the bare read"
    Kind kind = Kind::kRatio;
    Statistics value{}; ///< over the runs; a ratio is that of two figures of the same round
    double bound = 0;
    Wanted wanted = Wanted::kAtMost;

    /// Whether the median keeps to the bound.
    [[nodiscard]] bool is_met() const noexcept {
        return wanted == Wanted::kAtMost ? value.median <= bound : value.median >= bound;
    }
};

/// The values of something in each round, in order; nothing: the round has none.
using RoundValues = std::vector<std::optional<double>>;

/// Collects aims, and leaves out those for which nothing was measured.
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
