#include "support/devices_hostile_driver.hpp"

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <initializer_list>
#include <random>
#include <thread>

namespace vmm::devices::testing {

/// One attack in progress: a started device, and its rig.
class Attack {
  public:
    Attack(VirtioRig& rig, const HostileTarget& target) : rig_(rig), target_(target) {
        guards_.push_back(guard(4096));
        buffer_ = rig.allocate(kBufferBytes);
        guards_.push_back(guard(4096));
        table_ = rig.allocate(kTableBytes);
        guards_.push_back(guard(4096));
        guards_.push_back({GuestAddress{end_of_ram() - 4096}, 4096});
        fill(guards_.back());
    }

    static constexpr std::uint32_t kBufferBytes = 64 * 1024;
    static constexpr std::uint32_t kTableBytes = 16 * 1024;

    [[nodiscard]] VirtioRig& rig() const noexcept { return rig_; }
    [[nodiscard]] RegisterDriver& registers() const noexcept { return rig_.driver(); }
    [[nodiscard]] DriverQueue& queue() const { return rig_.queue(target_.queue); }
    [[nodiscard]] std::uint16_t queue_index() const noexcept { return target_.queue; }
    /// Memory for requests, kBufferBytes of it.
    [[nodiscard]] std::uint64_t buffer() const noexcept { return to_integer(buffer_); }
    /// Memory for an indirect table, kTableBytes of it.
    [[nodiscard]] std::uint64_t table() const noexcept { return to_integer(table_); }
    [[nodiscard]] std::uint64_t end_of_ram() const noexcept {
        return to_integer(rig_.memory().regions().front().range.end());
    }

    /// Sets descriptors 0, 1, 2... and publishes the chain that begins with 0.
    void send(std::initializer_list<RawDescriptor> descriptors) {
        std::uint16_t index = 0;
        for (const RawDescriptor& descriptor : descriptors) {
            queue().set_descriptor(index++, descriptor);
        }
        send_head(0);
    }
    /// Sends a chain of one descriptor, for a table of these entries; the descriptor says that the table has `bytes`.
    void send_table_of_bytes(std::uint32_t bytes, const std::vector<RawDescriptor>& entries,
                             std::uint16_t flags = kDescriptorIndirect) {
        for (std::size_t i = 0; i < entries.size(); ++i) {
            ASSERT_TRUE(rig_.memory().store(GuestAddress{table() + (i * 16)}, entries[i]));
        }
        send({{table(), bytes, flags, 1}});
    }
    void send_table(const std::vector<RawDescriptor>& entries, std::uint16_t flags = kDescriptorIndirect) {
        send_table_of_bytes(static_cast<std::uint32_t>(entries.size() * 16), entries, flags);
    }
    void send_head(std::uint16_t head) {
        queue().publish(head);
        ring();
    }
    /// Rings the doorbell, wanted or not, and gives the device time to work.
    void ring() {
        registers().ring(queue_index());
        rig_.settle();
    }
    /// Publishes a correct request.
    void send_well_formed() {
        if (target_.request) {
            target_.request(rig_);
        } else {
            queue().add({{buffer_, 64}, {buffer_ + 64, 64, kWritable}});
        }
    }

    void expect_guards_untouched() const {
        for (const GuestRange& each : guards_) {
            const auto bytes = rig_.memory().at(each);
            ASSERT_TRUE(bytes);
            EXPECT_TRUE(std::ranges::all_of(*bytes, [](std::byte byte) { return byte == kGuardByte; }))
                << "written to, though no request named it: " << to_string(each);
        }
    }

  private:
    static constexpr std::byte kGuardByte{0xa5};

    [[nodiscard]] GuestRange guard(std::uint64_t bytes) const {
        const GuestRange range{rig_.allocate(bytes), bytes};
        fill(range);
        return range;
    }
    void fill(GuestRange range) const { std::ranges::fill(*rig_.memory().at(range), kGuardByte); }

    VirtioRig& rig_;
    const HostileTarget& target_;
    GuestAddress buffer_{};
    GuestAddress table_{};
    std::vector<GuestRange> guards_;
};

namespace {

constexpr std::uint16_t kNext = kDescriptorNext;
constexpr std::uint16_t kWrite = kDescriptorWrite;
constexpr std::uint16_t kIndirect = kDescriptorIndirect;

/// Negotiates up to FEATURES_OK from reset, without touching a queue.
void negotiate(Attack& a, std::uint64_t without = 0) {
    ASSERT_TRUE(a.rig().reset());
    ASSERT_TRUE(a.registers().negotiate(a.registers().device_features() & ~without));
}

/// Tries a geometry for the attacked queue, and expects that it is refused.
void expect_no_queue(Attack& a, const virtio::QueueGeometry& geometry) {
    EXPECT_FALSE(a.registers().enable_queue(a.queue_index(), geometry))
        << geometry.size << " " << to_string(geometry.descriptors);
}

void write_wild_geometry(Attack& a) {
    RegisterDriver& driver = a.registers();
    for (const std::uint32_t value : {0U, 1U, 0xfffffff0U, 0x80000000U}) {
        driver.write(reg::kQueueSize, value);
        for (const std::uint64_t offset : {reg::kQueueDescLow, reg::kQueueDescHigh, reg::kQueueDriverLow,
                                           reg::kQueueDriverHigh, reg::kQueueDeviceLow, reg::kQueueDeviceHigh}) {
            driver.write(offset, value);
        }
    }
}

void access_at_width(Attack& a, std::size_t width, std::uint64_t step) {
    std::vector<std::byte> data(width);
    for (std::uint64_t offset = 0; offset < reg::kConfig; offset += step) {
        if (width == 4 && offset % 4 == 0) {
            continue; // the intended use
        }
        a.rig().transport().read(offset, data);
        for (const unsigned value : {0x00U, 0x01U, 0x80U, 0xffU}) {
            std::ranges::fill(data, static_cast<std::byte>(value));
            a.rig().transport().write(offset, data);
        }
    }
}

/// Publishes requests that the device may have taken but not finished, and rings their doorbell.
void put_in_flight(Attack& a, unsigned count) {
    for (unsigned i = 0; i < count && a.queue().free_descriptors() >= 8; ++i) {
        a.send_well_formed();
    }
    a.registers().ring(a.queue_index());
    a.rig().pump().turn();
}

} // namespace

const std::vector<HostileCase>& hostile_cases() {
    static const std::vector<HostileCase> kCases{
        // ---- Chains (2.7.5)
        {"ChainThatLoopsAtOnce", Outcome::kNeedsReset,
         [](Attack& a) {
             a.send({{a.buffer(), 16, kNext, 0}});
         }},
        {"ChainThatLoops", Outcome::kNeedsReset,
         [](Attack& a) {
             a.send({{a.buffer(), 16, kNext, 1}, {a.buffer(), 16, kNext, 2}, {a.buffer(), 16, kNext, 1}});
         }},
        {"ChainOfNothingThatLoops", Outcome::kNeedsReset,
         [](Attack& a) {
             a.send({{0, 0, kNext, 1}, {0, 0, kNext, 0}});
         }},
        {"ChainOfBuffersToWriteThatLoops", Outcome::kNeedsReset,
         [](Attack& a) {
             a.send({{a.buffer(), 16, kNext | kWrite, 1}, {a.buffer(), 16, kNext | kWrite, 0}});
         }},
        {"NextBeyondTheQueue", Outcome::kNeedsReset,
         [](Attack& a) {
             a.send({{a.buffer(), 16, kNext, a.queue().size()}});
         }},
        {"NextFarBeyondTheQueue", Outcome::kNeedsReset,
         [](Attack& a) {
             a.send({{a.buffer(), 16, kNext, 0xffff}});
         }},
        {"ReadableAfterWritable", Outcome::kNeedsReset,
         [](Attack& a) {
             a.send({{a.buffer(), 16, kNext | kWrite, 1}, {a.buffer(), 16, 0, 0}});
         }},
        {"ReadableAfterWritableOfNoBytes", Outcome::kNeedsReset,
         [](Attack& a) {
             a.send({{a.buffer(), 0, kNext | kWrite, 1}, {a.buffer(), 16, 0, 0}});
         }},
        {"FlagsThatAreNone", Outcome::kEither,
         [](Attack& a) {
             a.send({{a.buffer(), 16, 0xfff8, 0xffff}});
         }},
        {"BufferOfNoBytes", Outcome::kEither,
         [](Attack& a) {
             a.send({{a.buffer(), 0, 0, 0}});
         }},
        {"BufferOfNoBytesNowhere", Outcome::kEither,
         [](Attack& a) {
             a.send({{UINT64_MAX, 0, kWrite, 0}});
         }},
        {"BuffersOfNoBytesOnly", Outcome::kEither,
         [](Attack& a) {
             a.send({{UINT64_MAX, 0, kNext, 1}, {0, 0, kNext | kWrite, 2}, {1, 0, kWrite, 0}});
         }},
        {"BuffersOfOneByte", Outcome::kEither,
         [](Attack& a) {
             std::vector<Buffer> buffers;
             for (unsigned i = 0; i < a.queue().size(); ++i) {
                 buffers.push_back({GuestAddress{a.buffer() + i}, 1, 2U * i > a.queue().size()});
             }
             a.queue().add(buffers);
             a.ring();
         }},
        {"BufferToReadOnly", Outcome::kEither,
         [](Attack& a) {
             a.send({{a.buffer(), 1, 0, 0}});
         }},
        {"BufferToWriteOnly", Outcome::kEither,
         [](Attack& a) {
             a.send({{a.buffer(), 1, kWrite, 0}});
         }},
        {"LargeBuffersOfZeros", Outcome::kEither,
         [](Attack& a) {
             a.send({{a.buffer(), 32768, kNext, 1}, {a.buffer() + 32768, 32768, kWrite, 0}});
         }},
        {"LargeBuffersOfOnes", Outcome::kEither,
         [](Attack& a) {
             std::ranges::fill(*a.rig().memory().at({GuestAddress{a.buffer()}, 32768}), std::byte{0xff});
             a.send({{a.buffer(), 32768, kNext, 1}, {a.buffer() + 32768, 32768, kWrite, 0}});
         }},
        {"ChainOfMoreThanFourGigabytes", Outcome::kNeedsReset,
         [](Attack& a) {
             // If the queue is short, one address is wild, so less is accepted.
             const std::uint32_t length = 16 * 1024 * 1024;
             std::vector<Buffer> buffers(a.queue().size(), Buffer{GuestAddress{0}, length});
             buffers.back() = {GuestAddress{a.end_of_ram() - 1}, 2};
             a.queue().add(buffers);
             a.ring();
         }},

        // ---- Addresses
        {"BufferBehindTheEndOfMemory", Outcome::kNeedsReset,
         [](Attack& a) {
             a.send({{a.end_of_ram(), 16, 0, 0}});
         }},
        {"BufferToWriteBehindTheEndOfMemory", Outcome::kNeedsReset,
         [](Attack& a) {
             a.send({{a.end_of_ram(), 16, kWrite, 0}});
         }},
        {"BufferOverTheEndOfMemory", Outcome::kNeedsReset,
         [](Attack& a) {
             a.send({{a.end_of_ram() - 8, 16, kWrite, 0}});
         }},
        {"BufferAtTheEndOfTheAddressSpace", Outcome::kNeedsReset,
         [](Attack& a) {
             a.send({{UINT64_MAX - 15, 16, kWrite, 0}});
         }},
        {"BufferThatWraps", Outcome::kNeedsReset,
         [](Attack& a) {
             a.send({{UINT64_MAX - 7, 16, kWrite, 0}});
         }},
        {"BufferThatWrapsIntoMemory", Outcome::kNeedsReset,
         [](Attack& a) {
             a.send({{UINT64_MAX, UINT32_MAX, kWrite, 0}});
         }},
        {"BufferOfTheGreatestLength", Outcome::kNeedsReset,
         [](Attack& a) {
             a.send({{a.buffer(), UINT32_MAX, kWrite, 0}});
         }},
        {"BufferAtAnAddressOfBit63", Outcome::kNeedsReset,
         [](Attack& a) {
             a.send({{1ULL << 63, 16, 0, 0}});
         }},
        {"SecondBufferNowhere", Outcome::kNeedsReset,
         [](Attack& a) {
             a.send({{a.buffer(), 16, kNext, 1}, {1ULL << 52, 16, kWrite, 0}});
         }},
        {"BuffersThatOverlap", Outcome::kEither,
         [](Attack& a) {
             a.send(
                 {{a.buffer(), 1024, kNext, 1}, {a.buffer(), 1024, kNext | kWrite, 2}, {a.buffer(), 512, kWrite, 0}});
         }},
        {"BuffersThatOverlapByHalf", Outcome::kEither,
         [](Attack& a) {
             a.send({{a.buffer(), 1024, kNext, 1}, {a.buffer() + 512, 1024, kWrite, 0}});
         }},
        {"BufferThatIsTheDescriptorTable", Outcome::kEither,
         [](Attack& a) {
             const std::uint32_t bytes = 16U * a.queue().size();
             a.send({{a.buffer(), bytes, kNext, 1}, {to_integer(a.queue().geometry().descriptors), bytes, kWrite, 0}});
             a.ring();
         }},
        {"BufferThatIsTheAvailableRing", Outcome::kEither,
         [](Attack& a) {
             a.send({{a.buffer(), 64, kNext, 1}, {to_integer(a.queue().geometry().driver_area), 64, kWrite, 0}});
             a.ring();
         }},
        {"BufferThatIsTheUsedRing", Outcome::kEither,
         [](Attack& a) {
             a.send({{a.buffer(), 64, kNext, 1}, {to_integer(a.queue().geometry().device_area), 64, kWrite, 0}});
             a.ring();
         }},

        // ---- Indirect tables (2.7.5.3)
        {"TableOfNoBytes", Outcome::kNeedsReset,
         [](Attack& a) {
             a.send({{a.table(), 0, kIndirect, 0}});
         }},
        {"TableOfOneByte", Outcome::kNeedsReset,
         [](Attack& a) {
             a.send({{a.table(), 1, kIndirect, 0}});
         }},
        {"TableOfNotQuiteOneEntry", Outcome::kNeedsReset,
         [](Attack& a) {
             a.send({{a.table(), 15, kIndirect, 0}});
         }},
        {"TableOfOneEntryAndAByte", Outcome::kNeedsReset,
         [](Attack& a) {
             a.send_table_of_bytes(17, {{a.buffer(), 16, 0, 0}});
         }},
        {"TableOfTooManyEntries", Outcome::kNeedsReset,
         [](Attack& a) {
             a.send_table_of_bytes(65537 * 16, {{a.buffer(), 16, 0, 0}});
         }},
        {"TableOfTheGreatestLength", Outcome::kNeedsReset,
         [](Attack& a) {
             a.send_table_of_bytes(0xfffffff0, {{a.buffer(), 16, 0, 0}});
         }},
        {"TableThatLoops", Outcome::kNeedsReset,
         [](Attack& a) {
             a.send_table({{a.buffer(), 16, kNext, 1}, {a.buffer(), 16, kNext, 0}});
         }},
        {"TableOfNothingThatLoops", Outcome::kNeedsReset,
         [](Attack& a) {
             a.send_table({{0, 0, kNext, 0}});
         }},
        {"TableInATable", Outcome::kNeedsReset,
         [](Attack& a) {
             a.send_table({{a.table() + 16, 16, kIndirect, 0}});
         }},
        {"TableThatIsItsOwnTable", Outcome::kNeedsReset,
         [](Attack& a) {
             a.send_table({{a.table(), 16, kIndirect, 0}});
         }},
        {"TableInATableAfterABuffer", Outcome::kNeedsReset,
         [](Attack& a) {
             a.send_table({{a.buffer(), 16, kNext, 1}, {a.table(), 16, kIndirect, 0}});
         }},
        {"TableWithNext", Outcome::kNeedsReset,
         [](Attack& a) {
             a.queue().set_descriptor(1, {a.buffer(), 16, kWrite, 0});
             a.send_table({{a.buffer(), 16, 0, 0}}, kIndirect | kNext);
         }},
        {"TableThatIsToBeWritten", Outcome::kEither,
         [](Attack& a) {
             a.send_table({{a.buffer(), 16, 0, 0}}, kIndirect | kWrite);
         }},
        {"TableWithNextBeyondIt", Outcome::kNeedsReset,
         [](Attack& a) {
             a.send_table({{a.buffer(), 16, kNext, 1}});
         }},
        {"TableWithNextFarBeyondIt", Outcome::kNeedsReset,
         [](Attack& a) {
             a.send_table({{a.buffer(), 16, kNext, 0xffff}});
         }},
        {"TableLongerThanTheQueue", Outcome::kNeedsReset,
         [](Attack& a) {
             std::vector<RawDescriptor> entries;
             for (std::uint16_t i = 0; i <= a.queue().size(); ++i) {
                 entries.push_back({a.buffer(), 1, kNext, static_cast<std::uint16_t>(i + 1)});
             }
             entries.back().flags = 0;
             a.send_table(entries);
         }},
        {"TableWithReadableAfterWritable", Outcome::kNeedsReset,
         [](Attack& a) {
             a.send_table({{a.buffer(), 16, kNext | kWrite, 1}, {a.buffer(), 16, 0, 0}});
         }},
        {"TableWithABufferNowhere", Outcome::kNeedsReset,
         [](Attack& a) {
             a.send_table({{a.end_of_ram(), 16, kWrite, 0}});
         }},
        {"TableNowhere", Outcome::kNeedsReset,
         [](Attack& a) {
             a.send({{a.end_of_ram(), 16, kIndirect, 0}});
         }},
        {"TableOverTheEndOfMemory", Outcome::kNeedsReset,
         [](Attack& a) {
             a.send({{a.end_of_ram() - 8, 16, kIndirect, 0}});
         }},
        {"TableThatWraps", Outcome::kNeedsReset,
         [](Attack& a) {
             a.send({{UINT64_MAX - 15, 32, kIndirect, 0}});
         }},
        {"TableThatIsTheQueue", Outcome::kNeedsReset,
         [](Attack& a) {
             a.send({{to_integer(a.queue().geometry().descriptors), 16U * a.queue().size(), kIndirect, 0}});
         }},
        {"TableThatWasNotNegotiated", Outcome::kNeedsReset,
         [](Attack& a) {
             ASSERT_TRUE(a.rig().start(~virtio::kFeatureIndirectDescriptors));
             a.send_table({{a.buffer(), 16, 0, 0}});
         }},

        // ---- Rings (2.7.6)
        {"HeadBeyondTheQueue", Outcome::kNeedsReset, [](Attack& a) { a.send_head(a.queue().size()); }},
        {"HeadFarBeyondTheQueue", Outcome::kNeedsReset, [](Attack& a) { a.send_head(0xffff); }},
        {"IndexOneTooFarAhead", Outcome::kNeedsReset,
         [](Attack& a) {
             a.queue().set_available_index(
                 static_cast<std::uint16_t>(a.queue().available_index() + a.queue().size() + 1));
             a.ring();
         }},
        {"IndexHalfTheWayRound", Outcome::kNeedsReset,
         [](Attack& a) {
             a.queue().set_available_index(static_cast<std::uint16_t>(a.queue().available_index() + 0x8000));
             a.ring();
         }},
        {"IndexThatGoesBack", Outcome::kNeedsReset,
         [](Attack& a) {
             a.queue().set_available_index(static_cast<std::uint16_t>(a.queue().available_index() - 1));
             a.ring();
         }},
        {"TheSameRequestInEveryEntry", Outcome::kEither,
         [](Attack& a) {
             a.queue().set_descriptor(0, {a.buffer(), 512, kNext, 1});
             a.queue().set_descriptor(1, {a.buffer() + 512, 512, kWrite, 0});
             for (unsigned i = 0; i < a.queue().size(); ++i) {
                 a.queue().publish(0);
             }
             a.ring();
         }},
        {"RequestsThatAreChangedAfterTheyArePublished", Outcome::kEither,
         [](Attack& a) {
             for (unsigned i = 0; i < 16 && a.queue().free_descriptors() >= 8; ++i) {
                 a.send_well_formed();
             }
             a.registers().ring(a.queue_index());
             for (std::uint16_t i = 0; i < a.queue().size(); ++i) {
                 a.queue().set_descriptor(i, {UINT64_MAX, UINT32_MAX, 0xffff, 0xffff});
             }
             a.rig().settle();
         }},
        {"EventsAndFlagsOfAllOnes", Outcome::kEither,
         [](Attack& a) {
             a.queue().set_available_flags(0xffff);
             a.queue().set_used_event(0xffff);
             a.send_well_formed();
             a.ring();
         }},
        {"QueueOfOnes", Outcome::kNeedsReset,
         [](Attack& a) {
             const virtio::QueueGeometry geometry = a.queue().geometry();
             std::ranges::fill(*a.rig().memory().at({geometry.descriptors, DriverQueue::bytes(geometry.size)}),
                               std::byte{0xff});
             a.queue().set_available_index(1);
             a.ring();
         }},

        // ---- Geometry (2.7, 4.2.2)
        {"SizesThatAreNone", Outcome::kEither,
         [](Attack& a) {
             negotiate(a);
             virtio::QueueGeometry geometry = a.queue().geometry();
             const std::uint32_t max = a.registers().queue_size_max(a.queue_index());
             for (const std::uint32_t size : {0U, 3U, 6U, max + 1, 2 * max, 32769U, 65535U}) {
                 geometry.size = static_cast<std::uint16_t>(size);
                 expect_no_queue(a, geometry);
             }
             for (const std::uint32_t size : {0x10000U | max, 0x80000000U | max, UINT32_MAX}) {
                 a.registers().set_geometry(a.queue_index(), a.queue().geometry());
                 a.registers().write(reg::kQueueSize, size);
                 a.registers().write(reg::kQueueReady, 1);
                 EXPECT_FALSE(a.registers().is_queue_ready(a.queue_index())) << size;
             }
         }},
        {"PartsThatAreNotMemory", Outcome::kEither,
         [](Attack& a) {
             negotiate(a);
             for (auto part : {&virtio::QueueGeometry::descriptors, &virtio::QueueGeometry::driver_area,
                               &virtio::QueueGeometry::device_area}) {
                 for (const std::uint64_t address : std::initializer_list<std::uint64_t>{
                          a.end_of_ram(), a.end_of_ram() - 16, 1ULL << 52, 1ULL << 63, UINT64_MAX - 15, UINT64_MAX}) {
                     virtio::QueueGeometry geometry = a.queue().geometry();
                     geometry.size = static_cast<std::uint16_t>(a.registers().queue_size_max(a.queue_index()));
                     geometry.*part = GuestAddress{address};
                     if (geometry.size > 4) { // 16 bytes have room for the smallest rings.
                         expect_no_queue(a, geometry);
                     }
                 }
             }
         }},
        {"PartsThatAreNotAligned", Outcome::kEither,
         [](Attack& a) {
             negotiate(a);
             for (auto part : {&virtio::QueueGeometry::descriptors, &virtio::QueueGeometry::driver_area,
                               &virtio::QueueGeometry::device_area}) {
                 virtio::QueueGeometry geometry = a.queue().geometry();
                 geometry.*part = GuestAddress{a.buffer() + 1};
                 expect_no_queue(a, geometry);
             }
         }},
        {"PartsThatOverlap", Outcome::kEither,
         [](Attack& a) {
             negotiate(a);
             virtio::QueueGeometry geometry = a.queue().geometry();
             geometry.driver_area = geometry.descriptors;
             geometry.device_area = geometry.descriptors;
             EXPECT_TRUE(a.registers().enable_queue(a.queue_index(), geometry));
             a.registers().add_status(virtio::kStatusDriverOk);
             a.rig().settle();
             for (std::uint16_t i = 0; i < 8; ++i) {
                 ASSERT_TRUE(
                     a.rig().memory().store(geometry.descriptors, RawDescriptor{a.buffer() + i, 16, kWrite, i}));
                 a.ring();
             }
         }},
        {"GeometryWrittenWhileTheQueueIsReady", Outcome::kGoesOn,
         [](Attack& a) {
             a.registers().write(reg::kQueueSel, a.queue_index());
             write_wild_geometry(a);
             a.registers().write(reg::kQueueReady, 1);
             write_wild_geometry(a);
         }},
        {"GeometryWrittenBetweenReadyAndDriverOk", Outcome::kGoesOn,
         [](Attack& a) {
             negotiate(a);
             a.rig().set_up_queues();
             ASSERT_TRUE(a.registers().enable_queue(a.queue_index(), a.queue().geometry()));
             write_wild_geometry(a);
             a.registers().add_status(virtio::kStatusDriverOk);
             write_wild_geometry(a);
             a.rig().settle();
         }},
        {"QueuesThatDoNotExist", Outcome::kGoesOn,
         [](Attack& a) {
             for (const std::uint32_t index : {64U, 0xffffU, 0x10000U, 0x80000000U, UINT32_MAX}) {
                 EXPECT_EQ(a.registers().queue_size_max(index), 0U);
                 EXPECT_FALSE(a.registers().enable_queue(index, a.queue().geometry()));
                 a.registers().write(reg::kQueueReady, 0);
                 a.registers().write(reg::kQueueReset, 1);
                 EXPECT_EQ(a.registers().read(reg::kQueueReset), 0U);
                 write_wild_geometry(a);
             }
         }},
        {"DoorbellsOfQueuesThatDoNotExist", Outcome::kGoesOn,
         [](Attack& a) {
             for (const std::uint32_t value : {64U, 255U, 0x7fffU, 0xffffU, 0x10000U, 0x80000000U, UINT32_MAX}) {
                 a.registers().write(reg::kQueueNotify, value);
                 a.rig().settle();
             }
         }},
        {"DoorbellsForNothing", Outcome::kGoesOn,
         [](Attack& a) {
             for (unsigned i = 0; i < 256; ++i) {
                 a.registers().ring(static_cast<std::uint16_t>(i));
                 a.rig().pump().turn();
             }
         }},
        {"NoQueueEnabled", Outcome::kGoesOn,
         [](Attack& a) {
             negotiate(a);
             a.registers().add_status(virtio::kStatusDriverOk);
             a.rig().settle();
             for (std::uint16_t index = 0; index < 8; ++index) {
                 a.registers().ring(index);
                 a.rig().settle();
             }
         }},
        {"QueueEnabledAfterDriverOk", Outcome::kGoesOn,
         [](Attack& a) {
             negotiate(a);
             a.registers().add_status(virtio::kStatusDriverOk);
             a.rig().settle();
             a.rig().set_up_queues();
             EXPECT_TRUE(a.registers().enable_queue(a.queue_index(), a.queue().geometry()));
             a.send_well_formed();
             a.ring();
         }},
        {"SmallestQueue", Outcome::kEither,
         [](Attack& a) {
             negotiate(a);
             a.rig().set_up_queues();
             virtio::QueueGeometry geometry = a.queue().geometry();
             geometry.size = 1;
             EXPECT_TRUE(a.registers().enable_queue(a.queue_index(), geometry));
             a.registers().add_status(virtio::kStatusDriverOk);
             a.rig().settle();
             a.send({{a.buffer(), 16, 0, 0}});
             a.send_head(1);
         }},

        // ---- Status (2.1, 3.1.1)
        {"StatusBitsOutOfOrder", Outcome::kEither,
         [](Attack& a) {
             ASSERT_TRUE(a.rig().reset());
             for (const std::uint32_t bits : {4U, 8U, 2U, 12U, 14U, 6U, 10U}) {
                 a.registers().write(reg::kStatus, bits);
                 EXPECT_EQ(a.registers().status(), 0U) << bits;
             }
             a.rig().settle();
         }},
        {"DriverOkWithoutFeaturesOk", Outcome::kEither,
         [](Attack& a) {
             ASSERT_TRUE(a.rig().reset());
             a.registers().write(reg::kStatus, 1);
             a.registers().write(reg::kStatus, 3);
             a.registers().set_features(a.registers().device_features());
             a.registers().write(reg::kStatus, 7);
             a.rig().settle();
             EXPECT_EQ(a.registers().status(), 3U);
             a.ring();
         }},
        {"FeaturesThatWereNotOffered", Outcome::kEither,
         [](Attack& a) {
             const std::uint64_t offered = a.registers().device_features();
             for (unsigned bit = 0; bit < 64; ++bit) {
                 if ((offered >> bit & 1) == 0) {
                     ASSERT_TRUE(a.rig().reset());
                     EXPECT_FALSE(a.registers().negotiate(offered | (1ULL << bit))) << bit;
                     a.registers().add_status(virtio::kStatusDriverOk);
                     EXPECT_EQ(a.registers().status(), 3U);
                 }
             }
             a.rig().settle();
         }},
        {"FeaturesBeyondBit63", Outcome::kEither,
         [](Attack& a) {
             ASSERT_TRUE(a.rig().reset());
             a.registers().write(reg::kDriverFeaturesSel, 2);
             a.registers().write(reg::kDriverFeatures, 1);
             EXPECT_FALSE(a.registers().negotiate(a.registers().device_features()));
         }},
        {"NoVersion1", Outcome::kEither,
         [](Attack& a) {
             ASSERT_TRUE(a.rig().reset());
             EXPECT_FALSE(a.registers().negotiate(a.registers().device_features() & ~virtio::kFeatureVersion1));
         }},
        {"FeaturesWrittenAfterFeaturesOk", Outcome::kGoesOn,
         [](Attack& a) {
             a.registers().set_features(~0ULL);
             a.registers().set_features(0);
             a.registers().add_status(virtio::kStatusFeaturesOk);
         }},
        {"StatusBitsTakenBack", Outcome::kGoesOn,
         [](Attack& a) {
             for (const std::uint32_t bits : {1U, 2U, 8U, 3U, 11U, 64U, 16U, 32U, 0x100U, 0xffffff00U}) {
                 a.registers().write(reg::kStatus, bits);
             }
         }},
        {"Failed", Outcome::kEither,
         [](Attack& a) {
             a.send_well_formed();
             a.registers().add_status(virtio::kStatusFailed);
             a.ring();
             a.registers().write(reg::kStatus, 0xff);
             a.rig().settle();
         }},

        // ---- Resets (2.4, 2.6.1)
        {"ResetWithRequestsInFlight", Outcome::kEither,
         [](Attack& a) {
             put_in_flight(a, 16);
             ASSERT_TRUE(a.rig().reset());
             const std::uint16_t used = a.queue().used_index();
             const std::uint64_t pulses = a.rig().irq().pulses();
             a.ring();
             EXPECT_EQ(a.queue().used_index(), used) << "pushed after Status read 0";
             EXPECT_EQ(a.rig().irq().pulses(), pulses) << "interrupted after Status read 0";
             EXPECT_EQ(a.registers().read(reg::kInterruptStatus), 0U);
         }},
        {"ResetOfADeviceThatNeedsOne", Outcome::kEither,
         [](Attack& a) {
             put_in_flight(a, 4);
             a.send_head(0xffff);
             ASSERT_TRUE(a.rig().reset());
             EXPECT_EQ(a.rig().transport().negotiation().failure(), "");
         }},
        {"ManyResets", Outcome::kEither,
         [](Attack& a) {
             for (unsigned i = 0; i < 50; ++i) {
                 put_in_flight(a, i % 3);
                 a.registers().write(reg::kStatus, 0);
                 a.registers().write(reg::kStatus, 0);
                 ASSERT_TRUE(a.rig().start());
             }
         }},
        {"ResetBeforeTheActivationIsTaken", Outcome::kEither,
         [](Attack& a) {
             negotiate(a);
             a.registers().add_status(virtio::kStatusDriverOk);
             a.registers().write(reg::kStatus, 0);
             a.registers().write(reg::kStatus, 1);
             a.rig().settle();
             EXPECT_EQ(a.registers().status(), 0U);
         }},
        {"NegotiationWhileTheDeviceIsReset", Outcome::kEither,
         [](Attack& a) {
             put_in_flight(a, 8);
             a.registers().write(reg::kStatus, 0);
             a.registers().negotiate(a.registers().device_features());
             a.registers().enable_queue(a.queue_index(), a.queue().geometry());
             a.registers().add_status(virtio::kStatusDriverOk);
             a.ring();
             EXPECT_TRUE(a.rig().pump_until([&] { return a.registers().status() == 0; }));
         }},
        {"QueueResetWithRequestsInFlight", Outcome::kGoesOn,
         [](Attack& a) {
             put_in_flight(a, 16);
             a.registers().write(reg::kQueueSel, a.queue_index());
             a.registers().write(reg::kQueueReset, 1);
             a.registers().write(reg::kQueueReset, 1);
             a.registers().write(reg::kQueueReady, 1);
             a.ring();
             ASSERT_TRUE(a.rig().pump_until([&] { return a.registers().read(reg::kQueueReset) == 0; }));
             EXPECT_EQ(a.registers().read(reg::kQueueReady), 0U);
             const std::uint16_t used = a.queue().used_index();
             a.ring();
             EXPECT_EQ(a.queue().used_index(), used) << "pushed after the reset of the queue";
         }},
        {"QueueStoppedWithRequestsInFlight", Outcome::kGoesOn,
         [](Attack& a) {
             put_in_flight(a, 16);
             a.registers().write(reg::kQueueSel, a.queue_index());
             a.registers().write(reg::kQueueReady, 0);
             write_wild_geometry(a);
             ASSERT_TRUE(a.rig().pump_until([&] { return a.registers().read(reg::kQueueReady) == 0; }));
             write_wild_geometry(a);
             a.registers().write(reg::kQueueReady, 1);
             EXPECT_EQ(a.registers().read(reg::kQueueReady), 0U);
             a.ring();
         }},
        {"DeviceResetDuringAQueueReset", Outcome::kEither,
         [](Attack& a) {
             put_in_flight(a, 16);
             a.registers().write(reg::kQueueSel, a.queue_index());
             a.registers().write(reg::kQueueReset, 1);
             a.rig().pump().turn();
             a.registers().write(reg::kStatus, 0);
             ASSERT_TRUE(a.rig().pump_until([&] { return a.registers().status() == 0; }));
             EXPECT_EQ(a.registers().read(reg::kQueueReset), 0U);
         }},
        {"ManyQueueResets", Outcome::kGoesOn,
         [](Attack& a) {
             for (unsigned i = 0; i < 20; ++i) {
                 put_in_flight(a, i % 3);
                 a.registers().write(reg::kQueueSel, a.queue_index());
                 a.registers().write(reg::kQueueReset, 1);
                 ASSERT_TRUE(a.rig().pump_until([&] { return a.registers().read(reg::kQueueReset) == 0; }));
                 a.rig().set_up_queues();
                 ASSERT_TRUE(a.registers().enable_queue(a.queue_index(), a.queue().geometry()));
                 a.rig().settle();
             }
         }},

        // ---- Registers (4.2.2)
        {"WritesToReadOnlyRegisters", Outcome::kGoesOn,
         [](Attack& a) {
             for (const std::uint64_t offset :
                  {reg::kMagicValue, reg::kVersion, reg::kDeviceId, reg::kVendorId, reg::kDeviceFeatures,
                   reg::kQueueSizeMax, reg::kInterruptStatus, reg::kShmLenLow, reg::kShmLenHigh, reg::kShmBaseLow,
                   reg::kShmBaseHigh, reg::kConfigGeneration}) {
                 const std::uint32_t before = a.registers().read(offset);
                 a.registers().write(offset, ~before);
                 EXPECT_EQ(a.registers().read(offset), before) << offset;
             }
         }},
        {"RegistersThatDoNotExist", Outcome::kGoesOn,
         [](Attack& a) {
             for (const std::uint64_t offset : {0x018U, 0x01cU, 0x028U, 0x02cU, 0x03cU, 0x040U, 0x048U, 0x054U, 0x068U,
                                                0x074U, 0x0a8U, 0x0c4U, 0x0f8U}) {
                 a.registers().write(offset, 0);
                 a.registers().write(offset, UINT32_MAX);
                 EXPECT_EQ(a.registers().read(offset), UINT32_MAX) << offset;
             }
         }},
        {"AccessesOf1Byte", Outcome::kGoesOn, [](Attack& a) { access_at_width(a, 1, 1); }},
        {"AccessesOf2Bytes", Outcome::kGoesOn, [](Attack& a) { access_at_width(a, 2, 1); }},
        {"AccessesOf4BytesNotAligned", Outcome::kGoesOn, [](Attack& a) { access_at_width(a, 4, 1); }},
        {"AccessesOf8Bytes", Outcome::kGoesOn, [](Attack& a) { access_at_width(a, 8, 1); }},
        {"AccessesOfNoBytes", Outcome::kGoesOn, [](Attack& a) { access_at_width(a, 0, 1); }},
        {"InterruptsAcknowledgedThatWereNot", Outcome::kGoesOn,
         [](Attack& a) {
             a.registers().write(reg::kInterruptAck, UINT32_MAX);
             EXPECT_EQ(a.registers().read(reg::kInterruptStatus), 0U);
         }},
        {"ConfigurationReadEverywhere", Outcome::kGoesOn,
         [](Attack& a) {
             for (std::size_t width = 0; width <= 8; ++width) {
                 std::vector<std::byte> data(width);
                 for (std::uint64_t offset = reg::kConfig; offset < virtio::MmioTransport::kSize + 8; ++offset) {
                     a.rig().transport().read(offset, data);
                 }
                 for (std::uint64_t offset = UINT64_MAX - 8; offset != 0; ++offset) {
                     a.rig().transport().read(offset, data);
                     a.rig().transport().write(offset, data);
                 }
             }
         }},
        {"ConfigurationWrittenEverywhere", Outcome::kEither,
         [](Attack& a) {
             const auto size = a.rig().transport().negotiation().config().size();
             for (std::size_t width = 0; width <= 8; ++width) {
                 for (const unsigned value : {0x00U, 0xffU, 0x5aU}) {
                     const std::vector<std::byte> data(width, static_cast<std::byte>(value));
                     for (std::uint64_t offset = reg::kConfig; offset < reg::kConfig + 512; ++offset) {
                         a.rig().transport().write(offset, data);
                     }
                     a.rig().pump().turn();
                 }
             }
             EXPECT_EQ(a.rig().transport().negotiation().config().size(), size);
         }},
        {"RegistersAtRandom", Outcome::kEither,
         [](Attack& a) {
             std::mt19937_64 random{20261124};
             for (unsigned i = 0; i < 20000; ++i) {
                 const std::uint64_t offset = random() % 0x120 / (random() % 4 != 0 ? 4 : 1) * 4;
                 if (random() % 2 == 0) {
                     a.registers().write(offset, static_cast<std::uint32_t>(random() >> (random() % 64)));
                 } else {
                     (void)a.registers().read(offset);
                 }
                 if (random() % 4 == 0) {
                     a.rig().pump().turn();
                 }
             }
         }},
        {"QueueAtRandom", Outcome::kEither,
         [](Attack& a) {
             std::mt19937_64 random{20261125};
             for (unsigned i = 0; i < 200; ++i) {
                 for (std::uint16_t index = 0; index < a.queue().size(); ++index) {
                     a.queue().set_descriptor(
                         index, {random() % 4 == 0 ? random() : a.buffer() + (random() % Attack::kBufferBytes / 2),
                                 static_cast<std::uint32_t>(random() % (Attack::kBufferBytes / 2)),
                                 static_cast<std::uint16_t>(random() % (random() % 8 == 0 ? 8 : 4)),
                                 static_cast<std::uint16_t>(random() % a.queue().size())});
                 }
                 a.send_head(static_cast<std::uint16_t>(random() % a.queue().size()));
                 if (a.rig().needs_reset()) {
                     ASSERT_TRUE(a.rig().start());
                 }
             }
         }},
    };
    return kCases;
}

void run_hostile_case(const HostileCase& hostile_case, const HostileTarget& target) {
    constexpr std::uint32_t kConfigChange = 2;
    const std::unique_ptr<virtio::Device> device = target.make();
    VirtioRig rig{*device};
    ASSERT_TRUE(rig.start());
    Attack attack{rig, target};
    hostile_case.attack(attack);
    if (::testing::Test::HasFatalFailure()) {
        return;
    }
    rig.settle();
    if (hostile_case.outcome == Outcome::kGoesOn) {
        EXPECT_TRUE(rig.is_alive()) << rig.transport().negotiation().failure();
    } else if (hostile_case.outcome == Outcome::kNeedsReset && target.looks_at_once) {
        EXPECT_TRUE(rig.needs_reset());
        EXPECT_NE(rig.transport().negotiation().failure(), "");
        EXPECT_EQ(rig.driver().take_interrupts() & kConfigChange, kConfigChange);
    }
    attack.expect_guards_untouched();
    ASSERT_TRUE(rig.start()) << "a reset does not help";
    EXPECT_TRUE(!target.works || target.works(rig)) << "not as good as new after a reset";
    attack.expect_guards_untouched();
}

} // namespace vmm::devices::testing
