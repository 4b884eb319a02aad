#include "prefault/host/crew.hpp"

#include <gtest/gtest.h>
#include <pthread.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <chrono>
#include <csignal>
#include <latch>
#include <mutex>
#include <set>
#include <stdexcept>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include "kvm/host/error.hpp"
#include "support/host_child_process.hpp"
#include "support/host_errors.hpp"
#include "support/host_process_facts.hpp"
#include "support/prefault_stop.hpp"

namespace vmm::prefault {
namespace {

using testing::error_of;
using testing::mentions;

Crew crew_of(unsigned workers, std::string_view name = "test") {
    Crew crew;
    crew.workers = workers;
    crew.name = name;
    return crew;
}

std::string name_of_this_thread() {
    std::array<char, 16> name{};
    ::pthread_getname_np(::pthread_self(), name.data(), name.size());
    return name.data();
}

int nice_of_this_thread() {
    return ::getpriority(PRIO_PROCESS, static_cast<id_t>(::syscall(SYS_gettid)));
}

TEST(RunInParallel, CallsEachIndexOnce) {
    std::mutex lock;
    std::multiset<unsigned> seen;
    run_in_parallel(crew_of(8), {}, [&](unsigned index, const std::stop_token&) {
        const std::lock_guard hold(lock);
        seen.insert(index);
    });
    EXPECT_EQ(seen, (std::multiset<unsigned>{0, 1, 2, 3, 4, 5, 6, 7}));
}

TEST(RunInParallel, WorksAtTheSameTimeOnThreadsOfTheirOwn) {
    constexpr unsigned kWorkers = 6;
    std::latch all_here(kWorkers);
    std::mutex lock;
    std::set<std::thread::id> threads;
    run_in_parallel(crew_of(kWorkers), {}, [&](unsigned, const std::stop_token&) {
        all_here.arrive_and_wait(); // It would never end if one had to wait for another.
        const std::lock_guard hold(lock);
        threads.insert(std::this_thread::get_id());
    });
    EXPECT_EQ(threads.size(), kWorkers);
    EXPECT_FALSE(threads.contains(std::this_thread::get_id()));
}

TEST(RunInParallel, BeginsOnlyWhenAllThreadsExist) {
    constexpr unsigned kWorkers = 16;
    std::thread([] {}).join(); // With the first thread a sanitizer starts one of its own.
    const std::size_t threads_before = testing::count_threads();
    std::latch counted(1);
    std::atomic<bool> first{true};
    std::atomic<std::size_t> threads_at_first_work{0};
    run_in_parallel(crew_of(kWorkers), {}, [&](unsigned, const std::stop_token&) {
        if (first.exchange(false)) {
            threads_at_first_work = testing::count_threads();
            counted.count_down();
        }
        counted.wait();
    });
    EXPECT_EQ(threads_at_first_work, threads_before + kWorkers);
}

TEST(RunInParallel, ThrowsWhatAWorkerThrew) {
    const std::string error = error_of([]() -> int {
        run_in_parallel(crew_of(4), {}, [](unsigned index, const std::stop_token&) {
            if (index == 2) {
                throw Error("the third one failed");
            }
        });
        return 0;
    });
    EXPECT_EQ(error, "the third one failed");
}

TEST(RunInParallel, ThrowsOneOfManyFailures) {
    EXPECT_THROW(run_in_parallel(crew_of(8), {},
                                 [](unsigned, const std::stop_token&) { throw std::out_of_range("all of them"); }),
                 std::out_of_range);
}

TEST(RunInParallel, LetsTheOthersFinishWhenOneFails) {
    std::atomic<unsigned> finished{0};
    EXPECT_THROW(run_in_parallel(crew_of(4), {},
                                 [&](unsigned index, const std::stop_token&) {
                                     if (index == 0) {
                                         throw std::runtime_error("early");
                                     }
                                     ++finished;
                                 }),
                 std::runtime_error);
    EXPECT_EQ(finished, 3U);
}

TEST(RunInParallel, StopsTheOthersWhenOneFails) {
    std::atomic<unsigned> stopped{0};
    EXPECT_THROW(run_in_parallel(crew_of(4), {},
                                 [&](unsigned index, const std::stop_token& stop) {
                                     if (index == 0) {
                                         throw std::runtime_error("early");
                                     }
                                     stopped += testing::is_stopped_at_last(stop) ? 1U : 0U;
                                 }),
                 std::runtime_error);
    EXPECT_EQ(stopped, 3U);
}

TEST(RunInParallel, PassesARequestToStopOn) {
    std::stop_source source;
    std::atomic<unsigned> stopped{0};
    run_in_parallel(crew_of(3), source.get_token(), [&](unsigned index, const std::stop_token& stop) {
        if (index == 0) {
            source.request_stop();
        }
        stopped += testing::is_stopped_at_last(stop) ? 1U : 0U;
    });
    EXPECT_EQ(stopped, 3U);
}

TEST(RunInParallel, TellsItsWorkersOfAnEarlierRequestToStop) {
    std::atomic<unsigned> stopped{0};
    run_in_parallel(crew_of(2), testing::stop_requested_already(),
                    [&](unsigned, const std::stop_token& stop) { stopped += stop.stop_requested() ? 1U : 0U; });
    EXPECT_EQ(stopped, 2U);
}

TEST(RunInParallel, LeavesTheCallersTokenAlone) {
    std::stop_source source;
    EXPECT_THROW(run_in_parallel(crew_of(2), source.get_token(),
                                 [](unsigned, const std::stop_token&) { throw std::runtime_error("a failure"); }),
                 std::runtime_error);
    EXPECT_FALSE(source.stop_requested());
}

TEST(RunInParallel, NamesItsThreads) {
    std::array<std::string, 2> names;
    run_in_parallel(crew_of(2, "a-very-long-name"), {},
                    [&](unsigned index, const std::stop_token&) { names.at(index) = name_of_this_thread(); });
    EXPECT_EQ(names[0], "a-very-long-nam");
    run_in_parallel(crew_of(2, "work"), {},
                    [&](unsigned index, const std::stop_token&) { names.at(index) = name_of_this_thread(); });
    EXPECT_EQ(names[1], "work1");
}

TEST(RunInParallel, KeepsSignalsAwayFromItsThreads) {
    std::atomic<bool> blocked{false};
    run_in_parallel(crew_of(1), {}, [&](unsigned, const std::stop_token&) {
        sigset_t mask;
        ::pthread_sigmask(SIG_SETMASK, nullptr, &mask);
        blocked =
            sigismember(&mask, SIGINT) == 1 && sigismember(&mask, SIGTERM) == 1 && sigismember(&mask, SIGUSR1) == 1;
    });
    EXPECT_TRUE(blocked);
    sigset_t mask;
    ::pthread_sigmask(SIG_SETMASK, nullptr, &mask);
    EXPECT_EQ(sigismember(&mask, SIGINT), 0) << "the caller's own mask is as it was";
}

TEST(RunInParallel, BeginsNothingWhereAThreadCannotBeMade) {
    const std::string outcome = testing::in_child_process([]() -> std::string {
        constexpr uid_t kNobody = 65534;
        if (::geteuid() == 0 && ::setresuid(kNobody, kNobody, kNobody) != 0) { // The limit does not bind root.
            return "cannot become nobody";
        }
        testing::set_limit(RLIMIT_NPROC, 1);
        std::atomic<bool> began{false};
        const std::string error = error_of([&]() -> int {
            run_in_parallel(crew_of(64), {}, [&](unsigned, const std::stop_token&) { began = true; });
            return 0;
        });
        return (began ? "began; " : "") + error;
    });
    EXPECT_TRUE(outcome.starts_with("cannot start 64 prefault workers: ")) << outcome;
    EXPECT_TRUE(mentions(outcome, "Config::prefault.workers")) << outcome;
}

TEST(RunInParallelAtLowPriority, MakesOnlyTheWorkersNice) {
    const int nice_before = nice_of_this_thread();
    Crew crew = crew_of(2);
    crew.low_priority = true;
    std::array<int, 2> nice{};
    run_in_parallel(crew, {}, [&](unsigned index, const std::stop_token&) { nice.at(index) = nice_of_this_thread(); });
    EXPECT_EQ(nice, (std::array{19, 19}));
    EXPECT_EQ(nice_of_this_thread(), nice_before);
}

// What broke: a worker that stayed at nice 19 until its end made a stop wait while other processes were busy.
TEST(RunInParallel, AtLowPriorityHurriesWhenItIsStopped) {
    if (::geteuid() != 0) {
        GTEST_SKIP() << "to raise a thread's priority needs root";
    }
    std::stop_source stop;
    Crew crew = crew_of(1);
    crew.low_priority = true;
    int nice = 19;
    run_in_parallel(crew, stop.get_token(), [&](unsigned, const std::stop_token& crew_stop) {
        EXPECT_EQ(nice_of_this_thread(), 19);
        stop.request_stop();
        EXPECT_TRUE(crew_stop.stop_requested());
        nice = nice_of_this_thread();
    });
    EXPECT_EQ(nice, ::getpriority(PRIO_PROCESS, static_cast<id_t>(::getpid())));
}

TEST(RunInParallelAtLowPriority, IsNotTheDefault) {
    std::atomic<int> nice{19};
    run_in_parallel(crew_of(1), {}, [&](unsigned, const std::stop_token&) { nice = nice_of_this_thread(); });
    EXPECT_EQ(nice, nice_of_this_thread());
}

TEST(RunInParallelOnCpus, RunsEachWorkerOnItsOwn) {
    const CpuList usable = usable_cpu_list();
    Crew crew = crew_of(3);
    crew.cpus = {{usable.back()}, {usable.front()}};
    std::array<CpuList, 3> found;
    run_in_parallel(crew, {}, [&](unsigned index, const std::stop_token&) { found.at(index) = usable_cpu_list(); });
    EXPECT_EQ(found[0], CpuList{usable.back()});
    EXPECT_EQ(found[1], CpuList{usable.front()});
    EXPECT_EQ(found[2], usable) << "who has no entry runs where the caller may";
    EXPECT_EQ(usable_cpu_list(), usable) << "the caller stays where it was";
}

TEST(RunInParallelOnCpus, BeginsNothingWhereOneCannotBeUsed) {
    const CpuList usable = usable_cpu_list();
    if (usable.back() == kMaxCpus - 1) {
        GTEST_SKIP() << "this host has every CPU there can be";
    }
    Crew crew = crew_of(4);
    crew.cpus = {usable, usable, {kMaxCpus - 1}, usable};
    std::atomic<bool> began{false};
    const std::string error = error_of([&]() -> int {
        run_in_parallel(crew, {}, [&](unsigned, const std::stop_token&) { began = true; });
        return 0;
    });
    EXPECT_TRUE(mentions(error, std::to_string(kMaxCpus - 1))) << error;
    EXPECT_FALSE(began);
}

TEST(RunInParallelTick, IsCalledOnTheCallersThreadWhileThereIsWork) {
    std::latch three_ticks(3);
    std::set<std::thread::id> threads;
    Crew crew = crew_of(2);
    crew.tick = [&, ticks = 0]() mutable {
        threads.insert(std::this_thread::get_id());
        if (++ticks <= 3) {
            three_ticks.count_down();
        }
    };
    run_in_parallel(crew, {}, [&](unsigned, const std::stop_token&) { three_ticks.wait(); });
    EXPECT_EQ(threads, std::set{std::this_thread::get_id()});
}

TEST(RunInParallelTick, ThatThrowsStopsTheWorkersAndComesOut) {
    std::atomic<unsigned> stopped{0};
    Crew crew = crew_of(2);
    crew.tick = [] { throw std::out_of_range("the observer has seen enough"); };
    EXPECT_THROW(run_in_parallel(crew, {},
                                 [&](unsigned, const std::stop_token& stop) {
                                     stopped += testing::is_stopped_at_last(stop) ? 1U : 0U;
                                 }),
                 std::out_of_range);
    EXPECT_EQ(stopped, 2U) << "it comes out when the workers are done";
}

} // namespace
} // namespace vmm::prefault
