// Results as lines for people.
#pragma once

#include <string>

#include "vmm/bench/results.hpp"

namespace vmm::bench {

/// "1.23 s", "45.6 ms", "789 us": three digits.
[[nodiscard]] std::string format_seconds(double seconds);
/// "261,867".
[[nodiscard]] std::string format_count(double count);

/// The whole output for a terminal: for each shape a table of its methods and a comparison of them, then the failures
/// and the cost of the harness. Lines have at most 120 characters, except lines about failures.
[[nodiscard]] std::string to_table(const Results& results);

} // namespace vmm::bench
