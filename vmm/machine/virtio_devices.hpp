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

/// What devices ask of the machine, on their own threads, once its guest runs.
struct DeviceServices {
    std::function<std::vector<std::span<std::byte>>()> pinned_memory; ///< guest memory that is pinned in place
    std::function<void(const std::string&)> warn;                     ///< the user
    devices::CharacterPort::Callbacks console;                        ///< on the console's thread
};

/// A device, and the program that it stands on, if there is one: that outlives it.
struct MadeDevice {
    std::unique_ptr<UserNetwork> network;
    std::shared_ptr<KeptFrames> kept_frames; ///< what the network keeps from the host; null if it keeps nothing
    std::unique_ptr<devices::virtio::Device> device;
};

/// Opens a disk image, unless it is `opened` already, and makes a device of it. Throws Error.
[[nodiscard]] MadeDevice make_disk(const DiskConfig& disk, const std::string& name, const DeviceServices& services,
                                   const devices::virtio::BlockState& state = {},
                                   devices::DiskImage::Opened opened = {});
/// Opens a tap interface or starts passt, unless it is `opened` already, and makes a device of it. `announced` is the
/// address that the guest knows of it already. Throws Error.
[[nodiscard]] MadeDevice make_net(const NetConfig& net, const std::string& name, const DeviceServices& services,
                                  const devices::virtio::NetState& state = {},
                                  std::optional<devices::MacAddress> announced = {}, OpenedNet opened = {});

/// How many virtio devices the guest of `config`, whose memory passes check_numa_policy(), has on a host of these
/// nodes.
[[nodiscard]] std::size_t count_virtio_devices(const Config& config, const prefault::NumaTopology& topology);

struct VirtioSet {
    std::vector<std::unique_ptr<devices::virtio::Device>> devices;
    devices::virtio::Console* console = nullptr;          ///< one of them, if there is one
    devices::virtio::Balloon* balloon = nullptr;          ///< likewise
    std::vector<devices::virtio::MemoryDevice*> memories; ///< likewise, in the order of their regions
    /// The programs that some of them stand on. They outlive the devices, which ask them for their last words.
    std::vector<std::unique_ptr<UserNetwork>> networks;
    /// What such a network keeps from the host, in the order of `networks`; null if it keeps nothing.
    std::vector<std::shared_ptr<KeptFrames>> kept_frames;
};

/// Opens or starts what the devices of `config` stand on (images, taps, passt). Throws Error: one of them cannot be
/// had. `memory` is what the guest can be given while it runs. With `states` the devices go on from them; they come
/// from anywhere. Throws Error, too, if they are those of other devices than `config` has: it names the first that
/// differs.
[[nodiscard]] VirtioSet make_virtio_devices(const Config& config, std::span<const PluggablePart> memory,
                                            const DeviceServices& services,
                                            const std::vector<VirtioDeviceState>* states = nullptr);

/// Owns the devices; each has its own registers, interrupts, doorbells and thread. Over MMIO the registers are a page
/// with a line; over PCI they are a function on the bus.
///
/// Threads: the one that made it, but for what is on the bus.
class VirtioDevices {
  public:
    /// At most memory_map::kVirtioGsis.size() of them, and 31 with `pci`; that is null for devices over MMIO. After
    /// kvm::Vm::create_irqchip(). `vm`, `memory` and `pci` outlive it. Their threads run on `cpus`; empty: any. With
    /// `states`, one for each device, their transports go on from them: see go_on(). Throws Error.
    VirtioDevices(kvm::Vm& vm, const GuestMemory& memory, std::vector<std::unique_ptr<devices::virtio::Device>> devices,
                  PciRoot* pci, prefault::CpuList cpus, const std::vector<VirtioDeviceState>* states = nullptr);
    ~VirtioDevices();
    VirtioDevices(const VirtioDevices&) = delete;
    VirtioDevices& operator=(const VirtioDevices&) = delete;

    /// Puts the registers of devices over MMIO on the bus, which outlives its use. Throws Error.
    void attach_to(devices::Bus& mmio);
    /// Where the guest finds these.
    [[nodiscard]] std::vector<loader::VirtioMmioHardware> describe() const;

    // --- Devices that come and go while the guest runs
    // ----------------------------------------------------------------

    /// Whether the guest has a PCI bus, on which devices can come and go.
    [[nodiscard]] bool has_pci() const noexcept { return pci_ != nullptr; }
    /// The first name of the kind that no device has: "blk3". Threads: any.
    [[nodiscard]] std::string free_name(std::string_view kind) const;
    /// Puts a device on the bus, and starts its thread, paused if a pause was asked for. Returns its slot, which the
    /// guest is to be told of. Throws UsageError: the machine does not run. Throws Error: there is no slot left, or the
    /// host cannot make a thread. Threads: any.
    unsigned add(MadeDevice made);
    /// The slot of the device of that name; nothing if there is none. Threads: any.
    [[nodiscard]] std::optional<unsigned> slot_of(std::string_view name) const;
    /// The guest does without the device in `slot` from now on, which is on the bus no more. Threads: any.
    void let_go(unsigned slot) noexcept;
    /// Readable when devices were let go, whose threads take_away() is to end.
    [[nodiscard]] int let_go_fd() const noexcept { return let_go_event_.fd(); }
    /// Ends the threads of these devices and destroys them. Waits for their work with the host, but not for long: see
    /// has_left_work(). Threads: one.
    void take_away() noexcept;
    /// Waits until there is no device of that name; false if there is one at `deadline`, or if the machine ends, or a
    /// stop is requested. Threads: any.
    [[nodiscard]] bool wait_until_gone(std::string_view name, std::chrono::steady_clock::time_point deadline,
                                       const std::stop_token& stop) const;

    /// What each device has counted since it was made. Threads: any.
    [[nodiscard]] std::vector<DeviceStatistics> statistics() const;

    /// Where each device and its driver are. All are paused: see wait_until_paused(). Throws UsageError: one is not.
    [[nodiscard]] std::vector<VirtioDeviceState> states();
    /// All of them as Device::release_host() and Device::reclaim_host(): they are paused, and stay so between the two.
    /// A second call does nothing. If release_host() throws, none has given up anything. Throws Error.
    void release_host(bool flush);
    void reclaim_host();

    /// Lets devices that were made from states go on. As soon as they have threads they look at all of their queues and
    /// interrupt their drivers once. It is called when the interrupt controllers have their state and no vCPU runs.
    void go_on() noexcept;

    /// Starts the devices' threads, before the first vCPU runs. They are paused if a pause was asked for. Throws Error.
    void start(StopRequest& stop, const Sandbox& sandbox);

    // One call of these four at a time, from any thread, and none once join() or abandon() has begun; but end_waiting()
    // and resume() also while wait_until_paused() is under way.

    /// Asks all devices for a pause at once. No vCPU runs any more.
    void pause() noexcept;
    /// Returns when all are paused, or at `deadline`: the names of those that are not. After resume() or end_waiting()
    /// it returns soon. Before start() all are paused.
    [[nodiscard]] std::vector<std::string> wait_until_paused(std::chrono::steady_clock::time_point deadline);
    void resume() noexcept;
    void end_waiting() noexcept;
    /// Ends the threads, once no vCPU runs any more. Waits for the devices' work with the host, but not for ever: see
    /// has_left_work(). Rethrows the failure of the first that failed. Throws Error if a reset took longer than a
    /// driver waits, for which the machine was stopped.
    void join();

    /// Does what join() does, after something else has failed already.
    void abandon() noexcept;

    /// After join() or abandon(): whether the host still works for a device, and writes to guest memory. Then neither
    /// this nor anything that it was made from may ever be destroyed.
    [[nodiscard]] bool has_left_work() const noexcept;
    /// Destroys the other devices then, so that what they have on the host goes: sockets, say.
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

        std::unique_ptr<UserNetwork> network; ///< of a device that came while the guest ran
        std::unique_ptr<devices::virtio::Device> device;
        EventFd work;
        std::deque<EventFd> doorbells;
        std::atomic<std::uint64_t> rung{0};      ///< turns that doorbells began
        std::atomic<StopRequest*> stop{nullptr}; ///< from start() on, before the guest runs
        std::atomic<bool> is_overdue{false};     ///< the device was not done when the patience with a reset ended
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
    mutable std::mutex mutex_; ///< guards what follows
    /// Shared with the bus: an access of the guest may be under way when a device goes.
    Slots slots_;
    std::vector<std::shared_ptr<Slot>> stuck_; ///< were let go, and the host or a vCPU still has them
    const Sandbox* sandbox_ = nullptr;         ///< from start() on
    StopRequest* stop_ = nullptr;              ///< likewise
    bool is_ending_ = false;
    mutable std::condition_variable_any gone_;
    EventFd let_go_event_;
    bool pause_wanted_ = false;
    bool goes_on_ = false; ///< from states
    bool has_released_host_ = false;
    std::vector<std::string> left_; ///< the names of the devices whose work goes on
};

} // namespace vmm
