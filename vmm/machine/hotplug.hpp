// Devices that come to a guest, and go, while it runs.
#pragma once

#include <chrono>
#include <stop_token>
#include <string>

#include "vmm/config.hpp"
#include "vmm/machine/embedder.hpp"
#include "vmm/machine/hardware.hpp"

namespace vmm {

// What Machine::add_disk(), add_net() and remove_device() do. A snapshot or a migration that is under way is waited
// for, because the devices that it has saved are to be those that there are.
//
// Threads: any.

/// Returns the name of the device. A process that is confined as a whole opens nothing more, so that what the device
/// stands on has to be open already. Throws UsageError: the guest has no PCI bus, or does not run, or this process may
/// not open it. Throws Error: the disk cannot be had, or there is no slot left.
std::string add_disk(Hardware& hardware, const Config& config, Embedder& embedder, const DiskConfig& disk,
                     devices::DiskImage::Opened opened = {});
std::string add_net(Hardware& hardware, const Config& config, Embedder& embedder, const NetConfig& net,
                    OpenedNet opened = {});

/// Asks the guest for the device of that name, and waits until it is gone. Throws Error if there is none, or if the
/// guest has not given it back `within` that time: then it may still do so. Throws StoppedError if a stop is requested.
void remove_device(Hardware& hardware, const std::string& name, std::chrono::milliseconds within,
                   const std::stop_token& stop);

} // namespace vmm
