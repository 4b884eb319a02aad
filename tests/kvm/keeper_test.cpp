// A second level that is kept full while its guest runs. Two things take mappings here: dirty logging, and mprotect(),
// for which the kernel drops all mappings of a range.

#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <iterator>
#include <mutex>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "kvm/host/error.hpp"
#include "support/host_errors.hpp"
#include "support/kvm_command.hpp"
#include "support/kvm_machine.hpp"
#include "support/kvm_require.hpp"

namespace vmm {
namespace {

using prefault::KeptEvent;
using prefault::KeptEventKind;
using prefault::KeptReport;
using prefault::Scope;
using testing::mentions;
using testing::run_beside;
using testing::TestKernel;
using testing::TouchingGuest;
namespace kernels = testing::kernels;

/// The events of a keeper, which may come from any thread.
class Events {
  public:
    [[nodiscard]] prefault::KeptSink sink() {
        return [this](const KeptEvent& event) {
            const std::lock_guard hold(lock_);
            events_.push_back(event);
        };
    }
    [[nodiscard]] std::vector<KeptEvent> of(KeptEventKind kind) const {
        const std::lock_guard hold(lock_);
        std::vector<KeptEvent> found;
        std::ranges::copy_if(events_, std::back_inserter(found),
                             [kind](const KeptEvent& event) { return event.kind == kind; });
        return found;
    }
    /// Waits until there are `count` events of a kind.
    [[nodiscard]] bool wait_for(KeptEventKind kind, std::size_t count = 1) const {
        return testing::eventually([&] { return of(kind).size() >= count; });
    }

  private:
    mutable std::mutex lock_;
    std::vector<KeptEvent> events_;
};

/// Makes the kernel drop KVM's mappings of the first `bytes` of guest memory. The memory's content stays as it is.
void drop_mappings(const Machine& machine, std::uint64_t bytes) {
    std::byte* const memory = machine.memory().regions()[0].host;
    for (const int protection : {PROT_READ | PROT_WRITE | PROT_EXEC, PROT_READ | PROT_WRITE}) {
        if (::mprotect(memory, bytes, protection) != 0) {
            throw std::runtime_error("cannot change the protection of guest memory");
        }
    }
}

class Keeping : public testing::KvmTest {
  protected:
    /// The configuration of a guest that runs on the prefault's page tables, so that the counts are meaningful on every
    /// host.
    [[nodiscard]] Config kept(std::uint64_t memory_bytes = 32 * kMiB, PageSize page_size = PageSize::k4K) {
        Config config = guest.config();
        config.memory_bytes = memory_bytes;
        config.page_size = page_size;
        config.prefault_keep = true;
        config.keep_every_ms = 20;
        config.kept = events.sink();
        return config;
    }

    TouchingGuest guest;
    Events events;
};

TEST_F(Keeping, FillsAgainWhatWasLostAndSaysSo) {
    const Config config = kept();
    Machine machine(config);
    ASSERT_TRUE(machine.prefault().complete);
    run_beside(machine, [&] {
        EXPECT_TRUE(guest.touch({GuestAddress{0}, config.memory_bytes}));
        drop_mappings(machine, 8 * kMiB);
        EXPECT_TRUE(events.wait_for(KeptEventKind::kFull));
        EXPECT_GE(machine.statistics().mapped.bytes(), config.memory_bytes);
        guest.power_off();
    });
    ASSERT_FALSE(events.of(KeptEventKind::kLost).empty());
    EXPECT_GT(events.of(KeptEventKind::kLost)[0].lost_bytes, 0U);
    EXPECT_LE(events.of(KeptEventKind::kLost)[0].lost_bytes, 8 * kMiB);
    ASSERT_TRUE(machine.report().kept);
    const KeptReport& report = *machine.report().kept;
    EXPECT_EQ(report.every_ms, 20U);
    EXPECT_GE(report.losses, 1U);
    EXPECT_GE(report.refills, 1U);
    EXPECT_GT(report.lost_bytes, 0U);
    EXPECT_EQ(report.problem, "");
    EXPECT_TRUE(report.full);
    EXPECT_GE(report.events.size(), 2U);
}

TEST_F(Keeping, LeavesAGuestNoFaultOnceItIsFullAgain) {
    const Config config = kept();
    Machine machine(config);
    ASSERT_TRUE(machine.prefault().complete);
    std::uint64_t before = 0;
    run_beside(machine, [&] {
        drop_mappings(machine, config.memory_bytes);
        EXPECT_TRUE(events.wait_for(KeptEventKind::kFull));
        before = machine.statistics().vcpus[0].second_level_faults;
        EXPECT_TRUE(guest.touch({GuestAddress{0}, config.memory_bytes}));
        guest.power_off();
    });
    EXPECT_EQ(machine.report().second_level_faults_total(), before);
}

TEST_F(Keeping, SaysNothingOfAGuestThatLosesNothing) {
    const Config config = kept();
    Machine machine(config);
    ASSERT_TRUE(machine.prefault().complete);
    run_beside(machine, [&] {
        EXPECT_TRUE(guest.touch({GuestAddress{0}, config.memory_bytes}));
        guest.power_off();
    });
    const KeptReport& report = machine.report().kept.value();
    // The kernel may move pages by itself while this test runs. Then each loss must name a cause.
    EXPECT_EQ(report.losses, events.of(KeptEventKind::kLost).size());
    EXPECT_EQ(report.refills > 0, report.losses > 0);
    EXPECT_GE(report.looks, 1U);
    EXPECT_TRUE(report.full);
}

TEST_F(Keeping, HoldsWhileDirtyLoggingIsOnAndRefillsAfterwards) {
    const Config config = kept(64 * kMiB, PageSize::kThp);
    Machine machine(config);
    ASSERT_TRUE(machine.prefault().complete);
    run_beside(machine, [&] {
        machine.log_dirty_pages(true);
        drop_mappings(machine, 16 * kMiB);
        EXPECT_TRUE(events.wait_for(KeptEventKind::kHeld));
        EXPECT_TRUE(events.of(KeptEventKind::kFull).empty());
        machine.log_dirty_pages(false);
        EXPECT_TRUE(events.wait_for(KeptEventKind::kFull));
        EXPECT_TRUE(guest.touch({GuestAddress{0}, config.memory_bytes}));
        guest.power_off();
    });
    const std::vector<KeptEvent> lost = events.of(KeptEventKind::kLost);
    ASSERT_FALSE(lost.empty());
    EXPECT_EQ(std::ranges::count_if(lost[0].causes, [](const std::string& cause) { return mentions(cause, "dirty"); }),
              1);
    EXPECT_TRUE(machine.report().kept.value().full);
}

TEST_F(Keeping, BeginsWhenAPrefaultInTheBackgroundIsDone) {
    std::atomic<bool> begun{false};
    Config config = kept(64 * kMiB);
    config.prefault_when = PrefaultWhen::kBackground;
    config.prefault.progress = [&begun](const prefault::Progress&) { begun = true; };
    Machine machine(config);
    // The guest runs on page tables that exist before.
    ASSERT_TRUE(machine.prefault({.scope = Scope::kAll, .ranges = {{GuestAddress{0}, 2 * kMiB}}}).complete);
    run_beside(machine, [&] {
        EXPECT_TRUE(testing::eventually([&] { return begun.load(); }));
        EXPECT_TRUE(testing::eventually([] { return !testing::has_thread(std::to_string(::getpid()), "background"); }));
        drop_mappings(machine, 8 * kMiB);
        EXPECT_TRUE(events.wait_for(KeptEventKind::kFull));
        guest.power_off();
    });
    EXPECT_TRUE(machine.report().prefault.complete) << machine.report().prefault.problem;
    EXPECT_GE(machine.report().kept.value().losses, 1U);
}

TEST_F(Keeping, ServesBesidePrefaultsOfTheProgramAndAddedMemory) {
    const Config config = kept(16 * kMiB);
    Machine machine(config);
    ASSERT_TRUE(machine.prefault().complete);
    run_beside(machine, [&] {
        for (unsigned i = 0; i < 4; ++i) {
            drop_mappings(machine, 4 * kMiB);
            EXPECT_TRUE(machine.prefault().complete);
            EXPECT_TRUE(machine.add_memory({GuestAddress{4 * kGiB + i * 4 * kMiB}, 2 * kMiB}).complete);
        }
        const std::size_t full = events.of(KeptEventKind::kFull).size();
        // Losses of the added memory are found, too.
        EXPECT_TRUE(testing::eventually([&] {
            for (const MemoryRegion& region : machine.memory().regions()) {
                ::mprotect(region.host, region.range.size, PROT_READ | PROT_WRITE | PROT_EXEC);
                ::mprotect(region.host, region.range.size, PROT_READ | PROT_WRITE);
            }
            // Nothing more is lost for a while: in emulation a refill takes longer than one turn of this loop.
            constexpr int kLooks = 200;
            for (int look = 0; look < kLooks && events.of(KeptEventKind::kFull).size() <= full; ++look) {
                std::this_thread::sleep_for(std::chrono::milliseconds(50));
            }
            return events.of(KeptEventKind::kFull).size() > full;
        }));
        EXPECT_TRUE(
            testing::eventually([&] { return machine.statistics().mapped.bytes() >= config.memory_bytes + 8 * kMiB; }));
        guest.power_off();
    });
    EXPECT_EQ(machine.report().kept.value().problem, "");
}

TEST_F(Keeping, BacksOffFromWhatTakesMappingsAllTheTimeAndIsFullInTheEnd) {
    const Config config = kept();
    Machine machine(config);
    ASSERT_TRUE(machine.prefault().complete);
    run_beside(machine, [&] {
        {
            std::atomic<bool> enough{false};
            const std::jthread taker([&] {
                while (!enough) {
                    drop_mappings(machine, 4 * kMiB);
                    // The keeper looks less often than this.
                    std::this_thread::sleep_for(std::chrono::milliseconds(5));
                }
            });
            EXPECT_TRUE(events.wait_for(KeptEventKind::kBackOff, 2));
            enough = true;
        }
        EXPECT_TRUE(testing::eventually([&] { return machine.statistics().mapped.bytes() >= config.memory_bytes; }));
        guest.power_off();
    });
}

TEST_F(Keeping, OfAPausedMachineGoesOn) {
    const Config config = kept();
    Machine machine(config);
    ASSERT_TRUE(machine.prefault().complete);
    run_beside(machine, [&] {
        machine.pause();
        drop_mappings(machine, 8 * kMiB);
        EXPECT_TRUE(events.wait_for(KeptEventKind::kFull));
        machine.resume();
        guest.power_off();
    });
}

TEST_F(Keeping, EndsWithTheMachineWhateverItsIntervalIs) {
    Config config = kept();
    config.keep_every_ms = Config::kMaxKeepEveryMs;
    Machine machine(config);
    ASSERT_TRUE(machine.prefault().complete);
    EXPECT_EQ(run_beside(machine, [&] { machine.request_stop(); }), ExitReason::kStopped);
    EXPECT_TRUE(machine.report().kept);
}

TEST_F(Keeping, EndsTheRunWithWhatItsSinkThrows) {
    Config config = kept();
    config.kept = [](const KeptEvent&) { throw std::domain_error("enough"); };
    Machine machine(config);
    ASSERT_TRUE(machine.prefault().complete);
    EXPECT_THROW(run_beside(machine, [&] { drop_mappings(machine, 8 * kMiB); }), std::domain_error);
}

TEST_F(Keeping, OfAGuestWithPageTablesOfItsOwnIsRefusedOnShadowPaging) {
    if (prefault::detect_second_level().kind != prefault::SecondLevelKind::kShadow) {
        GTEST_SKIP() << "this KVM walks the second level in hardware";
    }
    const TestKernel kernel(kernels::kSpin);
    Config config = kernel.config();
    config.prefault = {.scope = Scope::kAll, .workers = 1};
    config.prefault_keep = true;
    const std::string error = testing::error_of([&] { const Machine machine(config); });
    EXPECT_TRUE(mentions(error, "cannot keep the second level full")) << error;
    EXPECT_TRUE(mentions(error, "EPT or NPT")) << error;
}

TEST_F(Keeping, ByTheCommandIsToldAndReported) {
    const testing::TemporaryDirectory directory;
    const std::string report = directory / "report";
    const auto result = testing::run_command({"run", "--prefault=all", "--prefault-keep", "-m", "64M", "--page-size=4K",
                                              "--cmdline", "passes=2", "--report", report});
    EXPECT_EQ(result.exit_status, 0) << result.errors;
    EXPECT_TRUE(mentions(result.errors, "kept full: ")) << result.errors;
    EXPECT_TRUE(mentions(testing::content_of(report), R"("every_ms": 250)")) << testing::content_of(report);
}

TEST_F(Keeping, ByTheCommandIsRefusedWithoutAFullPrefault) {
    for (const char* const scope : {"--prefault=none", "--prefault=host", "--prefault=0-32M"}) {
        const auto result = testing::run_command({"run", scope, "--prefault-keep", "-m", "64M"});
        EXPECT_EQ(result.exit_status, 1) << scope;
        EXPECT_TRUE(mentions(result.errors, "take --prefault=all")) << result.errors;
        EXPECT_TRUE(mentions(result.errors, "--prefault-keep")) << result.errors;
    }
}

} // namespace
} // namespace vmm
