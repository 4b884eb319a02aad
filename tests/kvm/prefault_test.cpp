// Filling the second level, proved by KVM's own counters.

#include "prefault/second_level.hpp"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/ioctl.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <csignal>
#include <iostream>
#include <iterator>
#include <memory>
#include <optional>
#include <stdexcept>
#include <stop_token>
#include <string>
#include <thread>
#include <tuple>
#include <utility>
#include <variant>
#include <vector>

#include "kvm/host/blocked_signals.hpp"
#include "kvm/kick_signal.hpp"
#include "prefault/plan.hpp"
#include "support/host_errors.hpp"
#include "support/host_page_size.hpp"
#include "support/host_process_facts.hpp"
#include "support/host_waiting.hpp"
#include "support/kvm_guest.hpp"
#include "support/kvm_huge_pages.hpp"
#include "support/kvm_prefault_vm.hpp"
#include "support/kvm_require.hpp"
#include "support/prefault_method_names.hpp"
#include "support/prefault_stop.hpp"

namespace vmm::prefault {
namespace {

using testing::count_changes_of_pattern;
using testing::fill_with_pattern;
using testing::PrefaultVm;

/// For each kind of page that guest memory can have, and each way to fill the second level.
class Prefault : public testing::KvmTest, public ::testing::WithParamInterface<std::tuple<PageSize, Method>> {
  protected:
    void SetUp() override {
        KvmTest::SetUp();
        if (IsSkipped() || HasFatalFailure() || page_size() != PageSize::k2M) {
            return;
        }
        constexpr std::uint64_t kPages = PrefaultVm::kDefaultBytes / (2 * kMiB);
        if (huge_pages_.emplace(kPages); !huge_pages_->why_not().empty()) {
            GTEST_SKIP() << huge_pages_->why_not();
        }
    }

    static PageSize page_size() { return std::get<PageSize>(GetParam()); }
    static Method method() { return std::get<Method>(GetParam()); }
    /// Fills all of it, by the test's method.
    static Report prefault_all(PrefaultVm& machine) {
        return machine.prefault({.scope = Scope::kAll, .method = method(), .workers = 2});
    }

  private:
    std::optional<testing::HugePages> huge_pages_;
};

/// Skips the test if this KVM does not have what its method needs.
#define SKIP_WITHOUT_METHOD(machine)                                                                                   \
    if (method() != Method::kTouch && !(machine).has_ioctl()) {                                                        \
        GTEST_SKIP() << "this KVM has no KVM_PRE_FAULT_MEMORY, or not for shadow paging";                              \
    }

INSTANTIATE_TEST_SUITE_P(EachWay, Prefault,
                         ::testing::Combine(::testing::Values(PageSize::k4K, PageSize::kThp, PageSize::k2M),
                                            ::testing::Values(Method::kTouch, Method::kIoctl, Method::kIoctlThenTouch)),
                         [](const auto& way) {
                             return std::string(to_string(std::get<PageSize>(way.param))) + "_" +
                                    testing::test_name_of(std::get<Method>(way.param));
                         });

/// Checks that KVM's counts cover the memory. If the second level is the hardware's, they match to the byte.
void expect_covers(const MappedPages& mapped, const PrefaultVm& machine) {
    if (machine.is_shadow()) {
        EXPECT_GE(mapped.bytes(), machine.memory.size_bytes());
    } else {
        EXPECT_EQ(mapped.bytes(), machine.memory.size_bytes());
    }
}

TEST_P(Prefault, OfEverythingIsCompleteByKvmsOwnCount) {
    PrefaultVm machine(page_size());
    SKIP_WITHOUT_METHOD(machine);
    const Report report = prefault_all(machine);
    EXPECT_TRUE(report.complete) << report.problem;
    EXPECT_EQ(report.proof, Proof::kCounters);
    EXPECT_EQ(report.top_up_passes, 0U);
    expect_covers(report.mapped, machine);
}

TEST_P(Prefault, SaysByWhichMethodAndWhy) {
    PrefaultVm machine(page_size());
    SKIP_WITHOUT_METHOD(machine);
    const Report report = prefault_all(machine);
    EXPECT_EQ(report.method, method());
    EXPECT_EQ(report.method_reason, "asked for");
}

TEST_P(Prefault, MapsInPagesOfTheBacking) {
    PrefaultVm machine(page_size());
    SKIP_WITHOUT_METHOD(machine);
    const Report report = prefault_all(machine);
    if (machine.is_shadow()) {
        GTEST_SKIP() << "shadow paging maps in pages of the guest's own tables, too";
    }
    const bool large = page_size() != PageSize::k4K;
    EXPECT_EQ(report.mapped.pages_4k, large ? 0 : machine.memory_pages());
    EXPECT_EQ(report.mapped.pages_2m, large ? machine.memory_pages() / 512 : 0);
    EXPECT_EQ(report.mapped.pages_1g, 0U);
}

TEST_P(Prefault, LeavesTheGuestNoFault) {
    PrefaultVm machine(page_size());
    SKIP_WITHOUT_METHOD(machine);
    ASSERT_TRUE(prefault_all(machine).complete);
    EXPECT_EQ(machine.faults_of_guest_touching_all_memory(), 0U);
}

TEST_P(Prefault, OfTheHostAloneLeavesTheGuestItsFaults) {
    PrefaultVm machine(page_size());
    const Report report = machine.prefault(Scope::kHost);
    EXPECT_TRUE(report.complete);
    EXPECT_EQ(report.mapped.bytes(), 0U);
    EXPECT_GT(machine.faults_of_guest_touching_all_memory(), 0U);
}

TEST_P(Prefault, ChangesNoByteOfMemory) {
    PrefaultVm machine(page_size());
    SKIP_WITHOUT_METHOD(machine);
    fill_with_pattern(machine.memory);
    ASSERT_TRUE(prefault_all(machine).complete);
    EXPECT_EQ(count_changes_of_pattern(machine.memory), 0U);
}

TEST_P(Prefault, MayBeDoneAgain) {
    PrefaultVm machine(page_size());
    SKIP_WITHOUT_METHOD(machine);
    EXPECT_TRUE(prefault_all(machine).complete);
    const Report second = prefault_all(machine);
    EXPECT_TRUE(second.complete) << second.problem;
    expect_covers(second.mapped, machine);
    EXPECT_EQ(machine.faults_of_guest_touching_all_memory(), 0U);
}

TEST_P(Prefault, MakesGoodWhatDirtyLoggingTookAway) {
    PrefaultVm machine(page_size());
    SKIP_WITHOUT_METHOD(machine);
    const MappedPages before = prefault_all(machine).mapped;
    machine.log_dirty_pages(true);
    machine.faults_of_guest_touching_all_memory(); // The guest's writes split large mappings.
    machine.log_dirty_pages(false);
    const Report again = prefault_all(machine);
    EXPECT_TRUE(again.complete) << again.problem;
    EXPECT_EQ(again.mapped.pages_2m, before.pages_2m);
    expect_covers(again.mapped, machine);
    EXPECT_EQ(machine.faults_of_guest_touching_all_memory(), 0U);
}

/// Parts of the memory on both sides of the hole, in whole pages of any backing.
std::vector<GuestRange> some_ranges() {
    return {{GuestAddress{4 * kMiB}, 4 * kMiB},
            {GuestAddress{PrefaultVm::kHighBase}, 2 * kMiB},
            {GuestAddress{PrefaultVm::kHighBase + 8 * kMiB}, 6 * kMiB}};
}
constexpr std::uint64_t kBytesOfSomeRanges = 12 * kMiB;

Report prefault_some(PrefaultVm& machine, Method method) {
    return machine.prefault({.scope = Scope::kAll, .ranges = some_ranges(), .method = method, .workers = 2});
}

TEST_P(Prefault, OfRangesMapsThemAndNothingElse) {
    PrefaultVm machine(page_size());
    SKIP_WITHOUT_METHOD(machine);
    const Report report = prefault_some(machine, method());
    EXPECT_TRUE(report.complete) << report.problem;
    EXPECT_EQ(report.bytes, kBytesOfSomeRanges);
    EXPECT_EQ(report.ranges, some_ranges());
    if (machine.is_shadow()) { // KVM may map neighbours of a page, too, but not from another GiB's half.
        EXPECT_GE(report.mapped.bytes(), kBytesOfSomeRanges);
        EXPECT_LT(report.mapped.bytes(), machine.memory.size_bytes());
    } else {
        EXPECT_EQ(report.mapped.bytes(), kBytesOfSomeRanges);
    }
}

TEST_P(Prefault, OfRangesPopulatesNothingElseOnTheHost) {
    PrefaultVm machine(page_size());
    SKIP_WITHOUT_METHOD(machine);
    ASSERT_TRUE(prefault_some(machine, method()).complete);
    std::size_t resident = 0;
    for (const MemoryRegion& region : machine.memory.regions()) {
        resident += testing::count_resident_pages(region.bytes());
    }
    EXPECT_EQ(resident, kBytesOfSomeRanges / 4096);
}

TEST_P(Prefault, OfRangesIsProvenByTouchingThemAgain) {
    PrefaultVm machine(page_size());
    SKIP_WITHOUT_METHOD(machine);
    EXPECT_EQ(prefault_some(machine, method()).proof, Proof::kTouch) << "KVM counts for all memory only";
}

TEST_P(Prefault, OfRangesLeavesTheGuestNoFaultInThem) {
    PrefaultVm machine(page_size());
    SKIP_WITHOUT_METHOD(machine);
    ASSERT_TRUE(prefault_some(machine, method()).complete);
    EXPECT_EQ(machine.faults_of_guest_touching(some_ranges()), 0U);
}

TEST_P(Prefault, OfRangesLeavesTheGuestItsFaultsElsewhere) {
    PrefaultVm machine(page_size());
    SKIP_WITHOUT_METHOD(machine);
    ASSERT_TRUE(prefault_some(machine, method()).complete);
    EXPECT_GT(machine.faults_of_guest_touching(std::array{GuestRange{GuestAddress{8 * kMiB}, 8 * kMiB}}), 0U);
}

TEST_P(Prefault, InTheBackgroundIsCompleteAndLeavesTheGuestNoFault) {
    PrefaultVm machine(page_size());
    SKIP_WITHOUT_METHOD(machine);
    const Report report =
        machine.prefault({.scope = Scope::kAll, .method = method(), .workers = 2, .background = true});
    EXPECT_TRUE(report.complete) << report.problem;
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

TEST_F(PrefaultTest, ByTouchWithoutTheHostSideFirstIsStillComplete) {
    PrefaultVm machine(PageSize::k4K);
    EXPECT_TRUE(machine.touch_all_memory());
    EXPECT_EQ(machine.faults_of_guest_touching_all_memory(), 0U);
}

TEST_F(PrefaultTest, NeverCountsTwiceWhatIsMapped) {
    PrefaultVm machine(PageSize::k4K);
    machine.faults_of_guest_touching_all_memory(); // the guest was first
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

/// Stops a prefault by one worker, and expects that it did no chunk that had not begun by then. False if the prefault
/// ended before the stop.
bool stops_in_the_middle() {
    constexpr std::uint64_t kMemory = 128 * kMiB;
    PrefaultVm machine(PageSize::k4K, 1, kMemory);
    EXPECT_TRUE(machine.prefault(Scope::kHost).complete);
    const auto stop = std::make_unique<std::stop_source>();
    std::atomic<bool> over{false};
    std::uint64_t mapped_by_then = 0;
    std::jthread stopper([&] {
        const kvm::Stats stats = machine.vm.stats();
        while (!over && mapped_pages(stats).pages_4k < 200) {
            std::this_thread::yield();
        }
        stop->request_stop();
        mapped_by_then = mapped_pages(stats).bytes();
    });
    const Report report =
        machine.prefault({.scope = Scope::kAll, .method = Method::kTouch, .workers = 1}, stop->get_token());
    over = true;
    stopper.join();
    EXPECT_EQ(report.problem, "");
    if (report.complete) {
        return false;
    }
    EXPECT_LT(report.mapped.bytes(), machine.memory.size_bytes());
    EXPECT_LE(report.mapped.bytes(), mapped_by_then + Plan::chunk_bytes_for(kMemory, 1, 4 * kKiB));
    return true;
}

TEST_F(PrefaultTest, ThatIsStoppedInTheMiddleDoesNoOtherChunkAndIsIncomplete) {
    EXPECT_TRUE(testing::eventually(stops_in_the_middle));
}

TEST_F(PrefaultTest, AfterOneThatWasStoppedIsExact) {
    PrefaultVm machine(PageSize::k4K);
    EXPECT_FALSE(machine.touch_all_memory(testing::stop_requested_already()));
    const Report report = machine.prefault(Scope::kAll);
    EXPECT_TRUE(report.complete);
    expect_covers(report.mapped, machine);
    EXPECT_EQ(machine.faults_of_guest_touching_all_memory(), 0U);
}

Report prefault_by_touch(PrefaultVm& machine) {
    return machine.prefault({.scope = Scope::kAll, .method = Method::kTouch, .workers = 2});
}

/// A vCPU of a hostile guest, in real mode, about to run `code` with ES:DI at the scratch slot and DS:SI at address
/// 0x2000.
kvm::Vcpu hostile_vcpu(PrefaultVm& machine, const testing::Code& code, std::uint64_t count) {
    constexpr GuestAddress kCode{0x1000};
    EXPECT_TRUE(machine.memory.copy_in(kCode, std::as_bytes(std::span(code))));
    kvm::Vcpu vcpu(machine.vm, 1);
    kvm_sregs special = vcpu.special_registers();
    special.cs.base = 0;
    special.cs.selector = 0;
    special.es.base = to_integer(machine.scratch().range().base);
    vcpu.set_special_registers(special);
    kvm_regs registers{};
    registers.rip = to_integer(kCode);
    registers.rax = 0xffff;
    registers.rsi = 0x2000;
    registers.rcx = count;
    registers.rflags = 2;
    vcpu.set_registers(registers);
    vcpu.set_mp_state(kvm::MpState::kRunnable);
    return vcpu;
}

/// One attack of a hostile guest on the scratch slot: it writes ones over the stub and the tables, from real mode.
void scribble_over(PrefaultVm& machine) {
    const std::uint64_t bytes = machine.scratch().range().size;
    ASSERT_LE(bytes, 64 * kKiB) << "what real mode reaches";
    kvm::Vcpu vcpu = hostile_vcpu(machine, {0xf3, 0xab, 0xe6, 0x80}, bytes / 2); // rep stosw; out %al, $0x80
    const AllSignalsBlocked for_this_thread;
    const kvm::Exit exit = vcpu.run();
    ASSERT_TRUE(std::holds_alternative<kvm::PioExit>(exit)) << testing::name_of(exit);
}

/// Another attack: it puts `stub` in the place of the stub.
void replace_stub(PrefaultVm& machine, const testing::Code& stub) {
    EXPECT_TRUE(machine.memory.copy_in(GuestAddress{0x2000}, std::as_bytes(std::span(stub))));
    kvm::Vcpu vcpu = hostile_vcpu(machine, {0xf3, 0xa4, 0xe6, 0x80}, stub.size()); // rep movsb; out %al, $0x80
    const AllSignalsBlocked for_this_thread;
    const kvm::Exit exit = vcpu.run();
    ASSERT_TRUE(std::holds_alternative<kvm::PioExit>(exit)) << testing::name_of(exit);
}

TEST_F(PrefaultTest, RepairsTheScratchSlotThatAGuestWroteOver) {
    PrefaultVm machine(PageSize::k4K);
    scribble_over(machine);
    const Report report = machine.prefault(Scope::kAll);
    EXPECT_TRUE(report.complete);
    EXPECT_EQ(machine.faults_of_guest_touching_all_memory(), 0U);
}

TEST_F(PrefaultTest, RepairsTheScratchSlotThatAGuestWroteOverBetweenTwoFills) {
    PrefaultVm machine(PageSize::k4K);
    ASSERT_TRUE(machine.prefault(Scope::kAll).complete);
    scribble_over(machine);
    EXPECT_TRUE(prefault_by_touch(machine).complete);
    EXPECT_EQ(machine.faults_of_guest_touching_all_memory(), 0U);
}

TEST_F(PrefaultTest, RepairsEveryByteOfTheScratchSlotThatAGuestWroteOver) {
    PrefaultVm machine(PageSize::k4K);
    // A slot of which a part is unused: there are no tables for the memory above 5 GiB yet.
    const Scratch::Layout layout{GuestAddress{0xe8000000}, PrefaultVm::kHighBase + kGiB,
                                 PrefaultVm::kHighBase + 4 * kGiB, false};
    Scratch scratch(machine.vm, 9, layout);
    ASSERT_LT(scratch.used_range().size, scratch.range().size);
    ASSERT_LE(scratch.range().size, 64 * kKiB) << "what real mode reaches";
    constexpr GuestAddress kCopy{0x20000};
    unsigned id = 10;
    const auto run_guest = [&](const testing::Code& code, std::uint64_t from, std::uint64_t to) {
        EXPECT_TRUE(machine.memory.copy_in(GuestAddress{0x1000}, std::as_bytes(std::span(code))));
        kvm::Vcpu vcpu(machine.vm, id++);
        kvm_sregs special = vcpu.special_registers();
        special.cs.base = 0;
        special.cs.selector = 0;
        special.ds.base = from;
        special.es.base = to;
        vcpu.set_special_registers(special);
        kvm_regs registers{};
        registers.rip = 0x1000;
        registers.rax = 0xffff;
        registers.rcx = scratch.range().size / 2;
        registers.rflags = 2;
        vcpu.set_registers(registers);
        vcpu.set_mp_state(kvm::MpState::kRunnable);
        const AllSignalsBlocked for_this_thread;
        const kvm::Exit exit = vcpu.run();
        EXPECT_TRUE(std::holds_alternative<kvm::PioExit>(exit)) << testing::name_of(exit);
    };
    const auto copy_of_slot = [&] {
        run_guest({0xf3, 0xa5, 0xe6, 0x80}, to_integer(layout.base), to_integer(kCopy)); // rep movsw; out
        std::vector<std::byte> bytes(scratch.range().size);
        EXPECT_TRUE(machine.memory.copy_out(kCopy, bytes));
        return bytes;
    };
    const std::vector<std::byte> before = copy_of_slot();
    run_guest({0xf3, 0xab, 0xe6, 0x80}, 0, to_integer(layout.base)); // rep stosw; out
    EXPECT_NE(copy_of_slot(), before);
    scratch.refresh();
    EXPECT_EQ(copy_of_slot(), before);
}

/// Code that a hostile guest puts in the place of the stub. The rest of it follows in the slot.
struct HostileStub {
    const char* name;
    testing::Code code;
};

// NOLINTNEXTLINE(readability-identifier-naming): the name GoogleTest looks for.
void PrintTo(const HostileStub& stub, std::ostream* out) {
    *out << stub.name;
}

class PrefaultVcpuLedTo : public PrefaultTest, public ::testing::WithParamInterface<HostileStub> {};

TEST_P(PrefaultVcpuLedTo, ComesBackAndTouchesEveryPageAfterwards) {
    PrefaultVm machine(PageSize::k4K);
    replace_stub(machine, GetParam().code);
    std::stop_source source;
    std::atomic<bool> over{false};
    TouchResult result;
    std::jthread toucher([&] {
        block_signals_in_this_thread();
        result = machine.guest_vcpu->touch({GuestAddress{0}, 4 * kMiB}, 4096, source.get_token());
        over = true;
    });
    for (int i = 0; i < 1000 && !over; ++i) { // A stub that spins gets 20 s of processor time, too much for a test.
        std::this_thread::sleep_for(std::chrono::milliseconds(5));
    }
    source.request_stop();
    toucher.join();
    std::cout << GetParam().name << ": " << static_cast<int>(result.end) << " " << result.why << std::endl;
    ASSERT_TRUE(machine.prefault(Scope::kHost).complete);
    EXPECT_TRUE(prefault_by_touch(machine).complete); // repairs the slot
    const AllSignalsBlocked for_this_thread;
    const auto after = machine.guest_vcpu->touch({GuestAddress{8 * kMiB}, 4096}, 4096, {});
    EXPECT_EQ(after.end, TouchResult::End::kDone) << after.why;
    EXPECT_EQ(machine.faults_of_guest_touching_all_memory(), 0U);
}

INSTANTIATE_TEST_SUITE_P(
    Instruction, PrefaultVcpuLedTo,
    ::testing::Values(
        HostileStub{"AnAccessAcrossTwoPagesOfNoMemory", {0x48, 0x8b, 0x04, 0x25, 0xfc, 0x0f, 0x00, 0x40}},
        HostileStub{"AnAtomicOne", {0xf0, 0x48, 0x83, 0x0c, 0x25, 0xfc, 0x0f, 0x00, 0x40, 0x00}},
        HostileStub{"AStringFromNoMemoryToNoMemory",
                    {0xbe, 0x00, 0x10, 0x00, 0x40, 0xbf, 0x00, 0x20, 0x00, 0x40, 0xb9, 0x00, 0x02, 0x00, 0x00, 0xf3,
                     0x48, 0xa5}},
        HostileStub{"AStringFromAPort",
                    {0xbf, 0x00, 0x20, 0x00, 0x00, 0xb9, 0x10, 0x00, 0x00, 0x00, 0x66, 0xba, 0x99, 0x09, 0xf3, 0x6c}},
        HostileStub{"TheEndTooEarly", {0x66, 0xba, 0x01, 0x05, 0xee}},
        HostileStub{"AStringToThePortOfTheEnd",
                    {0xbe, 0x00, 0x20, 0x00, 0x00, 0xb9, 0x10, 0x00, 0x00, 0x00, 0x66, 0xba, 0x01, 0x05, 0xf3, 0x6e}},
        HostileStub{"Hlt", {0xf4}}, HostileStub{"Ud2", {0x0f, 0x0b}}, HostileStub{"Int3", {0xcc}},
        HostileStub{"Syscall", {0x0f, 0x05}}, HostileStub{"Sysenter", {0x0f, 0x34}},
        HostileStub{"Vmcall", {0x0f, 0x01, 0xc1, 0xf4}}, HostileStub{"Vmmcall", {0x0f, 0x01, 0xd9, 0xf4}},
        HostileStub{"Monitor", {0x0f, 0x01, 0xc8}}, HostileStub{"Mwait", {0x0f, 0x01, 0xc9}},
        HostileStub{"Wrmsr", {0x0f, 0x30}}, HostileStub{"Rdpmc", {0x0f, 0x33}}, HostileStub{"Rsm", {0x0f, 0xaa}},
        HostileStub{"Xbegin", {0xc7, 0xf8, 0x00, 0x00, 0x00, 0x00, 0xf4}}, HostileStub{"AFarReturn", {0x48, 0xcb}},
        HostileStub{"Iretq", {0x48, 0xcf}}),
    [](const auto& stub) { return std::string(stub.param.name); });

TEST_F(PrefaultTest, PrefaultVcpuThatStandsStillIsNoticedThoughItUsesNoTime) {
    PrefaultVm machine(PageSize::k4K);
    kvm::Vcpu vcpu(machine.vm, 7);
    vcpu.set_cpuid(machine.cpuid);
    const UniqueFd its(::fcntl(vcpu.fd(), F_DUPFD_CLOEXEC, 0));
    PrefaultVcpu halted(std::move(vcpu), machine.scratch());
    replace_stub(machine, {0xeb, 0xfe}); // jmp .
    std::atomic<bool> over{false};
    TouchResult result;
    std::jthread toucher([&] {
        block_signals_in_this_thread();
        result = halted.touch({GuestAddress{0}, 4 * kMiB}, 4096, {});
        over = true;
    });
    while (!over) { // Like `rsm` and then `hlt`. KVM returns when the thread checks the vCPU.
        kvm_mp_state state{KVM_MP_STATE_HALTED};
        ::ioctl(its.get(), KVM_SET_MP_STATE, &state);
        std::this_thread::sleep_for(std::chrono::milliseconds(5));
    }
    toucher.join();
    EXPECT_EQ(result.end, TouchResult::End::kHeld) << result.why;
    EXPECT_TRUE(testing::mentions(result.why, "stands still")) << result.why;
    EXPECT_TRUE(prefault_by_touch(machine).complete);
    const AllSignalsBlocked for_this_thread;
    const auto after = halted.touch({GuestAddress{8 * kMiB}, 4096}, 4096, {});
    EXPECT_EQ(after.end, TouchResult::End::kDone) << after.why;
}

TEST_F(PrefaultTest, OnceOneFailedTheScratchSlotIsNotTouchedAtTheEnd) {
    PrefaultVm machine(PageSize::k4K);
    ASSERT_TRUE(machine.prefault(Scope::kAll).complete);
    PrefaultVcpus& vcpus = machine.prefault_vcpus();
    vcpus.note_guest_runs(true);
    vcpus.begin(kvm::AddressSpace::kNormal, GuestAddress{2 * kMiB}, {});
    replace_stub(machine, {0x0f, 0x0b}); // ud2
    std::jthread([&] {
        block_signals_in_this_thread();
        EXPECT_FALSE(vcpus.touch_chunk(kvm::AddressSpace::kNormal, 0, {GuestAddress{0}, 2 * kMiB}, 2 * kMiB, {}));
    }).join();
    const std::uint64_t exits = machine.prefault_vcpus().exits();
    machine.prefault_vcpus().map_scratch_again();
    EXPECT_EQ(machine.prefault_vcpus().exits(), exits);
}

/// A machine whose guest cannot write to the scratch slot, if this KVM allows that.
struct ProtectedVm : PrefaultVm {
    explicit ProtectedVm(PageSize page_size) : PrefaultVm(page_size, 2, kDefaultBytes, false, true) {}
};

TEST_F(PrefaultTest, WithAProtectedScratchSlotIsCompleteAndLeavesTheGuestNoFault) {
    for (const PageSize page_size : {PageSize::k4K, PageSize::kThp}) {
        ProtectedVm machine(page_size);
        EXPECT_TRUE(machine.prefault(Scope::kAll).complete) << to_string(page_size);
        EXPECT_EQ(machine.faults_of_guest_touching_all_memory(), 0U) << to_string(page_size);
        machine.prefault_vcpus().map_scratch_again();
        if (page_size == PageSize::k4K) {
            EXPECT_EQ(machine.second_level->mapped().bytes(), machine.memory.size_bytes());
        }
    }
}

TEST_F(PrefaultTest, ScratchSlotThatIsProtectedTakesNoWriteOfTheGuests) {
    ProtectedVm machine(PageSize::k4K);
    if (!machine.scratch().is_read_only()) {
        GTEST_SKIP() << "the hardware's walker, or this KVM, has no use for tables in a read-only memslot";
    }
    kvm::Vcpu vcpu = hostile_vcpu(machine, {0xf3, 0xab, 0xe6, 0x80}, 16); // rep stosw; out %al, $0x80
    const AllSignalsBlocked for_this_thread;
    const kvm::Exit exit = vcpu.run();
    const auto* const write = std::get_if<kvm::MmioExit>(&exit);
    ASSERT_NE(write, nullptr) << testing::name_of(exit);
    EXPECT_TRUE(write->is_write);
    EXPECT_EQ(write->address, to_integer(machine.scratch().range().base));
    EXPECT_TRUE(machine.prefault(Scope::kAll).complete);
}

TEST_F(PrefaultTest, PageTablesInAReadOnlySlotServeShadowPagingAlone) {
    // NPT's walker treats each access to a page table of the guest as a write.
    PrefaultVm machine(PageSize::k4K);
    const Scratch::Layout layout{GuestAddress{0xe8000000}, PrefaultVm::kHighBase + kGiB, PrefaultVm::kHighBase + kGiB,
                                 false};
    const Scratch scratch(machine.vm, 9, layout, Scratch::Protection::kReadOnly);
    PrefaultVcpu vcpu(machine.make_vcpu(7), scratch);
    std::stop_source source;
    TouchResult result{TouchResult::End::kStopped, ""};
    std::jthread toucher([&] {
        block_signals_in_this_thread();
        result = vcpu.touch({GuestAddress{8 * kMiB}, 4096}, 4096, source.get_token());
    });
    if (machine.host.kind == SecondLevelKind::kNpt) {
        std::this_thread::sleep_for(std::chrono::seconds(2)); // It never ends.
        source.request_stop();
    }
    toucher.join();
    std::cout << to_string(machine.host.kind) << ": " << static_cast<int>(result.end) << " " << result.why << std::endl;
    if (machine.is_shadow()) {
        EXPECT_EQ(result.end, TouchResult::End::kDone) << result.why;
    } else if (machine.host.kind == SecondLevelKind::kNpt) {
        EXPECT_NE(result.end, TouchResult::End::kDone);
    }
}

TEST_F(PrefaultTest, WhileTheGuestWritesChangesNoneOfItsWrites) {
    // The guest's vCPU writes to all memory again and again while the prefault vCPUs fill. Each write of both is
    // atomic.
    PrefaultVm machine(PageSize::k4K);
    fill_with_pattern(machine.memory);
    std::atomic<bool> over{false};
    std::atomic<int> rounds{0};
    Report report;
    {
        const std::jthread guest([&] {
            while (!over || rounds == 0) {
                machine.faults_of_guest_touching_all_memory();
                ++rounds;
            }
        });
        const kvm::Stats stats = machine.vm.stats();
        while (mapped_pages(stats).pages_4k < 50) { // The guest has begun, and has most of its pass before it.
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

/// Makes a prefault vCPU touch addresses without memory, on a thread of its own.
TouchResult touch_nowhere(PrefaultVcpu& vcpu) {
    TouchResult result;
    std::jthread([&] {
        block_signals_in_this_thread();
        result = vcpu.touch({GuestAddress{kGiB}, 4096}, 4096, {});
    }).join();
    return result;
}

TEST_F(PrefaultTest, PrefaultVcpuThatTouchesNoMemoryFailsAndSaysWhere) {
    PrefaultVm machine(PageSize::k4K);
    const TouchResult result = touch_nowhere(*machine.guest_vcpu);
    EXPECT_EQ(result.end, TouchResult::End::kFailed);
    EXPECT_TRUE(testing::mentions(result.why, "no memory behind 0x40000000")) << result.why;
}

TEST_F(PrefaultTest, PrefaultVcpuThatFailedTouchesEveryPageOfTheNext) {
    PrefaultVm machine(PageSize::k4K);
    ASSERT_TRUE(machine.prefault(Scope::kHost).complete);
    touch_nowhere(*machine.guest_vcpu);
    const AllSignalsBlocked for_this_thread;
    const std::uint64_t before = machine.guest_vcpu->stats().value("pf_fixed").value();
    const auto result = machine.guest_vcpu->touch({GuestAddress{8 * kMiB}, 4096}, 4096, {});
    EXPECT_EQ(result.end, TouchResult::End::kDone) << result.why;
    EXPECT_GT(machine.guest_vcpu->stats().value("pf_fixed").value(), before) << "the one page was skipped";
}

TEST_F(PrefaultTest, PrefaultVcpuThatFailedLeavesNoKickBehind) {
    PrefaultVm machine(PageSize::k4K);
    bool pending = false;
    std::jthread([&] {
        block_signals_in_this_thread();
        static_cast<void>(machine.guest_vcpu->touch({GuestAddress{kGiB}, 4096}, 4096, {}));
        sigset_t signals;
        ::sigpending(&signals);
        pending = sigismember(&signals, kvm::kick_signal()) == 1;
    }).join();
    EXPECT_FALSE(pending);
}

TEST_F(PrefaultTest, OfTheMethodThatIsBestTakesTouchOnShadowPagingAndSaysSo) {
    PrefaultVm machine(PageSize::k4K);
    const Report report = machine.prefault({.scope = Scope::kAll, .method = Method::kAuto});
    EXPECT_EQ(report.method, !machine.has_ioctl() || machine.host.accessed_dirty == false ? Method::kTouch
                             : machine.host.nested                                        ? Method::kIoctlThenTouch
                                                                                          : Method::kIoctl);
    EXPECT_TRUE(testing::mentions(report.method_reason, machine.is_shadow() ? "shadow paging" : "KVM_PRE_FAULT_MEMORY"))
        << report.method_reason;
}

TEST_F(PrefaultTest, ByIoctlWhereNoMemslotIsSaysSo) {
    PrefaultVm machine(PageSize::k4K);
    if (!machine.has_ioctl()) {
        GTEST_SKIP() << "this KVM has no KVM_PRE_FAULT_MEMORY, or not for shadow paging";
    }
    const AllSignalsBlocked for_this_thread;
    const std::string error = testing::error_of([&]() -> int {
        static_cast<void>(machine.guest_vcpu->pre_fault({GuestAddress{kGiB}, 4096}, 4096, {}));
        return 0;
    });
    EXPECT_TRUE(testing::mentions(error, "no memslot is there")) << error;
}

/// System management mode is another address space with a second level of its own.
class PrefaultOfSmm : public testing::KvmTest {
  protected:
    static constexpr unsigned kSmmGuestVcpu = 1;

    void SetUp() override {
        KvmTest::SetUp();
        if (IsSkipped() || HasFatalFailure()) {
            return;
        }
        if (detect_second_level().kind == SecondLevelKind::kShadow) {
            GTEST_SKIP() << "shadow paging: what is filled there belongs to page tables, not to a mode";
        }
        if (kvm::System().extension(KVM_CAP_X86_SMM) == 0) {
            GTEST_SKIP() << "this KVM has no system management mode";
        }
    }
    static Report prefault_smm(PrefaultVm& machine) {
        return machine.prefault({.scope = Scope::kAll, .workers = 2, .smm = true});
    }
    static PrefaultVm make_machine() { return PrefaultVm(PageSize::k4K, 2, PrefaultVm::kDefaultBytes, true); }
};

TEST_F(PrefaultOfSmm, MapsAllMemoryASecondTime) {
    PrefaultVm machine = make_machine();
    const Report report = prefault_smm(machine);
    EXPECT_TRUE(report.complete) << report.problem;
    EXPECT_EQ(report.mapped.bytes(), machine.memory.size_bytes());
    EXPECT_EQ(report.smm_mapped.bytes(), machine.memory.size_bytes());
}

// There are four pages more, because the scratch slot exists a second time.
TEST_F(PrefaultOfSmm, CountsNothingButGuestMemory) {
    PrefaultVm machine = make_machine();
    for (int round = 0; round < 2; ++round) {
        ASSERT_TRUE(prefault_smm(machine).complete);
        EXPECT_EQ(machine.second_level->mapped().bytes(), 2 * machine.memory.size_bytes()) << round;
    }
}

TEST_F(PrefaultOfSmm, LeavesAGuestInSystemManagementModeNoFault) {
    PrefaultVm machine = make_machine();
    ASSERT_TRUE(prefault_smm(machine).complete);
    PrefaultVcpu guest(machine.make_vcpu(kSmmGuestVcpu), machine.scratch(), kvm::AddressSpace::kSmm);
    EXPECT_EQ(PrefaultVm::faults_of_touching(guest, machine.all_ranges()), 0U);
}

TEST_F(PrefaultOfSmm, LeavesAGuestOutsideOfItNoFaultEither) {
    PrefaultVm machine = make_machine();
    ASSERT_TRUE(prefault_smm(machine).complete);
    EXPECT_EQ(machine.faults_of_guest_touching_all_memory(), 0U);
}

TEST_F(PrefaultOfSmm, IsNeededThere) {
    PrefaultVm machine = make_machine();
    ASSERT_TRUE(machine.prefault(Scope::kAll).complete);
    PrefaultVcpu guest(machine.make_vcpu(kSmmGuestVcpu), machine.scratch(), kvm::AddressSpace::kSmm);
    EXPECT_GT(PrefaultVm::faults_of_touching(guest, machine.all_ranges()), 0U);
}

TEST_F(PrefaultOfSmm, OfAPrefaultVcpuThatLeftTheModeAndHaltedIsCompleteAfterwards) {
    PrefaultVm machine(PageSize::k4K, 2, PrefaultVm::kDefaultBytes, true);
    constexpr unsigned kFree = 9; // The hostile vCPU has number 1.
    PrefaultVcpu vcpu(machine.make_vcpu(kFree), machine.scratch(), kvm::AddressSpace::kSmm);
    // `rsm` loads only zeros: real mode, at address 0, where a `hlt` is.
    const testing::Code halt{0xf4, 0xeb, 0xfd}; // hlt; again
    EXPECT_TRUE(machine.memory.copy_in(GuestAddress{0}, std::as_bytes(std::span(halt))));
    replace_stub(machine, {0x0f, 0xaa}); // rsm
    TouchResult result;
    std::jthread([&] {
        block_signals_in_this_thread();
        result = vcpu.touch({GuestAddress{0}, 4 * kMiB}, 4096, {});
    }).join();
    std::cout << "rsm, hlt: " << result.why << std::endl;
    EXPECT_TRUE(result.end == TouchResult::End::kFailed || result.end == TouchResult::End::kHeld) << result.why;
    EXPECT_TRUE(machine.prefault({.scope = Scope::kAll, .workers = 2, .smm = true}).complete);
    EXPECT_EQ(machine.faults_of_touching(vcpu, machine.all_ranges()), 0U);
}

TEST_F(PrefaultOfSmm, MayBeDoneAgain) {
    PrefaultVm machine = make_machine();
    ASSERT_TRUE(prefault_smm(machine).complete);
    const Report again = prefault_smm(machine);
    EXPECT_TRUE(again.complete) << again.problem;
    EXPECT_EQ(again.smm_mapped.bytes(), 0U) << "what it added to what was there";
}

/// The reports to a progress sink, stage by stage.
class Told {
  public:
    ProgressSink sink() {
        return [this](const vmm::prefault::Progress& now) { told_.push_back(now); };
    }
    [[nodiscard]] std::vector<vmm::prefault::Progress> of(Stage stage) const {
        std::vector<vmm::prefault::Progress> result;
        std::ranges::copy_if(told_, std::back_inserter(result), [&](const auto& now) { return now.stage == stage; });
        return result;
    }
    [[nodiscard]] const std::vector<vmm::prefault::Progress>& all() const { return told_; }

  private:
    std::vector<vmm::prefault::Progress> told_;
};

TEST_F(PrefaultTest, TellsOfTheEndOfEachStage) {
    PrefaultVm machine(PageSize::k4K);
    Told told;
    ASSERT_TRUE(machine.prefault({.scope = Scope::kAll, .workers = 2, .progress = told.sink()}).complete);
    for (const Stage stage : {Stage::kHost, Stage::kSecondLevel}) {
        ASSERT_FALSE(told.of(stage).empty()) << to_string(stage);
        EXPECT_EQ(told.of(stage).back().done_bytes, machine.memory.size_bytes()) << to_string(stage);
        EXPECT_EQ(told.of(stage).back().total_bytes, machine.memory.size_bytes()) << to_string(stage);
    }
}

/// A smaller value than before is reported only if a pass has ended, and another begins.
void expect_steady(const std::vector<vmm::prefault::Progress>& told) {
    for (std::size_t i = 1; i < told.size(); ++i) {
        EXPECT_LE(told[i - 1].stage, told[i].stage);
        EXPECT_LE(told[i].done_bytes, told[i].total_bytes);
        if (told[i - 1].stage == told[i].stage && told[i - 1].done_bytes != told[i - 1].total_bytes) {
            EXPECT_LE(told[i - 1].done_bytes, told[i].done_bytes);
            EXPECT_LE(told[i - 1].seconds, told[i].seconds);
        }
    }
}

TEST_F(PrefaultTest, TellsOfStagesInTheirOrderAndNeverOfLessThanBefore) {
    // With one prefault vCPU and much memory, most machines are slow enough for more reports than the first and the
    // last.
    PrefaultVm machine(PageSize::k4K, 1, 256 * kMiB);
    Told told;
    ASSERT_TRUE(machine.prefault({.scope = Scope::kAll, .method = Method::kTouch, .progress = told.sink()}).complete);
    expect_steady(told.all());
}

TEST_F(PrefaultTest, OfRangesTellsOfEachPassAndNeverOfLessThanBefore) {
    PrefaultVm machine(PageSize::k4K);
    Told told;
    ASSERT_TRUE(machine.prefault({.scope = Scope::kAll, .ranges = some_ranges(), .workers = 2, .progress = told.sink()})
                    .complete);
    EXPECT_GT(told.of(Stage::kSecondLevel).size(), 1U) << "its proof is another pass over the same memory";
    expect_steady(told.all());
}

TEST_F(PrefaultTest, EndsWithWhatItsProgressSinkThrows) {
    for (const Stage stage : {Stage::kHost, Stage::kSecondLevel}) {
        PrefaultVm machine(PageSize::k4K);
        const auto sink = [stage](const vmm::prefault::Progress& now) {
            if (now.stage == stage) {
                throw std::domain_error("enough");
            }
        };
        EXPECT_THROW(machine.prefault({.scope = Scope::kAll, .workers = 2, .progress = sink}), std::domain_error)
            << to_string(stage);
        const Report again = machine.prefault(Scope::kAll);
        EXPECT_TRUE(again.complete) << to_string(stage) << ": " << again.problem;
        EXPECT_EQ(machine.faults_of_guest_touching_all_memory(), 0U) << to_string(stage);
    }
}

TEST_F(PrefaultTest, IsCompleteIfItIsMadeAsTheHeaderOfSecondLevelShows) {
    constexpr GuestRange kRam{GuestAddress{0}, 64 * kMiB};
    const kvm::System system;
    const std::vector<kvm_cpuid_entry2> cpuid = system.supported_cpuid();
    const GuestMemory memory(std::array{kRam}, PageSize::kThp);
    kvm::Vm vm(system);
    vm.add_memslot(0, kRam, memory.regions().front().host);
    vm.create_irqchip();

    const Placement placement{{{kRam, std::nullopt}}, {}};
    PinnedMemory pins(Pin::kNone);
    const auto make_vcpu = [&, id = 1U]() mutable {
        kvm::Vcpu vcpu(vm, id++);
        vcpu.set_cpuid(cpuid);
        return vcpu;
    };
    SecondLevel second_level(
        vm, memory, placement, pins,
        {.scratch_slot = 1, .scratch = {GuestAddress{0xe0000000}, 4 * kGiB, 4 * kGiB, false}, .make_vcpu = make_vcpu});
    const Report report = second_level.fill({.scope = Scope::kAll, .workers = 4});
    EXPECT_TRUE(report.complete) << report.problem;
    EXPECT_GE(second_level.mapped().bytes(), kRam.size);
}

TEST_F(PrefaultTest, LeavesThePrefaultVcpusParked) {
    // If a vCPU were still runnable, this check would not show it. But the next fill must find each vCPU where it was
    // left.
    PrefaultVm machine(PageSize::k4K, 4);
    for (int round = 0; round < 5; ++round) {
        EXPECT_TRUE(machine.prefault(Scope::kAll).complete) << round;
    }
}

} // namespace
} // namespace vmm::prefault
