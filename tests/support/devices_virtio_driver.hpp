// A well-behaved small virtio driver, for tests of the devices.
//
// Most tests need only VirtioRig. It has guest memory, an interrupt line, a MmioTransport and a driver for one device,
// and acts as the device's thread, in the thread of the test:
//
//     Block block{...};                                      // any virtio::Device
//     VirtioRig rig{block};
//     ASSERT_TRUE(rig.start());                              // negotiates by the registers, up to DRIVER_OK
//     DriverQueue& queue = rig.queue(0);
//     const GuestAddress header = rig.allocate(16), status = rig.allocate(1);
//     rig.memory().store(header, Header{...});
//     const auto head = queue.add({{header, 16}, {status, 1, kWritable}});    // a chain, made and published
//     rig.ring(0);                                           // the doorbell, if the device wants it
//     const auto used = rig.wait_for_used(0);                // pumps until something is used; nothing if none comes
//     EXPECT_EQ(used->id, head);
//     EXPECT_EQ(rig.irq().take(), 1U);
//
// settle() pumps until nothing more happens at once; pump_until() pumps until a condition holds. reset() resets the
// device by its Status register and waits for the reset. rig.driver() gives access to single registers. The descriptors
// that the device waits for (sources()) are polled, so devices with real file descriptors work unchanged.
#pragma once

#include <poll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cassert>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <initializer_list>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <span>
#include <utility>
#include <vector>

#include "devices/virtio/device.hpp"
#include "devices/virtio/mmio_transport.hpp"
#include "devices/virtio/queue.hpp"
#include "kvm/host/guest_memory.hpp"
#include "kvm/host/unique_fd.hpp"
#include "support/devices_recording_irq.hpp"
#include "support/host_waiting.hpp"

namespace vmm::devices::testing {

/// Offsets of registers (virtio 1.2, 4.2.2), as the driver knows them.
namespace reg {
inline constexpr std::uint64_t kMagicValue = 0x000;
inline constexpr std::uint64_t kVersion = 0x004;
inline constexpr std::uint64_t kDeviceId = 0x008;
inline constexpr std::uint64_t kVendorId = 0x00c;
inline constexpr std::uint64_t kDeviceFeatures = 0x010;
inline constexpr std::uint64_t kDeviceFeaturesSel = 0x014;
inline constexpr std::uint64_t kDriverFeatures = 0x020;
inline constexpr std::uint64_t kDriverFeaturesSel = 0x024;
inline constexpr std::uint64_t kQueueSel = 0x030;
inline constexpr std::uint64_t kQueueSizeMax = 0x034;
inline constexpr std::uint64_t kQueueSize = 0x038;
inline constexpr std::uint64_t kQueueReady = 0x044;
inline constexpr std::uint64_t kQueueNotify = 0x050;
inline constexpr std::uint64_t kInterruptStatus = 0x060;
inline constexpr std::uint64_t kInterruptAck = 0x064;
inline constexpr std::uint64_t kStatus = 0x070;
inline constexpr std::uint64_t kQueueDescLow = 0x080;
inline constexpr std::uint64_t kQueueDescHigh = 0x084;
inline constexpr std::uint64_t kQueueDriverLow = 0x090;
inline constexpr std::uint64_t kQueueDriverHigh = 0x094;
inline constexpr std::uint64_t kQueueDeviceLow = 0x0a0;
inline constexpr std::uint64_t kQueueDeviceHigh = 0x0a4;
inline constexpr std::uint64_t kShmSel = 0x0ac;
inline constexpr std::uint64_t kShmLenLow = 0x0b0;
inline constexpr std::uint64_t kShmLenHigh = 0x0b4;
inline constexpr std::uint64_t kShmBaseLow = 0x0b8;
inline constexpr std::uint64_t kShmBaseHigh = 0x0bc;
inline constexpr std::uint64_t kQueueReset = 0x0c0;
inline constexpr std::uint64_t kConfigGeneration = 0x0fc;
inline constexpr std::uint64_t kConfig = 0x100;
} // namespace reg

/// One entry of a descriptor table (2.7.5), as it lies in memory.
struct RawDescriptor {
    std::uint64_t address = 0;
    std::uint32_t length = 0;
    std::uint16_t flags = 0;
    std::uint16_t next = 0;
};
static_assert(sizeof(RawDescriptor) == 16);
inline constexpr std::uint16_t kDescriptorNext = 1;
inline constexpr std::uint16_t kDescriptorWrite = 2;
inline constexpr std::uint16_t kDescriptorIndirect = 4;

/// One entry of the used ring (2.7.8).
struct Used {
    std::uint32_t id = 0;
    std::uint32_t length = 0;

    friend bool operator==(const Used&, const Used&) = default;
};

inline constexpr bool kReadable = false;
inline constexpr bool kWritable = true;

/// A piece of a request, which the device reads or writes.
struct Buffer {
    GuestAddress address{};
    std::uint32_t length = 0;
    bool writable = kReadable;
};

inline GuestAddress operator+(GuestAddress address, std::uint64_t bytes) {
    return GuestAddress{to_integer(address) + bytes};
}

/// The driver's side of one split virtqueue: the descriptor table at `base`, then the two rings, and the driver's own
/// data. The raw accessors can break any rule.
///
/// Threads: one. The device may run on another thread at the same time.
class DriverQueue {
  public:
    /// Bytes of guest memory that a queue of `size` entries takes.
    static constexpr std::uint64_t bytes(std::uint16_t size) noexcept {
        return used_offset(size) + 6 + (8ULL * size) + 2;
    }

    /// Zeroes the memory of the queue. `base` is aligned to 16; `memory` must outlive it.
    DriverQueue(const GuestMemory& memory, GuestAddress base, std::uint16_t size, bool event_idx = true)
        : memory_(&memory), base_(base), size_(size), event_idx_(event_idx), chains_(size) {
        const auto all = memory.at({base, bytes(size)});
        assert(all && to_integer(base) % 16 == 0);
        std::ranges::fill(*all, std::byte{0});
        for (std::uint16_t index = 0; index < size; ++index) {
            free_.push_back(static_cast<std::uint16_t>(size - 1 - index));
        }
    }

    [[nodiscard]] std::uint16_t size() const noexcept { return size_; }
    [[nodiscard]] virtio::QueueGeometry geometry() const noexcept {
        return {size_, base_, base_ + available_offset(size_), base_ + used_offset(size_)};
    }
    [[nodiscard]] std::size_t free_descriptors() const noexcept { return free_.size(); }

    // ---- Requests

    /// Puts a chain into free descriptors; there must be enough. Returns its head. It is not published yet.
    std::uint16_t make_chain(std::span<const Buffer> buffers) {
        assert(!buffers.empty() && buffers.size() <= free_.size());
        std::vector<std::uint16_t> indices;
        for (std::size_t i = 0; i < buffers.size(); ++i) {
            indices.push_back(free_.back());
            free_.pop_back();
        }
        for (std::size_t i = 0; i < buffers.size(); ++i) {
            const bool last = i + 1 == buffers.size();
            set_descriptor(indices[i], raw(buffers[i], last ? std::nullopt : std::optional(indices[i + 1])));
        }
        const std::uint16_t head = indices.front();
        chains_[head] = std::move(indices);
        return head;
    }
    std::uint16_t make_chain(std::initializer_list<Buffer> buffers) {
        return make_chain(std::span(buffers.begin(), buffers.size()));
    }

    /// The same with an indirect table at `table`, 16 bytes a buffer: takes one descriptor.
    std::uint16_t make_indirect_chain(GuestAddress table, std::span<const Buffer> buffers) {
        for (std::size_t i = 0; i < buffers.size(); ++i) {
            const bool last = i + 1 == buffers.size();
            store(table + (i * sizeof(RawDescriptor)),
                  raw(buffers[i], last ? std::nullopt : std::optional(static_cast<std::uint16_t>(i + 1))));
        }
        assert(!free_.empty());
        const std::uint16_t head = free_.back();
        free_.pop_back();
        const auto length = static_cast<std::uint32_t>(buffers.size() * sizeof(RawDescriptor));
        set_descriptor(head, {to_integer(table), length, kDescriptorIndirect, 0});
        chains_[head] = {head};
        return head;
    }
    std::uint16_t make_indirect_chain(GuestAddress table, std::initializer_list<Buffer> buffers) {
        return make_indirect_chain(table, std::span(buffers.begin(), buffers.size()));
    }

    /// Makes the chain at `head` available to the device.
    void publish(std::uint16_t head) {
        set_ring(next_available_, head);
        set_available_index(static_cast<std::uint16_t>(next_available_ + 1));
    }
    /// make_chain() and publish().
    std::uint16_t add(std::span<const Buffer> buffers) {
        const std::uint16_t head = make_chain(buffers);
        publish(head);
        return head;
    }
    std::uint16_t add(std::initializer_list<Buffer> buffers) { return add(std::span(buffers.begin(), buffers.size())); }

    /// The next request that the device has finished, with its descriptors free again; or nothing.
    std::optional<Used> take_used() {
        if (used_index() == next_used_) {
            return std::nullopt;
        }
        const Used used = used_entry(next_used_);
        ++next_used_;
        if (used.id < chains_.size()) {
            free_.insert(free_.end(), chains_[used.id].rbegin(), chains_[used.id].rend());
            chains_[used.id].clear();
        }
        return used;
    }

    // ---- Notifications

    /// True if the device wants a doorbell for the requests published since the last call (2.7.10.1).
    bool wants_doorbell() {
        const std::uint16_t before = std::exchange(rung_available_, next_available_);
        if (before == next_available_) {
            return false;
        }
        // Stores the index once more, as a barrier: the index must be visible before the question is asked.
        half_word(available_offset(size_) + 2).store(next_available_);
        if (!event_idx_) {
            return (used_flags() & 1) == 0;
        }
        return static_cast<std::uint16_t>(next_available_ - avail_event() - 1) <
               static_cast<std::uint16_t>(next_available_ - before);
    }
    /// Asks for an interrupt as soon as the device has used one more.
    void ask_for_interrupt() {
        set_available_flags(0);
        set_used_event(next_used_);
    }
    /// Asks for no interrupt. With EVENT_IDX that holds for the longest possible time.
    void suppress_interrupts() {
        set_available_flags(event_idx_ ? 0 : 1);
        set_used_event(static_cast<std::uint16_t>(next_used_ - 1));
    }

    // ---- Raw

    void set_descriptor(std::uint16_t index, const RawDescriptor& descriptor) {
        assert(index < size_);
        store(base_ + (sizeof(descriptor) * index), descriptor);
    }
    [[nodiscard]] RawDescriptor descriptor(std::uint16_t index) const {
        return *memory_->load<RawDescriptor>(base_ + (sizeof(RawDescriptor) * index));
    }
    /// Entry `position` (modulo size) of the available ring.
    void set_ring(std::uint16_t position, std::uint16_t head) {
        half_word(available_offset(size_) + 4 + (2ULL * (position % size_))).store(head, std::memory_order_relaxed);
    }
    /// The available index; publish() goes on from there.
    void set_available_index(std::uint16_t index) {
        next_available_ = index;
        half_word(available_offset(size_) + 2).store(index, std::memory_order_release);
    }
    void set_available_flags(std::uint16_t flags) { half_word(available_offset(size_)).store(flags); }
    void set_used_event(std::uint16_t event) { half_word(available_offset(size_) + 4 + (2ULL * size_)).store(event); }

    [[nodiscard]] std::uint16_t available_index() const { return half_word(available_offset(size_) + 2).load(); }
    [[nodiscard]] std::uint16_t used_index() const {
        return half_word(used_offset(size_) + 2).load(); // Sequentially consistent, for ask_for_interrupt().
    }
    [[nodiscard]] std::uint16_t used_flags() const { return half_word(used_offset(size_)).load(); }
    [[nodiscard]] std::uint16_t avail_event() const {
        return half_word(used_offset(size_) + 4 + (8ULL * size_)).load();
    }
    [[nodiscard]] Used used_entry(std::uint16_t position) const {
        return *memory_->load<Used>(base_ + used_offset(size_) + 4 + (8ULL * (position % size_)));
    }

  private:
    static constexpr std::uint64_t available_offset(std::uint16_t size) noexcept { return 16ULL * size; }
    static constexpr std::uint64_t used_offset(std::uint16_t size) noexcept {
        return (available_offset(size) + 6 + (2ULL * size) + 3) / 4 * 4;
    }

    static RawDescriptor raw(const Buffer& buffer, std::optional<std::uint16_t> next) {
        return {to_integer(buffer.address), buffer.length,
                static_cast<std::uint16_t>((buffer.writable ? kDescriptorWrite : 0) | (next ? kDescriptorNext : 0)),
                next.value_or(0)};
    }
    template <typename T>
    void store(GuestAddress address, const T& value) {
        [[maybe_unused]] const bool stored = memory_->store(address, value);
        assert(stored);
    }
    [[nodiscard]] std::atomic_ref<std::uint16_t> half_word(std::uint64_t offset) const {
        // In bounds: the constructor has checked that the whole queue is in memory.
        return std::atomic_ref(*reinterpret_cast<std::uint16_t*>(memory_->at({base_ + offset, 2})->data()));
    }

    const GuestMemory* memory_;
    GuestAddress base_;
    std::uint16_t size_;
    bool event_idx_;
    std::uint16_t next_available_ = 0;
    std::uint16_t rung_available_ = 0;
    std::uint16_t next_used_ = 0;
    std::vector<std::uint16_t> free_;
    std::vector<std::vector<std::uint16_t>> chains_; ///< by head
};

/// The driver's side of the registers.
class RegisterDriver {
  public:
    explicit RegisterDriver(devices::Device& registers) : registers_(&registers) {}

    std::uint32_t read(std::uint64_t offset) {
        std::uint32_t value = 0;
        registers_->read(offset, std::as_writable_bytes(std::span(&value, 1)));
        return value;
    }
    void write(std::uint64_t offset, std::uint32_t value) {
        registers_->write(offset, std::as_bytes(std::span(&value, 1)));
    }
    /// A field of the configuration space, at `offset` from its beginning.
    template <typename T>
    T read_config(std::uint64_t offset) {
        T value{};
        registers_->read(reg::kConfig + offset, std::as_writable_bytes(std::span(&value, 1)));
        return value;
    }
    template <typename T>
    void write_config(std::uint64_t offset, const T& value) {
        registers_->write(reg::kConfig + offset, std::as_bytes(std::span(&value, 1)));
    }

    std::uint32_t status() { return read(reg::kStatus); }
    void add_status(std::uint32_t bits) { write(reg::kStatus, status() | bits); }

    std::uint64_t device_features() {
        write(reg::kDeviceFeaturesSel, 1);
        const std::uint64_t high = read(reg::kDeviceFeatures);
        write(reg::kDeviceFeaturesSel, 0);
        return (high << 32) | read(reg::kDeviceFeatures);
    }
    void set_features(std::uint64_t features) {
        write(reg::kDriverFeaturesSel, 1);
        write(reg::kDriverFeatures, static_cast<std::uint32_t>(features >> 32));
        write(reg::kDriverFeaturesSel, 0);
        write(reg::kDriverFeatures, static_cast<std::uint32_t>(features));
    }
    /// Steps 2 to 6 of 3.1.1, for a device that was reset. True if the device accepted `features`.
    bool negotiate(std::uint64_t features) {
        add_status(virtio::kStatusAcknowledge);
        add_status(virtio::kStatusDriver);
        set_features(features);
        add_status(virtio::kStatusFeaturesOk);
        return (status() & virtio::kStatusFeaturesOk) != 0;
    }

    /// The largest size of queue `index`; 0 if there is no such queue.
    std::uint32_t queue_size_max(std::uint32_t index) {
        write(reg::kQueueSel, index);
        return read(reg::kQueueSizeMax);
    }
    void set_geometry(std::uint32_t index, const virtio::QueueGeometry& geometry) {
        const auto write_address = [this](std::uint64_t low, GuestAddress address) {
            write(low, static_cast<std::uint32_t>(to_integer(address)));
            write(low + 4, static_cast<std::uint32_t>(to_integer(address) >> 32));
        };
        write(reg::kQueueSel, index);
        write(reg::kQueueSize, geometry.size);
        write_address(reg::kQueueDescLow, geometry.descriptors);
        write_address(reg::kQueueDriverLow, geometry.driver_area);
        write_address(reg::kQueueDeviceLow, geometry.device_area);
    }
    /// True if the queue is ready then.
    bool enable_queue(std::uint32_t index, const virtio::QueueGeometry& geometry) {
        set_geometry(index, geometry);
        write(reg::kQueueReady, 1);
        return read(reg::kQueueReady) == 1;
    }
    bool is_queue_ready(std::uint32_t index) {
        write(reg::kQueueSel, index);
        return read(reg::kQueueReady) == 1;
    }
    void ring(std::uint16_t index) { write(reg::kQueueNotify, index); }

    /// Acts as an interrupt handler: reads InterruptStatus and acknowledges the bits that it has read.
    std::uint32_t take_interrupts() {
        const std::uint32_t events = read(reg::kInterruptStatus);
        write(reg::kInterruptAck, events);
        return events;
    }

  private:
    devices::Device* registers_;
};

/// One device with its transport, and the work of the device's thread for them, one turn at a time.
///
/// Threads: the registers any; turn() and other functions that move the device one.
template <typename OfTransport>
class DevicePump {
  public:
    using Hooks = virtio::Negotiation::Hooks;

    /// `make` makes the transport, with the hooks that it is given. `device` and everything that the transport uses
    /// must outlive the pump. `patience` is for the hooks, for tests with two threads.
    template <typename Make>
    DevicePump(virtio::Device& device, std::chrono::milliseconds patience, Make make)
        : device_(device), transport_(make(hooks(patience))) {
        assert(wake_);
        wake(); // A device made from a state may have work already.
    }
    DevicePump(const DevicePump&) = delete;
    DevicePump(DevicePump&&) = delete;
    DevicePump& operator=(const DevicePump&) = delete;
    DevicePump& operator=(DevicePump&&) = delete;
    /// Stops the device and lets it come to rest.
    ~DevicePump() {
        if (!stopping_) {
            device_.stop();
        }
        const auto give_up = std::chrono::steady_clock::now() + vmm::testing::kPatience;
        while (!device_.is_idle() && std::chrono::steady_clock::now() < give_up) {
            poll_sources(std::chrono::milliseconds(10));
        }
        assert(device_.is_idle());
    }

    [[nodiscard]] OfTransport& transport() noexcept { return transport_; }

    /// Does all pending work once. If there is none, waits for it, at most `wait`. True if there was work.
    bool turn(std::chrono::milliseconds wait = {}) {
        bool did = do_work();
        did = do_doorbells() || did;
        did = poll_sources(did ? std::chrono::milliseconds(0) : wait) || did;
        return finish_stops() || did;
    }
    /// Ends a turn() that waits. From any thread.
    void wake() {
        const std::uint64_t one = 1;
        [[maybe_unused]] const auto written = ::write(wake_.get(), &one, sizeof(one));
    }
    /// Pauses the device. True if it comes to rest.
    bool pause() {
        device_.pause();
        const auto give_up = std::chrono::steady_clock::now() + vmm::testing::kPatience;
        while (!device_.is_paused() && std::chrono::steady_clock::now() < give_up) {
            poll_sources(std::chrono::milliseconds(10));
        }
        return device_.is_paused();
    }
    /// The whole transport as a value; the device must be paused.
    [[nodiscard]] typename OfTransport::State state() const { return transport_.state(device_.queue_states()); }
    [[nodiscard]] virtio::Device& device() noexcept { return device_; }
    /// How often the device was activated.
    [[nodiscard]] int activations() const noexcept { return activations_; }

  private:
    [[nodiscard]] Hooks hooks(std::chrono::milliseconds patience) {
        return {.work = [this] { wake(); },
                .doorbell =
                    [this](std::uint16_t index) {
                        {
                            const std::lock_guard lock(mutex_);
                            rung_.insert(index);
                        }
                        wake();
                    },
                .patience = patience};
    }
    bool do_work() {
        using Take = virtio::Negotiation::Take;
        virtio::Negotiation::Work work = transport_.negotiation().take_work(stands_ ? Take::kReset : Take::kAll);
        const bool changes = work.stands != stands_;
        if (changes) {
            stands_ = work.stands;
            stands_ ? device_.pause() : device_.resume();
        }
        const bool any =
            changes || work.reset || work.activation || !work.queue_resets.empty() || !work.restarts.empty();
        if (work.reset) {
            device_.stop();
            stopping_ = true;
            stopping_queues_.clear();
        }
        if (work.activation) {
            ++activations_;
            device_.activate(std::move(*work.activation), transport_);
        }
        for (const std::uint16_t index : work.queue_resets) {
            device_.stop_queue(index);
            stopping_queues_.insert(index);
        }
        for (auto& [index, queue] : work.restarts) {
            device_.restart_queue(index, std::move(queue));
        }
        return finish_stops() || any;
    }
    bool do_doorbells() {
        std::set<std::uint16_t> rung;
        {
            const std::lock_guard lock(mutex_);
            rung.swap(rung_);
        }
        for (const std::uint16_t index : rung) {
            device_.doorbell(index);
        }
        return !rung.empty();
    }
    bool poll_sources(std::chrono::milliseconds wait) {
        std::vector<pollfd> fds{{wake_.get(), POLLIN, 0}};
        std::vector<virtio::Lane*> whose{nullptr}; // By descriptor; null: the device itself.
        const auto watch = [&](const std::vector<virtio::Source>& sources, virtio::Lane* lane) {
            for (const virtio::Source& source : sources) {
                fds.push_back({source.fd, static_cast<short>(source.events), 0}); // EPOLLIN is POLLIN, and so on.
                whose.push_back(lane);
            }
        };
        watch(device_.sources(), nullptr);
        for (virtio::Lane* const lane : device_.lanes()) {
            watch(lane->sources(), lane);
        }
        if (::poll(fds.data(), fds.size(), static_cast<int>(wait.count())) <= 0) {
            return false;
        }
        if (fds[0].revents != 0) {
            std::uint64_t count = 0;
            [[maybe_unused]] const auto got = ::read(wake_.get(), &count, sizeof(count));
        }
        bool any = false;
        for (std::size_t i = 1; i < fds.size(); ++i) {
            if (fds[i].revents != 0) {
                const auto events = static_cast<std::uint32_t>(fds[i].revents);
                whose[i] == nullptr ? device_.ready(fds[i].fd, events) : whose[i]->ready(fds[i].fd, events);
                any = true;
            }
        }
        return any;
    }
    bool finish_stops() {
        bool any = false;
        if (stopping_ && device_.is_idle()) {
            stopping_ = false;
            if (stands_) {
                device_.pause();
            }
            transport_.negotiation().finish_reset();
            any = true;
        }
        any = std::erase_if(stopping_queues_,
                            [this](std::uint16_t index) {
                                if (!device_.is_queue_idle(index)) {
                                    return false;
                                }
                                transport_.negotiation().finish_queue_reset(index);
                                return true;
                            }) > 0 ||
              any;
        if (stands_ && device_.is_paused()) {
            transport_.negotiation().finish_standing();
        }
        return any;
    }

    virtio::Device& device_;
    UniqueFd wake_{::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)};
    std::mutex mutex_;
    std::set<std::uint16_t> rung_; ///< guarded by mutex_
    bool stopping_ = false;
    bool stands_ = false; ///< the device may not reach memory, and is told to pause
    std::set<std::uint16_t> stopping_queues_;
    int activations_ = 0;
    OfTransport transport_;
};

/// The same over MMIO.
class VirtioPump final : public DevicePump<virtio::MmioTransport> {
  public:
    /// `device`, `memory` and `irq` must outlive it.
    VirtioPump(virtio::Device& device, const GuestMemory& memory, IrqLine& irq, std::chrono::milliseconds patience = {})
        : DevicePump(device, patience, [&](Hooks hooks) {
              return virtio::MmioTransport(device.identity(), memory, irq, std::move(hooks));
          }) {}
    /// Goes on from `state`, the state of another transport of such a device.
    VirtioPump(virtio::Device& device, const GuestMemory& memory, IrqLine& irq,
               const virtio::MmioTransport::State& state)
        : DevicePump(device, {}, [&](Hooks hooks) {
              return virtio::MmioTransport(device.identity(), memory, irq, std::move(hooks), state);
          }) {}
};

/// A device under test with everything that it needs.
///
/// Threads: one.
class VirtioRig {
  public:
    struct Options {
        std::uint64_t memory_bytes = 32 * kMiB; ///< guest RAM, from address 0 on
        std::uint16_t largest_queue = 256;      ///< queues are no longer than this
    };

    /// `device` must outlive it.
    explicit VirtioRig(virtio::Device& device) : VirtioRig(device, Options{}) {}
    VirtioRig(virtio::Device& device, Options options)
        : options_(options), layout_{GuestRange{GuestAddress{0}, options.memory_bytes}},
          memory_(layout_, PageSize::k4K), pump_(std::make_unique<VirtioPump>(device, memory_, irq_)),
          driver_(pump_->transport()), queue_count_(device.identity().queue_sizes.size()) {}

    [[nodiscard]] const GuestMemory& memory() const noexcept { return memory_; }
    [[nodiscard]] RecordingIrq& irq() noexcept { return irq_; }
    [[nodiscard]] virtio::MmioTransport& transport() noexcept { return pump_->transport(); }
    [[nodiscard]] RegisterDriver& driver() noexcept { return driver_; }
    [[nodiscard]] VirtioPump& pump() noexcept { return *pump_; }
    [[nodiscard]] DriverQueue& queue(std::size_t index) { return *queues_.at(index); }

    /// `bytes` of guest memory that nothing else uses, zero at first, aligned to 16. They are never given back.
    GuestAddress allocate(std::uint64_t bytes) {
        const GuestAddress address{next_free_};
        next_free_ += (bytes + 15) / 16 * 16;
        assert(next_free_ <= options_.memory_bytes);
        return address;
    }

    /// Goes from reset to DRIVER_OK, with the `features` that are offered and all queues. The device is activated then.
    /// False if the device refuses.
    bool start(std::uint64_t features = ~std::uint64_t{0}) {
        if (!reset()) {
            return false;
        }
        const std::uint64_t accepted = driver_.device_features() & features;
        if (!driver_.negotiate(accepted)) {
            return false;
        }
        set_up_queues((accepted & virtio::kFeatureEventIdx) != 0);
        for (std::size_t index = 0; index < queues_.size(); ++index) {
            if (!driver_.enable_queue(static_cast<std::uint32_t>(index), queues_[index]->geometry())) {
                return false;
            }
        }
        driver_.add_status(virtio::kStatusDriverOk);
        settle();
        return is_alive();
    }
    /// Resets the device by its Status register. False if the reset never ends.
    bool reset() {
        driver_.write(reg::kStatus, 0);
        return pump_until([this] { return driver_.status() == 0; });
    }
    /// True if the device runs, and is not broken.
    bool is_alive() {
        return (driver_.status() & (virtio::kStatusDriverOk | virtio::kStatusNeedsReset)) == virtio::kStatusDriverOk;
    }
    bool needs_reset() { return (driver_.status() & virtio::kStatusNeedsReset) != 0; }

    /// Pauses the device, and lets the device that `make` makes of its state go on in its place, with a transport made
    /// from the state of the old transport. Driver and memory stay. Returns the new device, which the rig owns; null if
    /// the old one does not come to rest.
    template <typename Make>
    auto replace_device(Make make) -> decltype(make(virtio::DeviceState{}).get()) {
        if (!pump_->pause()) {
            return nullptr;
        }
        const virtio::MmioTransport::State transport = pump_->state();
        auto device = make(pump_->device().state());
        auto* const made = device.get();
        pump_ = std::make_unique<VirtioPump>(*device, memory_, irq_, transport);
        driver_ = RegisterDriver(pump_->transport());
        pump_->transport().repeat_interrupt();
        replaced_ = std::move(device);
        return made;
    }

    /// Rings the doorbell of queue `index`, if the device wants that.
    void ring(std::uint16_t index) {
        if (queue(index).wants_doorbell()) {
            driver_.ring(index);
        }
    }

    /// Lets the device's side run until nothing is left to do at once. At most kMostTurns turns: a test must find a
    /// device that never stops by its later checks.
    void settle() {
        constexpr int kMostTurns = 100'000;
        for (int turns = 0; turns < kMostTurns && pump_->turn(); ++turns) {
        }
    }
    /// Lets the device's side run until `condition` holds. False if it never does.
    template <typename Condition>
    bool pump_until(Condition condition) {
        const auto end = std::chrono::steady_clock::now() + vmm::testing::kPatience;
        while (!condition()) {
            if (std::chrono::steady_clock::now() > end) {
                return false;
            }
            pump_->turn(std::chrono::milliseconds(10));
        }
        return true;
    }
    /// The next request that comes back from queue `index`; nothing if none comes.
    std::optional<Used> wait_for_used(std::uint16_t index) {
        std::optional<Used> used;
        pump_until([&] { return (used = queue(index).take_used()).has_value(); });
        return used;
    }

    /// Makes new queues in memory, without telling the device; start() does that. For tests with a special start.
    void set_up_queues(bool event_idx = true) {
        queues_.clear();
        for (std::size_t index = 0; index < queue_count_; ++index) {
            const std::uint32_t largest = driver_.queue_size_max(static_cast<std::uint32_t>(index));
            const auto size = static_cast<std::uint16_t>(std::min<std::uint32_t>(largest, options_.largest_queue));
            if (bases_.size() <= index) {
                bases_.push_back(allocate(DriverQueue::bytes(size)));
            }
            queues_.push_back(std::make_unique<DriverQueue>(memory_, bases_[index], size, event_idx));
        }
    }

  private:
    Options options_;
    std::array<GuestRange, 1> layout_;
    GuestMemory memory_;
    RecordingIrq irq_;
    std::unique_ptr<virtio::Device> replaced_; ///< by replace_device(), instead of the one that is not ours
    std::unique_ptr<VirtioPump> pump_;
    RegisterDriver driver_;
    std::size_t queue_count_;
    std::uint64_t next_free_ = 0x1000;
    std::vector<GuestAddress> bases_; ///< of the queues, the same after each reset
    std::vector<std::unique_ptr<DriverQueue>> queues_;
};

} // namespace vmm::devices::testing
