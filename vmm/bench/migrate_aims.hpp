// What `vmm bench migrate` holds its figures against.
#pragma once

#include <vector>

#include "vmm/bench/aim.hpp"
#include "vmm/bench/migrate_results.hpp"

namespace vmm::bench {

/// The aims for which there is something measured, in the order of the documents. A guest that did not go over because
/// it changed too much keeps to the downtime that was asked for: it did not stand still.
[[nodiscard]] std::vector<Aim> migrate_aims(const MigrateResults& results);

} // namespace vmm::bench
