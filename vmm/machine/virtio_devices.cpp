#include "vmm/machine/virtio_devices.hpp"

#include <algorithm>
#include <cassert>
#include <chrono>
#include <exception>
#include <utility>

#include "devices/frame_stream.hpp"
#include "devices/tap.hpp"
#include "devices/virtio/block.hpp"
#include "devices/virtio/net.hpp"
#include "devices/virtio/rng.hpp"
#include "devices/virtio/vsock.hpp"
#include "kvm/host/error.hpp"
#include "vmm/machine/memory_map.hpp"

namespace vmm {

using devices::virtio::Device;
using devices::virtio::MmioTransport;

namespace {

/// How long a vCPU that resets a device waits for what the device has with the host. Linux's driver frees its rings as
/// soon as it has written the reset.
constexpr std::chrono::seconds kResetPatience{2};
/// How long the end of the machine waits for the little that its devices have with the host.
constexpr std::chrono::milliseconds kStopPatience{700};
/// How long we wait for a disk that is in use.
constexpr std::chrono::milliseconds kDiskPatience{500};

void add_net(VirtioSet& set, const NetConfig& net, const std::string& name, const DeviceServices& services) {
    // In user mode nobody else is on that network, so each guest may have the same address.
    const devices::MacAddress mac =
        net.mac.empty() ? devices::make_mac_address(net.user ? name : net.tap) : devices::parse_mac_address(net.mac);
    if (!net.user) {
        set.devices.push_back(std::make_unique<devices::virtio::Net>(
            name, std::make_unique<devices::Tap>(net.tap), mac, [warn = services.warn, name, tap = net.tap] {
                warn(name + ": the tap interface " + tap + " is gone: the guest's link is down");
            }));
        return;
    }
    auto filter = make_frame_filter(net);
    const auto kept = filter ? std::make_shared<KeptFrames>(name, services.warn) : nullptr;
    UserNetwork& network = *set.networks.emplace_back(std::make_unique<UserNetwork>(net));
    set.kept_frames.push_back(kept);
    set.devices.push_back(std::make_unique<devices::virtio::Net>(
        name,
        std::make_unique<devices::FrameStream>(network.take_socket(), std::move(filter),
                                               [kept](const std::string& to) { kept->add(to); }),
        mac, [warn = services.warn, name, &network] {
            const std::string words = network.last_words();
            warn(name + ": passt has ended" + (words.empty() ? "" : ", and said '" + words + "'") +
                 ": the guest's link is down");
        }));
}

} // namespace

std::size_t count_virtio_devices(const Config& config) noexcept {
    return config.disks.size() + config.nets.size() + (config.vsock ? 1U : 0U) + (config.balloon ? 1U : 0U) +
           (config.rng ? 1U : 0U) + (config.console ? 1U : 0U);
}

VirtioSet make_virtio_devices(const Config& config, const DeviceServices& services) {
    VirtioSet set;
    std::vector<std::unique_ptr<Device>>& devices = set.devices;
    for (const DiskConfig& disk : config.disks) {
        devices::DiskImage image(disk.path, {.read_only = disk.read_only,
                                             .direct = disk.direct,
                                             .patience = kDiskPatience,
                                             .lock = disk.lock,
                                             .sector_bytes = disk.sector_bytes});
        devices.push_back(std::make_unique<devices::virtio::Block>(
            "blk" + std::to_string(devices.size()), std::move(image),
            devices::virtio::BlockConfig{disk.queues, disk.id, services.pinned_memory, services.warn, disk.io}));
    }
    for (std::size_t i = 0; i < config.nets.size(); ++i) {
        add_net(set, config.nets[i], "net" + std::to_string(i), services);
    }
    if (config.vsock) {
        devices.push_back(std::make_unique<devices::virtio::Vsock>(
            "vsock0", devices::virtio::VsockConfig{
                          .guest_cid = config.vsock->cid, .path = config.vsock->path, .warn = services.warn}));
    }
    if (config.balloon) {
        auto balloon = std::make_unique<devices::virtio::Balloon>("balloon0", config.balloon->target_bytes,
                                                                  config.balloon->reporting);
        set.balloon = balloon.get();
        devices.push_back(std::move(balloon));
    }
    if (config.rng) {
        devices.push_back(std::make_unique<devices::virtio::Rng>("rng0"));
    }
    if (config.console) {
        auto console = std::make_unique<devices::virtio::Console>(
            "con0", services.console, config.console->size ? config.console->size() : std::nullopt);
        set.console = console.get();
        devices.push_back(std::move(console));
    }
    return set;
}

VirtioDevices::Slot::Slot(kvm::Vm& vm, const GuestMemory& memory, std::unique_ptr<Device> owned, GuestRange window,
                          std::uint32_t interrupt)
    : device(std::move(owned)), registers(window), gsi(interrupt), line(vm, interrupt),
      doorbells(device->identity().queue_sizes.size()),
      transport(device->identity(), memory, line,
                {[this] { work.signal(); },
                 [this](std::uint16_t index) {
                     if (index < doorbells.size()) {
                         doorbells[index].signal();
                     }
                 },
                 kResetPatience,
                 [this] {
                     is_overdue = true;
                     if (StopRequest* const to = stop.load(); to != nullptr) {
                         to->request_for_failure();
                     }
                 },
                 [this] {
                     const StopRequest* const to = stop.load();
                     return to != nullptr && to->is_requested();
                 }}) {
    for (std::uint32_t index = 0; index < doorbells.size(); ++index) {
        vm.attach_ioeventfd(doorbells[index].fd(),
                            GuestAddress{to_integer(window.base) + MmioTransport::kQueueNotifyOffset}, index);
    }
}

VirtioDevices::VirtioDevices(kvm::Vm& vm, const GuestMemory& memory, std::vector<std::unique_ptr<Device>> devices) {
    assert(devices.size() <= memory_map::kVirtioGsis.size());
    std::uint64_t base = to_integer(memory_map::kVirtioWindow.base);
    for (std::unique_ptr<Device>& device : devices) {
        const GuestRange window{GuestAddress{base}, MmioTransport::kSize};
        assert(memory_map::kVirtioWindow.contains(window));
        slots_.emplace_back(vm, memory, std::move(device), window, memory_map::kVirtioGsis[slots_.size()]);
        base += MmioTransport::kSize;
    }
}

void VirtioDevices::attach_to(devices::Bus& mmio) {
    for (Slot& slot : slots_) {
        mmio.attach(to_integer(slot.registers.base), slot.registers.size, slot.transport);
    }
}

std::vector<loader::VirtioMmioHardware> VirtioDevices::describe() const {
    std::vector<loader::VirtioMmioHardware> nodes;
    for (const Slot& slot : slots_) {
        nodes.push_back({slot.registers, slot.gsi, loader::InterruptTrigger::kEdge});
    }
    return nodes;
}

std::vector<DeviceStatistics> VirtioDevices::statistics() const {
    std::vector<DeviceStatistics> devices;
    for (const Slot& slot : slots_) {
        devices.push_back(
            {slot.device->identity().name,
             {{"doorbell_turns", slot.rung.load(std::memory_order_relaxed)}, {"interrupts", slot.line.raised()}}});
    }
    return devices;
}

void VirtioDevices::start(StopRequest& stop) {
    for (Slot& slot : slots_) {
        slot.stop = &stop;
        threads_.emplace_back(VirtioThread::Wiring{*slot.device, slot.transport.negotiation(), slot.transport,
                                                   slot.doorbells, slot.work, stop, &slot.rung, pause_wanted_});
    }
}

void VirtioDevices::pause() noexcept {
    pause_wanted_ = true;
    for (VirtioThread& thread : threads_) {
        thread.pause();
    }
}

std::vector<std::string> VirtioDevices::wait_until_paused(std::chrono::steady_clock::time_point deadline) {
    std::vector<std::string> busy;
    for (std::size_t i = 0; i < threads_.size(); ++i) {
        if (!threads_[i].wait_until_paused(deadline)) {
            busy.push_back(slots_[i].device->identity().name);
        }
    }
    return busy;
}

void VirtioDevices::resume() noexcept {
    pause_wanted_ = false;
    for (VirtioThread& thread : threads_) {
        thread.resume();
    }
}

void VirtioDevices::end_waiting() noexcept {
    for (VirtioThread& thread : threads_) {
        thread.end_waiting();
    }
}

/// Returns the first failure.
std::exception_ptr VirtioDevices::end_threads() noexcept {
    const auto deadline = std::chrono::steady_clock::now() + kStopPatience;
    for (VirtioThread& thread : threads_) {
        thread.end(); // All of them end at once, not one after the other.
    }
    std::exception_ptr failure;
    for (std::size_t i = 0; i < threads_.size(); ++i) {
        const Device& device = *slots_[i].device;
        const bool joined = threads_[i].join_until(deadline);
        if (joined && !failure) {
            failure = threads_[i].failure();
        }
        if (!joined || !device.is_idle()) {
            left_.push_back(device.identity().name);
        }
    }
    if (left_.empty()) {
        threads_.clear();
    }
    return failure;
}

void VirtioDevices::abandon() noexcept {
    static_cast<void>(end_threads());
}

void VirtioDevices::join() {
    if (const std::exception_ptr failure = end_threads()) {
        std::rethrow_exception(failure);
    }
    for (const Slot& slot : slots_) {
        if (slot.is_overdue) {
            throw Error("cannot reset the guest's device " + slot.device->identity().name +
                        ": the host did not finish what it was given within " + std::to_string(kResetPatience.count()) +
                        " s, and would write to memory that the guest's driver uses for something else by then (see "
                        "whether what the device stands on still answers)");
        }
    }
}

std::vector<std::string> VirtioDevices::failures() const {
    std::vector<std::string> lines;
    for (const Slot& slot : slots_) {
        if (const std::string why = slot.transport.negotiation().failure(); !why.empty()) {
            lines.push_back(slot.device->identity().name + ": its driver broke a rule: " + why);
        }
    }
    for (const std::string& name : left_) {
        lines.push_back(name + ": the host still has work of it that does not end (see whether what it stands on still "
                               "answers): its memory and its files stay in use until this process has ended");
    }
    return lines;
}

} // namespace vmm
