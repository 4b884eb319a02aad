// Devices that come to a guest, and go, while it runs.
#pragma once

#include <chrono>
#include <stop_token>
#include <string>

#include "vmm/config.hpp"
#include "vmm/machine/embedder.hpp"
#include "vmm/machine/hardware.hpp"

namespace vmm {

// What Machine::add_disk(), add_net() and remove_device() do. If a snapshot or a migration is under way, they wait for
// its end, because the devices that it has saved must be those that exist.
//
// Threads: any.

/// Adds the device and returns its name. A process that is confined as a whole opens nothing more, so it must pass what
/// is open already. Throws UsageError if the guest has no PCI bus or does not run, or if this process may not open the
/// device's files. Throws Error if the disk or network cannot be opened, or if no slot is left.
std::string add_disk(Hardware& hardware, const Config& config, Embedder& embedder, const DiskConfig& disk,
                     devices::DiskImage::Opened opened = {});
std::string add_net(Hardware& hardware, const Config& config, Embedder& embedder, const NetConfig& net,
                    OpenedNet opened = {});

/// Asks the guest for the device of that name, and waits until it is gone. Throws Error if there is no such device, or
/// if the guest has not given it back `within` that time; it may still do so later. Throws StoppedError if a stop is
/// requested.
void remove_device(Hardware& hardware, const std::string& name, std::chrono::milliseconds within,
                   const std::stop_token& stop);

} // namespace vmm
