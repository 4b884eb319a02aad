// The virtio devices of a machine, and what connects them to KVM and to their threads.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <exception>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <stop_token>
#include <string>
#include <string_view>
#include <vector>

#include "devices/bus.hpp"
#include "devices/character_port.hpp"
#include "devices/disk_image.hpp"
#include "devices/tap.hpp"
#include "devices/virtio/balloon.hpp"
#include "devices/virtio/console.hpp"
#include "devices/virtio/device.hpp"
#include "devices/virtio/memory_device.hpp"
#include "devices/virtio/mmio_transport.hpp"
#include "devices/virtio/pci_transport.hpp"
#include "devices/virtio/transport.hpp"
#include "kvm/host/event_fd.hpp"
#include "kvm/host/guest_memory.hpp"
#include "kvm/host/unique_fd.hpp"
#include "kvm/vm.hpp"
#include "loader/hardware.hpp"
#include "prefault/host/cpu_list.hpp"
#include "prefault/host/numa.hpp"
#include "vmm/config.hpp"
#include "vmm/machine/irqfd_line.hpp"
#include "vmm/machine/pci_root.hpp"
#include "vmm/machine/pluggable_memory.hpp"
#include "vmm/machine/virtio_thread.hpp"
#include "vmm/network/kept_frames.hpp"
#include "vmm/network/opened_net.hpp"
#include "vmm/network/user_network.hpp"
#include "vmm/state/machine_state.hpp"
#include "vmm/statistics.hpp"
#include "vmm/stop_request.hpp"

namespace vmm {

/// The services that devices get from the machine, on their own threads, once its guest runs.
struct DeviceServices {
    std::function<std::vector<std::span<std::byte>>()> pinned_memory; ///< guest memory that is pinned in place
    std::function<void(const std::string&)> warn;                     ///< shows the user a warning
    devices::CharacterPort::Callbacks console;                        ///< on the console's thread
};

/// A device, and the program behind it, if there is one. The program must outlive the device.
struct MadeDevice {
    std::unique_ptr<UserNetwork> network;
    std::shared_ptr<KeptFrames> kept_frames; ///< frames that are held back from the host; null if there are none
    std::unique_ptr<devices::virtio::Device> device;
};

/// Opens a disk image, unless it is `opened` already, and makes a device of it. Throws Error.
[[nodiscard]] MadeDevice make_disk(const DiskConfig& disk, const std::string& name, const DeviceServices& services,
                                   const devices::virtio::BlockState& state = {},
                                   devices::DiskImage::Opened opened = {});
/// Opens a tap interface or starts passt, unless it is `opened` already, and makes a device of it. `announced` is the
/// MAC address of this device that the guest knows already. Throws Error.
[[nodiscard]] MadeDevice make_net(const NetConfig& net, const std::string& name, const DeviceServices& services,
                                  const devices::virtio::NetState& state = {},
                                  std::optional<devices::MacAddress> announced = {}, OpenedNet opened = {});

/// How many virtio devices the guest of `config`, whose memory passes check_numa_policy(), has on a host of these
/// nodes.
[[nodiscard]] std::size_t count_virtio_devices(const Config& config, const prefault::NumaTopology& topology);

struct VirtioSet {
    std::vector<std::unique_ptr<devices::virtio::Device>> devices;
    devices::virtio::Console* console = nullptr;          ///< one of them, if there is one
    devices::virtio::Balloon* balloon = nullptr;          ///< one of them, if there is one
    std::vector<devices::virtio::MemoryDevice*> memories; ///< the memory devices, in the order of their regions
    /// The programs behind some of them. They outlive the devices, because the devices ask them for their last
    /// messages.
    std::vector<std::unique_ptr<UserNetwork>> networks;
    /// The frames that such a network holds back from the host, in the order of `networks`; null if it holds back none.
    std::vector<std::shared_ptr<KeptFrames>> kept_frames;
};

/// Opens or starts what the devices of `config` need (images, taps, passt), and makes the devices. `memory` is the
/// memory that the guest can be given while it runs. With `states` the devices go on from them. The states need not be
/// trusted. Throws Error if an image, a tap or passt cannot be had. Throws Error, too, if the states are those of other
/// devices than `config` has; it names the first that differs.
[[nodiscard]] VirtioSet make_virtio_devices(const Config& config, std::span<const PluggablePart> memory,
                                            const DeviceServices& services,
                                            const std::vector<VirtioDeviceState>* states = nullptr);

/// Owns the devices; each has its own registers, interrupts, doorbells and thread. Over MMIO the registers are a page
/// with a line; over PCI they are a function on the bus.
///
/// Threads: the one that made it, but the bus may call the registers on any.
class VirtioDevices {
  public:
    /// Takes at most memory_map::kVirtioGsis.size() devices, or 31 with `pci`; `pci` is null for devices over MMIO. It
    /// must be called after kvm::Vm::create_irqchip(), and `vm`, `memory` and `pci` must outlive it. The devices'
    /// threads run on `cpus`; empty: any. With `states`, one for each device, their transports go on from them: see
    /// go_on(). Throws Error.
    VirtioDevices(kvm::Vm& vm, const GuestMemory& memory, std::vector<std::unique_ptr<devices::virtio::Device>> devices,
                  PciRoot* pci, prefault::CpuList cpus, const std::vector<VirtioDeviceState>* states = nullptr);
    ~VirtioDevices();
    VirtioDevices(const VirtioDevices&) = delete;
    VirtioDevices& operator=(const VirtioDevices&) = delete;

    /// Puts the registers of devices over MMIO on the bus. This object must outlive the use of the bus. Throws Error.
    void attach_to(devices::Bus& mmio);
    /// Returns where the guest finds the devices over MMIO.
    [[nodiscard]] std::vector<loader::VirtioMmioHardware> describe() const;

    // ---- Devices that come and go while the guest runs

    /// Whether the guest has a PCI bus, on which devices can come and go.
    [[nodiscard]] bool has_pci() const noexcept { return pci_ != nullptr; }
    /// The first name of the kind that no device has: "blk3". Threads: any.
    [[nodiscard]] std::string free_name(std::string_view kind) const;
    /// Puts a device on the bus and starts its thread, paused if a pause was asked for. Returns its slot; the caller
    /// must tell the guest of it. Throws UsageError if the machine does not run. Throws Error if no slot is left, or if
    /// the host cannot make a thread. Threads: any.
    unsigned add(MadeDevice made);
    /// The slot of the device of that name; nothing if there is none. Threads: any.
    [[nodiscard]] std::optional<unsigned> slot_of(std::string_view name) const;
    /// Tells that the guest has given up the device in `slot`, and that the device is not on the bus any more. Threads:
    /// any.
    void let_go(unsigned slot) noexcept;
    /// A descriptor that is readable if devices were let go; take_away() must then end their threads.
    [[nodiscard]] int let_go_fd() const noexcept { return let_go_event_.fd(); }
    /// Ends the threads of these devices and destroys them. It waits for their work with the host, but not for long:
    /// see has_left_work(). Threads: one.
    void take_away() noexcept;
    /// Waits until there is no device of that name. Returns false if there is still one at `deadline`, if the machine
    /// ends, or if a stop is requested. Threads: any.
    [[nodiscard]] bool wait_until_gone(std::string_view name, std::chrono::steady_clock::time_point deadline,
                                       const std::stop_token& stop) const;

    /// What each device has counted since it was made. Threads: any.
    [[nodiscard]] std::vector<DeviceStatistics> statistics() const;

    /// The state of each device and of its driver's negotiation. All devices must be paused: see wait_until_paused().
    /// Throws UsageError if one is not.
    [[nodiscard]] std::vector<VirtioDeviceState> states();
    /// Call Device::release_host() and Device::reclaim_host() for all devices. The devices are paused, and must stay so
    /// between the two. A second call does nothing. If release_host() throws, no device has given up anything. Throws
    /// Error.
    void release_host(bool flush);
    void reclaim_host();

    /// Lets devices that were made from states go on. As soon as they have threads, they look at all of their queues
    /// and interrupt their drivers once. It is called when the interrupt controllers have their state and no vCPU runs.
    void go_on() noexcept;

    /// Starts the devices' threads, before the first vCPU runs. They are paused if a pause was asked for. Throws Error.
    void start(StopRequest& stop, const Sandbox& sandbox);

    // Only one of these four functions may be called at a time, from any thread, and none once join() or abandon() has
    // begun. As an exception, end_waiting() and resume() may be called while wait_until_paused() is under way.

    /// Asks all devices at once to pause. No vCPU may run any more.
    void pause() noexcept;
    /// Returns when all devices are paused, or at `deadline`, with the names of those that are not. After resume() or
    /// end_waiting() it returns soon. Before start() all are paused.
    [[nodiscard]] std::vector<std::string> wait_until_paused(std::chrono::steady_clock::time_point deadline);
    void resume() noexcept;
    void end_waiting() noexcept;
    /// Ends the threads. No vCPU may run any more. It waits for the devices' work with the host, but not for ever: see
    /// has_left_work(). Rethrows the failure of the first device that failed. Throws Error if the machine was stopped
    /// because a reset took longer than a driver waits.
    void join();

    /// Does what join() does, after something else has failed already.
    void abandon() noexcept;

    /// Whether the host still works for a device, and may write to guest memory. It may be called after join() or
    /// abandon(). If it is true, neither this object nor anything from which it was made may ever be destroyed.
    [[nodiscard]] bool has_left_work() const noexcept;
    /// In that case, destroys the other devices, so that they give up what they have on the host: sockets, for example.
    void destroy_idle() noexcept;

    /// A line for each device whose driver broke a rule, or whose work with the host does not end.
    [[nodiscard]] std::vector<std::string> failures() const;

  private:
    [[nodiscard]] std::exception_ptr end_threads() noexcept;

    /// A device's registers as a page of memory.
    struct OverMmio {
        OverMmio(kvm::Vm& vm, const GuestMemory& memory, std::size_t place, const devices::virtio::Identity& identity,
                 devices::virtio::Negotiation::Hooks hooks, const VirtioDeviceState* state);

        GuestRange registers;
        std::uint32_t gsi;
        IrqfdLine line;
        devices::virtio::MmioTransport transport;
    };
    /// A device's registers as a function on the PCI bus.
    struct OverPci {
        OverPci(PciRoot& pci, const GuestMemory& memory, unsigned number, const devices::virtio::Identity& identity,
                devices::virtio::Negotiation::Hooks hooks, const VirtioDeviceState* state);

        unsigned slot;
        std::vector<std::unique_ptr<devices::pci::MessageLine>> messages;
        std::vector<devices::pci::MessageLine*> message_lines;
        std::unique_ptr<devices::pci::PinLine> pin;
        devices::virtio::PciTransport transport;
    };

    struct Slot {
        explicit Slot(MadeDevice made);
        [[nodiscard]] devices::virtio::Negotiation::Hooks hooks();
        [[nodiscard]] devices::virtio::Transport& transport() noexcept;
        [[nodiscard]] const devices::virtio::Transport& transport() const noexcept;

        std::unique_ptr<UserNetwork> network; ///< of a device that was added while the guest ran
        std::unique_ptr<devices::virtio::Device> device;
        EventFd work;
        std::deque<EventFd> doorbells;
        std::atomic<std::uint64_t> rung{0};      ///< turns that doorbells began
        std::atomic<StopRequest*> stop{nullptr}; ///< from start() on, before the guest runs
        std::atomic<bool> is_overdue{false};     ///< a reset took longer than a driver waits
        std::optional<OverMmio> mmio;            ///< one of these two is there
        std::optional<OverPci> pci;
        std::atomic<bool> is_let_go{false};
        std::optional<VirtioThread> thread; // last: it uses all of the above
    };
    using Slots = std::vector<std::shared_ptr<Slot>>;

    [[nodiscard]] Slots slots() const;
    void connect(Slot& slot, const VirtioDeviceState* state);
    void start_thread_of(Slot& slot);
    void remove_from_bus(const Slot& slot) noexcept;
    [[nodiscard]] unsigned free_pci_slot() const;

    kvm::Vm& vm_;
    const GuestMemory& memory_;
    PciRoot* pci_;
    const prefault::CpuList cpus_;
    mutable std::mutex mutex_; ///< guards all below
    /// Shared with the bus, because an access of the guest may be under way when a device is removed.
    Slots slots_;
    std::vector<std::shared_ptr<Slot>> stuck_; ///< were let go, and the host or a vCPU still uses them
    const Sandbox* sandbox_ = nullptr;         ///< from start() on
    StopRequest* stop_ = nullptr;              ///< from start() on
    bool is_ending_ = false;
    mutable std::condition_variable_any gone_;
    EventFd let_go_event_;
    bool pause_wanted_ = false;
    bool goes_on_ = false; ///< the devices were made from states
    bool has_released_host_ = false;
    std::vector<std::string> left_; ///< the names of the devices whose work with the host goes on
};

} // namespace vmm
