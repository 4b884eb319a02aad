// The aims with which `vmm bench migrate` compares its figures.
#pragma once

#include <vector>

#include "vmm/bench/aim.hpp"
#include "vmm/bench/migrate_results.hpp"

namespace vmm::bench {

/// The aims for which something was measured, in the order of the documents. If a guest did not go over because it
/// changed too much, the downtime that was asked for counts as kept: the guest did not stand still.
[[nodiscard]] std::vector<Aim> migrate_aims(const MigrateResults& results);

} // namespace vmm::bench
