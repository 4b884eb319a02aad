// How a guest leaves for another process while it runs.
#pragma once

#include <stop_token>

#include "vmm/machine/machine_to_save.hpp"
#include "vmm/migration.hpp"

namespace vmm {

/// Sends the guest of `machine` away. If it returns a complete report, the guest runs elsewhere, and this machine must
/// end: nothing here may let the guest go on. Otherwise the guest goes on here, and its second level is full again if
/// it was full before.
///
/// `stop` ends the attempt. `machine_ends` is requested when the machine is about to end. It ends the attempt, too, and
/// also what is done afterwards. Throws Error as Machine::migrate().
[[nodiscard]] MigrationReport depart(const MachineToSave& machine, const MigrationOptions& options,
                                     const std::stop_token& stop, const std::stop_token& machine_ends);

} // namespace vmm
