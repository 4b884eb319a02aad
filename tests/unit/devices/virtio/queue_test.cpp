#include "devices/virtio/queue.hpp"

#include <gtest/gtest.h>

#include <array>
#include <atomic>
#include <cstring>
#include <numeric>
#include <string>
#include <thread>
#include <vector>

#include "support/devices_virtio_driver.hpp"

namespace vmm::devices::virtio {
namespace {

using testing::Buffer;
using testing::DriverQueue;
using testing::kReadable;
using testing::kWritable;
using testing::Used;
using testing::operator+;
using Pop = Queue::Pop;

constexpr std::uint16_t kNext = testing::kDescriptorNext;
constexpr std::uint16_t kWrite = testing::kDescriptorWrite;
constexpr std::uint16_t kIndirect = testing::kDescriptorIndirect;

constexpr GuestAddress kQueueBase{0x10000};
constexpr GuestAddress kTable{0x40000}; // for indirect descriptors
constexpr GuestAddress kData{0x80000};
constexpr GuestAddress kBorder{2 * kMiB};   // between two adjacent regions
constexpr GuestAddress kEndOfRam{4 * kMiB}; // a hole follows

/// A queue, seen from both sides.
class QueueTest : public ::testing::Test {
  protected:
    static constexpr std::uint16_t kSize = 16;

    Queue make(bool event_idx, bool indirect = true) {
        driver.emplace(memory, kQueueBase, kSize, event_idx);
        Queue::State state;
        state.geometry = driver->geometry();
        state.event_idx = event_idx;
        state.indirect = indirect;
        return Queue::make(memory, state).value();
    }

    /// Makes `size` entries at `kTable` and a descriptor for them, and publishes it.
    void publish_table(std::vector<testing::RawDescriptor> table, std::uint16_t flags = kIndirect) {
        for (std::size_t i = 0; i < table.size(); ++i) {
            ASSERT_TRUE(memory.store(kTable + i * 16, table[i]));
        }
        driver->set_descriptor(0, {to_integer(kTable), static_cast<std::uint32_t>(table.size() * 16), flags, 1});
        driver->publish(0);
    }

    void expect_broken(Queue& queue, std::string_view part_of_why) {
        EXPECT_EQ(queue.pop(chain), Pop::kBroken);
        EXPECT_TRUE(queue.is_broken());
        EXPECT_NE(queue.why().find(part_of_why), std::string_view::npos) << queue.why();
    }

    void fill(GuestAddress address, std::size_t bytes, unsigned first = 1) {
        for (std::size_t i = 0; i < bytes; ++i) {
            ASSERT_TRUE(memory.store(address + i, static_cast<std::uint8_t>(first + i)));
        }
    }

    const std::array<GuestRange, 3> layout{GuestRange{GuestAddress{0}, 2 * kMiB}, GuestRange{kBorder, 2 * kMiB},
                                           GuestRange{GuestAddress{8 * kMiB}, 2 * kMiB}};
    const GuestMemory memory{layout, PageSize::k4K};
    std::optional<DriverQueue> driver;
    Chain chain;
};

std::vector<std::size_t> sizes(const std::vector<std::span<std::byte>>& buffers) {
    std::vector<std::size_t> result;
    for (const auto& buffer : buffers) {
        result.push_back(buffer.size());
    }
    return result;
}

// ---- Geometry

class QueueGeometryTest : public QueueTest {
  protected:
    bool is_queue(const QueueGeometry& where) {
        Queue::State state;
        state.geometry = where;
        return Queue::make(memory, state).has_value();
    }
    QueueGeometry geometry{16, GuestAddress{0x1000}, GuestAddress{0x2000}, GuestAddress{0x3000}};
};

TEST_F(QueueGeometryTest, EverySizeThatIsAPowerOfTwoIsTaken) {
    geometry = {1, GuestAddress{0x100000}, GuestAddress{0x8000}, GuestAddress{0x40000}};
    for (std::uint32_t size = 1; size <= 32768; size *= 2) {
        geometry.size = static_cast<std::uint16_t>(size);
        EXPECT_TRUE(is_queue(geometry)) << size;
    }
}

TEST_F(QueueGeometryTest, NoOtherSizeIsTaken) {
    for (const unsigned size : {0U, 3U, 15U, 17U, 255U, 32767U, 32769U, 65535U}) {
        geometry.size = static_cast<std::uint16_t>(size);
        EXPECT_FALSE(is_queue(geometry)) << size;
    }
}

// 2.7, table of alignments.
TEST_F(QueueGeometryTest, EachPartHasItsAlignment) {
    const QueueGeometry good = geometry;
    ASSERT_TRUE(is_queue(good));
    geometry.descriptors = good.descriptors + 8;
    EXPECT_FALSE(is_queue(geometry));
    geometry = good;
    geometry.driver_area = good.driver_area + 1;
    EXPECT_FALSE(is_queue(geometry));
    geometry.driver_area = good.driver_area + 2;
    EXPECT_TRUE(is_queue(geometry));
    geometry = good;
    geometry.device_area = good.device_area + 2;
    EXPECT_FALSE(is_queue(geometry));
    geometry.device_area = good.device_area + 4;
    EXPECT_TRUE(is_queue(geometry));
}

TEST_F(QueueGeometryTest, EachPartIsWhollyRamOfOneRegion) {
    const QueueGeometry good = geometry;
    // The last byte of each part, including the field for EVENT_IDX, is the last byte of memory.
    geometry = {16, GuestAddress{4 * kMiB - 256}, good.driver_area, good.device_area};
    EXPECT_TRUE(is_queue(geometry));
    geometry.descriptors = geometry.descriptors + 16;
    EXPECT_FALSE(is_queue(geometry));
    geometry = {16, good.descriptors, GuestAddress{4 * kMiB - 38}, good.device_area};
    EXPECT_TRUE(is_queue(geometry));
    geometry.driver_area = geometry.driver_area + 2;
    EXPECT_FALSE(is_queue(geometry));
    geometry = {16, good.descriptors, good.driver_area, GuestAddress{4 * kMiB - 136}};
    EXPECT_TRUE(is_queue(geometry));
    geometry.device_area = geometry.device_area + 4;
    EXPECT_FALSE(is_queue(geometry));

    geometry = good;
    geometry.descriptors = GuestAddress{2 * kMiB - 16};
    EXPECT_FALSE(is_queue(geometry)) << "over a border";
    geometry.descriptors = GuestAddress{UINT64_MAX - 15};
    EXPECT_FALSE(is_queue(geometry)) << "wraps";
}

// ---- Taking requests

TEST_F(QueueTest, NothingIsThereUntilTheIndexMoves) {
    Queue queue = make(true);
    EXPECT_EQ(queue.pop(chain), Pop::kEmpty);
    const std::uint16_t head = driver->make_chain({{kData, 8}});
    driver->set_ring(0, head);
    EXPECT_EQ(queue.pop(chain), Pop::kEmpty);
    driver->set_available_index(1);
    EXPECT_EQ(queue.pop(chain), Pop::kChain);
    EXPECT_EQ(chain.head, head);
    EXPECT_EQ(queue.pop(chain), Pop::kEmpty);
}

// 2.7.5: buffers come in the order of the chain, first those to read, then those to write.
TEST_F(QueueTest, AChainShowsItsBuffersInOrder) {
    Queue queue = make(true);
    fill(kData, 12);
    driver->add({{kData, 4}, {kData + 4, 8}, {kData + 100, 5, kWritable}, {kData + 200, 6, kWritable}});
    ASSERT_EQ(queue.pop(chain), Pop::kChain);
    EXPECT_EQ(sizes(chain.readable), (std::vector<std::size_t>{4, 8}));
    EXPECT_EQ(sizes(chain.writable), (std::vector<std::size_t>{5, 6}));
    EXPECT_EQ(chain.readable_bytes, 12U);
    EXPECT_EQ(chain.writable_bytes, 11U);
    EXPECT_EQ(chain.readable[1].data(), memory.at({kData + 4, 1})->data());
}

TEST_F(QueueTest, AChainThatIsUsedAgainShowsNothingOfTheLastOne) {
    Queue queue = make(true);
    driver->add({{kData, 4}, {kData, 4, kWritable}});
    driver->add({{kData, 1}});
    ASSERT_EQ(queue.pop(chain), Pop::kChain);
    ASSERT_EQ(queue.pop(chain), Pop::kChain);
    EXPECT_EQ(sizes(chain.readable), (std::vector<std::size_t>{1}));
    EXPECT_TRUE(chain.writable.empty());
    EXPECT_EQ(chain.readable_bytes, 1U);
    EXPECT_EQ(chain.writable_bytes, 0U);
}

// 2.7.4.1: "MUST NOT make assumptions about the particular arrangement of descriptors".
TEST_F(QueueTest, ContentIsTheSameHoweverItIsFramed) {
    Queue queue = make(true);
    fill(kData, 32);
    std::vector<std::byte> expected(32);
    ASSERT_TRUE(memory.copy_out(kData, expected));
    for (const std::vector<std::uint32_t>& framing :
         {std::vector<std::uint32_t>{32}, {1, 31}, {31, 1}, {4, 4, 4, 4, 16}, {0, 32}, {10, 0, 22, 0}}) {
        std::vector<Buffer> buffers;
        std::uint64_t offset = 0;
        for (const std::uint32_t length : framing) {
            buffers.push_back({kData + offset, length});
            offset += length;
        }
        driver->add(buffers);
        ASSERT_EQ(queue.pop(chain), Pop::kChain);
        for (const std::size_t from : {0U, 1U, 4U, 31U}) {
            std::vector<std::byte> copy(40);
            EXPECT_EQ(copy_from(chain, from, copy), 32 - from);
            EXPECT_EQ(std::memcmp(copy.data(), expected.data() + from, 32 - from), 0);
        }
        queue.push(chain.head, 0);
        driver->take_used();
    }
}

TEST_F(QueueTest, CopyingStopsAtTheEndOfTheBuffers) {
    Queue queue = make(true);
    driver->add({{kData, 4}, {kData + 100, 3, kWritable}, {kData + 200, 3, kWritable}});
    ASSERT_EQ(queue.pop(chain), Pop::kChain);
    const std::array<std::byte, 8> in{std::byte{1}, std::byte{2}, std::byte{3}, std::byte{4},
                                      std::byte{5}, std::byte{6}, std::byte{7}, std::byte{8}};
    EXPECT_EQ(copy_to(chain, 2, in), 4U);
    EXPECT_EQ(memory.load<std::uint8_t>(kData + 102), 1);
    EXPECT_EQ(memory.load<std::uint8_t>(kData + 103), 0);
    EXPECT_EQ(memory.load<std::uint8_t>(kData + 202), 4);
    EXPECT_EQ(memory.load<std::uint8_t>(kData + 203), 0);
    EXPECT_EQ(copy_to(chain, 6, in), 0U);
    EXPECT_EQ(copy_to(chain, UINT64_MAX, in), 0U);
    std::array<std::byte, 8> out{};
    EXPECT_EQ(copy_from(chain, 4, out), 0U);
    EXPECT_EQ(copy_from(chain, UINT64_MAX, out), 0U);
    EXPECT_EQ(copy_from(chain, 0, std::span<std::byte>{}), 0U);
}

TEST_F(QueueTest, ABufferOverABorderShowsAsTwo) {
    Queue queue = make(true);
    driver->add({{GuestAddress{2 * kMiB - 3}, 8}, {GuestAddress{2 * kMiB - 1}, 2, kWritable}});
    ASSERT_EQ(queue.pop(chain), Pop::kChain);
    EXPECT_EQ(sizes(chain.readable), (std::vector<std::size_t>{3, 5}));
    EXPECT_EQ(sizes(chain.writable), (std::vector<std::size_t>{1, 1}));
    EXPECT_EQ(chain.readable[1].data(), memory.at({kBorder, 1})->data());
    EXPECT_EQ(chain.readable_bytes, 8U);
}

TEST_F(QueueTest, ABufferMayEndWithMemoryAndNoByteLater) {
    Queue queue = make(true);
    driver->add({{GuestAddress{4 * kMiB - 8}, 8}});
    EXPECT_EQ(queue.pop(chain), Pop::kChain);
    driver->add({{GuestAddress{4 * kMiB - 8}, 9}});
    expect_broken(queue, "not in memory");
}

TEST_F(QueueTest, ABufferOutsideOfMemoryBreaks) {
    for (const std::uint64_t address : std::initializer_list<std::uint64_t>{4 * kMiB, 8 * kMiB - 1, 1ULL << 52,
                                                                            UINT64_MAX, UINT64_MAX - 7, 10 * kMiB}) {
        Queue queue = make(true);
        driver->add({{GuestAddress{address}, 8}});
        expect_broken(queue, "not in memory");
    }
}

TEST_F(QueueTest, ABufferLongerThanMemoryBreaks) {
    Queue queue = make(true);
    driver->add({{kData, UINT32_MAX}});
    expect_broken(queue, "not in memory");
}

TEST_F(QueueTest, ABufferWithoutBytesContributesNothingWhereverItIs) {
    Queue queue = make(true);
    driver->add({{kEndOfRam, 0}, {kData, 1}, {GuestAddress{UINT64_MAX}, 0, kWritable}, {kData, 2, kWritable}});
    ASSERT_EQ(queue.pop(chain), Pop::kChain);
    EXPECT_EQ(sizes(chain.readable), (std::vector<std::size_t>{1}));
    EXPECT_EQ(sizes(chain.writable), (std::vector<std::size_t>{2}));
    driver->add({{GuestAddress{UINT64_MAX}, 0}});
    ASSERT_EQ(queue.pop(chain), Pop::kChain);
    EXPECT_TRUE(chain.readable.empty());
}

TEST_F(QueueTest, AsManyRequestsAsEntriesAreTakenInOrderAndRoundAgain) {
    Queue queue = make(true);
    for (int round = 0; round < 5000; ++round) { // more than the 65,536 values of the index
        std::vector<std::uint16_t> heads;
        for (int i = 0; i < kSize; ++i) {
            heads.push_back(driver->add({{kData, 1}}));
        }
        for (const std::uint16_t head : heads) {
            ASSERT_EQ(queue.pop(chain), Pop::kChain);
            ASSERT_EQ(chain.head, head);
            queue.push(head, 0);
        }
        ASSERT_EQ(queue.pop(chain), Pop::kEmpty);
        while (driver->take_used()) {
        }
    }
    EXPECT_EQ(queue.state().next_available, static_cast<std::uint16_t>(5000 * kSize));
}

TEST_F(QueueTest, AQueueOfOneEntryAndTheLargestOneWork) {
    for (const std::uint16_t size : {std::uint16_t{1}, std::uint16_t{32768}}) {
        driver.emplace(memory, GuestAddress{0x100000}, size);
        Queue::State state;
        state.geometry = driver->geometry();
        auto queue = Queue::make(memory, state);
        ASSERT_TRUE(queue);
        for (unsigned i = 0; i < 70000; ++i) {
            const std::uint16_t head = driver->add({{kData, 1}});
            ASSERT_EQ(queue->pop(chain), Pop::kChain);
            queue->push(chain.head, i);
            ASSERT_EQ(driver->take_used(), (Used{head, i}));
        }
    }
}

TEST_F(QueueTest, AllEntriesOfTheLargestQueueMayBeOneChain) {
    driver.emplace(memory, GuestAddress{0x100000}, std::uint16_t{32768});
    Queue::State state;
    state.geometry = driver->geometry();
    auto queue = Queue::make(memory, state);
    driver->add(std::vector<Buffer>(32768, Buffer{kData, 2}));
    ASSERT_EQ(queue->pop(chain), Pop::kChain);
    EXPECT_EQ(chain.readable.size(), 32768U);
}

// 2.7.5.2: a chain has no more than 2^32 bytes.
TEST_F(QueueTest, AChainHasAtMostFourGigabytes) {
    constexpr std::uint32_t kOne = 2 * kMiB;
    const auto make_long = [this](std::uint32_t more) {
        driver.emplace(memory, GuestAddress{8 * kMiB}, std::uint16_t{4096});
        Queue::State state;
        state.geometry = driver->geometry();
        std::vector<Buffer> buffers(2047, Buffer{GuestAddress{0}, kOne});
        buffers.push_back({GuestAddress{0}, kOne - 8, kWritable});
        buffers.push_back({GuestAddress{0}, 8 + more, kWritable});
        driver->add(buffers);
        return Queue::make(memory, state).value();
    };
    Queue queue = make_long(0);
    ASSERT_EQ(queue.pop(chain), Pop::kChain);
    EXPECT_EQ(chain.readable_bytes + chain.writable_bytes, 4 * kGiB);
    queue = make_long(1);
    expect_broken(queue, "4 GiB");
}

TEST_F(QueueTest, BuffersMayOverlapTheQueueItself) {
    Queue queue = make(true);
    driver->add({{kQueueBase, 64}, {kQueueBase, 1024, kWritable}});
    EXPECT_EQ(queue.pop(chain), Pop::kChain);
}

// ---- Broken chains

TEST_F(QueueTest, AChainThatLoopsIsBroken) {
    Queue queue = make(true);
    driver->set_descriptor(0, {to_integer(kData), 1, kNext, 1});
    driver->set_descriptor(1, {to_integer(kData), 1, kNext, 0});
    driver->publish(0);
    expect_broken(queue, "loop");
}

TEST_F(QueueTest, ALoopOfBuffersWithoutBytesIsBroken) {
    Queue queue = make(true);
    driver->set_descriptor(3, {0, 0, kNext, 3});
    driver->publish(3);
    expect_broken(queue, "loop");
}

TEST_F(QueueTest, AHeadBeyondTheQueueIsBroken) {
    for (const std::uint16_t head : {kSize, std::uint16_t{0xffff}}) {
        Queue queue = make(true);
        driver->publish(head);
        expect_broken(queue, "head");
    }
}

TEST_F(QueueTest, ANextBeyondTheQueueIsBroken) {
    Queue queue = make(true);
    driver->set_descriptor(0, {to_integer(kData), 1, kNext, kSize});
    driver->publish(0);
    expect_broken(queue, "beyond the end of its table");
}

// 2.7.5: next is valid only with the flag.
TEST_F(QueueTest, ANextWithoutItsFlagIsIgnored) {
    Queue queue = make(true);
    driver->set_descriptor(0, {to_integer(kData), 1, 0, 0xffff});
    driver->publish(0);
    EXPECT_EQ(queue.pop(chain), Pop::kChain);
}

TEST_F(QueueTest, FlagsWithoutMeaningAreIgnored) {
    Queue queue = make(true);
    driver->set_descriptor(0, {to_integer(kData), 1, 0xfff8, 0});
    driver->publish(0);
    EXPECT_EQ(queue.pop(chain), Pop::kChain);
    EXPECT_EQ(chain.readable_bytes, 1U);
}

// 2.7.4.2.
TEST_F(QueueTest, ABufferToReadAfterOneToWriteIsBroken) {
    Queue queue = make(true);
    driver->add({{kData, 1, kWritable}, {kData, 1, kReadable}});
    expect_broken(queue, "to read comes after");
}

TEST_F(QueueTest, ABufferToReadAfterAnEmptyOneToWriteIsBroken) {
    Queue queue = make(true);
    driver->add({{kData, 0, kWritable}, {kData, 1, kReadable}});
    expect_broken(queue, "to read comes after");
}

TEST_F(QueueTest, AnIndexTooFarAheadIsBroken) {
    for (const unsigned ahead : {kSize + 1U, 0x8000U, 0xffffU}) {
        Queue queue = make(true);
        driver->set_available_index(static_cast<std::uint16_t>(ahead));
        expect_broken(queue, "available index");
    }
}

// 2.7.6.1: there is no way to "unexpose" buffers.
TEST_F(QueueTest, AnIndexThatGoesBackIsBroken) {
    Queue queue = make(true);
    driver->add({{kData, 1}});
    ASSERT_EQ(queue.pop(chain), Pop::kChain);
    driver->set_available_index(0);
    expect_broken(queue, "available index");
}

// The same if the device has seen the index but has not taken anything yet.
TEST_F(QueueTest, ARequestThatIsShownAndTakenBackIsBroken) {
    Queue queue = make(true);
    ASSERT_EQ(queue.pop(chain), Pop::kEmpty);
    driver->add({{kData, 1}});
    ASSERT_TRUE(queue.ask_for_doorbell());
    driver->set_available_index(0);
    expect_broken(queue, "went back");
}

TEST_F(QueueTest, WhatIsBrokenStaysSoWhateverTheDriverDoesThen) {
    Queue queue = make(true);
    driver->publish(kSize);
    expect_broken(queue, "head");
    driver->set_available_index(0);
    driver->add({{kData, 1}});
    EXPECT_EQ(queue.pop(chain), Pop::kBroken);
    EXPECT_FALSE(queue.ask_for_doorbell()) << "there is nothing to look at again";
}

// 2.7.10.2: the driver rings the doorbell when its index passes avail_event.
TEST_F(QueueTest, AsksForADoorbellWithTheRequestThatIsWorthOne) {
    Queue queue = make(true);
    driver->add({{kData, 1}});
    ASSERT_EQ(queue.pop(chain), Pop::kChain);
    EXPECT_FALSE(queue.ask_for_doorbell(3));
    EXPECT_EQ(driver->avail_event(), 3);
    EXPECT_FALSE(queue.ask_for_doorbell());
    EXPECT_EQ(driver->avail_event(), 1);
    driver->add({{kData, 1}});
    EXPECT_TRUE(queue.ask_for_doorbell(3)) << "there is one already";
}

TEST_F(QueueTest, WhatWasTakenBeforeTheQueueBrokeMayStillBeGivenBack) {
    Queue queue = make(true);
    const std::uint16_t head = driver->add({{kData, 1}});
    ASSERT_EQ(queue.pop(chain), Pop::kChain);
    driver->publish(kSize);
    ASSERT_EQ(queue.pop(chain), Pop::kBroken);
    queue.push(head, 0);
    EXPECT_EQ(driver->take_used(), (Used{head, 0}));
}

// ---- Indirect tables

TEST_F(QueueTest, AnIndirectTableIsFollowed) {
    Queue queue = make(true);
    driver->publish(driver->make_indirect_chain(kTable, {{kData, 3}, {kData, 4}, {kData, 5, kWritable}}));
    ASSERT_EQ(queue.pop(chain), Pop::kChain);
    EXPECT_EQ(sizes(chain.readable), (std::vector<std::size_t>{3, 4}));
    EXPECT_EQ(sizes(chain.writable), (std::vector<std::size_t>{5}));
}

// 2.7.5.3.2: "MUST ignore the write-only flag in the descriptor that refers to an indirect table".
TEST_F(QueueTest, TheWriteFlagOfTheDescriptorOfATableIsIgnored) {
    Queue queue = make(true);
    publish_table({{to_integer(kData), 3, 0, 0}}, kIndirect | kWrite);
    ASSERT_EQ(queue.pop(chain), Pop::kChain);
    EXPECT_EQ(chain.readable_bytes, 3U);
    EXPECT_EQ(chain.writable_bytes, 0U);
}

// 2.7.5.3.2: "MUST handle the case of zero or more normal chained descriptors followed by a single descriptor with
// INDIRECT".
TEST_F(QueueTest, ATableMayFollowBuffers) {
    Queue queue = make(true);
    ASSERT_TRUE(memory.store(kTable, testing::RawDescriptor{to_integer(kData), 5, kWrite, 0}));
    driver->set_descriptor(2, {to_integer(kData), 3, kNext, 5});
    driver->set_descriptor(5, {to_integer(kData), 4, kNext, 1});
    driver->set_descriptor(1, {to_integer(kTable), 16, kIndirect, 0});
    driver->publish(2);
    ASSERT_EQ(queue.pop(chain), Pop::kChain);
    EXPECT_EQ(sizes(chain.readable), (std::vector<std::size_t>{3, 4}));
    EXPECT_EQ(sizes(chain.writable), (std::vector<std::size_t>{5}));
}

TEST_F(QueueTest, ABufferToReadInATableAfterOneToWriteIsBroken) {
    Queue queue = make(true);
    ASSERT_TRUE(memory.store(kTable, testing::RawDescriptor{to_integer(kData), 5, 0, 0}));
    driver->set_descriptor(0, {to_integer(kData), 3, kNext | kWrite, 1});
    driver->set_descriptor(1, {to_integer(kTable), 16, kIndirect, 0});
    driver->publish(0);
    expect_broken(queue, "to read comes after");
}

TEST_F(QueueTest, EntriesOfATableNeedNotBeInOrder) {
    Queue queue = make(true);
    publish_table({{to_integer(kData), 1, kNext, 2}, {to_integer(kData), 2, 0, 0}, {to_integer(kData), 3, kNext, 1}});
    ASSERT_EQ(queue.pop(chain), Pop::kChain);
    EXPECT_EQ(sizes(chain.readable), (std::vector<std::size_t>{1, 3, 2}));
}

TEST_F(QueueTest, ATableMayHaveAsManyBuffersAsTheQueueHasEntries) {
    Queue queue = make(true);
    driver->publish(driver->make_indirect_chain(kTable, std::vector<Buffer>(kSize, Buffer{kData, 1})));
    ASSERT_EQ(queue.pop(chain), Pop::kChain);
    EXPECT_EQ(chain.readable_bytes, kSize);
}

// 2.7.5.3.1.
TEST_F(QueueTest, AChainInATableIsNotLongerThanTheQueue) {
    Queue queue = make(true);
    driver->publish(driver->make_indirect_chain(kTable, std::vector<Buffer>(kSize + 1, Buffer{kData, 1})));
    expect_broken(queue, "longer than the queue");
}

TEST_F(QueueTest, AChainOverBothTablesIsNotLongerThanTheQueue) {
    Queue queue = make(true);
    driver->make_indirect_chain(kTable, std::vector<Buffer>(kSize, Buffer{kData, 1}));
    driver->set_descriptor(1, {to_integer(kData), 1, kNext, 0});
    driver->publish(1);
    expect_broken(queue, "longer than the queue");
}

TEST_F(QueueTest, AChainThatLoopsInATableIsBroken) {
    Queue queue = make(true);
    publish_table({{to_integer(kData), 0, kNext, 1}, {to_integer(kData), 0, kNext, 0}});
    expect_broken(queue, "loop");
}

TEST_F(QueueTest, ATableInATableIsBroken) {
    Queue queue = make(true);
    publish_table({{to_integer(kTable), 16, kIndirect, 0}});
    expect_broken(queue, "named in an indirect table");
}

TEST_F(QueueTest, NextWithIndirectIsBroken) {
    Queue queue = make(true);
    publish_table({{to_integer(kData), 1, 0, 0}}, kIndirect | kNext);
    expect_broken(queue, "continues after");
}

TEST_F(QueueTest, ATableWithoutTheFeatureIsBroken) {
    Queue queue = make(true, false);
    publish_table({{to_integer(kData), 1, 0, 0}});
    expect_broken(queue, "not negotiated");
}

TEST_F(QueueTest, ALengthThatIsNoTableIsBroken) {
    for (const std::uint32_t length : {0U, 1U, 8U, 15U, 17U, 65537U * 16U, 0xfffffff0U, UINT32_MAX}) {
        Queue queue = make(true);
        driver->set_descriptor(0, {to_integer(kTable), length, kIndirect, 0});
        driver->publish(0);
        expect_broken(queue, "length of an indirect table");
    }
}

TEST_F(QueueTest, ATableMayBeLongerThanItsChainAndTheQueue) {
    Queue queue = make(true);
    ASSERT_TRUE(memory.store(kTable, testing::RawDescriptor{to_integer(kData), 1, kNext, 40000}));
    ASSERT_TRUE(memory.store(kTable + 16ULL * 40000, testing::RawDescriptor{to_integer(kData), 2, 0, 0}));
    driver->set_descriptor(0, {to_integer(kTable), 65536 * 16, kIndirect, 0});
    driver->publish(0);
    ASSERT_EQ(queue.pop(chain), Pop::kChain);
    EXPECT_EQ(sizes(chain.readable), (std::vector<std::size_t>{1, 2}));
}

TEST_F(QueueTest, ANextBeyondATableIsBroken) {
    Queue queue = make(true);
    publish_table({{to_integer(kData), 1, kNext, 1}});
    expect_broken(queue, "beyond the end of its table");
}

TEST_F(QueueTest, ATableOutsideOfMemoryIsBroken) {
    for (const std::uint64_t address :
         std::initializer_list<std::uint64_t>{4 * kMiB, 1ULL << 60, UINT64_MAX - 7, UINT64_MAX, 4 * kMiB - 8}) {
        Queue queue = make(true);
        driver->set_descriptor(0, {address, 16, kIndirect, 0});
        driver->publish(0);
        expect_broken(queue, "table is not in memory");
    }
}

TEST_F(QueueTest, ATableThatWrapsRoundTheAddressSpaceIsBroken) {
    Queue queue = make(true);
    driver->set_descriptor(0, {UINT64_MAX - 15, 32, kIndirect, 0});
    driver->publish(0);
    expect_broken(queue, "table is not in memory");
}

TEST_F(QueueTest, ATableMayHaveAnyAlignment) {
    Queue queue = make(true);
    driver->publish(driver->make_indirect_chain(kTable + 1, {{kData, 3}, {kData, 4}}));
    ASSERT_EQ(queue.pop(chain), Pop::kChain);
    EXPECT_EQ(chain.readable_bytes, 7U);
}

TEST_F(QueueTest, ATableMayGoOverABorder) {
    for (const std::uint64_t before : {16U, 24U, 1U}) {
        Queue queue = make(true);
        const GuestAddress table{2 * kMiB - before};
        std::array<std::byte, 48> raw{};
        const std::array<testing::RawDescriptor, 3> entries{
            {{to_integer(kData), 3, kNext, 1}, {to_integer(kData), 4, kNext, 2}, {to_integer(kData), 5, kWrite, 0}}};
        std::memcpy(raw.data(), entries.data(), raw.size());
        ASSERT_TRUE(memory.copy_in(table, std::span(raw).first(before)));
        ASSERT_TRUE(memory.copy_in(kBorder, std::span(raw).subspan(before)));
        driver->set_descriptor(0, {to_integer(table), 48, kIndirect, 0});
        driver->publish(0);
        ASSERT_EQ(queue.pop(chain), Pop::kChain) << queue.why();
        EXPECT_EQ(sizes(chain.readable), (std::vector<std::size_t>{3, 4}));
        EXPECT_EQ(sizes(chain.writable), (std::vector<std::size_t>{5}));
    }
}

// ---- Giving requests back

// 2.7.8.
TEST_F(QueueTest, AUsedRequestShowsItsHeadAndLength) {
    Queue queue = make(true);
    const std::uint16_t first = driver->add({{kData, 8, kWritable}});
    const std::uint16_t second = driver->add({{kData, 8, kWritable}});
    ASSERT_EQ(queue.pop(chain), Pop::kChain);
    ASSERT_EQ(queue.pop(chain), Pop::kChain);
    EXPECT_EQ(driver->used_index(), 0);
    queue.push(second, 7);
    EXPECT_EQ(driver->used_index(), 1);
    queue.push(first, 5);
    EXPECT_EQ(driver->take_used(), (Used{second, 7}));
    EXPECT_EQ(driver->take_used(), (Used{first, 5}));
    EXPECT_EQ(driver->take_used(), std::nullopt);
}

// 2.7.5.1: "MUST NOT write to any descriptor table entry".
TEST_F(QueueTest, DescriptorsAreNotWritten) {
    Queue queue = make(true);
    driver->add({{kData, 8}, {kData, 8, kWritable}});
    std::array<std::byte, 16 * kSize> before;
    std::array<std::byte, 16 * kSize> after;
    ASSERT_TRUE(memory.copy_out(kQueueBase, before));
    ASSERT_EQ(queue.pop(chain), Pop::kChain);
    queue.push(chain.head, 8);
    queue.suppress_doorbells();
    (void)queue.ask_for_doorbell();
    (void)queue.wants_interrupt();
    ASSERT_TRUE(memory.copy_out(kQueueBase, after));
    EXPECT_EQ(before, after);
}

TEST_F(QueueTest, StateGoesOverIntoAQueueThatContinues) {
    Queue queue = make(true);
    driver->add({{kData, 1}});
    driver->add({{kData, 2}});
    ASSERT_EQ(queue.pop(chain), Pop::kChain);
    queue.push(chain.head, 0);
    driver->set_used_event(1);
    EXPECT_FALSE(queue.wants_interrupt());
    const Queue::State state = queue.state();
    EXPECT_EQ(state.next_available, 1);
    EXPECT_EQ(state.next_used, 1);

    Queue again = Queue::make(memory, state).value();
    EXPECT_EQ(again.state(), state);
    EXPECT_FALSE(again.wants_interrupt());
    ASSERT_EQ(again.pop(chain), Pop::kChain);
    EXPECT_EQ(chain.readable_bytes, 2U);
    again.push(chain.head, 0);
    EXPECT_TRUE(again.wants_interrupt());
    EXPECT_EQ(driver->used_index(), 2);
}

TEST_F(QueueTest, WhatIsPutBackIsPoppedAgain) {
    Queue queue = make(true);
    for (std::uint32_t length = 1; length <= 3; ++length) {
        driver->add({{kData, length}});
    }
    EXPECT_EQ(queue.waiting(), 3);
    ASSERT_EQ(queue.pop(chain), Pop::kChain);
    queue.push(chain.head, 0);
    ASSERT_EQ(queue.pop(chain), Pop::kChain);
    ASSERT_EQ(queue.pop(chain), Pop::kChain);
    EXPECT_EQ(queue.waiting(), 0);
    queue.put_back(2);
    EXPECT_EQ(queue.waiting(), 2);
    Queue again = Queue::make(memory, queue.state()).value();
    for (const std::uint32_t length : {2U, 3U}) {
        ASSERT_EQ(again.pop(chain), Pop::kChain);
        EXPECT_EQ(chain.readable_bytes, length);
    }
    EXPECT_EQ(again.pop(chain), Pop::kEmpty);
}

// ---- Interrupts

class QueueInterruptTest : public QueueTest {
  protected:
    /// Uses one more request; returns true if the driver wants to know.
    bool use_one(Queue& queue) {
        use_quietly(queue);
        return queue.wants_interrupt();
    }
    void use_quietly(Queue& queue) {
        driver->add({{kData, 1}});
        ASSERT_EQ(queue.pop(chain), Pop::kChain);
        queue.push(chain.head, 0);
        driver->take_used();
    }
};

// 2.7.7.2, without EVENT_IDX: "If flags is 0, the device MUST send a notification".
TEST_F(QueueInterruptTest, WithoutEventIdxFlagsOf0Interrupt) {
    Queue queue = make(false);
    EXPECT_TRUE(use_one(queue));
    EXPECT_TRUE(use_one(queue));
}

// 2.7.7.2: "If flags is 1, the device SHOULD NOT send a notification".
TEST_F(QueueInterruptTest, WithoutEventIdxFlagsOf1DoNot) {
    Queue queue = make(false);
    driver->set_available_flags(1);
    EXPECT_FALSE(use_one(queue));
    driver->set_available_flags(0);
    EXPECT_TRUE(use_one(queue));
}

// 2.7.7.2: "The device MUST ignore the used_event value".
TEST_F(QueueInterruptTest, WithoutEventIdxUsedEventIsIgnored) {
    Queue queue = make(false);
    driver->set_used_event(1000);
    EXPECT_TRUE(use_one(queue));
    driver->set_available_flags(1);
    driver->set_used_event(1);
    EXPECT_FALSE(use_one(queue));
}

// 2.7.7.2: "MUST send a notification" where the entry written was that of used_event, and otherwise SHOULD NOT.
TEST_F(QueueInterruptTest, WithEventIdxTheEntryAskedForInterrupts) {
    Queue queue = make(true);
    driver->set_used_event(2);
    EXPECT_FALSE(use_one(queue));
    EXPECT_FALSE(use_one(queue));
    EXPECT_TRUE(use_one(queue));
    EXPECT_FALSE(use_one(queue));
}

TEST_F(QueueInterruptTest, WithEventIdxTheFirstEntryInterruptsAtFirst) {
    Queue queue = make(true);
    EXPECT_TRUE(use_one(queue)) << "used_event is 0";
    EXPECT_FALSE(use_one(queue));
}

// 2.7.7.2: "The device MUST ignore the lower bit of flags".
TEST_F(QueueInterruptTest, WithEventIdxFlagsAreIgnored) {
    Queue queue = make(true);
    driver->set_available_flags(1);
    EXPECT_TRUE(use_one(queue));
}

TEST_F(QueueInterruptTest, ABatchThatPassesTheEntryInterruptsOnce) {
    Queue queue = make(true);
    driver->set_used_event(1);
    use_quietly(queue);
    use_quietly(queue);
    use_quietly(queue);
    EXPECT_TRUE(queue.wants_interrupt());
    EXPECT_FALSE(queue.wants_interrupt()) << "nothing was pushed since";
}

TEST_F(QueueInterruptTest, WithNothingPushedThereIsNoInterrupt) {
    for (const bool event_idx : {false, true}) {
        Queue queue = make(event_idx);
        EXPECT_FALSE(queue.wants_interrupt());
    }
}

TEST_F(QueueInterruptTest, TheEntryIsFoundOverTheEndOfTheIndex) {
    Queue queue = make(true);
    driver->set_used_event(0xffff);
    unsigned interrupts = 0;
    for (unsigned i = 0; i < 65535; ++i) {
        interrupts += use_one(queue) ? 1 : 0;
    }
    EXPECT_EQ(interrupts, 0U);
    EXPECT_TRUE(use_one(queue));
    EXPECT_FALSE(use_one(queue));
}

TEST_F(QueueInterruptTest, ABatchOnceRoundIsNotTakenForNone) {
    Queue queue = make(true);
    ASSERT_TRUE(use_one(queue));
    driver->set_used_event(1000);
    for (unsigned i = 0; i < 65536; ++i) {
        use_quietly(queue);
    }
    EXPECT_FALSE(queue.state().signalled_valid);
    EXPECT_TRUE(queue.wants_interrupt());
}

// ---- Doorbells

// 2.7.10.2, without EVENT_IDX: flags are 0 or 1.
TEST_F(QueueTest, WithoutEventIdxDoorbellsAreSuppressedByFlags) {
    Queue queue = make(false);
    EXPECT_EQ(driver->used_flags(), 0);
    queue.suppress_doorbells();
    EXPECT_EQ(driver->used_flags(), 1);
    driver->add({{kData, 1}});
    EXPECT_FALSE(driver->wants_doorbell());
    EXPECT_TRUE(queue.ask_for_doorbell()) << "one came meanwhile";
    EXPECT_EQ(driver->used_flags(), 0);
    ASSERT_EQ(queue.pop(chain), Pop::kChain);
    EXPECT_FALSE(queue.ask_for_doorbell());
    driver->add({{kData, 1}});
    EXPECT_TRUE(driver->wants_doorbell());
}

// 2.7.10.2, with EVENT_IDX: "The device MUST set flags to 0".
TEST_F(QueueTest, WithEventIdxFlagsStay0) {
    Queue queue = make(true);
    queue.suppress_doorbells();
    EXPECT_EQ(driver->used_flags(), 0);
    (void)queue.ask_for_doorbell();
    EXPECT_EQ(driver->used_flags(), 0);
}

TEST_F(QueueTest, WithEventIdxADoorbellIsAskedForTheNextRequest) {
    Queue queue = make(true);
    driver->add({{kData, 1}});
    EXPECT_TRUE(driver->wants_doorbell()) << "avail_event is 0";
    ASSERT_EQ(queue.pop(chain), Pop::kChain);
    driver->add({{kData, 1}});
    EXPECT_FALSE(driver->wants_doorbell()) << "not asked for";
    EXPECT_TRUE(queue.ask_for_doorbell());
    ASSERT_EQ(queue.pop(chain), Pop::kChain);
    EXPECT_FALSE(queue.ask_for_doorbell());
    EXPECT_EQ(driver->avail_event(), 2);
    driver->add({{kData, 1}});
    EXPECT_TRUE(driver->wants_doorbell());
}

// ---- Two threads

/// A driver in one thread and a device in another one; each waits for the other's notification when it has no work.
class TwoSides : public QueueTest, public ::testing::WithParamInterface<bool> {};

/// A doorbell or an interrupt, as it is between threads.
class Notification {
  public:
    void send() {
        count_.fetch_add(1);
        count_.notify_one();
    }
    void wait() {
        count_.wait(seen_);
        seen_ = count_.load();
    }

  private:
    std::atomic<std::uint32_t> count_ = 0;
    std::uint32_t seen_ = 0;
};

// 2.7.8.2 and 2.7.13: data that was written before an index is visible when the index is; and no notification is lost.
TEST_P(TwoSides, NothingIsLostOrSeenTooEarly) {
    constexpr std::uint32_t kRequests = 30000;
    Queue queue = make(GetParam());
    Notification doorbell;
    Notification interrupt;
    std::thread device([&] {
        Chain mine;
        for (std::uint32_t done = 0; done < kRequests;) {
            const Pop popped = queue.pop(mine);
            if (popped == Pop::kChain) {
                std::uint32_t value = 0;
                copy_from(mine, 0, std::as_writable_bytes(std::span(&value, 1)));
                value = ~value;
                copy_to(mine, 0, std::as_bytes(std::span(&value, 1)));
                queue.push(mine.head, value);
                ++done;
                if (done % 3 == 0 && queue.wants_interrupt()) {
                    interrupt.send();
                }
                continue;
            }
            ASSERT_EQ(popped, Pop::kEmpty);
            if (queue.wants_interrupt()) {
                interrupt.send();
            }
            if (!queue.ask_for_doorbell()) {
                doorbell.wait();
                queue.suppress_doorbells();
            }
        }
        if (queue.wants_interrupt()) {
            interrupt.send();
        }
    });
    std::uint32_t sent = 0;
    std::uint32_t finished = 0;
    while (finished < kRequests) {
        while (driver->free_descriptors() >= 2 && sent < kRequests) {
            const GuestAddress in = kData + 16ULL * (sent % kSize);
            const GuestAddress out = in + 8;
            ASSERT_TRUE(memory.store(in, sent));
            driver->add({{in, 4}, {out, 4, kWritable}});
            ++sent;
        }
        if (driver->wants_doorbell()) {
            doorbell.send();
        }
        driver->suppress_interrupts();
        bool any = false;
        while (const auto used = driver->take_used()) {
            ASSERT_EQ(used->length, ~finished); // the device answers in order
            ASSERT_EQ(memory.load<std::uint32_t>(kData + 16ULL * (finished % kSize) + 8), ~finished);
            ++finished;
            any = true;
        }
        if (!any) {
            driver->ask_for_interrupt();
            if (driver->used_index() == static_cast<std::uint16_t>(finished)) {
                interrupt.wait();
            }
        }
    }
    device.join();
}

INSTANTIATE_TEST_SUITE_P(Notifications, TwoSides, ::testing::Bool(),
                         [](const auto& each) { return each.param ? std::string("EventIdx") : std::string("Flags"); });

} // namespace
} // namespace vmm::devices::virtio
