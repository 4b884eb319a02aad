#include "vmm/machine/hotplug.hpp"

#include <algorithm>
#include <utility>

#include "kvm/host/error.hpp"
#include "kvm/host/file_server.hpp"
#include "kvm/host/stoppable_read.hpp"

namespace vmm {

namespace {

void check_has_bus(const Hardware& hardware, const std::string& tried) {
    if (!hardware.virtio.has_pci()) {
        throw UsageError("cannot " + tried +
                         ": the guest reaches its devices by registers in memory, and none can come or go (run it with "
                         "Config::transport=pci)");
    }
}

/// Throws UsageError if this process is confined as a whole. Such a process opens no disk and no tap interface any
/// more, and starts no program.
void check_can_open(const std::string& tried) {
    if (file_server() != nullptr) {
        throw UsageError("cannot " + tried +
                         ": this process is confined, and opens only what it was told of at its start (ask by "
                         "`vmm ctl`, which opens it and hands it over, or run it with Config::sandbox=off)");
    }
}

/// Adds a device that `make` makes for its name.
template <typename Make>
std::string add(Hardware& hardware, std::string_view kind, Make make) {
    const MachineSecondLevel::Hold hold(hardware.second_level);
    const std::string name = hardware.virtio.free_name(kind);
    const unsigned slot = hardware.virtio.add(make(name));
    hardware.board.announce_device(slot);
    return name;
}

} // namespace

std::string add_disk(Hardware& hardware, const Config& config, Embedder& embedder, const DiskConfig& disk,
                     devices::DiskImage::Opened opened) {
    const std::string tried = "give the guest the disk " + disk.path;
    check_has_bus(hardware, tried);
    if (!opened.file) {
        check_can_open(tried);
    }
    disk.check();
    const DeviceServices services = device_services(config, nullptr, hardware.ram, embedder);
    return add(hardware, "blk",
               [&](const std::string& name) { return make_disk(disk, name, services, {}, std::move(opened)); });
}

std::string add_net(Hardware& hardware, const Config& config, Embedder& embedder, const NetConfig& net,
                    OpenedNet opened) {
    const std::string tried = "connect the guest to a network";
    check_has_bus(hardware, tried);
    if (!opened.is_there()) {
        check_can_open(tried);
    }
    net.check();
    const DeviceServices services = device_services(config, nullptr, hardware.ram, embedder);
    return add(hardware, "net",
               [&](const std::string& name) { return make_net(net, name, services, {}, {}, std::move(opened)); });
}

void remove_device(Hardware& hardware, const std::string& name, std::chrono::milliseconds within,
                   const std::stop_token& stop) {
    const std::string tried = "take the device " + name + " from the guest";
    check_has_bus(hardware, tried);
    const auto slot = hardware.virtio.slot_of(name);
    if (!slot) {
        throw Error("cannot " + tried + ": there is none of that name (see the devices of the machine's status)");
    }
    hardware.board.ask_for_device(*slot);
    constexpr std::chrono::hours kMost{24};
    const auto deadline = std::chrono::steady_clock::now() + std::min<std::chrono::milliseconds>(within, kMost);
    if (hardware.virtio.wait_until_gone(name, deadline, stop)) {
        return;
    }
    if (stop.stop_requested()) {
        throw StoppedError("cannot " + tried + ": a stop was requested while the guest was waited for");
    }
    throw Error("cannot " + tried + ": it has not given the device back within " +
                std::to_string(std::chrono::duration_cast<std::chrono::seconds>(within).count()) +
                " s, and may still do so (see whether its system has booted, and whether it uses the device)");
}

} // namespace vmm
