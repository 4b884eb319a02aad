// The state of a vCPU and of a VM as values: the saved state of one guest goes on in another VM.
#include <gtest/gtest.h>

#include <sys/ioctl.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstring>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "kvm/x86/saved_vcpu.hpp"
#include "kvm/x86/saved_vm.hpp"
#include "support/host_errors.hpp"
#include "support/kvm_guest.hpp"
#include "support/kvm_require.hpp"

namespace vmm {
namespace {

using testing::Code;
using testing::error_of;
using testing::mentions;
using testing::name_of;
using testing::SmallVm;
using testing::values_of;

using SavedStateTest = testing::KvmTest;

/// A VM as in a machine, with interrupt controllers and timer in KVM.
struct FullVm : SmallVm {
    FullVm() : SmallVm(Interrupts::kInKernel) { vm.create_pit(); }

    [[nodiscard]] kvm::Vcpu prepared_vcpu(const Code& code) {
        kvm::Vcpu vcpu = vcpu_with(code);
        vcpu.set_cpuid(system.supported_cpuid());
        return vcpu;
    }
    [[nodiscard]] kvm::VcpuState save(const kvm::Vcpu& vcpu) const {
        return kvm::save_vcpu(vcpu, kvm::saved_msr_indexes(system));
    }
};

void expect_write(const kvm::Exit& exit, unsigned port, unsigned value) {
    const auto* const access = std::get_if<kvm::PioExit>(&exit);
    ASSERT_NE(access, nullptr) << name_of(exit);
    EXPECT_TRUE(access->is_write);
    EXPECT_EQ(access->port, port);
    EXPECT_EQ(values_of(access->data), std::vector{value});
}

::testing::AssertionResult mentions_all(const std::string& text, const std::vector<std::string>& parts) {
    for (const std::string& part : parts) {
        if (!mentions(text, part)) {
            return ::testing::AssertionFailure() << "'" << text << "' does not mention '" << part << "'";
        }
    }
    return ::testing::AssertionSuccess();
}

std::uint64_t value_of(const kvm::VcpuState& state, std::uint32_t index) {
    const auto found = std::ranges::find(state.msrs, index, &kvm::Msr::index);
    return found == state.msrs.end() ? 0 : found->value;
}

/// Registers that change by themselves: the time stamp counter, and the registers of Hyper-V with the time that a vCPU
/// has run and the time of its VM (its Top Level Functional Specification).
constexpr std::array<std::uint32_t, 3> kCounters{0x10, 0x40000010, 0x40000020};

/// Counts in AL, and outputs each number: inc %al; out %al, $0x80; jmp again
const Code kCount{0xfe, 0xc0, 0xe6, 0x80, 0xeb, 0xfa};

TEST_F(SavedStateTest, GuestGoesOnInAnotherVm) {
    kvm::VcpuState state;
    {
        FullVm first;
        kvm::Vcpu vcpu = first.prepared_vcpu(kCount);
        for (unsigned number = 1; number <= 3; ++number) {
            expect_write(vcpu.run(), 0x80, number);
        }
        EXPECT_EQ(vcpu.finish_exit(), std::nullopt);
        state = first.save(vcpu);
    }
    FullVm second;
    kvm::Vcpu vcpu(second.vm, 0);
    ASSERT_TRUE(second.memory.copy_in(SmallVm::kCode, std::as_bytes(std::span(kCount))));
    EXPECT_EQ(kvm::restore_vcpu(vcpu, state), std::vector<std::string>{});
    kvm::restore_tsc({&vcpu}, {state}, 0);
    for (unsigned number = 4; number <= 6; ++number) {
        expect_write(vcpu.run(), 0x80, number);
    }
}

TEST_F(SavedStateTest, WhatIsRestoredIsWhatIsSavedAgain) {
    FullVm first;
    kvm::Vcpu source = first.prepared_vcpu(kCount);
    expect_write(source.run(), 0x80, 1);
    EXPECT_EQ(source.finish_exit(), std::nullopt);
    constexpr std::uint32_t kSysenterStack = 0x175;
    ASSERT_TRUE(source.set_msr(kSysenterStack, 0x1234));
    const kvm::VcpuState saved = first.save(source);

    FullVm second;
    kvm::Vcpu destination(second.vm, 0);
    static_cast<void>(kvm::restore_vcpu(destination, saved));
    const kvm::VcpuState again = second.save(destination);

    EXPECT_EQ(again.mp_state, saved.mp_state);
    EXPECT_EQ(std::memcmp(&again.registers, &saved.registers, sizeof saved.registers), 0);
    EXPECT_EQ(again.special.cr0, saved.special.cr0);
    EXPECT_EQ(again.special.cs.base, saved.special.cs.base);
    EXPECT_EQ(again.special.apic_base, saved.special.apic_base);
    EXPECT_EQ(again.xsave, saved.xsave);
    EXPECT_EQ(again.nested, saved.nested);
    EXPECT_EQ(again.cpuid.size(), saved.cpuid.size());
    EXPECT_EQ(value_of(again, kSysenterStack), 0x1234U);
    ASSERT_EQ(again.msrs.size(), saved.msrs.size());
    for (std::size_t i = 0; i < saved.msrs.size(); ++i) {
        EXPECT_EQ(again.msrs[i].index, saved.msrs[i].index);
        if (std::ranges::find(kCounters, saved.msrs[i].index) == kCounters.end()) {
            EXPECT_EQ(again.msrs[i].value, saved.msrs[i].value) << std::hex << saved.msrs[i].index;
        }
    }
    EXPECT_EQ(saved.msrs.back().index, 0x10U);
}

TEST_F(SavedStateTest, WhatTheGuestReadsIsInItsRegistersBeforeItIsSaved) {
    const Code code{0xe4, 0x70, 0xe6, 0x80, 0xeb, 0xfe}; // in $0x70, %al; out %al, $0x80; jmp .
    FullVm first;
    kvm::Vcpu source = first.prepared_vcpu(code);
    const kvm::Exit exit = source.run();
    const auto* const access = std::get_if<kvm::PioExit>(&exit);
    ASSERT_NE(access, nullptr) << name_of(exit);
    ASSERT_FALSE(access->is_write);
    access->data[0] = std::byte{0x5a};
    EXPECT_EQ(source.finish_exit(), std::nullopt);
    const kvm::VcpuState state = first.save(source);
    EXPECT_EQ(state.registers.rax & 0xff, 0x5aU);

    FullVm second;
    kvm::Vcpu destination(second.vm, 0);
    ASSERT_TRUE(second.memory.copy_in(SmallVm::kCode, std::as_bytes(std::span(code))));
    static_cast<void>(kvm::restore_vcpu(destination, state));
    expect_write(destination.run(), 0x80, 0x5a);
}

/// An access to two pages without memory leaves KVM as two exits.
TEST_F(SavedStateTest, AccessInTwoPartsIsFinishedInTwoSteps) {
    const Code code{0x66, 0xa1, 0x00, 0x00, 0xe6, 0x80, 0xeb, 0xfe}; // mov 0x0, %eax; out %al, $0x80; jmp .
    FullVm vm;
    kvm::Vcpu vcpu = vm.prepared_vcpu(code);
    kvm_sregs special = vcpu.special_registers();
    special.ds.base = SmallVm::kNowhere + 0xffe;
    vcpu.set_special_registers(special);
    const kvm::Exit first = vcpu.run();
    const auto* const low = std::get_if<kvm::MmioExit>(&first);
    ASSERT_NE(low, nullptr) << name_of(first);
    ASSERT_EQ(low->data.size(), 2U);
    std::ranges::fill(low->data, std::byte{0x11});
    const std::optional<kvm::Exit> second = vcpu.finish_exit();
    ASSERT_TRUE(second);
    const auto* const high = std::get_if<kvm::MmioExit>(&*second);
    ASSERT_NE(high, nullptr) << name_of(*second);
    EXPECT_EQ(high->address, SmallVm::kNowhere + 0x1000);
    std::ranges::fill(high->data, std::byte{0x22});
    EXPECT_EQ(vcpu.finish_exit(), std::nullopt);
    EXPECT_EQ(vcpu.registers().rax & 0xffffffff, 0x22221111U);
}

/// The VM says how much there is. KVM refuses the question if it is put to a vCPU.
TEST_F(SavedStateTest, HasAllThatTheVmSaysThereIs) {
    FullVm vm;
    kvm::Vcpu vcpu = vm.prepared_vcpu(kCount);
    const kvm::VcpuState state = vm.save(vcpu);
    const auto xsave_bytes = static_cast<std::size_t>(vm.vm.extension(KVM_CAP_XSAVE2));
    EXPECT_EQ(state.xsave.size(), xsave_bytes != 0 ? xsave_bytes : sizeof(kvm_xsave));
    EXPECT_EQ(state.nested.empty(), vm.vm.extension(KVM_CAP_NESTED_STATE) == 0);
}

TEST_F(SavedStateTest, VcpuThatWasNotStartedIsSavedAndRestored) {
    FullVm first;
    kvm::Vcpu boot = first.prepared_vcpu(kCount);
    kvm::Vcpu other(first.vm, 1);
    other.set_cpuid(first.system.supported_cpuid());
    EXPECT_EQ(other.finish_exit(), std::nullopt);
    const kvm::VcpuState state = first.save(other);
    EXPECT_EQ(state.mp_state, static_cast<std::uint32_t>(KVM_MP_STATE_UNINITIALIZED));

    FullVm second;
    kvm::Vcpu second_boot = second.prepared_vcpu(kCount);
    kvm::Vcpu second_other(second.vm, 1);
    static_cast<void>(kvm::restore_vcpu(second_other, state));
    EXPECT_EQ(second_other.mp_state(), std::optional<std::uint32_t>(KVM_MP_STATE_UNINITIALIZED));
}

TEST_F(SavedStateTest, InterruptControllersAndTimerAreThoseThatWereSaved) {
    FullVm first;
    kvm_pit_state2 timer{};
    ASSERT_EQ(::ioctl(first.vm.fd(), KVM_GET_PIT2, &timer), 0);
    timer.channels[0].count = 0x4321;
    timer.channels[0].mode = 2;
    ASSERT_EQ(::ioctl(first.vm.fd(), KVM_SET_PIT2, &timer), 0);
    kvm_irqchip pic{};
    ASSERT_EQ(::ioctl(first.vm.fd(), KVM_GET_IRQCHIP, &pic), 0);
    pic.chip.pic.irq_base = 0x40;
    pic.chip.pic.imr = 0xa5;
    ASSERT_EQ(::ioctl(first.vm.fd(), KVM_SET_IRQCHIP, &pic), 0);
    const kvm::VmState saved = kvm::save_vm(first.vm);

    FullVm second;
    kvm::restore_interrupts(second.vm, saved);
    const kvm::VmState again = kvm::save_vm(second.vm);
    EXPECT_EQ(again.timer.channels[0].count, 0x4321U);
    EXPECT_EQ(again.interrupt_controllers[0].chip.pic.irq_base, 0x40);
    EXPECT_EQ(again.interrupt_controllers[0].chip.pic.imr, 0xa5);
}

TEST_F(SavedStateTest, ClockGoesOnWhereItWasAndNeverBack) {
    FullVm first;
    kvm::VmState saved = kvm::save_vm(first.vm);
    constexpr std::uint64_t kHour = 3'600'000'000'000;
    saved.clock.clock = kHour;
    EXPECT_EQ(kvm::elapsed_ns(saved, kvm::ClockPolicy::kStopped), 0U);

    FullVm second;
    kvm::restore_clock(second.vm, saved, 0);
    EXPECT_GE(kvm::save_vm(second.vm).clock.clock, kHour);

    FullVm third;
    kvm::restore_clock(third.vm, saved, kHour);
    EXPECT_GE(kvm::save_vm(third.vm).clock.clock, 2 * kHour);

    saved.realtime_ns = UINT64_MAX; // the host's clock was set back
    EXPECT_EQ(kvm::elapsed_ns(saved, kvm::ClockPolicy::kRealtime), 0U);
}

TEST_F(SavedStateTest, StateThatIsNoneIsRefusedByName) {
    FullVm first;
    kvm::Vcpu source = first.prepared_vcpu(kCount);
    const kvm::VcpuState whole = first.save(source);
    const auto refusal = [](const kvm::VcpuState& state) {
        FullVm vm;
        kvm::Vcpu vcpu(vm.vm, 0);
        return error_of([&] { static_cast<void>(kvm::restore_vcpu(vcpu, state)); });
    };
    kvm::VcpuState bad = whole;
    bad.xsave.resize(17);
    EXPECT_TRUE(mentions_all(refusal(bad), {"floating-point state", "17 bytes"}));
    bad = whole;
    bad.cpuid.clear();
    EXPECT_TRUE(mentions_all(refusal(bad), {"CPUID", "0 entries"}));
    bad = whole;
    bad.mp_state = 77;
    EXPECT_TRUE(mentions_all(refusal(bad), {"run state"}));
    bad = whole;
    bad.special.cr0 = 0x80000000; // Paging without protection.
    EXPECT_TRUE(mentions_all(refusal(bad), {"special registers"}));
    bad = whole;
    bad.msrs.push_back({0xdeadbeef, 1});
    EXPECT_TRUE(mentions_all(refusal(bad), {"0xdeadbeef"}));
}

} // namespace
} // namespace vmm
