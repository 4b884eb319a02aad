// Prefault while the guest runs already.

#include <gtest/gtest.h>
#include <sys/resource.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <string>
#include <thread>

#include "support/host_errors.hpp"
#include "support/host_process_facts.hpp"
#include "support/kvm_command.hpp"
#include "support/kvm_machine.hpp"
#include "support/kvm_require.hpp"

namespace vmm {
namespace {

using namespace std::chrono_literals;
using prefault::Scope;
using testing::mentions;
using testing::run_beside;
using testing::TestKernel;
using testing::TouchingGuest;
namespace kernels = testing::kernels;

Config in_the_background(Config config, std::uint64_t memory_bytes) {
    config.memory_bytes = memory_bytes;
    config.page_size = PageSize::k4K;
    config.prefault = {.scope = Scope::kAll, .workers = 2};
    config.prefault_when = PrefaultWhen::kBackground;
    return config;
}

/// Returns when the machine's prefault in the background is over. It may be under way, or about to begin.
void wait_for_its_end(const std::atomic<bool>& begun) {
    const std::string self = std::to_string(::getpid());
    EXPECT_TRUE(testing::eventually([&] { return begun.load(); }));
    EXPECT_TRUE(testing::eventually([&] { return !testing::has_thread(self, "background"); }));
}

/// Makes the page tables on which a TouchingGuest runs, and fills almost nothing.
void make_page_tables(Machine& machine) {
    EXPECT_TRUE(machine.prefault({.scope = Scope::kAll, .ranges = {{GuestAddress{0}, 2 * kMiB}}}).complete);
}

/// Sets `begun` when there is progress.
prefault::ProgressSink notes(std::atomic<bool>& begun) {
    return [&begun](const prefault::Progress&) { begun = true; };
}

using Background = testing::KvmTest;

TEST_F(Background, FillsAllWhileTheGuestRunsAndSaysWhenItWasDone) {
    const TouchingGuest guest;
    std::atomic<bool> begun{false};
    Config config = in_the_background(guest.config(), 64 * kMiB);
    config.prefault.progress = notes(begun);
    Machine machine(config);
    make_page_tables(machine);
    EXPECT_EQ(run_beside(machine,
                         [&] {
                             wait_for_its_end(begun);
                             guest.power_off();
                         }),
              ExitReason::kPowerOff);
    const RunReport& report = machine.report();
    EXPECT_TRUE(report.prefault.complete) << report.prefault.problem;
    EXPECT_EQ(report.prefault_when, PrefaultWhen::kBackground);
    ASSERT_TRUE(report.seconds_until_full);
    EXPECT_GT(*report.seconds_until_full, 0);
    EXPECT_LE(*report.seconds_until_full, report.guest_seconds);
    ASSERT_TRUE(report.faults_until_full);
    EXPECT_LE(*report.faults_until_full, report.second_level_faults_total());
}

TEST_F(Background, LeavesAGuestThatWaitsForItNoFault) {
    const TouchingGuest guest;
    std::atomic<bool> begun{false};
    Config config = in_the_background(guest.config(), 64 * kMiB);
    config.prefault.progress = notes(begun);
    Machine machine(config);
    make_page_tables(machine);
    run_beside(machine, [&] {
        wait_for_its_end(begun);
        EXPECT_TRUE(guest.touch({GuestAddress{0}, config.memory_bytes}));
        guest.power_off();
    });
    ASSERT_TRUE(machine.report().faults_until_full);
    EXPECT_EQ(machine.report().second_level_faults_total(), *machine.report().faults_until_full)
        << "those after it was full";
}

/// Returns the faults of a guest that writes to all its memory, as soon as `may_begin` allows it.
template <typename MayBegin>
std::uint64_t faults_of_touching_all(const TouchingGuest& guest, const Config& config, MayBegin may_begin) {
    Machine machine(config);
    make_page_tables(machine);
    run_beside(machine, [&] {
        EXPECT_TRUE(testing::eventually(may_begin));
        EXPECT_TRUE(guest.touch({GuestAddress{0}, config.memory_bytes}));
        guest.power_off();
    });
    return machine.report().second_level_faults_total();
}

TEST_F(Background, LeavesAGuestThatDoesNotWaitForItsEndFewerFaultsThanNone) {
    const TouchingGuest guest;
    Config config = in_the_background(guest.config(), 64 * kMiB);
    std::atomic<bool> something_done{false};
    config.prefault.progress = [&](const prefault::Progress& now) {
        // Populating only host memory saves the guest no fault. The background thread may not get a processor for a
        // long time.
        something_done = something_done || (now.stage == prefault::Stage::kSecondLevel && now.done_bytes > 2 * kMiB);
    };
    const std::uint64_t faults = faults_of_touching_all(guest, config, [&] { return something_done.load(); });
    config.prefault_when = PrefaultWhen::kBefore;
    EXPECT_LT(faults, faults_of_touching_all(guest, config, [] { return true; }));
}

TEST_F(Background, OfAGuestThatPowersOffAtOnceEndsWithItWithoutAProblem) {
    const TestKernel kernel(kernels::kPowerOff);
    Machine machine(in_the_background(kernel.config(), 1 * kGiB));
    EXPECT_EQ(machine.run(), ExitReason::kPowerOff);
    const RunReport& report = machine.report();
    EXPECT_FALSE(report.prefault.complete);
    EXPECT_EQ(report.prefault.problem, "");
    EXPECT_FALSE(report.seconds_until_full);
    EXPECT_FALSE(report.faults_until_full);
}

TEST_F(Background, EndsIncompleteWhereTheMachineIsStopped) {
    const TestKernel kernel(kernels::kSpin);
    std::atomic<bool> begun{false};
    Config config = in_the_background(kernel.config(), 1 * kGiB);
    config.prefault.progress = notes(begun);
    Machine machine(config);
    const ExitReason reason = run_beside(machine, [&] {
        EXPECT_TRUE(testing::eventually([&] { return begun.load(); }));
        machine.request_stop();
    });
    EXPECT_EQ(reason, ExitReason::kStopped);
    EXPECT_FALSE(machine.report().prefault.complete);
    EXPECT_EQ(machine.report().prefault.problem, "");
}

TEST_F(Background, ForWhichTheHostHasNotEnoughIsReportedAndTheGuestGoesOn) {
#ifdef VMM_SANITIZED
    GTEST_SKIP() << "the sanitizers' own runtime needs descriptors to look at an object";
#endif
    // For a guest that does not use their page tables, prefault vCPUs are made in the background. Each has a
    // descriptor.
    const TestKernel kernel(kernels::kSpin);
    Config config = in_the_background(kernel.config(), 64 * kMiB);
    config.prefault.workers = 8;
    std::string problem;
    // On a busy machine it may be stopped before it has tried. Then it gets more time.
    for (auto time = 100ms; problem.empty() && time < testing::kPatience; time *= 2) {
        Machine machine(config);
        rlimit before{};
        ASSERT_EQ(::getrlimit(RLIMIT_NOFILE, &before), 0);
        rlimit tight = before;
        constexpr std::size_t kOfTheRunItself = 8;
        tight.rlim_cur = testing::count_descriptors() + kOfTheRunItself;
        ::setrlimit(RLIMIT_NOFILE, &tight);
        const ExitReason reason = run_beside(machine, [&] {
            std::this_thread::sleep_for(time);
            machine.request_stop();
        });
        ::setrlimit(RLIMIT_NOFILE, &before);
        EXPECT_EQ(reason, ExitReason::kStopped);
        EXPECT_FALSE(machine.report().prefault.complete);
        EXPECT_FALSE(machine.report().seconds_until_full);
        problem = machine.report().prefault.problem;
    }
    EXPECT_TRUE(mentions(problem, "Too many open files")) << problem;
}

TEST_F(Background, OfAGuestThatWritesOverTheScratchSlotAllTheTimeComesToItsEnd) {
    const TestKernel kernel({0xbf, 0x00, 0x00, 0x00, 0xe0,       // mov $0xe0000000, %edi
                             0x89, 0x07, 0x83, 0xc7, 0x04,       // again: mov %eax, (%edi); add $4, %edi
                             0x81, 0xe7, 0xff, 0xff, 0x00, 0xe0, // and $0xe000ffff, %edi
                             0xeb, 0xf3});                       // jmp again
    std::atomic<bool> begun{false};
    Config config = in_the_background(kernel.config(), 64 * kMiB);
    config.prefault.progress = notes(begun);
    Machine machine(config);
    const ExitReason reason = run_beside(machine, [&] {
        wait_for_its_end(begun);
        machine.request_stop();
    });
    EXPECT_EQ(reason, ExitReason::kStopped);
    const prefault::Report& report = machine.report().prefault;
    EXPECT_EQ(report.complete, report.problem.empty()) << report.problem;
    if (machine.report().host.kind == prefault::SecondLevelKind::kShadow) {
        EXPECT_TRUE(report.complete) << report.problem; // on such a host the slot is read-only
    }
}

TEST_F(Background, MayBeFollowedByAnotherPrefaultWhileTheGuestRuns) {
    const TestKernel kernel(kernels::kSpin);
    std::atomic<bool> begun{false};
    Config config = in_the_background(kernel.config(), 64 * kMiB);
    config.prefault.progress = notes(begun);
    Machine machine(config);
    run_beside(machine, [&] {
        EXPECT_TRUE(testing::eventually([&] { return begun.load(); }));
        const prefault::Report report = machine.prefault(); // waits for the other thread
        EXPECT_TRUE(report.complete) << report.problem;
        machine.request_stop();
    });
    EXPECT_TRUE(machine.report().prefault.complete) << machine.report().prefault.problem;
}

} // namespace
} // namespace vmm
