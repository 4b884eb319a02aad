#include "prefault/plan.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cstdlib>
#include <mutex>
#include <new>
#include <random>
#include <thread>
#include <vector>

#include "prefault/host/chunk_queues.hpp"

namespace {

thread_local std::uint64_t allocated_bytes = 0; // allocated by this thread, by operator new
thread_local std::uint64_t allocations = 0;

} // namespace

#ifndef VMM_SANITIZED // a sanitizer has its own
// Replaces the operators of the whole program, to count the allocations of a plan. They must not be inlined: gcc would
// see only one of the pair, and warn about the other.
[[gnu::noinline]] void* operator new(std::size_t size) {
    allocated_bytes += size;
    ++allocations;
    if (void* const memory = std::malloc(size != 0 ? size : 1); memory != nullptr) {
        return memory;
    }
    throw std::bad_alloc();
}
[[gnu::noinline]] void operator delete(void* memory) noexcept {
    std::free(memory);
}
[[gnu::noinline]] void operator delete(void* memory, std::size_t /*size*/) noexcept {
    std::free(memory);
}
#endif

namespace vmm::prefault {
namespace {

using Ranges = std::vector<GuestRange>;

GuestRange range(std::uint64_t base, std::uint64_t size) {
    return {GuestAddress{base}, size};
}

Ranges chunks_of(const Plan& plan) {
    Ranges chunks;
    for (std::size_t index = 0; index < plan.chunk_count(); ++index) {
        chunks.push_back(plan.chunk(index));
    }
    return chunks;
}

/// Adjacent ranges are joined, and empty ones left out: the memory that a list of ranges covers, whatever it is cut
/// into.
Ranges covered_by(const Ranges& ranges) {
    Ranges joined;
    for (const GuestRange& next : ranges) {
        if (next.size == 0) {
            continue;
        }
        if (!joined.empty() && joined.back().end() == next.base) {
            joined.back().size += next.size;
        } else {
            joined.push_back(next);
        }
    }
    return joined;
}

/// Checks everything that a plan promises, for `ranges` cut by `chunk_bytes`.
void expect_sound_plan(const Ranges& ranges, std::uint64_t chunk_bytes) {
    const Plan plan(ranges, chunk_bytes);
    const Ranges chunks = chunks_of(plan);
    for (std::size_t i = 0; i < chunks.size(); ++i) {
        ASSERT_NE(chunks[i].size, 0U) << "chunk " << i << " is empty";
        ASSERT_LE(chunks[i].size, chunk_bytes);
        ASSERT_EQ(to_integer(chunks[i].base) / chunk_bytes,
                  (to_integer(chunks[i].base) + chunks[i].size - 1) / chunk_bytes)
            << to_string(chunks[i]) << " crosses a multiple of the chunk size";
        if (i != 0) {
            ASSERT_GE(to_integer(chunks[i].base), to_integer(chunks[i - 1].end())) << "chunk " << i << " overlaps";
        }
    }
    ASSERT_EQ(covered_by(chunks), covered_by(ranges));
    std::uint64_t total = 0;
    for (const GuestRange& wanted : ranges) {
        total += wanted.size;
    }
    ASSERT_EQ(plan.total_bytes(), total);
}

TEST(Plan, OfAlignedRangesCoversThemExactly) {
    expect_sound_plan({range(0, 512 * kMiB)}, 64 * kMiB);
    expect_sound_plan({range(0, 3 * kGiB), range(4 * kGiB, 5 * kGiB)}, kGiB);
}

TEST(Plan, OfOddSizesCoversThemExactly) {
    expect_sound_plan({range(0, 3 * kGiB), range(4 * kGiB, 2 * kMiB)}, kGiB);
    expect_sound_plan({range(4096, 4096)}, 2 * kMiB);
    expect_sound_plan({range(kMiB, 3 * kMiB + 4096)}, 2 * kMiB);
    expect_sound_plan({range(2 * kMiB - 1, 2)}, 2 * kMiB);
}

TEST(Plan, CutsOnMultiplesOfTheChunkSize) {
    const Plan plan(Ranges{range(kMiB, 4 * kMiB)}, 2 * kMiB);
    EXPECT_EQ(chunks_of(plan), (Ranges{range(kMiB, kMiB), range(2 * kMiB, 2 * kMiB), range(4 * kMiB, kMiB)}));
}

TEST(Plan, LeavesOutEmptyRanges) {
    expect_sound_plan({}, kGiB);
    expect_sound_plan({range(0, 0)}, kGiB);
    expect_sound_plan({range(0, 0), range(4096, 4096), range(8192, 0), range(kGiB, 4096), range(2 * kGiB, 0)},
                      2 * kMiB);
}

TEST(Plan, ReachesTheTopOfTheAddressSpace) {
    const Plan plan(Ranges{range(UINT64_MAX - 3 * kMiB + 1, 3 * kMiB)}, 2 * kMiB);
    EXPECT_EQ(chunks_of(plan),
              (Ranges{range(UINT64_MAX - 3 * kMiB + 1, kMiB), range(UINT64_MAX - 2 * kMiB + 1, 2 * kMiB)}));
}

TEST(Plan, OfRandomRangesCoversThemExactly) {
    std::mt19937_64 random(20261123);
    for (int round = 0; round < 500 && !HasFatalFailure(); ++round) {
        Ranges ranges;
        std::uint64_t next = 0;
        for (std::uint64_t count = random() % 6; count != 0; --count) {
            const std::uint64_t gap = random() % 3 == 0 ? 0 : random() % (64 * kMiB);
            const std::uint64_t size = random() % (128 * kMiB);
            ranges.push_back(range(next + gap, size));
            next += gap + size;
        }
        expect_sound_plan(ranges, kMiB << (random() % 7));
    }
}

/// The bytes allocated since this object was made.
struct Allocated {
    std::uint64_t bytes_before = allocated_bytes;
    std::uint64_t allocations_before = allocations;
    [[nodiscard]] std::uint64_t bytes() const { return allocated_bytes - bytes_before; }
    [[nodiscard]] std::uint64_t times() const { return allocations - allocations_before; }
};

#ifdef VMM_SANITIZED
constexpr const char* kCountsNothing = "a sanitizer has its own operator new, which counts nothing";
#else
constexpr const char* kCountsNothing = nullptr;
#endif

TEST(Plan, OfSixteenTebibytesIsMadeAtOnceAndTakesNextToNoMemory) {
    if (kCountsNothing != nullptr) {
        GTEST_SKIP() << kCountsNothing;
    }
    const Ranges ranges{range(0, 3 * kGiB), range(4 * kGiB, 16 * kTiB - 3 * kGiB)};
    const Allocated allocated;
    const Plan plan(ranges, 2 * kMiB);
    EXPECT_LE(allocated.times(), 8U) << "for two ranges, of eight million chunks";
    EXPECT_LT(allocated.bytes(), 4 * kKiB);
    EXPECT_EQ(plan.chunk_count(), 16 * kTiB / (2 * kMiB));
    EXPECT_EQ(plan.chunk(plan.chunk_count() - 1).end(), GuestAddress{16 * kTiB + kGiB});
}

TEST(Plan, OfSixteenTebibytesOnManyNodesIsMadeAtOnceAndTakesNextToNoMemory) {
    if (kCountsNothing != nullptr) {
        GTEST_SKIP() << kCountsNothing;
    }
    constexpr unsigned kNodes = 1024;
    const std::uint64_t node_bytes = 16 * kTiB / kNodes;
    std::vector<PlacedRange> placed;
    for (unsigned node = 0; node < kNodes; ++node) {
        placed.push_back({range(4 * kGiB + node * node_bytes, node_bytes), node});
    }
    const Allocated allocated;
    const ChunkQueues queues(placed, 2 * kMiB, 512);
    EXPECT_LE(allocated.times(), 16U * kNodes) << "for each node, of eight million chunks";
    EXPECT_LT(allocated.bytes(), kMiB);
    EXPECT_EQ(queues.total_bytes(), 16 * kTiB);
}

TEST(PlanChunkSize, IsAPowerOfTwoBetweenItsBounds) {
    for (const std::uint64_t mapping : {4 * kKiB, 2 * kMiB, kGiB}) {
        for (const unsigned workers : {1U, 2U, 7U, 96U, 512U}) {
            for (const std::uint64_t total : {std::uint64_t{0}, 2 * kMiB, 3584 * kMiB, 16 * kTiB}) {
                const std::uint64_t chunk = Plan::chunk_bytes_for(total, workers, mapping);
                EXPECT_TRUE(std::has_single_bit(chunk));
                EXPECT_GE(chunk, std::max(2 * kMiB, mapping));
                EXPECT_LE(chunk, kGiB);
            }
        }
    }
}

TEST(PlanChunkSize, GivesEveryWorkerSeveralChunks) {
    const std::uint64_t chunk = Plan::chunk_bytes_for(64 * kGiB, 8, 2 * kMiB);
    EXPECT_GE(64 * kGiB / chunk, 16U * 8U);
    EXPECT_LE(64 * kGiB / chunk, 32U * 8U);
}

TEST(PlanChunkSize, HasNoMoreMappingsThanAStopMayWaitFor) {
    EXPECT_EQ(Plan::chunk_bytes_for(16 * kTiB, 1, 4 * kKiB), 128 * kMiB);
    EXPECT_EQ(Plan::chunk_bytes_for(16 * kTiB, 1, 2 * kMiB), kGiB);
    EXPECT_EQ(Plan::chunk_bytes_for(16 * kTiB, 1, kGiB), kGiB);
}

TEST(PlanWorkers, AreUsefulIfThereIsAChunkForEach) {
    EXPECT_EQ(Plan::useful_workers(64 * kGiB, 32, 2 * kMiB), 32U);
    EXPECT_EQ(Plan::useful_workers(6 * kMiB, 32, 4 * kKiB), 3U);
    EXPECT_EQ(Plan::useful_workers(2 * kGiB, 32, kGiB), 2U);
}

TEST(PlanWorkers, AreAtLeastOne) {
    EXPECT_EQ(Plan::useful_workers(4096, 32, 4 * kKiB), 1U);
    EXPECT_EQ(Plan::useful_workers(0, 32, 4 * kKiB), 1U);
    EXPECT_EQ(Plan::useful_workers(kGiB, 0, 4 * kKiB), 1U);
}

TEST(PlanChunkSize, TakesNoWorkersAsOne) {
    EXPECT_EQ(Plan::chunk_bytes_for(kGiB, 0, 4096), Plan::chunk_bytes_for(kGiB, 1, 4096));
}

TEST(ChunkQueue, HandsOutEachChunkOnceToManyThreads) {
    const Plan plan(Ranges{range(0, 3 * kGiB), range(4 * kGiB, 5 * kGiB + 4096)}, 2 * kMiB);
    ChunkQueue queue(plan);
    std::mutex lock;
    Ranges taken;
    {
        std::vector<std::jthread> threads;
        for (int i = 0; i < 8; ++i) {
            threads.emplace_back([&] {
                Ranges mine;
                while (const auto chunk = queue.take()) {
                    mine.push_back(*chunk);
                }
                const std::lock_guard hold(lock);
                taken.insert(taken.end(), mine.begin(), mine.end());
            });
        }
    }
    std::ranges::sort(taken, {}, &GuestRange::base);
    EXPECT_EQ(taken, chunks_of(plan));
}

TEST(ChunkQueue, StaysEmpty) {
    const Plan plan(Ranges{range(0, 4096)}, 2 * kMiB);
    ChunkQueue queue(plan);
    EXPECT_EQ(queue.take(), range(0, 4096));
    EXPECT_FALSE(queue.take());
    EXPECT_FALSE(queue.take());
}

} // namespace
} // namespace vmm::prefault
