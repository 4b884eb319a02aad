// The results of `vmm bench migrate` as lines for people.
#pragma once

#include <string>

#include "vmm/bench/migrate_results.hpp"

namespace vmm::bench {

/// The whole output for a terminal: the cases with their figures, the aims beside the measured values, and the
/// failures. Lines have at most 120 characters, except lines about failures and about guests that stayed.
[[nodiscard]] std::string to_table(const MigrateResults& results);

} // namespace vmm::bench
