// How a guest leaves for another process while it runs.
#pragma once

#include <stop_token>

#include "vmm/machine/machine_to_save.hpp"
#include "vmm/migration.hpp"

namespace vmm {

/// Sends the guest of `machine` away. If it returns a complete report, the guest runs elsewhere, and nothing here lets
/// it go on: the machine is to end. Otherwise it goes on here, and its second level is full again if it was before.
///
/// `stop` ends the attempt, and `machine_ends` says that the machine is about to end, too, which also ends what is done
/// afterwards. Throws Error as Machine::migrate().
[[nodiscard]] MigrationReport depart(const MachineToSave& machine, const MigrationOptions& options,
                                     const std::stop_token& stop, const std::stop_token& machine_ends);

} // namespace vmm
