#include "vmm/machine/virtio_devices.hpp"

#include <algorithm>
#include <cassert>
#include <chrono>
#include <cstring>
#include <exception>
#include <optional>
#include <utility>
#include <variant>

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
using devices::virtio::PciTransport;

namespace {

/// How long a vCPU that resets a device waits for what the device has with the host. Linux's driver frees its rings as
/// soon as it has written the reset.
constexpr std::chrono::seconds kResetPatience{2};
/// How long the end of the machine waits for the little that its devices have with the host.
constexpr std::chrono::milliseconds kStopPatience{700};
/// How long we wait for a disk that is in use.
constexpr std::chrono::milliseconds kDiskPatience{500};

/// A device that a configuration has.
struct PlannedDevice {
    devices::virtio::DeviceId id{};
    std::string name;
};

/// In the order in which make_virtio_devices() makes them.
std::vector<PlannedDevice> planned_devices(const Config& config) {
    using devices::virtio::DeviceId;
    std::vector<PlannedDevice> planned;
    for (std::size_t i = 0; i < config.disks.size(); ++i) {
        planned.push_back({DeviceId::kBlock, "blk" + std::to_string(i)});
    }
    for (std::size_t i = 0; i < config.nets.size(); ++i) {
        planned.push_back({DeviceId::kNet, "net" + std::to_string(i)});
    }
    const auto add_if = [&planned](bool has, DeviceId id, const char* name) {
        if (has) {
            planned.push_back({id, name});
        }
    };
    add_if(config.vsock.has_value(), DeviceId::kVsock, "vsock0");
    add_if(config.balloon.has_value(), DeviceId::kBalloon, "balloon0");
    add_if(config.rng, DeviceId::kEntropy, "rng0");
    add_if(config.console.has_value(), DeviceId::kConsole, "con0");
    return planned;
}

/// A name that came from anywhere, for a message.
std::string shown(const std::string& name) {
    constexpr std::size_t kMostShown = 32;
    std::string text;
    for (const char c : name.substr(0, kMostShown)) {
        text += c >= ' ' && c <= '~' ? c : '?';
    }
    return text;
}

/// Throws Error if `states` are not those of the devices `planned`.
void compare(const std::vector<PlannedDevice>& planned, const std::vector<VirtioDeviceState>& states) {
    const std::string tried = "cannot go on from the saved state of the devices: ";
    const std::string advice = " (configure the machine as the one whose state was saved)";
    for (std::size_t i = 0; i < std::max(planned.size(), states.size()); ++i) {
        if (i >= planned.size()) {
            throw Error(tried + "it has the device " + shown(states[i].name) + ", and this configuration has not" +
                        advice);
        }
        if (i >= states.size()) {
            throw Error(tried + "this configuration has the device " + planned[i].name + ", and it has not" + advice);
        }
        if (states[i].id != planned[i].id || states[i].name != planned[i].name) {
            throw Error(tried + "it has the device " + shown(states[i].name) + " where this configuration has " +
                        planned[i].name + advice);
        }
    }
}

/// What the devices go on from, one after the other.
class SavedDevices {
  public:
    /// `made` are the devices that have been made. Both outlive it. Null: there is nothing to go on from.
    SavedDevices(const std::vector<VirtioDeviceState>* states, const std::vector<std::unique_ptr<Device>>& made)
        : states_(states), made_(made) {}

    /// The state of the device that is made next. Throws Error: it is that of another kind.
    template <typename State>
    [[nodiscard]] State next() const {
        if (states_ == nullptr) {
            return {};
        }
        const VirtioDeviceState& saved = (*states_)[made_.size()];
        const auto* const state = std::get_if<State>(&saved.device);
        if (state == nullptr) {
            throw Error("cannot go on from the saved state of the device " + saved.name +
                        ": it is that of another kind of device (the snapshot is damaged)");
        }
        return *state;
    }

    /// The address that the guest of the network that is made next has; nothing if it begins anew. It is in the
    /// configuration space, and stays what it was if another one is configured.
    [[nodiscard]] std::optional<devices::MacAddress> next_mac() const {
        if (states_ == nullptr) {
            return std::nullopt;
        }
        const std::vector<std::byte>& config = negotiation_of((*states_)[made_.size()].transport).config;
        devices::MacAddress mac{};
        if (config.size() < mac.size()) { // The transport refuses it.
            return std::nullopt;
        }
        std::memcpy(mac.data(), config.data(), mac.size());
        return mac;
    }

  private:
    const std::vector<VirtioDeviceState>* states_;
    const std::vector<std::unique_ptr<Device>>& made_;
};

void add_net(VirtioSet& set, const NetConfig& net, const std::string& name, const DeviceServices& services,
             const SavedDevices& saved) {
    const auto state = saved.next<devices::virtio::NetState>();
    const std::optional<devices::MacAddress> announced = saved.next_mac();
    // In user mode nobody else is on that network, so each guest may have the same address.
    const devices::MacAddress mac =
        net.mac.empty() ? devices::make_mac_address(net.user ? name : net.tap) : devices::parse_mac_address(net.mac);
    if (!net.user) {
        set.devices.push_back(std::make_unique<devices::virtio::Net>(
            name, std::make_unique<devices::Tap>(net.tap), mac,
            [warn = services.warn, name, tap = net.tap] {
                warn(name + ": the tap interface " + tap + " is gone: the guest's link is down");
            },
            state, announced));
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
        mac,
        [warn = services.warn, name, &network] {
            const std::string words = network.last_words();
            warn(name + ": passt has ended" + (words.empty() ? "" : ", and said '" + words + "'") +
                 ": the guest's link is down");
        },
        state, announced));
}

} // namespace

std::size_t count_virtio_devices(const Config& config) noexcept {
    return config.disks.size() + config.nets.size() + (config.vsock ? 1U : 0U) + (config.balloon ? 1U : 0U) +
           (config.rng ? 1U : 0U) + (config.console ? 1U : 0U);
}

VirtioSet make_virtio_devices(const Config& config, const DeviceServices& services,
                              const std::vector<VirtioDeviceState>* states) {
    VirtioSet set;
    std::vector<std::unique_ptr<Device>>& devices = set.devices;
    const SavedDevices saved(states, devices);
    if (states != nullptr) {
        compare(planned_devices(config), *states);
    }
    for (const DiskConfig& disk : config.disks) {
        devices::DiskImage image(disk.path, {.read_only = disk.read_only,
                                             .direct = disk.direct,
                                             .patience = kDiskPatience,
                                             .lock = disk.lock,
                                             .sector_bytes = disk.sector_bytes});
        devices.push_back(std::make_unique<devices::virtio::Block>(
            "blk" + std::to_string(devices.size()), std::move(image),
            devices::virtio::BlockConfig{disk.queues, disk.id, services.pinned_memory, services.warn, disk.io},
            saved.next<devices::virtio::BlockState>()));
    }
    for (std::size_t i = 0; i < config.nets.size(); ++i) {
        add_net(set, config.nets[i], "net" + std::to_string(i), services, saved);
    }
    if (config.vsock) {
        devices.push_back(std::make_unique<devices::virtio::Vsock>(
            "vsock0",
            devices::virtio::VsockConfig{
                .guest_cid = config.vsock->cid, .path = config.vsock->path, .warn = services.warn},
            saved.next<devices::virtio::VsockState>()));
    }
    if (config.balloon) {
        auto balloon = std::make_unique<devices::virtio::Balloon>("balloon0", config.balloon->target_bytes,
                                                                  config.balloon->reporting,
                                                                  saved.next<devices::virtio::BalloonState>());
        set.balloon = balloon.get();
        devices.push_back(std::move(balloon));
    }
    if (config.rng) {
        devices.push_back(std::make_unique<devices::virtio::Rng>("rng0"));
    }
    if (config.console) {
        auto console = std::make_unique<devices::virtio::Console>(
            "con0", services.console, config.console->size ? config.console->size() : std::nullopt,
            devices::virtio::Console::kDefaultOutputBytes, saved.next<devices::virtio::ConsoleState>());
        set.console = console.get();
        devices.push_back(std::move(console));
    }
    return set;
}

namespace {

/// What a device's registers go on from. Throws Error: they were of another kind.
template <typename State>
const State& registers_in(const VirtioDeviceState& state) {
    const State* const registers = std::get_if<State>(&state.transport);
    if (registers == nullptr) {
        throw Error("cannot go on from the saved state of the device " + shown(state.name) +
                    ": its registers are those of another transport than the machine has (the snapshot is damaged)");
    }
    return *registers;
}

} // namespace

VirtioDevices::OverMmio::OverMmio(kvm::Vm& vm, const GuestMemory& memory, std::size_t place,
                                  const devices::virtio::Identity& identity, devices::virtio::Negotiation::Hooks hooks,
                                  const VirtioDeviceState* state)
    : registers{GuestAddress{to_integer(memory_map::kVirtioWindow.base) + place * MmioTransport::kSize},
                MmioTransport::kSize},
      gsi(memory_map::kVirtioGsis.at(place)), line(vm, gsi),
      transport(state == nullptr ? MmioTransport(identity, memory, line, std::move(hooks))
                                 : MmioTransport(identity, memory, line, std::move(hooks),
                                                 registers_in<devices::virtio::MmioState>(*state))) {
    assert(memory_map::kVirtioWindow.contains(registers));
}

namespace {

std::vector<std::unique_ptr<devices::pci::MessageLine>> make_messages(PciRoot& pci, std::size_t count) {
    std::vector<std::unique_ptr<devices::pci::MessageLine>> messages;
    for (std::size_t i = 0; i < count; ++i) {
        messages.push_back(pci.make_message_line());
    }
    return messages;
}

std::vector<devices::pci::MessageLine*>
pointers_to(const std::vector<std::unique_ptr<devices::pci::MessageLine>>& messages) {
    std::vector<devices::pci::MessageLine*> pointers;
    for (const auto& message : messages) {
        pointers.push_back(message.get());
    }
    return pointers;
}

} // namespace

VirtioDevices::OverPci::OverPci(PciRoot& pci, const GuestMemory& memory, unsigned number,
                                const devices::virtio::Identity& identity, devices::virtio::Negotiation::Hooks hooks,
                                const VirtioDeviceState* state)
    : slot(number), messages(make_messages(pci, PciTransport::vectors(identity))), message_lines(pointers_to(messages)),
      pin(pci.make_pin(slot)),
      transport(state == nullptr
                    ? PciTransport(identity, memory, PciRoot::place(slot, PciTransport::kBytes), {message_lines, *pin},
                                   std::move(hooks))
                    : PciTransport(identity, memory, PciRoot::place(slot, PciTransport::kBytes), {message_lines, *pin},
                                   std::move(hooks), registers_in<devices::virtio::PciState>(*state))) {}

VirtioDevices::Slot::Slot(std::unique_ptr<Device> owned)
    : device(std::move(owned)), doorbells(device->identity().queue_sizes.size()) {}

devices::virtio::Transport& VirtioDevices::Slot::transport() noexcept {
    return mmio ? static_cast<devices::virtio::Transport&>(mmio->transport) : pci->transport;
}

const devices::virtio::Transport& VirtioDevices::Slot::transport() const noexcept {
    return mmio ? static_cast<const devices::virtio::Transport&>(mmio->transport) : pci->transport;
}

devices::virtio::Negotiation::Hooks VirtioDevices::Slot::hooks() {
    return {[this] { work.signal(); },
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
            }};
}

VirtioDevices::VirtioDevices(kvm::Vm& vm, const GuestMemory& memory, std::vector<std::unique_ptr<Device>> devices,
                             PciRoot* pci, const std::vector<VirtioDeviceState>* states)
    : vm_(vm), memory_(memory), pci_(pci), goes_on_(states != nullptr) {
    assert(states == nullptr || states->size() == devices.size());
    for (std::unique_ptr<Device>& device : devices) {
        slots_.push_back(std::make_shared<Slot>(std::move(device)));
        connect(*slots_.back(), states == nullptr ? nullptr : &(*states)[slots_.size() - 1]);
        if (pci_ != nullptr) {
            const std::shared_ptr<Slot>& slot = slots_.back();
            pci_->bus().insert(slot->pci->slot, {slot, &slot->pci->transport});
        }
    }
}

VirtioDevices::~VirtioDevices() {
    if (pci_ == nullptr) {
        return;
    }
    for (const std::shared_ptr<Slot>& slot : slots_) {
        if (slot->pci) {
            pci_->bus().remove(slot->pci->slot);
            pci_->release_doorbells(slot->pci->slot);
        }
    }
}

unsigned VirtioDevices::free_pci_slot() const {
    unsigned slot = 1;
    while (slot < devices::pci::RootBus::kSlots && pci_->bus().function(slot)) {
        ++slot;
    }
    return slot;
}

/// Gives a device its registers and doorbells.
void VirtioDevices::connect(Slot& slot, const VirtioDeviceState* state) {
    const devices::virtio::Identity& identity = slot.device->identity();
    if (pci_ == nullptr) {
        slot.mmio.emplace(vm_, memory_, slots_.size() - 1, identity, slot.hooks(), state);
        for (std::uint32_t index = 0; index < slot.doorbells.size(); ++index) {
            vm_.attach_ioeventfd(
                slot.doorbells[index].fd(),
                GuestAddress{to_integer(slot.mmio->registers.base) + MmioTransport::kQueueNotifyOffset}, index);
        }
        return;
    }
    const unsigned number = state != nullptr ? state->pci_slot : free_pci_slot();
    if (number == 0 || number >= devices::pci::RootBus::kSlots || pci_->bus().function(number)) {
        throw Error("cannot put the device " + identity.name + " into slot " + std::to_string(number) +
                    " of the PCI bus: there is none that is free (take a snapshot that is whole)");
    }
    slot.pci.emplace(*pci_, memory_, number, identity, slot.hooks(), state);
    std::vector<int> events;
    for (const EventFd& doorbell : slot.doorbells) {
        events.push_back(doorbell.fd());
    }
    pci_->catch_doorbells(number, std::move(events), PciTransport::kDoorbells, PciTransport::kDoorbellStride);
}

void VirtioDevices::let_go(unsigned /*slot*/) noexcept {}

void VirtioDevices::attach_to(devices::Bus& mmio) {
    for (const std::shared_ptr<Slot>& slot : slots_) {
        if (slot->mmio) {
            mmio.attach(to_integer(slot->mmio->registers.base), slot->mmio->registers.size, slot->mmio->transport);
        }
    }
}

std::vector<loader::VirtioMmioHardware> VirtioDevices::describe() const {
    std::vector<loader::VirtioMmioHardware> nodes;
    for (const std::shared_ptr<Slot>& slot : slots_) {
        if (slot->mmio) {
            nodes.push_back({slot->mmio->registers, slot->mmio->gsi, loader::InterruptTrigger::kEdge});
        }
    }
    return nodes;
}

std::vector<DeviceStatistics> VirtioDevices::statistics() const {
    std::vector<DeviceStatistics> devices;
    for (const std::shared_ptr<Slot>& slot : slots_) {
        devices.push_back({slot->device->identity().name,
                           {{"doorbell_turns", slot->rung.load(std::memory_order_relaxed)},
                            {"interrupts", slot->transport().interrupts()}}});
    }
    return devices;
}

std::vector<VirtioDeviceState> VirtioDevices::states() {
    // Who has asked for a pause has waited for it, unless the machine began paused.
    constexpr std::chrono::seconds kPatience{1};
    if (const auto busy = wait_until_paused(std::chrono::steady_clock::now() + kPatience); !busy.empty()) {
        throw UsageError("cannot save the state of the device " + busy.front() + ": it is not paused");
    }
    std::vector<VirtioDeviceState> states;
    for (const std::shared_ptr<Slot>& slot : slots_) {
        const Device& device = *slot->device;
        states.push_back({.name = device.identity().name,
                          .id = device.identity().id,
                          .transport = slot->transport().save(device.queue_states()),
                          .device = device.state(),
                          .pci_slot = slot->pci ? slot->pci->slot : 0});
    }
    return states;
}

void VirtioDevices::release_host(bool flush) {
    if (has_released_host_) {
        return;
    }
    has_released_host_ = true;
    try {
        for (const std::shared_ptr<Slot>& slot : slots_) {
            slot->device->release_host(flush);
        }
    } catch (...) {
        reclaim_host();
        throw;
    }
}

void VirtioDevices::reclaim_host() {
    if (has_released_host_) {
        for (const std::shared_ptr<Slot>& slot : slots_) {
            slot->device->reclaim_host();
        }
        has_released_host_ = false;
    }
}

void VirtioDevices::go_on() noexcept {
    for (const std::shared_ptr<Slot>& slot : slots_) {
        slot->transport().repeat_interrupt();
        slot->work.signal();
        for (EventFd& doorbell : slot->doorbells) {
            doorbell.signal();
        }
    }
}

void VirtioDevices::start(StopRequest& stop, const Sandbox& sandbox) {
    for (const std::shared_ptr<Slot>& slot : slots_) {
        slot->stop = &stop;
        threads_.emplace_back(VirtioThread::Wiring{*slot->device, slot->transport().negotiation(), slot->transport(),
                                                   slot->doorbells, slot->work, stop, sandbox, &slot->rung,
                                                   pause_wanted_, goes_on_});
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
            busy.push_back(slots_[i]->device->identity().name);
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
        const Device& device = *slots_[i]->device;
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
    for (const std::shared_ptr<Slot>& slot : slots_) {
        if (slot->is_overdue) {
            throw Error("cannot reset the guest's device " + slot->device->identity().name +
                        ": the host did not finish what it was given within " + std::to_string(kResetPatience.count()) +
                        " s, and would write to memory that the guest's driver uses for something else by then (see "
                        "whether what the device stands on still answers)");
        }
    }
}

std::vector<std::string> VirtioDevices::failures() const {
    std::vector<std::string> lines;
    for (const std::shared_ptr<Slot>& slot : slots_) {
        if (const std::string why = slot->transport().negotiation().failure(); !why.empty()) {
            lines.push_back(slot->device->identity().name + ": its driver broke a rule: " + why);
        }
    }
    for (const std::string& name : left_) {
        lines.push_back(name + ": the host still has work of it that does not end (see whether what it stands on still "
                               "answers): its memory and its files stay in use until this process has ended");
    }
    return lines;
}

} // namespace vmm
