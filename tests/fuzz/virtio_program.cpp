#include "fuzz/virtio_program.hpp"

#include <sys/mman.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <optional>

#include "fuzz/require.hpp"
#include "kvm/host/guest_memory.hpp"
#include "support/devices_recording_irq.hpp"
#include "support/devices_virtio_driver.hpp"

namespace vmm::fuzz {
namespace {

using devices::testing::RawDescriptor;
using devices::testing::RegisterDriver;
using devices::testing::VirtioPump;
using devices::virtio::QueueGeometry;
namespace reg = devices::testing::reg;
using devices::testing::operator+;

constexpr std::size_t kUsualQueues = 4; // The driver uses so many, even if the device has fewer.
constexpr std::size_t kMostQueues = 5;
constexpr std::uint16_t kLargestQueue = 16;
/// Turns in which neither the driver nor the host does anything. Devices bound a turn to a MiB or 256 requests of 16
/// queue entries, so this number is plenty.
constexpr int kMostTurns = 3000;
constexpr int kMostWaits = 30000; // of 10 ms each: a bound only for hangs

// The layout of memory. The second region begins where the first one ends.
constexpr std::uint64_t kQueueBase = 0x1000;
constexpr std::uint64_t kQueueBytes = 0x400;
constexpr std::uint64_t kTables = 0x3000; // indirect ones
constexpr std::uint64_t kTableBytes = 0x100;
constexpr std::uint64_t kData = 0x8000;
constexpr std::uint64_t kDataEnd = 0x100000;
constexpr std::uint64_t kBorder = 2 * kMiB;
constexpr std::uint64_t kFarRegion = 4 * kGiB;
constexpr std::array kLayout{GuestRange{GuestAddress{0}, kBorder}, GuestRange{GuestAddress{kBorder}, 64 * kKiB},
                             GuestRange{GuestAddress{kFarRegion}, 64 * kKiB}};

constexpr std::array<std::uint32_t, 16> kLengths{0,  1,   2,   8,    12,   13,   16,    44,
                                                 45, 512, 513, 1024, 1536, 4096, 65536, 0x10000 + 45};

/// The same memory for every program, zero at its beginning.
const GuestMemory& fresh_memory() {
    static const GuestMemory kMemory(kLayout, PageSize::k4K);
    for (const MemoryRegion& region : kMemory.regions()) {
        require(::madvise(region.host, region.range.size, MADV_DONTNEED) == 0, "the memory cannot be emptied");
    }
    return kMemory;
}

class VirtioProgram {
  public:
    VirtioProgram(Bytes program, const VirtioSubject& subject)
        : input_(program), subject_(subject), memory_(fresh_memory()), pump_(*subject.device, memory_, irq_),
          driver_(pump_.transport()),
          queue_count_(std::min(kMostQueues, subject.device->identity().queue_sizes.size())),
          spoken_of_(std::max(kUsualQueues, queue_count_)) {}

    void run() {
        for (int steps = 0; !input_.empty() && steps < 2000; ++steps) {
            step();
        }
        settle();
        check_answers();
        reset();
        for (std::uint32_t index = 0; index < queue_count_; ++index) {
            require(!driver_.is_queue_ready(index), "a queue is ready after a reset");
        }
        require(driver_.read(reg::kInterruptStatus) == 0, "an event outlived the reset");
        require(pump_.transport().negotiation().failure().empty(), "a failure outlived the reset");
        probe();
        reset();
    }

  private:
    /// The driver's side of one queue.
    struct DriverSide {
        std::uint16_t size = 0;
        std::uint16_t available = 0;
        std::uint16_t next_descriptor = 0;
        bool enabled = false;
    };

    // ---- Steps

    void step() {
        switch (input_.below(20)) {
        case 0:
            start(input_.take<std::uint64_t>(), input_.byte());
            break;
        case 1:
        case 2:
        case 3:
            request(false);
            break;
        case 4:
            request(true);
            break;
        case 5:
        case 6:
            ring();
            break;
        case 7:
            settle();
            break;
        case 8:
        case 9:
            if (subject_.host) {
                subject_.host(input_);
            }
            break;
        case 10:
            check_answers();
            break;
        case 11:
            driver_.take_interrupts();
            break;
        case 12:
            write_register();
            break;
        case 13:
            access_anywhere();
            break;
        case 14:
            write_memory();
            break;
        case 15:
            write_descriptor();
            break;
        case 16:
            write_ring();
            break;
        case 17:
            stop_queue();
            break;
        case 18:
            keeps_rules_ = false;
            driver_.write(reg::kStatus, 0); // does not wait for the reset
            break;
        default:
            pump_.turn();
            break;
        }
    }

    /// Goes from reset to DRIVER_OK by the rules, except that some queues may be missing.
    void start(std::uint64_t features, std::uint8_t choice) {
        reset();
        driver_.negotiate(driver_.device_features() & (features | devices::virtio::kFeatureVersion1));
        for (std::size_t index = 0; index < queue_count_; ++index) {
            if ((choice >> index & 1) == 0) {
                const auto size = static_cast<std::uint16_t>(kLargestQueue >> (choice >> 4 & 3));
                enable(index, size);
            }
        }
        driver_.add_status(devices::virtio::kStatusDriverOk);
        keeps_rules_ = true;
    }
    void enable(std::size_t index, std::uint16_t size) {
        const auto range = GuestRange{GuestAddress{kQueueBase + (index * kQueueBytes)}, kQueueBytes};
        std::ranges::fill(*memory_.at(range), std::byte{0});
        DriverSide& queue = queues_[index];
        queue = {};
        queue.size = std::min(size, subject_.device->identity().queue_sizes[index]);
        queue.enabled = driver_.enable_queue(static_cast<std::uint32_t>(index), geometry(index));
    }
    [[nodiscard]] QueueGeometry geometry(std::size_t index) const {
        const GuestAddress base{kQueueBase + (index * kQueueBytes)};
        return {queues_[index].size, base, base + 0x100, base + 0x180};
    }

    /// Makes a chain of up to four buffers in free descriptors, or with `indirect` in a table. It breaks a rule only if
    /// the request itself does.
    void request(bool indirect) {
        const std::size_t index = input_.below(queue_count_);
        const std::uint8_t shape = input_.byte();
        const std::size_t count = 1 + (shape & 3);
        DriverSide& queue = queues_[index];
        if (used_index(index) == queue.available) {
            queue.next_descriptor = 0; // All descriptors are free.
        }
        const std::size_t needed = indirect ? 1 : count;
        if (!queue.enabled || queue.next_descriptor + needed > queue.size || (indirect && count > queue.size)) {
            return;
        }
        std::vector<RawDescriptor> chain;
        bool writable = false;
        for (std::size_t i = 0; i < count; ++i) {
            writable = writable || (shape >> (4 + i) & 1) != 0;
            const std::uint8_t kind = input_.byte();
            std::vector<std::byte> front;
            if (!writable && (kind & 0x80) == 0 && subject_.front && i == 0) {
                front = subject_.front(input_);
            } else if (!writable && (kind & 0x40) != 0) {
                const Bytes bytes = input_.take_bytes(input_.below(64));
                front.assign(bytes.begin(), bytes.end());
            }
            const auto length = std::max(kLengths[kind & 0xf], static_cast<std::uint32_t>(front.size()));
            const std::uint64_t address = place(length, (kind & 0x20) != 0);
            require(memory_.copy_in(GuestAddress{address}, front) || (kind & 0x20) != 0, "the request has no place");
            chain.push_back(
                {address,
                 i == 0 && !front.empty() && (kind & 0x10) != 0 ? static_cast<std::uint32_t>(front.size()) : length,
                 static_cast<std::uint16_t>(writable ? devices::testing::kDescriptorWrite : 0), 0});
        }
        const std::uint16_t head = queue.next_descriptor;
        const std::uint64_t table = kTables + ((index * kLargestQueue + head) * kTableBytes);
        for (std::size_t i = 0; i < count; ++i) {
            if (i + 1 < count) {
                chain[i].flags |= devices::testing::kDescriptorNext;
                chain[i].next = static_cast<std::uint16_t>((indirect ? 0 : head) + i + 1);
            }
            store(indirect ? GuestAddress{table + (16 * i)} : descriptor_address(index, head + i), chain[i]);
        }
        if (indirect) {
            store(descriptor_address(index, head), RawDescriptor{table, static_cast<std::uint32_t>(16 * count),
                                                                 devices::testing::kDescriptorIndirect, 0});
        }
        queue.next_descriptor = static_cast<std::uint16_t>(head + needed);
        publish(index, head);
        if ((shape & 4) != 0) {
            driver_.ring(static_cast<std::uint16_t>(index));
        }
    }
    std::uint64_t place(std::uint32_t length, bool over_the_border) {
        if (over_the_border) {
            return kBorder - std::min<std::uint64_t>(length / 2, 60000);
        }
        if (next_data_ + length > kDataEnd) {
            next_data_ = kData;
        }
        return std::exchange(next_data_, next_data_ + length);
    }
    void publish(std::size_t index, std::uint16_t head) {
        DriverSide& queue = queues_[index];
        const QueueGeometry place = geometry(index);
        store(place.driver_area + 4 + (2U * (queue.available % queue.size)), head);
        ++queue.available;
        store(place.driver_area + 2, queue.available);
    }

    void ring() {
        const std::uint8_t index = input_.byte();
        driver_.write(reg::kQueueNotify,
                      index < 0xf0 ? static_cast<std::uint32_t>(index % spoken_of_) : input_.take<std::uint32_t>());
        pump_.turn();
    }
    void write_register() {
        static constexpr std::array<std::uint16_t, 18> kOffsets{
            reg::kDeviceFeaturesSel, reg::kDriverFeatures,  reg::kDriverFeaturesSel,
            reg::kQueueSel,          reg::kQueueSize,       reg::kQueueReady,
            reg::kInterruptAck,      reg::kStatus,          reg::kQueueDescLow,
            reg::kQueueDescHigh,     reg::kQueueDriverLow,  reg::kQueueDriverHigh,
            reg::kQueueDeviceLow,    reg::kQueueDeviceHigh, reg::kQueueReset,
            reg::kQueueNotify,       reg::kShmSel,          reg::kConfig};
        keeps_rules_ = false;
        const std::uint64_t offset = kOffsets[input_.below(kOffsets.size())];
        const std::uint8_t kind = input_.byte();
        driver_.write(offset, kind < 0x80   ? kind
                              : kind < 0xc0 ? static_cast<std::uint32_t>(kQueueBase + (kind & 0x3fU) * 0x40)
                                            : input_.take<std::uint32_t>());
    }
    void access_anywhere() {
        keeps_rules_ = false;
        const std::uint8_t kind = input_.byte();
        const std::uint64_t offset = kind < 8 ? input_.take<std::uint64_t>() : input_.take<std::uint16_t>() % 0x180;
        std::array<std::byte, 16> data{};
        const std::size_t width = (kind >> 1) % 9;
        if ((kind & 1) != 0) {
            const Bytes bytes = input_.take_bytes(width);
            std::ranges::copy(bytes, data.begin());
            pump_.transport().write(offset, std::span(data).first(width));
        } else {
            data.back() = std::byte{0x5a};
            pump_.transport().read(offset, std::span(data).first(width));
            require(data.back() == std::byte{0x5a}, "a read wrote beyond what was asked for");
        }
    }
    void write_memory() {
        keeps_rules_ = false;
        const GuestAddress address = wild_address();
        static_cast<void>(memory_.copy_in(address, input_.take_bytes(input_.below(64))));
    }
    GuestAddress wild_address() {
        const std::uint8_t kind = input_.byte();
        const std::uint16_t offset = input_.take<std::uint16_t>();
        switch (kind % 6) {
        case 0:
        case 1:
            return GuestAddress{kQueueBase + (offset % (spoken_of_ * kQueueBytes))};
        case 2:
            return GuestAddress{kTables + offset % 0x4000};
        case 3:
            return GuestAddress{kData + offset};
        case 4:
            return GuestAddress{(offset % 2 == 0 ? kBorder : kFarRegion) + 32768 - offset};
        default:
            return GuestAddress{input_.take<std::uint64_t>()};
        }
    }
    void write_descriptor() {
        keeps_rules_ = false;
        const std::size_t index = input_.below(spoken_of_);
        const std::size_t slot = input_.below(kLargestQueue);
        const GuestAddress address = wild_address();
        const std::uint8_t kind = input_.byte();
        store(descriptor_address(index, slot),
              RawDescriptor{to_integer(address), kind < 0xc0 ? kLengths[kind & 0xf] : input_.take<std::uint32_t>(),
                            static_cast<std::uint16_t>(kind >> 4 & 7),
                            static_cast<std::uint16_t>(input_.below(kLargestQueue + 1))});
        if (queues_[index].size != 0 && (kind & 0x80) != 0) {
            publish(index, static_cast<std::uint16_t>(slot));
        }
    }
    /// Writes any field of either ring.
    void write_ring() {
        keeps_rules_ = false;
        const std::size_t index = input_.below(spoken_of_);
        const std::uint64_t offset = 0x100 + (input_.byte() / 2 * 2U);
        store(GuestAddress{kQueueBase + (index * kQueueBytes) + offset}, input_.take<std::uint16_t>());
    }
    /// Resets a queue, or stops it, and may start it again.
    void stop_queue() {
        const std::uint8_t choice = input_.byte();
        const std::size_t index = choice % queue_count_;
        driver_.write(reg::kQueueSel, static_cast<std::uint32_t>(index));
        if ((choice & 0x40) != 0) {
            driver_.write(reg::kQueueReset, 1);
            require(wait_for([&] { return select_and_read(index, reg::kQueueReset) == 0; }),
                    "the reset of a queue does not end");
        } else {
            driver_.write(reg::kQueueReady, 0);
        }
        if (driver_.status() != 0 && !pump_.transport().negotiation().failure().empty()) {
            return; // any other request: the device must be reset
        }
        if ((choice & 0x40) == 0) {
            require(wait_for([&] { return select_and_read(index, reg::kQueueReady) == 0; }), "a queue does not stop");
        }
        if (select_and_read(index, reg::kQueueReady) != 0) {
            return; // Its feature was not negotiated, so nothing has happened.
        }
        queues_[index] = {};
        if ((choice & 0x80) != 0) {
            enable(index, kLargestQueue);
        }
    }
    std::uint32_t select_and_read(std::size_t index, std::uint64_t offset) {
        driver_.write(reg::kQueueSel, static_cast<std::uint32_t>(index));
        return driver_.read(offset);
    }

    // ---- What has to hold

    void settle() {
        for (int turns = 0; pump_.turn(); ++turns) {
            require(turns < kMostTurns, "the device does not come to rest");
        }
    }
    template <typename Condition>
    bool wait_for(Condition condition) {
        for (int waits = 0; !condition(); ++waits) {
            if (waits == kMostWaits) {
                return false;
            }
            if (subject_.drain) {
                subject_.drain();
            }
            pump_.turn(std::chrono::milliseconds(10));
        }
        return true;
    }
    void check_answers() {
        if (!keeps_rules_ || !is_alive()) {
            return;
        }
        settle();
        for (std::size_t index = 0; index < queue_count_; ++index) {
            DriverSide& queue = queues_[index];
            if (!queue.enabled || (subject_.answered_queues >> index & 1) == 0 ||
                queue.available > subject_.answered_requests) {
                continue;
            }
            driver_.ring(static_cast<std::uint16_t>(index));
            require(wait_for([&] { return used_index(index) == queue.available || !is_alive(); }),
                    "a request does not come back");
        }
    }
    void reset() {
        driver_.write(reg::kStatus, 0);
        require(wait_for([&] { return driver_.status() == 0; }), "a reset does not end");
        queues_ = {};
        keeps_rules_ = false;
    }
    void probe() {
        start(~std::uint64_t{0}, 0);
        settle();
        require(is_alive(), "the device does not start");
        const std::size_t index = subject_.probe_queue;
        require(memory_.copy_in(GuestAddress{kData}, subject_.probe), "the probe has no place");
        RawDescriptor to_read{kData, static_cast<std::uint32_t>(subject_.probe.size()), 0, 1};
        const RawDescriptor to_write{kData + 0x10000, subject_.probe_room, devices::testing::kDescriptorWrite, 0};
        if (subject_.probe_room != 0) {
            to_read.flags = devices::testing::kDescriptorNext;
        }
        store(descriptor_address(index, 0), to_read);
        store(descriptor_address(index, 1), to_write);
        publish(index, 0);
        driver_.ring(static_cast<std::uint16_t>(index));
        require(wait_for([&] { return used_index(index) == 1; }), "a reset does not help");
        require(is_alive(), "a request with nothing wrong in it breaks the device");
    }

    // ---- Memory

    static GuestAddress descriptor_address(std::size_t index, std::size_t slot) {
        return GuestAddress{kQueueBase + (index * kQueueBytes) + (16 * slot)};
    }
    template <typename T>
    void store(GuestAddress address, const T& value) {
        require(memory_.store(address, value), "the driver's own memory is none");
    }
    [[nodiscard]] std::uint16_t used_index(std::size_t index) const {
        return *memory_.load<std::uint16_t>(geometry(index).device_area + 2);
    }
    [[nodiscard]] bool is_alive() {
        return (driver_.status() & (devices::virtio::kStatusDriverOk | devices::virtio::kStatusNeedsReset)) ==
               devices::virtio::kStatusDriverOk;
    }

    Input input_;
    const VirtioSubject& subject_;
    const GuestMemory& memory_;
    devices::testing::RecordingIrq irq_;
    VirtioPump pump_;
    RegisterDriver driver_;
    std::size_t queue_count_;
    std::size_t spoken_of_; ///< queues
    std::array<DriverSide, kMostQueues> queues_{};
    std::uint64_t next_data_ = kData;
    bool keeps_rules_ = false; ///< the driver has kept all of them since it started the device
};

} // namespace

void run_virtio_program(Bytes program, const VirtioSubject& subject) {
    VirtioProgram(program, subject).run();
}

} // namespace vmm::fuzz
