// The results of `vmm bench state` as lines for people.
#pragma once

#include <string>

#include "vmm/bench/state_results.hpp"

namespace vmm::bench {

/// The whole output for a terminal: the cases with their figures, the aims beside the measured values, and the
/// failures. Lines have at most 120 characters, except lines about failures.
[[nodiscard]] std::string to_table(const StateResults& results);

} // namespace vmm::bench
