#include "prefault/parallel.hpp"

#include <gtest/gtest.h>
#include <pthread.h>
#include <sched.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <csignal>
#include <latch>
#include <mutex>
#include <set>
#include <stdexcept>
#include <string>
#include <thread>

#include "kvm/error.hpp"
#include "support/host_child_process.hpp"
#include "support/host_errors.hpp"
#include "support/host_process_facts.hpp"

namespace vmm::prefault {
namespace {

using testing::error_of;
using testing::mentions;

TEST(RunInParallel, CallsEachIndexOnce) {
    std::mutex lock;
    std::multiset<unsigned> seen;
    run_in_parallel(8, "test", [&](unsigned index) {
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
    run_in_parallel(kWorkers, "test", [&](unsigned) {
        all_here.arrive_and_wait(); // Would never end if one had to wait for another.
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
    run_in_parallel(kWorkers, "test", [&](unsigned) {
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
        run_in_parallel(4, "test", [](unsigned index) {
            if (index == 2) {
                throw Error("the third one failed");
            }
        });
        return 0;
    });
    EXPECT_EQ(error, "the third one failed");
}

TEST(RunInParallel, ThrowsOneOfManyFailures) {
    EXPECT_THROW(run_in_parallel(8, "test", [](unsigned) { throw std::out_of_range("all of them"); }),
                 std::out_of_range);
}

TEST(RunInParallel, LetsTheOthersFinishWhenOneFails) {
    std::atomic<unsigned> finished{0};
    EXPECT_THROW(run_in_parallel(4, "test",
                                 [&](unsigned index) {
                                     if (index == 0) {
                                         throw std::runtime_error("early");
                                     }
                                     ++finished;
                                 }),
                 std::runtime_error);
    EXPECT_EQ(finished, 3U);
}

TEST(RunInParallel, NamesItsThreads) {
    std::array<std::string, 2> names;
    run_in_parallel(2, "a-very-long-name", [&](unsigned index) {
        std::array<char, 16> name{};
        ::pthread_getname_np(::pthread_self(), name.data(), name.size());
        names.at(index) = name.data();
    });
    EXPECT_EQ(names[0], "a-very-long-nam");
    run_in_parallel(2, "work", [&](unsigned index) {
        std::array<char, 16> name{};
        ::pthread_getname_np(::pthread_self(), name.data(), name.size());
        names.at(index) = name.data();
    });
    EXPECT_EQ(names[1], "work1");
}

TEST(RunInParallel, KeepsSignalsAwayFromItsThreads) {
    std::atomic<bool> blocked{false};
    run_in_parallel(1, "test", [&](unsigned) {
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
            run_in_parallel(64, "test", [&](unsigned) { began = true; });
            return 0;
        });
        return (began ? "began; " : "") + error;
    });
    EXPECT_TRUE(outcome.starts_with("cannot start 64 prefault workers: ")) << outcome;
    EXPECT_TRUE(mentions(outcome, "--prefault-workers")) << outcome;
}

TEST(UsableCpus, CountsThoseTheProcessMayUse) {
    unsigned counted = 0;
    std::thread([&counted] { // Affinity belongs to a thread: this one's own.
        cpu_set_t mine;
        ::sched_getaffinity(0, sizeof mine, &mine);
        int cpu = 0;
        while (!CPU_ISSET(cpu, &mine)) {
            ++cpu;
        }
        CPU_ZERO(&mine);
        CPU_SET(cpu, &mine);
        ::sched_setaffinity(0, sizeof mine, &mine);
        counted = usable_cpus();
    })
        .join();
    EXPECT_EQ(counted, 1U);
    EXPECT_GE(usable_cpus(), 1U);
}

} // namespace
} // namespace vmm::prefault
