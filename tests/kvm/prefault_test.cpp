// Filling the second level, proved by KVM's own counters.

#include "prefault/prefault.hpp"

#include <gtest/gtest.h>

#include <array>
#include <atomic>
#include <chrono>
#include <memory>
#include <optional>
#include <stop_token>
#include <thread>
#include <variant>
#include <vector>

#include "prefault/host_populate.hpp"
#include "support/host_page_size.hpp"
#include "support/kvm_guest.hpp"
#include "support/kvm_huge_pages.hpp"
#include "support/kvm_prefault_vm.hpp"
#include "support/kvm_require.hpp"
#include "support/prefault_stop.hpp"

namespace vmm::prefault {
namespace {

using testing::count_changes_of_pattern;
using testing::fill_with_pattern;
using testing::PrefaultVm;
using Clock = std::chrono::steady_clock;

/// For each kind of page that can be behind guest memory.
class Prefault : public testing::KvmTest, public ::testing::WithParamInterface<PageSize> {
  protected:
    void SetUp() override {
        KvmTest::SetUp();
        if (IsSkipped() || HasFatalFailure() || GetParam() != PageSize::k2M) {
            return;
        }
        constexpr std::uint64_t kPages = PrefaultVm::kDefaultBytes / (2 * kMiB);
        if (huge_pages_.emplace(kPages); !huge_pages_->why_not().empty()) {
            GTEST_SKIP() << huge_pages_->why_not();
        }
    }

  private:
    std::optional<testing::HugePages> huge_pages_;
};

INSTANTIATE_TEST_SUITE_P(PageSizes, Prefault, ::testing::Values(PageSize::k4K, PageSize::kThp, PageSize::k2M),
                         [](const auto& page_size) { return std::string(to_string(page_size.param)); });

/// What KVM counts covers the memory; where the second level is the hardware's, to the byte.
void expect_covers(const MappedPages& mapped, const PrefaultVm& machine) {
    if (machine.kind == SecondLevelKind::kShadow) {
        EXPECT_GE(mapped.bytes(), machine.memory.size_bytes());
    } else {
        EXPECT_EQ(mapped.bytes(), machine.memory.size_bytes());
    }
}

TEST_P(Prefault, OfEverythingIsCompleteByKvmsOwnCount) {
    PrefaultVm machine(GetParam());
    const Report report = machine.prefault(Scope::kAll);
    EXPECT_TRUE(report.complete);
    EXPECT_EQ(report.method, Method::kTouch);
    EXPECT_EQ(report.top_up_passes, 0U);
    expect_covers(report.mapped, machine);
}

TEST_P(Prefault, MapsInPagesOfTheBacking) {
    PrefaultVm machine(GetParam());
    const Report report = machine.prefault(Scope::kAll);
    if (machine.kind == SecondLevelKind::kShadow) {
        GTEST_SKIP() << "shadow paging maps in pages of the guest's own tables, too";
    }
    const bool large = proven_mapping_bytes(machine.memory).front() == 2 * kMiB;
    EXPECT_EQ(report.mapped.pages_4k, large ? 0 : machine.memory_pages());
    EXPECT_EQ(report.mapped.pages_2m, large ? machine.memory_pages() / 512 : 0);
    EXPECT_EQ(report.mapped.pages_1g, 0U);
}

TEST_P(Prefault, LeavesTheGuestNoFault) {
    PrefaultVm machine(GetParam());
    ASSERT_TRUE(machine.prefault(Scope::kAll).complete);
    EXPECT_EQ(machine.faults_of_guest_touching_all_memory(), 0U);
}

TEST_P(Prefault, OfTheHostAloneLeavesTheGuestItsFaults) {
    PrefaultVm machine(GetParam());
    const Report report = machine.prefault(Scope::kHost);
    EXPECT_TRUE(report.complete);
    EXPECT_EQ(report.mapped.bytes(), 0U);
    EXPECT_GT(machine.faults_of_guest_touching_all_memory(), 0U);
}

TEST_P(Prefault, ChangesNoByteOfMemory) {
    PrefaultVm machine(GetParam());
    fill_with_pattern(machine.memory);
    ASSERT_TRUE(machine.prefault(Scope::kAll).complete);
    EXPECT_EQ(count_changes_of_pattern(machine.memory), 0U);
}

TEST_P(Prefault, MayBeDoneAgain) {
    PrefaultVm machine(GetParam());
    const Report first = machine.prefault(Scope::kAll);
    const Report second = machine.fill();
    EXPECT_TRUE(first.complete);
    EXPECT_TRUE(second.complete);
    expect_covers(second.mapped, machine);
    EXPECT_EQ(machine.faults_of_guest_touching_all_memory(), 0U);
}

using PrefaultTest = testing::KvmTest;

TEST_F(PrefaultTest, OfNothingDoesNothing) {
    PrefaultVm machine(PageSize::k4K);
    const std::uint64_t mapped_before = mapped_pages(machine.vm.stats()).bytes();
    const Report report = machine.prefault(Scope::kNone);
    EXPECT_TRUE(report.complete);
    EXPECT_EQ(report.workers, 0U);
    EXPECT_EQ(report.method, Method::kNone);
    EXPECT_EQ(mapped_pages(machine.vm.stats()).bytes(), mapped_before);
}

TEST_F(PrefaultTest, WithOneWorkerIsComplete) {
    PrefaultVm machine(PageSize::k4K, 1);
    EXPECT_TRUE(machine.prefault(Scope::kAll).complete);
    EXPECT_EQ(machine.faults_of_guest_touching_all_memory(), 0U);
}

TEST_F(PrefaultTest, WithMoreWorkersThanCpusIsComplete) {
    PrefaultVm machine(PageSize::k4K, 8);
    EXPECT_TRUE(machine.prefault(Scope::kAll).complete);
    EXPECT_EQ(machine.faults_of_guest_touching_all_memory(), 0U);
}

TEST_F(PrefaultTest, WithoutTheHostSideFirstIsStillComplete) {
    PrefaultVm machine(PageSize::k4K);
    const Report report = machine.fill();
    EXPECT_TRUE(report.complete);
    EXPECT_EQ(machine.faults_of_guest_touching_all_memory(), 0U);
}

TEST_F(PrefaultTest, NeverCountsTwiceWhatIsMapped) {
    PrefaultVm machine(PageSize::k4K);
    machine.faults_of_guest_touching_all_memory(); // The guest came first.
    const Report report = machine.prefault(Scope::kAll);
    EXPECT_TRUE(report.complete);
    expect_covers(report.mapped, machine);
}

TEST_F(PrefaultTest, ThatIsStoppedBeforeItBeginsMapsNothing) {
    PrefaultVm machine(PageSize::k4K);
    const Report report = machine.prefault(Scope::kAll, testing::stop_requested_already());
    EXPECT_FALSE(report.complete);
    EXPECT_EQ(report.mapped.bytes(), 0U);
}

TEST_F(PrefaultTest, ThatIsStoppedInTheMiddleComesBackSoonAndIncomplete) {
    PrefaultVm machine(PageSize::k4K, 1, 128 * kMiB);
    ASSERT_TRUE(populate_host(machine.memory, std::vector{machine.memory.regions()[0].range}, 2, {}));
    const auto stop = std::make_unique<std::stop_source>();
    std::atomic<bool> over{false};
    Clock::time_point requested;
    const std::jthread stopper([&] {
        const kvm::Stats stats = machine.vm.stats();
        while (!over && mapped_pages(stats).pages_4k < 200) {
            std::this_thread::yield();
        }
        requested = Clock::now();
        stop->request_stop();
    });
    const Report report = machine.fill(stop->get_token());
    const auto returned = Clock::now();
    over = true;
    EXPECT_FALSE(report.complete);
    EXPECT_LT(report.mapped.bytes(), machine.memory.size_bytes());
    EXPECT_LT(returned - requested, std::chrono::milliseconds(500));
}

TEST_F(PrefaultTest, AfterOneThatWasStoppedIsExact) {
    PrefaultVm machine(PageSize::k4K);
    EXPECT_FALSE(machine.fill(testing::stop_requested_already()).complete);
    const Report report = machine.prefault(Scope::kAll);
    EXPECT_TRUE(report.complete);
    expect_covers(report.mapped, machine);
    EXPECT_EQ(machine.faults_of_guest_touching_all_memory(), 0U);
}

/// What a hostile guest does to the scratch slot: writes ones over the stub and the tables, from real mode.
void scribble_over(const GuestRange& scratch, PrefaultVm& machine) {
    constexpr GuestAddress kCode{0x1000};
    const testing::Code code{0xf3, 0xab, 0xe6, 0x80}; // rep stosw; out %al, $0x80
    ASSERT_TRUE(machine.memory.copy_in(kCode, std::as_bytes(std::span(code))));
    kvm::Vcpu vcpu(machine.vm, 1);
    kvm_sregs special = vcpu.special_registers();
    special.cs.base = 0;
    special.cs.selector = 0;
    special.es.base = to_integer(scratch.base);
    vcpu.set_special_registers(special);
    kvm_regs registers{};
    registers.rip = to_integer(kCode);
    registers.rax = 0xffff;
    registers.rcx = scratch.size / 2;
    registers.rflags = 2;
    vcpu.set_registers(registers);
    vcpu.set_mp_state(kvm::MpState::kRunnable);
    const kvm::AllSignalsBlocked for_this_thread;
    const kvm::Exit exit = vcpu.run();
    ASSERT_TRUE(std::holds_alternative<kvm::PioExit>(exit)) << testing::name_of(exit);
}

TEST_F(PrefaultTest, RepairsTheScratchSlotThatAGuestWroteOver) {
    PrefaultVm machine(PageSize::k4K);
    ASSERT_LE(machine.filler->scratch().range().size, 64 * kKiB) << "what real mode reaches";
    scribble_over(machine.filler->scratch().range(), machine);
    const Report report = machine.prefault(Scope::kAll);
    EXPECT_TRUE(report.complete);
    EXPECT_EQ(machine.faults_of_guest_touching_all_memory(), 0U);
}

TEST_F(PrefaultTest, RepairsTheScratchSlotThatAGuestWroteOverBetweenTwoFills) {
    PrefaultVm machine(PageSize::k4K);
    ASSERT_TRUE(machine.prefault(Scope::kAll).complete);
    scribble_over(machine.filler->scratch().range(), machine);
    EXPECT_TRUE(machine.fill().complete);
    EXPECT_EQ(machine.faults_of_guest_touching_all_memory(), 0U);
}

TEST_F(PrefaultTest, WhileTheGuestWritesChangesNoneOfItsWrites) {
    // The guest's vCPU goes over all memory again and again while the dummies fill: each write of either is atomic.
    PrefaultVm machine(PageSize::k4K);
    fill_with_pattern(machine.memory);
    std::atomic<bool> over{false};
    std::atomic<int> rounds{0};
    Report report;
    {
        const std::jthread guest([&] {
            const kvm::AllSignalsBlocked for_this_thread;
            while (!over || rounds == 0) {
                for (const MemoryRegion& region : machine.memory.regions()) {
                    machine.guest_vcpu->touch(region.range, 4096, {});
                }
                ++rounds;
            }
        });
        const kvm::Stats stats = machine.vm.stats();
        while (mapped_pages(stats).pages_4k < 50) { // The guest has begun, and has most of its way before it.
            std::this_thread::yield();
        }
        report = machine.prefault(Scope::kAll);
        over = true;
    }
    EXPECT_TRUE(report.complete) << format_bytes(report.mapped.bytes()) << " are said to be mapped of "
                                 << format_bytes(machine.memory.size_bytes());
    EXPECT_GT(rounds, 0);
    EXPECT_EQ(count_changes_of_pattern(machine.memory), 0U);
}

TEST_F(PrefaultTest, OfTwoMachinesAtOnceIsCompleteForBoth) {
    std::array<Report, 2> reports;
    {
        std::vector<std::jthread> threads;
        for (Report& report : reports) {
            threads.emplace_back([&report] {
                PrefaultVm machine(PageSize::k4K);
                report = machine.prefault(Scope::kAll);
                EXPECT_EQ(machine.faults_of_guest_touching_all_memory(), 0U);
            });
        }
    }
    EXPECT_TRUE(reports[0].complete);
    EXPECT_TRUE(reports[1].complete);
}

TEST_F(PrefaultTest, TimesItsStages) {
    PrefaultVm machine(PageSize::k4K);
    const Report report = machine.prefault(Scope::kAll);
    EXPECT_GT(report.host_seconds, 0);
    EXPECT_GT(report.second_level_seconds, 0);
    EXPECT_GE(report.total_seconds, report.host_seconds + report.pin_seconds + report.second_level_seconds - 1e-6);
}

TEST_F(PrefaultTest, DummyThatTouchesNoMemoryIsAnErrorThatSaysWhere) {
    PrefaultVm machine(PageSize::k4K);
    const kvm::AllSignalsBlocked for_this_thread;
    try {
        machine.guest_vcpu->touch({GuestAddress{kGiB}, 4096}, 4096, {});
        FAIL() << "there is no memory";
    } catch (const Error& error) {
        EXPECT_NE(std::string(error.what()).find("no memory behind 0x40000000"), std::string::npos) << error.what();
    }
}

TEST_F(PrefaultTest, LeavesTheDummiesParked) {
    // Were one still runnable, nothing would show; but the next fill must find each where it left it.
    PrefaultVm machine(PageSize::k4K, 4);
    for (int round = 0; round < 5; ++round) {
        EXPECT_TRUE(machine.prefault(Scope::kAll).complete) << round;
    }
}

} // namespace
} // namespace vmm::prefault
