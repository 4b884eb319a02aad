#include "prefault/host/workforce.hpp"
#include "support/prefault_placed_ranges.hpp"

#include <gtest/gtest.h>
#include <pthread.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cstdint>
#include <latch>
#include <mutex>
#include <optional>
#include <set>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "kvm/host/error.hpp"
#include "support/host_errors.hpp"
#include "support/host_waiting.hpp"
#include "support/prefault_stop.hpp"

namespace vmm::prefault {
namespace {

using testing::anywhere;
using testing::joined;
using testing::on_node;
using testing::range;

using testing::error_of;
using testing::mentions;
using Placed = std::vector<PlacedRange>;
using Ranges = std::vector<GuestRange>;

const Placed kTwoNodes{on_node(0, 0, 64 * kMiB), on_node(1, 4 * kGiB, 64 * kMiB)};

/// 64 equal chunks.
constexpr std::uint64_t kChunk = 2 * kMiB;
const Placed kManyChunks{anywhere(0, 64 * kChunk)};

Workforce force_of(unsigned workers, ProgressSink progress = {}) {
    Workforce workforce;
    workforce.workers = workers;
    workforce.progress = std::move(progress);
    return workforce;
}

bool do_each(const Placed& ranges, const Workforce& workforce, const ChunkWork& work,
             const std::stop_token& stop = {}) {
    return for_each_chunk(ranges, kChunk, workforce, Stage::kSecondLevel, "test", stop, work);
}

bool succeed(unsigned /*worker*/, GuestRange /*chunk*/, const std::stop_token& /*stop*/) {
    return true;
}

TEST(ForEachChunk, DoesEachOnce) {
    std::mutex lock;
    Ranges done;
    EXPECT_TRUE(do_each(kTwoNodes, force_of(4), [&](unsigned, GuestRange chunk, const std::stop_token&) {
        const std::lock_guard hold(lock);
        done.push_back(chunk);
        return true;
    }));
    EXPECT_EQ(joined(done), (Ranges{range(0, 64 * kMiB), range(4 * kGiB, 64 * kMiB)}));
    EXPECT_EQ(done.size(), 64U);
}

TEST(ForEachChunk, OfNothingIsDone) {
    EXPECT_TRUE(do_each({}, force_of(4), succeed));
}

TEST(ForEachChunk, UsesNoMoreWorkersThanThereAreChunks) {
    std::atomic<unsigned> highest{0};
    EXPECT_TRUE(
        do_each({anywhere(0, 2 * kChunk)}, force_of(64), [&](unsigned worker, GuestRange, const std::stop_token&) {
            unsigned seen = highest;
            while (worker > seen && !highest.compare_exchange_weak(seen, worker)) {
            }
            return true;
        }));
    EXPECT_LT(highest, 2U);
}

TEST(ForEachChunk, NamesItsWorkers) {
    std::array<char, 16> name{};
    EXPECT_TRUE(do_each({anywhere(0, kChunk)}, force_of(1), [&](unsigned, GuestRange, const std::stop_token&) {
        ::pthread_getname_np(::pthread_self(), name.data(), name.size());
        return true;
    }));
    EXPECT_STREQ(name.data(), "test0");
}

TEST(ForEachChunk, WorksAtLowPriorityIfAskedTo) {
    Workforce workforce = force_of(1);
    workforce.low_priority = true;
    int nice = 0;
    EXPECT_TRUE(do_each({anywhere(0, kChunk)}, workforce, [&](unsigned, GuestRange, const std::stop_token&) {
        nice = ::getpriority(PRIO_PROCESS, static_cast<id_t>(::syscall(SYS_gettid)));
        return true;
    }));
    EXPECT_EQ(nice, 19);
}

/// All reports to an observer.
struct Told {
    static constexpr unsigned kOften = 3;

    std::vector<Progress> calls;
    std::set<std::thread::id> threads;
    std::atomic<unsigned> times{0};

    [[nodiscard]] ProgressSink sink() {
        return [this](const Progress& progress) {
            calls.push_back(progress);
            threads.insert(std::this_thread::get_id());
            ++times;
        };
    }
    /// Work that does not end before the observer was called several times.
    [[nodiscard]] ChunkWork until_told_often() {
        return [this](unsigned /*worker*/, GuestRange /*chunk*/, const std::stop_token& /*stop*/) {
            EXPECT_TRUE(testing::eventually([this] { return times >= kOften; }));
            return true;
        };
    }
};

TEST(ForEachChunkProgress, IsToldOnTheCallersThread) {
    Told told;
    EXPECT_TRUE(do_each(kManyChunks, force_of(2, told.sink()), told.until_told_often()));
    EXPECT_EQ(told.threads, std::set{std::this_thread::get_id()});
}

TEST(ForEachChunkProgress, NeverGoesBack) {
    Told told;
    EXPECT_TRUE(do_each(kManyChunks, force_of(2, told.sink()), told.until_told_often()));
    EXPECT_GT(told.calls.size(), Told::kOften) << "while it works, and when it is done";
    EXPECT_TRUE(std::ranges::is_sorted(told.calls, {}, &Progress::done_bytes));
    EXPECT_TRUE(std::ranges::is_sorted(told.calls, {}, &Progress::seconds));
}

TEST(ForEachChunkProgress, SaysWhichStageItIsAndHowMuchThereIs) {
    Told told;
    EXPECT_TRUE(do_each(kManyChunks, force_of(2, told.sink()), told.until_told_often()));
    for (const Progress& progress : told.calls) {
        EXPECT_EQ(progress.stage, Stage::kSecondLevel);
        EXPECT_EQ(progress.total_bytes, 64 * kChunk);
    }
}

TEST(ForEachChunkProgress, EndsWithAllDone) {
    Told told;
    EXPECT_TRUE(do_each(kManyChunks, force_of(2, told.sink()), succeed));
    ASSERT_FALSE(told.calls.empty());
    EXPECT_EQ(told.calls.back().done_bytes, 64 * kChunk);
}

TEST(ForEachChunkProgress, OfNothingIsToldOnce) {
    Told told;
    EXPECT_TRUE(do_each({}, force_of(2, told.sink()), succeed));
    ASSERT_EQ(told.calls.size(), 1U);
    EXPECT_EQ(told.calls[0].total_bytes, 0U);
}

TEST(ForEachChunkFailure, OfTheWorkComesOut) {
    const std::string error = error_of([] {
        return do_each(kManyChunks, force_of(2), [](unsigned, GuestRange, const std::stop_token&) -> bool {
            throw Error("this chunk cannot be done");
        });
    });
    EXPECT_EQ(error, "this chunk cannot be done");
}

TEST(ForEachChunkFailure, OfTheWorkEndsIt) {
    std::atomic<unsigned> calls{0};
    EXPECT_THROW(do_each(kManyChunks, force_of(1),
                         [&](unsigned, GuestRange, const std::stop_token&) -> bool {
                             if (++calls == 3) {
                                 throw std::out_of_range("the third");
                             }
                             return true;
                         }),
                 std::out_of_range);
    EXPECT_EQ(calls, 3U);
}

TEST(ForEachChunkFailure, OfOneWorkerStopsTheOthers) {
    std::atomic<bool> first{true};
    std::atomic<bool> stopped{false};
    std::latch both_here(2);
    EXPECT_THROW(do_each(kManyChunks, force_of(2),
                         [&](unsigned, GuestRange, const std::stop_token& stop) -> bool {
                             both_here.arrive_and_wait();
                             if (first.exchange(false)) {
                                 throw std::out_of_range("one of the two");
                             }
                             stopped = testing::is_stopped_at_last(stop);
                             return true;
                         }),
                 std::out_of_range);
    EXPECT_TRUE(stopped);
}

TEST(ForEachChunkFailure, OfTheObserverEndsItAndComesOut) {
    std::atomic<bool> stopped{false};
    const Workforce workforce = force_of(1, [](const Progress&) { throw std::out_of_range("the observer"); });
    EXPECT_THROW(do_each(kManyChunks, workforce,
                         [&](unsigned, GuestRange, const std::stop_token& stop) {
                             stopped = testing::is_stopped_at_last(stop);
                             return true;
                         }),
                 std::out_of_range);
    EXPECT_TRUE(stopped);
}

TEST(ForEachChunkFailure, OfTheObserverAtTheEndComesOutToo) {
    const Workforce workforce = force_of(1, [](const Progress& progress) {
        if (progress.done_bytes == progress.total_bytes) {
            throw std::out_of_range("at the end");
        }
    });
    EXPECT_THROW(do_each(kManyChunks, workforce, succeed), std::out_of_range);
}

TEST(ForEachChunkStop, BeforehandMeansThatNothingIsDone) {
    std::atomic<unsigned> calls{0};
    EXPECT_FALSE(do_each(
        kManyChunks, force_of(2),
        [&](unsigned, GuestRange, const std::stop_token&) {
            ++calls;
            return true;
        },
        testing::stop_requested_already()));
    EXPECT_EQ(calls, 0U);
}

TEST(ForEachChunkStop, InTheMiddleIsHeardBeforeTheNextChunk) {
    Told told;
    std::stop_source source;
    std::atomic<unsigned> calls{0};
    EXPECT_FALSE(do_each(
        kManyChunks, force_of(1, told.sink()),
        [&](unsigned, GuestRange, const std::stop_token&) {
            if (++calls == 3) {
                source.request_stop();
            }
            return true;
        },
        source.get_token()));
    EXPECT_EQ(calls, 3U);
    EXPECT_EQ(told.calls.back().done_bytes, 3 * kChunk) << "the observer is told how far it came";
}

TEST(ForEachChunkStop, ReachesTheWorkInProgress) {
    std::stop_source source;
    std::atomic<bool> stopped{false};
    EXPECT_FALSE(do_each(
        {anywhere(0, kChunk)}, force_of(1),
        [&](unsigned, GuestRange, const std::stop_token& stop) {
            source.request_stop();
            stopped = stop.stop_requested();
            return false;
        },
        source.get_token()));
    EXPECT_TRUE(stopped);
}

TEST(ForEachChunkGivenUp, ByItsOnlyWorkerGoesNoFurther) {
    Told told;
    std::atomic<unsigned> calls{0};
    EXPECT_FALSE(do_each(kManyChunks, force_of(1, told.sink()),
                         [&](unsigned, GuestRange, const std::stop_token&) { return ++calls < 3; }));
    EXPECT_EQ(calls, 3U);
    EXPECT_EQ(told.calls.back().done_bytes, 2 * kChunk) << "a chunk that was given up is not done";
}

TEST(ForEachChunkGivenUp, ByOneWorkerIsGoneOnWithByTheOthers) {
    std::latch given_up(1);
    std::atomic<unsigned> done{0};
    EXPECT_FALSE(do_each(kManyChunks, force_of(2), [&](unsigned worker, GuestRange, const std::stop_token&) {
        if (worker == 0) {
            given_up.count_down();
            return false;
        }
        given_up.wait(); // otherwise worker 1 might do all before worker 0 takes its first
        ++done;
        return true;
    }));
    EXPECT_EQ(done, 63U);
}

/// The CPUs on which the only worker of memory on `node` may run.
CpuList cpus_of_worker(const Workforce& workforce, std::optional<unsigned> node) {
    CpuList found;
    EXPECT_TRUE(do_each({{range(0, kChunk), node}}, workforce, [&](unsigned, GuestRange, const std::stop_token&) {
        found = usable_cpu_list();
        return true;
    }));
    return found;
}

TEST(ForEachChunkPlacement, IsOnTheCpusOfTheMemorysNode) {
    const CpuList usable = usable_cpu_list();
    Workforce workforce = force_of(1);
    workforce.node_cpus = {{0, {usable.front()}}, {1, {usable.back()}}};
    EXPECT_EQ(cpus_of_worker(workforce, 0), CpuList{usable.front()});
    EXPECT_EQ(cpus_of_worker(workforce, 1), CpuList{usable.back()});
}

TEST(ForEachChunkPlacement, IsAnywhereWhereNothingIsSaid) {
    const CpuList usable = usable_cpu_list();
    Workforce workforce = force_of(1);
    workforce.node_cpus = {{0, {usable.front()}}};
    EXPECT_EQ(cpus_of_worker(workforce, std::nullopt), usable);
    EXPECT_EQ(cpus_of_worker(workforce, 7), usable) << "a node whose CPUs are not known";
}

TEST(ForEachChunkPlacement, StaysOnTheCpusAskedFor) {
    const CpuList usable = usable_cpu_list();
    Workforce workforce = force_of(1);
    workforce.cpus = {usable.back()};
    EXPECT_EQ(cpus_of_worker(workforce, std::nullopt), CpuList{usable.back()});
    workforce.node_cpus = {{0, usable}};
    EXPECT_EQ(cpus_of_worker(workforce, 0), CpuList{usable.back()});
}

TEST(ForEachChunkPlacement, IsFarAwayRatherThanNowhere) {
    const CpuList usable = usable_cpu_list();
    Workforce workforce = force_of(1);
    workforce.node_cpus = {{0, {}}, {1, {kMaxCpus - 1}}};
    EXPECT_EQ(cpus_of_worker(workforce, 0), usable) << "a node of memory only";
    EXPECT_EQ(cpus_of_worker(workforce, 1), usable) << "a node whose CPUs this process may not use";
}

TEST(ForEachChunkPlacement, FarAwayStaysOnTheCpusAskedFor) {
    const CpuList usable = usable_cpu_list();
    Workforce workforce = force_of(1);
    workforce.cpus = {usable.back()};
    workforce.node_cpus = {{0, {}}};
    EXPECT_EQ(cpus_of_worker(workforce, 0), CpuList{usable.back()});
}

TEST(ForEachChunkPlacement, OnACpuThatCannotBeUsedIsAnErrorBeforeAnyWork) {
    std::atomic<unsigned> calls{0};
    Workforce workforce = force_of(2);
    workforce.cpus = {kMaxCpus - 1};
    const std::string error = error_of([&] {
        return do_each(kManyChunks, workforce, [&](unsigned, GuestRange, const std::stop_token&) {
            ++calls;
            return true;
        });
    });
    EXPECT_TRUE(mentions(error, std::to_string(kMaxCpus - 1))) << error;
    EXPECT_EQ(calls, 0U);
}

} // namespace
} // namespace vmm::prefault
