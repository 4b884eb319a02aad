// The command, stopped by a signal in the middle of its prefault: what it still does, and what it leaves behind.

#include <gtest/gtest.h>
#include <sys/syscall.h>

#include <algorithm>
#include <chrono>
#include <csignal>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <memory>
#include <ostream>
#include <random>
#include <string>
#include <system_error>
#include <thread>
#include <vector>

#include "prefault/host/huge_page_pool.hpp"
#include "support/host_emulated.hpp"
#include "support/host_process_facts.hpp"
#include "support/host_syscall_injector.hpp"
#include "support/kvm_command.hpp"
#include "support/kvm_huge_pages.hpp"
#include "support/kvm_machine.hpp"
#include "support/kvm_require.hpp"

namespace vmm {
namespace {

using namespace std::chrono_literals;
using Clock = std::chrono::steady_clock;
using Seconds = std::chrono::duration<double>;
using testing::CommandBeside;
using testing::eventually;

/// Resources of the host that all its processes share.
struct Taken {
    std::uint64_t huge_pages = 0;
    std::uint64_t reserved_huge_pages = 0;
    std::uint64_t locked_kib = 0;

    static Taken now() {
        Taken taken;
        if (const auto pool = prefault::read_huge_page_pool(2 * kMiB)) {
            taken.huge_pages = pool->total - pool->free;
            taken.reserved_huge_pages = pool->reserved;
        }
        std::ifstream meminfo("/proc/meminfo");
        for (std::string word; meminfo >> word;) {
            if (word == "Mlocked:") {
                meminfo >> taken.locked_kib;
            }
        }
        return taken;
    }
    /// The kernel counts some locked pages late, a few for each processor.
    [[nodiscard]] bool is_no_more_than(const Taken& before) const {
        constexpr std::uint64_t kLateKib = 4096;
        return huge_pages <= before.huge_pages && reserved_huge_pages <= before.reserved_huge_pages &&
               locked_kib <= before.locked_kib + kLateKib;
    }
    friend std::ostream& operator<<(std::ostream& out, const Taken& taken) {
        return out << taken.huge_pages << " huge pages, " << taken.reserved_huge_pages << " reserved, "
                   << taken.locked_kib << " KiB locked";
    }
};

std::uint64_t size_of_pool() {
    const auto pool = prefault::read_huge_page_pool(2 * kMiB);
    return pool ? pool->total : 0;
}

/// A guest that never ends by itself, so only the signal ends the command.
class StoppedCommand : public testing::KvmTest {
  protected:
    void SetUp() override {
        KvmTest::SetUp();
        path_ = directory_.write("kernel", testing::kernel_image(testing::kernels::kSpin));
    }

    /// Starts the command. When this returns, the command is ready to be stopped.
    [[nodiscard]] std::unique_ptr<CommandBeside> start(const std::vector<std::string>& options) const {
        std::vector<std::string> arguments{"run", "-q", "--serial=none", "--prefault=all"};
        arguments.insert(arguments.end(), options.begin(), options.end());
        arguments.push_back(path_);
        auto command = std::make_unique<CommandBeside>(arguments);
        EXPECT_TRUE(eventually([&] { return command->catches(SIGTERM); })) << command->errors();
        return command;
    }

    /// The time from there until the guest runs: the stop comes at a moment within it.
    [[nodiscard]] Seconds measure(const std::vector<std::string>& options) const {
        const auto command = start(options);
        const auto begin = Clock::now();
        EXPECT_TRUE(eventually([&] { return command->has_thread("vcpu0"); })) << command->errors();
        const Seconds duration = Clock::now() - begin;
        command->send(SIGTERM);
        EXPECT_EQ(command->wait(), 4) << command->errors();
        return duration;
    }

    /// Stops the command `rounds` times at random moments before its guest runs, or soon after. `scripts/benchmark
    /// --stops` shows how long the command takes to end.
    void expect_clean_stops(const std::vector<std::string>& options, int rounds) const {
        constexpr Seconds kLeastWindow = 0.1s;
        const Seconds window = std::max(measure(options), kLeastWindow);
        const Taken before = Taken::now();
        std::mt19937 random(4711);
        std::uniform_real_distribution<double> moment(0, window.count());
        for (int round = 0; round < testing::fewer_in_emulation(rounds) && !HasFailure(); ++round) {
            const auto command = start(options);
            const Seconds pause(moment(random));
            std::this_thread::sleep_for(pause);
            command->send(SIGTERM);
            EXPECT_EQ(command->wait(), 4) << "SIGTERM after " << pause.count() << " s: " << command->errors();
        }
        EXPECT_TRUE(eventually([&] { return Taken::now().is_no_more_than(before); }))
            << Taken::now() << " instead of " << before;
    }

    [[nodiscard]] const std::string& kernel() const { return path_; }

  private:
    testing::TemporaryDirectory directory_;
    std::string path_;
};

TEST_F(StoppedCommand, OnSmallPagesIsGoneAndLeavesNothingBehind) {
    expect_clean_stops({"-m", "512M", "--page-size=4K"}, 12);
}

TEST_F(StoppedCommand, OnPinnedPagesIsGoneAndLeavesNothingBehind) {
    expect_clean_stops({"-m", "256M", "--page-size=4K", "--pin=longterm"}, 12);
}

TEST_F(StoppedCommand, OnHugePagesIsGoneAndLeavesNothingBehind) {
    const testing::HugePages huge_pages(256 * kMiB / (2 * kMiB));
    if (!huge_pages.why_not().empty()) {
        GTEST_SKIP() << huge_pages.why_not();
    }
    expect_clean_stops({"-m", "256M", "--page-size=2M"}, 12);
}

TEST_F(StoppedCommand, WithHugePagesReservedForItIsGoneAndGivesThemBack) {
    const auto pool = prefault::read_huge_page_pool(2 * kMiB);
    constexpr std::uint64_t kPages = 256 * kMiB / (2 * kMiB);
    if (const testing::HugePages can_be_raised((pool ? pool->available() : 0) + kPages);
        !can_be_raised.why_not().empty()) {
        GTEST_SKIP() << can_be_raised.why_not();
    }
    const std::uint64_t before = size_of_pool();
    expect_clean_stops({"-m", "256M", "--page-size=2M", "--reserve-hugepages"}, 12);
    EXPECT_TRUE(eventually([&] { return size_of_pool() == before; })) << size_of_pool() << " instead of " << before;
}

TEST_F(StoppedCommand, BesideItsGuestIsGoneAndLeavesNothingBehind) {
    expect_clean_stops({"-m", "512M", "--page-size=4K", "--prefault-when=background"}, 12);
}

/// True if a thread of `process` gives its stack back, as its last action: madvise() with MADV_DONTNEED. That call also
/// waits for our answer.
bool a_thread_ends(const std::string& process) {
    std::error_code gone;
    for (std::filesystem::directory_iterator task("/proc/" + process + "/task", gone), end; !gone && task != end;
         task.increment(gone)) {
        std::ifstream call(task->path() / "syscall");
        int number = -1;
        std::string address;
        std::string bytes;
        std::string advice;
        if (call >> number >> address >> bytes >> advice && number == SYS_madvise && advice == "0x4") {
            return true;
        }
    }
    return false;
}

TEST_F(StoppedCommand, DoesNoChunkThatHadNotBegunWhenTheStopWasHeard) {
#ifdef VMM_SANITIZED
    GTEST_SKIP() << "a sanitizer's runtime populates memory itself, and has threads of its own";
#endif
    if (const std::string reason = testing::SyscallInjector::why_not(); !reason.empty()) {
        GTEST_SKIP() << reason;
    }
    constexpr unsigned kWorkers = 2;
    constexpr unsigned kBeforeTheStop = 3;
    constexpr std::uint64_t kPopulateWrite = 23; // MADV_POPULATE_WRITE: one for each chunk of host memory
    unsigned chunks = 0;
    const auto run = testing::SyscallInjector({SYS_madvise})
                         .run({testing::command_under_test(), "run", "-q", "--serial=none", "--prefault=all", "-m",
                               "256M", "--page-size=4K", "--prefault-workers", std::to_string(kWorkers), kernel()},
                              [&](const testing::SystemCall& call) {
                                  if (call.arguments[2] == kPopulateWrite && ++chunks == kBeforeTheStop) {
                                      // The worker is held here until the thread that waits for the stop has passed it
                                      // on, and has ended.
                                      const std::string process = std::to_string(call.thread);
                                      const std::size_t threads = testing::count_threads(process);
                                      ::kill(call.thread, SIGTERM);
                                      EXPECT_TRUE(eventually([&] {
                                          return testing::count_threads(process) < threads || a_thread_ends(process);
                                      }));
                                  }
                                  return 0;
                              });
    EXPECT_EQ(run.exit_status, 4) << run.errors << run.stuck;
    EXPECT_GE(chunks, kBeforeTheStop);
    EXPECT_LE(chunks, kBeforeTheStop + kWorkers - 1) << "the others may have been in one each; there are 16 and more";
}

// A batch system sends SIGTERM, and SIGKILL half a minute later. A guest of terabytes cannot be given back in that
// time.
TEST_F(StoppedCommand, HasWrittenItsReportBeforeItGivesMemoryBack) {
#ifdef VMM_SANITIZED
    GTEST_SKIP() << "a sanitizer's runtime maps and unmaps as much memory itself";
#endif
    if (const std::string reason = testing::SyscallInjector::why_not(); !reason.empty()) {
        GTEST_SKIP() << reason;
    }
    constexpr std::uint64_t kPopulateWrite = 23; // MADV_POPULATE_WRITE
    constexpr std::uint64_t kGuestBytes = 256 * kMiB;
    const testing::TemporaryDirectory directory;
    const std::string report = directory / "report";
    bool stopped = false;
    unsigned given_back = 0;
    unsigned reported_before = 0;
    const auto run = testing::SyscallInjector({SYS_madvise, SYS_munmap})
                         .run({testing::command_under_test(), "run", "-q", "--serial=none", "--prefault=all", "-m",
                               "256M", "--page-size=4K", "--report", report, kernel()},
                              [&](const testing::SystemCall& call) {
                                  if (!stopped && call.number == SYS_madvise && call.arguments[2] == kPopulateWrite) {
                                      stopped = true;
                                      ::kill(call.thread, SIGTERM);
                                  }
                                  if (stopped && call.number == SYS_munmap && call.arguments[1] >= kGuestBytes) {
                                      ++given_back;
                                      reported_before += std::filesystem::exists(report) ? 1 : 0;
                                  }
                                  return 0;
                              });
    EXPECT_EQ(run.exit_status, 4) << run.errors << run.stuck;
    EXPECT_GE(given_back, 1U);
    EXPECT_EQ(reported_before, given_back);
    EXPECT_NE(testing::content_of(report).find("\"exit\": \"signal\""), std::string::npos);
}

} // namespace
} // namespace vmm
