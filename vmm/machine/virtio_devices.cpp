#include "vmm/machine/virtio_devices.hpp"

#include <algorithm>
#include <array>
#include <cassert>
#include <chrono>
#include <cstring>
#include <exception>
#include <optional>
#include <thread>
#include <utility>
#include <variant>

#include "devices/frame_stream.hpp"
#include "devices/tap.hpp"
#include "devices/virtio/block.hpp"
#include "devices/virtio/net.hpp"
#include "devices/virtio/rng.hpp"
#include "devices/virtio/vsock.hpp"
#include "kvm/host/error.hpp"
#include "kvm/host/text.hpp"
#include "vmm/machine/memory_map.hpp"

namespace vmm {

using devices::virtio::Device;
using devices::virtio::MmioTransport;
using devices::virtio::PciTransport;

namespace {

/// How long a vCPU that resets a device waits until the device has finished its work with the host. Linux's driver
/// frees its rings as soon as it has written the reset.
constexpr std::chrono::seconds kResetPatience{2};
/// How long the end of the machine waits for the last work that devices have with the host.
constexpr std::chrono::milliseconds kStopPatience{700};
/// How long a disk that is in use is waited for.
constexpr std::chrono::milliseconds kDiskPatience{500};

/// A device in a configuration.
struct PlannedDevice {
    devices::virtio::DeviceId id{};
    std::string name;
};

/// Returns the devices in the order in which make_virtio_devices() makes them.
std::vector<PlannedDevice> planned_devices(const Config& config, std::size_t memory_devices) {
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
    for (std::size_t i = 0; i < memory_devices; ++i) {
        planned.push_back({DeviceId::kMemory, "mem" + std::to_string(i)});
    }
    add_if(config.rng, DeviceId::kEntropy, "rng0");
    add_if(config.console.has_value(), DeviceId::kConsole, "con0");
    return planned;
}

std::string_view kind_in(std::string_view name) {
    const std::size_t last = name.find_last_not_of("0123456789");
    return last == std::string_view::npos ? std::string_view{} : name.substr(0, last + 1);
}

/// Whether both names are the same word with a number. The numbers depend on the devices that were added and removed
/// while the guest ran.
bool is_numbered_alike(std::string_view name, std::string_view other) {
    constexpr std::size_t kMostDigits = 3;
    const std::string_view kind = kind_in(name);
    return kind == kind_in(other) && name.size() > kind.size() && name.size() <= kind.size() + kMostDigits;
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
        if (states[i].id != planned[i].id || !is_numbered_alike(states[i].name, planned[i].name)) {
            throw Error(tried + "it has the device " + shown(states[i].name) + " where this configuration has " +
                        planned[i].name + advice);
        }
    }
}

/// Returns the devices of `config`. If they go on from `states`, they have the names that they had there. Throws Error
/// if the states are those of other devices.
std::vector<PlannedDevice> devices_of(const Config& config, std::size_t memory_devices,
                                      const std::vector<VirtioDeviceState>* states) {
    std::vector<PlannedDevice> planned = planned_devices(config, memory_devices);
    if (states != nullptr) {
        compare(planned, *states);
        for (std::size_t i = 0; i < planned.size(); ++i) {
            planned[i].name = (*states)[i].name;
        }
    }
    return planned;
}

/// The states from which devices go on, one after the other.
class SavedDevices {
  public:
    /// `made` are the devices that have been made until now. Both must outlive this object. `states` is null if there
    /// is nothing to go on from.
    SavedDevices(const std::vector<VirtioDeviceState>* states, const std::vector<std::unique_ptr<Device>>& made)
        : states_(states), made_(made) {}

    /// The state of the device that is made next. Throws Error if it is that of another kind.
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

    /// The MAC address that the guest knows of the network device that is made next; nothing if the device begins anew.
    /// It comes from the saved configuration space, and stays the same even if another one is configured.
    [[nodiscard]] std::optional<devices::MacAddress> next_mac() const {
        if (states_ == nullptr) {
            return std::nullopt;
        }
        const std::vector<std::byte>& config = negotiation_of((*states_)[made_.size()].transport).config;
        devices::MacAddress mac{};
        if (config.size() < mac.size()) { // the transport refuses it later
            return std::nullopt;
        }
        std::memcpy(mac.data(), config.data(), mac.size());
        return mac;
    }

  private:
    const std::vector<VirtioDeviceState>* states_;
    const std::vector<std::unique_ptr<Device>>& made_;
};

} // namespace

std::size_t count_virtio_devices(const Config& config, const prefault::NumaTopology& topology) {
    return config.disks.size() + config.nets.size() + (config.vsock ? 1U : 0U) + (config.balloon ? 1U : 0U) +
           pluggable_parts(config, topology).size() + (config.rng ? 1U : 0U) + (config.console ? 1U : 0U);
}

MadeDevice make_disk(const DiskConfig& disk, const std::string& name, const DeviceServices& services,
                     const devices::virtio::BlockState& state, devices::DiskImage::Opened opened) {
    const devices::DiskImage::Options options{.read_only = disk.read_only,
                                              .direct = disk.direct,
                                              .patience = kDiskPatience,
                                              .lock = disk.lock,
                                              .sector_bytes = disk.sector_bytes};
    devices::DiskImage image = opened.file ? devices::DiskImage(disk.path, std::move(opened), options)
                                           : devices::DiskImage(disk.path, options);
    MadeDevice made;
    made.device = std::make_unique<devices::virtio::Block>(
        name, std::move(image),
        devices::virtio::BlockConfig{disk.queues, disk.id, services.pinned_memory, services.warn, disk.io,
                                     disk.moderation},
        state);
    return made;
}

MadeDevice make_net(const NetConfig& net, const std::string& name, const DeviceServices& services,
                    const devices::virtio::NetState& state, std::optional<devices::MacAddress> announced,
                    OpenedNet opened) {
    // In user mode there is nobody else on the guest's network, so all guests may have the same address.
    const devices::MacAddress mac =
        net.mac.empty() ? devices::make_mac_address(net.user ? name : net.tap) : devices::parse_mac_address(net.mac);
    MadeDevice made;
    if (!net.user) {
        auto links = opened.is_there() ? devices::Tap::take_queues(std::move(opened.taps), net.tap)
                                       : devices::Tap::make_queues(net.tap, net.queues);
        made.device = std::make_unique<devices::virtio::Net>(
            name, std::move(links), mac,
            [warn = services.warn, name, tap = net.tap] {
                warn(name + ": the tap interface " + tap + " is gone: the guest's link is down");
            },
            state, announced);
        return made;
    }
    auto filter = opened.is_there() ? make_frame_filter(net, std::move(opened.addresses)) : make_frame_filter(net);
    made.kept_frames = filter ? std::make_shared<KeptFrames>(name, services.warn) : nullptr;
    made.network = opened.is_there()
                       ? std::make_unique<UserNetwork>(std::move(opened.passt), std::move(opened.passt_errors))
                       : std::make_unique<UserNetwork>(net);
    made.device = std::make_unique<devices::virtio::Net>(
        name,
        std::make_unique<devices::FrameStream>(made.network->take_socket(), std::move(filter),
                                               [kept = made.kept_frames](const std::string& to) { kept->add(to); }),
        mac,
        [warn = services.warn, name, network = made.network.get()] {
            const std::string words = network->last_words();
            warn(name + ": passt has ended" + (words.empty() ? "" : ", and said '" + words + "'") +
                 ": the guest's link is down");
        },
        state, announced);
    return made;
}

VirtioSet make_virtio_devices(const Config& config, std::span<const PluggablePart> memory,
                              const DeviceServices& services, const std::vector<VirtioDeviceState>* states) {
    VirtioSet set;
    std::vector<std::unique_ptr<Device>>& devices = set.devices;
    const SavedDevices saved(states, devices);
    const std::vector<PlannedDevice> planned = devices_of(config, memory.size(), states);
    const auto next_name = [&] { return planned.at(devices.size()).name; };
    for (const DiskConfig& disk : config.disks) {
        devices.push_back(make_disk(disk, next_name(), services, saved.next<devices::virtio::BlockState>()).device);
    }
    for (const NetConfig& net : config.nets) {
        MadeDevice made =
            make_net(net, next_name(), services, saved.next<devices::virtio::NetState>(), saved.next_mac());
        devices.push_back(std::move(made.device));
        if (made.network) {
            set.networks.push_back(std::move(made.network));
            set.kept_frames.push_back(std::move(made.kept_frames));
        }
    }
    if (config.vsock) {
        devices.push_back(std::make_unique<devices::virtio::Vsock>(
            next_name(),
            devices::virtio::VsockConfig{
                .guest_cid = config.vsock->cid, .path = config.vsock->path, .warn = services.warn},
            saved.next<devices::virtio::VsockState>()));
    }
    if (config.balloon) {
        auto balloon = std::make_unique<devices::virtio::Balloon>(next_name(), config.balloon->target_bytes,
                                                                  config.balloon->reporting,
                                                                  saved.next<devices::virtio::BalloonState>());
        set.balloon = balloon.get();
        devices.push_back(std::move(balloon));
    }
    for (const PluggablePart& part : memory) {
        auto device = std::make_unique<devices::virtio::MemoryDevice>(next_name(), part.device,
                                                                      saved.next<devices::virtio::MemoryState>());
        set.memories.push_back(device.get());
        devices.push_back(std::move(device));
    }
    if (config.rng) {
        devices.push_back(std::make_unique<devices::virtio::Rng>(next_name()));
    }
    if (config.console) {
        auto console = std::make_unique<devices::virtio::Console>(
            next_name(), services.console, config.console->size ? config.console->size() : std::nullopt,
            devices::virtio::Console::kDefaultOutputBytes, saved.next<devices::virtio::ConsoleState>());
        set.console = console.get();
        devices.push_back(std::move(console));
    }
    return set;
}

namespace {

/// The state from which a device's registers go on. Throws Error if it is that of another kind of registers.
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

VirtioDevices::Slot::Slot(MadeDevice made)
    : network(std::move(made.network)), device(std::move(made.device)),
      doorbells(device->identity().queue_sizes.size()) {}

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
                             PciRoot* pci, prefault::CpuList cpus, const std::vector<VirtioDeviceState>* states)
    : vm_(vm), memory_(memory), pci_(pci), cpus_(std::move(cpus)), goes_on_(states != nullptr) {
    assert(states == nullptr || states->size() == devices.size());
    for (std::unique_ptr<Device>& device : devices) {
        MadeDevice made;
        made.device = std::move(device);
        slots_.push_back(std::make_shared<Slot>(std::move(made)));
        connect(*slots_.back(), states == nullptr ? nullptr : &(*states)[slots_.size() - 1]);
        if (pci_ != nullptr) {
            const std::shared_ptr<Slot>& slot = slots_.back();
            pci_->bus().insert(slot->pci->slot, {slot, &slot->pci->transport});
        }
    }
}

VirtioDevices::~VirtioDevices() {
    for (const std::shared_ptr<Slot>& slot : slots_) {
        remove_from_bus(*slot);
    }
}

void VirtioDevices::remove_from_bus(const Slot& slot) noexcept {
    if (slot.pci) {
        pci_->bus().remove(slot.pci->slot);
        pci_->release_doorbells(slot.pci->slot);
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

// ---- Devices that come and go while the guest runs

std::string VirtioDevices::free_name(std::string_view kind) const {
    const std::lock_guard hold(mutex_);
    std::string name;
    for (unsigned number = 0;; ++number) {
        name = std::string(kind) + std::to_string(number);
        const auto has_it = [&name](const auto& slot) { return slot->device->identity().name == name; };
        if (std::ranges::none_of(slots_, has_it) && std::ranges::none_of(stuck_, has_it)) {
            return name;
        }
    }
}

unsigned VirtioDevices::add(MadeDevice made) {
    const std::lock_guard hold(mutex_);
    assert(pci_ != nullptr);
    if (is_ending_ || stop_ == nullptr) {
        throw UsageError("cannot give the guest the device " + made.device->identity().name +
                         ": the machine does not run");
    }
    if (free_pci_slot() >= devices::pci::RootBus::kSlots) {
        throw Error("cannot give the guest the device " + made.device->identity().name +
                    ": all slots of its PCI bus are taken (take a device away first)");
    }
    const auto slot = std::make_shared<Slot>(std::move(made));
    connect(*slot, nullptr);
    start_thread_of(*slot);
    slots_.push_back(slot);
    pci_->bus().insert(slot->pci->slot, {slot, &slot->pci->transport});
    return slot->pci->slot;
}

std::optional<unsigned> VirtioDevices::slot_of(std::string_view name) const {
    for (const std::shared_ptr<Slot>& slot : slots()) {
        if (slot->pci && slot->device->identity().name == name) {
            return slot->pci->slot;
        }
    }
    return std::nullopt;
}

void VirtioDevices::let_go(unsigned slot) noexcept {
    for (const std::shared_ptr<Slot>& each : slots()) {
        if (each->pci && each->pci->slot == slot && !each->is_let_go.exchange(true)) {
            pci_->bus().remove(slot);
            pci_->release_doorbells(slot);
            let_go_event_.signal();
        }
    }
}

void VirtioDevices::take_away() noexcept {
    let_go_event_.clear();
    const auto deadline = std::chrono::steady_clock::now() + kStopPatience;
    Slots all = slots();
    std::erase_if(all, [](const std::shared_ptr<Slot>& slot) { return !slot->is_let_go; });
    for (std::shared_ptr<Slot>& slot : all) {
        const bool is_done = slot->thread->join_until(deadline) && slot->device->is_idle();
        {
            const std::lock_guard hold(mutex_);
            std::erase(slots_, slot);
            if (!is_done) {
                left_.push_back(slot->device->identity().name);
                stuck_.push_back(slot);
            }
        }
        // A vCPU in the middle of an access holds the device, too. It may not be the last owner, because it may not
        // close files.
        constexpr std::chrono::milliseconds kLookAfter{1};
        while (slot.use_count() > 1 && is_done && std::chrono::steady_clock::now() < deadline) {
            std::this_thread::sleep_for(kLookAfter);
        }
        if (slot.use_count() > 1 && is_done) {
            const std::lock_guard hold(mutex_);
            stuck_.push_back(slot);
        }
        slot.reset(); // The device's files must be closed before anybody is told that it is gone.
        gone_.notify_all();
    }
}

bool VirtioDevices::wait_until_gone(std::string_view name, std::chrono::steady_clock::time_point deadline,
                                    const std::stop_token& stop) const {
    std::unique_lock hold(mutex_);
    const auto is_gone = [&] {
        return std::ranges::none_of(slots_, [name](const auto& slot) { return slot->device->identity().name == name; });
    };
    static_cast<void>(gone_.wait_until(hold, stop, deadline, [&] { return is_gone() || is_ending_; }));
    return is_gone();
}

VirtioDevices::Slots VirtioDevices::slots() const {
    const std::lock_guard hold(mutex_);
    return slots_;
}

/// The lock must be held.
void VirtioDevices::start_thread_of(Slot& slot) {
    slot.stop = stop_;
    slot.thread.emplace(VirtioThread::Wiring{*slot.device, slot.transport().negotiation(), slot.transport(),
                                             slot.doorbells, slot.work, *stop_, *sandbox_, &slot.rung, pause_wanted_,
                                             goes_on_, cpus_});
}

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
    for (const std::shared_ptr<Slot>& slot : slots()) {
        devices.push_back({slot->device->identity().name,
                           {{"doorbell_turns", slot->rung.load(std::memory_order_relaxed)},
                            {"interrupts", slot->transport().interrupts()}}});
    }
    return devices;
}

std::vector<VirtioDeviceState> VirtioDevices::states() {
    // The caller has waited for its pause, unless the machine began paused. In that case this waits.
    constexpr std::chrono::seconds kPatience{1};
    if (const auto busy = wait_until_paused(std::chrono::steady_clock::now() + kPatience); !busy.empty()) {
        throw UsageError("cannot save the state of the device " + busy.front() + ": it is not paused");
    }
    std::vector<VirtioDeviceState> states;
    for (const std::shared_ptr<Slot>& slot : slots()) {
        const Device& device = *slot->device;
        states.push_back({.name = device.identity().name,
                          .id = device.identity().id,
                          .transport = slot->transport().save(device.queue_states()),
                          .device = device.state(),
                          .pci_slot = slot->pci ? slot->pci->slot : 0});
    }
    // The order is that of a configuration, whenever the devices were added.
    std::ranges::stable_sort(states, {}, [](const VirtioDeviceState& state) {
        constexpr std::array<std::string_view, 7> kOrder{"blk", "net", "vsock", "balloon", "mem", "rng", "con"};
        return std::ranges::find(kOrder, kind_in(state.name)) - kOrder.begin();
    });
    return states;
}

void VirtioDevices::release_host(bool flush) {
    if (has_released_host_) {
        return;
    }
    has_released_host_ = true;
    try {
        for (const std::shared_ptr<Slot>& slot : slots()) {
            slot->device->release_host(flush);
        }
    } catch (...) {
        reclaim_host();
        throw;
    }
}

void VirtioDevices::reclaim_host() {
    if (has_released_host_) {
        for (const std::shared_ptr<Slot>& slot : slots()) {
            slot->device->reclaim_host();
        }
        has_released_host_ = false;
    }
}

void VirtioDevices::go_on() noexcept {
    for (const std::shared_ptr<Slot>& slot : slots()) {
        slot->transport().repeat_interrupt();
        slot->work.signal();
        for (const EventFd& doorbell : slot->doorbells) {
            doorbell.signal();
        }
    }
}

void VirtioDevices::start(StopRequest& stop, const Sandbox& sandbox) {
    const std::lock_guard hold(mutex_);
    stop_ = &stop;
    sandbox_ = &sandbox;
    for (const std::shared_ptr<Slot>& slot : slots_) {
        start_thread_of(*slot);
    }
    goes_on_ = false; // devices that are added later begin anew
}

void VirtioDevices::pause() noexcept {
    const std::lock_guard hold(mutex_);
    pause_wanted_ = true;
    for (const std::shared_ptr<Slot>& slot : slots_) {
        if (slot->thread) {
            slot->thread->pause();
        }
    }
}

std::vector<std::string> VirtioDevices::wait_until_paused(std::chrono::steady_clock::time_point deadline) {
    std::vector<std::string> busy;
    for (const std::shared_ptr<Slot>& slot : slots()) {
        if (slot->thread && !slot->thread->wait_until_paused(deadline)) {
            busy.push_back(slot->device->identity().name);
        }
    }
    return busy;
}

void VirtioDevices::resume() noexcept {
    const std::lock_guard hold(mutex_);
    pause_wanted_ = false;
    for (const std::shared_ptr<Slot>& slot : slots_) {
        if (slot->thread) {
            slot->thread->resume();
        }
    }
}

void VirtioDevices::end_waiting() noexcept {
    for (const std::shared_ptr<Slot>& slot : slots()) {
        if (slot->thread) {
            slot->thread->end_waiting();
        }
    }
}

/// Ends all threads. Returns the first failure.
std::exception_ptr VirtioDevices::end_threads() noexcept {
    Slots ending;
    {
        const std::lock_guard hold(mutex_);
        is_ending_ = true;
        ending = slots_;
    }
    gone_.notify_all();
    const auto deadline = std::chrono::steady_clock::now() + kStopPatience;
    for (const std::shared_ptr<Slot>& slot : ending) {
        if (slot->thread) {
            slot->thread->end(); // all of them end at the same time, not one after the other
        }
    }
    std::exception_ptr failure;
    std::vector<std::string> left;
    for (const std::shared_ptr<Slot>& slot : ending) {
        const bool joined = !slot->thread || slot->thread->join_until(deadline);
        if (joined && slot->thread && !failure) {
            failure = slot->thread->failure();
        }
        if (!joined || !slot->device->is_idle()) {
            left.push_back(slot->device->identity().name);
        }
    }
    const std::lock_guard hold(mutex_);
    left_.insert(left_.end(), left.begin(), left.end());
    if (left_.empty()) {
        for (const std::shared_ptr<Slot>& slot : slots_) {
            slot->thread.reset();
        }
    }
    return failure;
}

bool VirtioDevices::has_left_work() const noexcept {
    const std::lock_guard hold(mutex_);
    return !left_.empty();
}

void VirtioDevices::destroy_idle() noexcept {
    const std::lock_guard hold(mutex_);
    const auto idle = std::ranges::stable_partition(slots_, [this](const std::shared_ptr<Slot>& slot) {
        return std::ranges::find(left_, slot->device->identity().name) != left_.end();
    });
    for (const std::shared_ptr<Slot>& slot : idle) {
        remove_from_bus(*slot);
    }
    slots_.erase(idle.begin(), idle.end());
}

void VirtioDevices::abandon() noexcept {
    static_cast<void>(end_threads());
}

void VirtioDevices::join() {
    if (const std::exception_ptr failure = end_threads()) {
        std::rethrow_exception(failure);
    }
    for (const std::shared_ptr<Slot>& slot : slots()) {
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
    for (const std::shared_ptr<Slot>& slot : slots()) {
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
