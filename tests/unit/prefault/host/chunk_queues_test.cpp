#include "prefault/host/chunk_queues.hpp"
#include "support/prefault_placed_ranges.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <mutex>
#include <optional>
#include <thread>
#include <vector>

namespace vmm::prefault {
namespace {

using testing::anywhere;
using testing::joined;
using testing::on_node;
using testing::range;

using Homes = std::vector<std::optional<unsigned>>;
using Placed = std::vector<PlacedRange>;
using Ranges = std::vector<GuestRange>;

Homes homes_of(const ChunkQueues& queues, unsigned workers) {
    Homes homes;
    for (unsigned worker = 0; worker < workers; ++worker) {
        homes.push_back(queues.home(worker));
    }
    return homes;
}

/// All remaining chunks, taken by one worker.
Ranges take_all(ChunkQueues& queues, unsigned worker) {
    Ranges chunks;
    while (const auto chunk = queues.take(worker)) {
        chunks.push_back(*chunk);
    }
    return chunks;
}

const Placed kTwoNodes{on_node(0, 0, 64 * kMiB), on_node(1, 4 * kGiB, 64 * kMiB)};

TEST(ChunkQueues, HandOutEachChunkOnceWhoeverTakesIt) {
    ChunkQueues queues(Placed{on_node(0, 0, 33 * kMiB), on_node(1, kGiB, 5 * kMiB), on_node(0, 4 * kGiB, 7 * kMiB)},
                       2 * kMiB, 5);
    Ranges taken;
    for (unsigned turn = 0;; ++turn) {
        const auto chunk = queues.take(turn % 5);
        if (!chunk) {
            break;
        }
        taken.push_back(*chunk);
    }
    EXPECT_EQ(joined(taken), (Ranges{range(0, 33 * kMiB), range(kGiB, 5 * kMiB), range(4 * kGiB, 7 * kMiB)}));
    EXPECT_EQ(queues.total_bytes(), 45 * kMiB);
}

TEST(ChunkQueues, HandOutEachChunkOnceToManyThreads) {
    constexpr unsigned kWorkers = 8;
    ChunkQueues queues(Placed{on_node(0, 0, kGiB), on_node(1, 4 * kGiB, 3 * kGiB), on_node(2, 8 * kGiB, kGiB)},
                       2 * kMiB, kWorkers);
    std::mutex lock;
    Ranges taken;
    {
        std::vector<std::jthread> threads;
        for (unsigned worker = 0; worker < kWorkers; ++worker) {
            threads.emplace_back([&, worker] {
                const Ranges mine = take_all(queues, worker);
                const std::lock_guard hold(lock);
                taken.insert(taken.end(), mine.begin(), mine.end());
            });
        }
    }
    EXPECT_EQ(joined(taken), (Ranges{range(0, kGiB), range(4 * kGiB, 3 * kGiB), range(8 * kGiB, kGiB)}));
}

TEST(ChunkQueues, TakeRangesInAnyOrder) {
    ChunkQueues queues(Placed{anywhere(4 * kGiB, 4 * kMiB), anywhere(kMiB, 2 * kMiB), anywhere(kGiB, 2 * kMiB)},
                       2 * kMiB, 1);
    EXPECT_EQ(take_all(queues, 0), (Ranges{range(kMiB, kMiB), range(2 * kMiB, kMiB), range(kGiB, 2 * kMiB),
                                           range(4 * kGiB, 2 * kMiB), range(4 * kGiB + 2 * kMiB, 2 * kMiB)}));
}

TEST(ChunkQueues, DealWorkersToNodesByTheirMemory) {
    const Placed one_to_three{on_node(0, 0, kGiB), on_node(1, 4 * kGiB, 3 * kGiB)};
    EXPECT_EQ(homes_of(ChunkQueues(one_to_three, 2 * kMiB, 4), 4), (Homes{0, 1, 1, 1}));
    EXPECT_EQ(homes_of(ChunkQueues(one_to_three, 2 * kMiB, 8), 8), (Homes{0, 0, 1, 1, 1, 1, 1, 1}));
    EXPECT_EQ(homes_of(ChunkQueues(kTwoNodes, 2 * kMiB, 2), 2), (Homes{0, 1}));
}

TEST(ChunkQueues, DealFewWorkersOverManyNodes) {
    const Placed four{on_node(0, 0, kGiB), on_node(2, kGiB, kGiB), on_node(5, 4 * kGiB, kGiB),
                      on_node(9, 5 * kGiB, kGiB)};
    EXPECT_EQ(homes_of(ChunkQueues(four, 2 * kMiB, 2), 2), (Homes{0, 5}));
}

TEST(ChunkQueues, SumUpTheMemoryOfANode) {
    const Placed pieces{on_node(1, 4 * kGiB, kGiB), on_node(0, 0, kGiB), on_node(1, kGiB, kGiB),
                        on_node(1, 2 * kGiB, kGiB)};
    EXPECT_EQ(homes_of(ChunkQueues(pieces, 2 * kMiB, 4), 4), (Homes{0, 1, 1, 1}));
}

TEST(ChunkQueues, OfOneWorkerHaveThatOneTakeAll) {
    ChunkQueues queues(kTwoNodes, 2 * kMiB, 1);
    EXPECT_EQ(queues.home(0), 0U);
    EXPECT_EQ(joined(take_all(queues, 0)), (Ranges{range(0, 64 * kMiB), range(4 * kGiB, 64 * kMiB)}));
}

TEST(ChunkQueues, GiveAWorkerItsOwnNodesChunksFirstAndThenTheOthers) {
    ChunkQueues queues(kTwoNodes, 64 * kMiB, 2);
    ASSERT_EQ(queues.home(1), 1U);
    EXPECT_EQ(queues.take(1), range(4 * kGiB, 64 * kMiB));
    EXPECT_EQ(queues.take(1), range(0, 64 * kMiB));
    EXPECT_EQ(queues.take(1), std::nullopt);
    EXPECT_EQ(queues.take(0), std::nullopt);
}

TEST(ChunkQueues, UseNoMoreWorkersThanThereAreChunks) {
    ChunkQueues queues(kTwoNodes, 64 * kMiB, 512);
    EXPECT_EQ(queues.useful_workers(), 2U);
    EXPECT_EQ(homes_of(queues, 2), (Homes{0, 1}));
    EXPECT_EQ(joined(take_all(queues, 511)), (Ranges{range(0, 64 * kMiB), range(4 * kGiB, 64 * kMiB)}));
}

TEST(ChunkQueues, TakeNoWorkersAsOne) {
    ChunkQueues queues(kTwoNodes, 64 * kMiB, 0);
    EXPECT_EQ(queues.useful_workers(), 1U);
    EXPECT_EQ(take_all(queues, 0).size(), 2U);
}

TEST(ChunkQueues, OfMemoryWithoutAPlaceHaveNoHome) {
    const ChunkQueues queues(Placed{anywhere(0, kGiB)}, 2 * kMiB, 4);
    EXPECT_EQ(homes_of(queues, 4), (Homes{std::nullopt, std::nullopt, std::nullopt, std::nullopt}));
}

TEST(ChunkQueues, OfNothingAreEmpty) {
    for (const Placed& nothing : {Placed{}, Placed{on_node(3, kGiB, 0)}}) {
        ChunkQueues queues(nothing, 2 * kMiB, 4);
        EXPECT_EQ(queues.useful_workers(), 1U);
        EXPECT_EQ(queues.total_bytes(), 0U);
        EXPECT_EQ(queues.take(0), std::nullopt);
    }
}

} // namespace
} // namespace vmm::prefault
