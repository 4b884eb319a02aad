// The state that a guest finds in its processors: CPUID, and the registers that firmware would have set. Also the ways
// of a PC to reset itself.

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstring>
#include <optional>
#include <string>
#include <vector>

#include "kvm/system.hpp"
#include "kvm/vcpu.hpp"
#include "kvm/vm.hpp"
#include "support/host_errors.hpp"
#include "support/host_pipe.hpp"
#include "support/kvm_machine.hpp"
#include "support/kvm_require.hpp"
#include "vmm/machine.hpp"
#include "vmm/machine/x86/boot_state.hpp"
#include "vmm/machine/x86/cpu_model.hpp"
#include "vmm/machine/x86/cpuid.hpp"

namespace vmm {
namespace {

using testing::error_of;
using testing::mentions;
using testing::TestKernel;
using testing::kernels::Code;

using X86StateTest = testing::KvmTest;

void append(Code& code, std::initializer_list<std::uint8_t> bytes) {
    code.insert(code.end(), bytes);
}

void append_word(Code& code, std::uint32_t word) {
    for (unsigned i = 0; i < 4; ++i) {
        code.push_back(static_cast<std::uint8_t>(word >> (8 * i)));
    }
}

/// Executes CPUID for each of `leaves` (subleaf 0), writes EAX, EBX, ECX and EDX to the serial port, and powers off.
Code cpuid_kernel(const std::vector<std::uint32_t>& leaves) {
    Code code;
    for (const std::uint32_t leaf : leaves) {
        append(code, {0xb8}); // mov $leaf, %eax
        append_word(code, leaf);
        append(code, {0x31, 0xc9, 0x0f, 0xa2});             // xor %ecx, %ecx; cpuid
        append(code, {0x89, 0xc6, 0x89, 0xcd, 0x89, 0xd4}); // mov %eax, %esi; mov %ecx, %ebp; mov %edx, %esp
        append(code, {0x66, 0xba, 0xf8, 0x03});             // mov $0x3f8, %dx
        for (const std::uint8_t move :
             std::array<std::uint8_t, 4>{0xf0, 0xd8, 0xe8, 0xe0}) { // mov %esi/%ebx/%ebp/%esp, %eax
            append(code, {0x89, move});
            for (int i = 0; i < 4; ++i) {
                append(code, {0xee, 0xc1, 0xe8, 0x08}); // out %al, %dx; shr $8, %eax
            }
        }
    }
    code.insert(code.end(), testing::kernels::kPowerOff.begin(), testing::kernels::kPowerOff.end());
    return code;
}

using Registers = std::array<std::uint32_t, 4>; // EAX, EBX, ECX, EDX

/// The CPUID that a guest of the changed configuration sees.
template <typename Change>
std::vector<Registers> cpuid_of_guest(const std::vector<std::uint32_t>& leaves, Change change) {
    const TestKernel kernel(cpuid_kernel(leaves));
    Config config = kernel.config();
    std::string output;
    config.serial.sink = [&output](std::span<const std::byte> bytes) {
        for (const std::byte byte : bytes) {
            output += static_cast<char>(byte);
        }
    };
    change(config);
    Machine machine(config);
    EXPECT_EQ(machine.run(), ExitReason::kPowerOff);
    std::vector<Registers> answers(leaves.size());
    EXPECT_EQ(output.size(), sizeof(Registers) * leaves.size());
    std::memcpy(answers.data(), output.data(), std::min(output.size(), sizeof(Registers) * leaves.size()));
    return answers;
}

TEST_F(X86StateTest, GuestHasTheNameOfTheHostsProcessor) {
    const auto answers = cpuid_of_guest({0x80000000, 0x80000002, 0x80000003, 0x80000004}, [](Config&) {});
    const CpuBrand brand = host_cpu_brand();
    EXPECT_GE(answers[0][0], 0x80000004U);
    for (std::size_t i = 0; i < brand.size(); ++i) {
        EXPECT_EQ(answers[1 + i / 4][i % 4], brand[i]) << i;
    }
}

TEST_F(X86StateTest, GuestSeesNoFeatureThatWasTakenAway) {
    constexpr std::uint32_t kX2apic = 1U << 21;
    constexpr std::uint32_t kHypervisor = 1U << 31;
    const auto with = cpuid_of_guest({1}, [](Config&) {});
    const auto without = cpuid_of_guest({1}, [](Config& config) { config.cpu = "host,-x2apic,-hypervisor"; });
    EXPECT_NE(with[0][2] & kX2apic, 0U);
    EXPECT_NE(with[0][2] & kHypervisor, 0U);
    EXPECT_EQ(without[0][2] & (kX2apic | kHypervisor), 0U);
    EXPECT_EQ(with[0][2] & ~(kX2apic | kHypervisor), without[0][2]);
}

/// True if KVM shows a guest features that it does not list as supported. A KVM that lets guests execute CPUID natively
/// (kvm_pvm) cannot hide features that programs may use.
bool shows_what_it_does_not_offer() {
    constexpr std::uint32_t kAvx = 1U << 28;
    const auto answers = cpuid_of_guest({1}, [](Config&) {});
    return (answers[0][2] & kAvx) != 0 && !has_cpu_feature(kvm::System().supported_cpuid(), "avx");
}

TEST_F(X86StateTest, GuestOfALevelSeesNoMoreThanThat) {
    if (shows_what_it_does_not_offer()) {
        GTEST_SKIP() << "this host's KVM shows guests what it does not offer them";
    }
    const auto answers = cpuid_of_guest({1, 7, 0x80000008}, [](Config& config) { config.cpu = "x86-64-v1"; });
    EXPECT_EQ(answers[0][2] & ((1U << 28) | (1U << 20) | (1U << 13)), 0U) << "AVX, SSE 4.2, CMPXCHG16B";
    EXPECT_NE(answers[0][3] & (1U << 26), 0U) << "SSE2";
    EXPECT_EQ(answers[1], (Registers{answers[1][0], 0, 0, 0}));
    EXPECT_EQ(answers[2][1], 0U);
}

TEST_F(X86StateTest, GuestIsOfferedNoVirtualisation) {
    const auto answers = cpuid_of_guest({1, 0x80000001, 0x8000000a}, [](Config&) {});
    EXPECT_EQ(answers[0][2] & (1U << 5), 0U) << "VMX";
    EXPECT_EQ(answers[1][2] & (1U << 2), 0U) << "SVM";
    EXPECT_EQ(answers[2], (Registers{})) << "SVM's leaf";
}

TEST_F(X86StateTest, GuestIsOfferedVirtualisationWhereItIsAskedForOrItIsRefused) {
    const auto host = kvm::System().supported_cpuid();
    if (!has_cpu_feature(host, "vmx") && !has_cpu_feature(host, "svm")) {
        const std::string why = error_of([] {
            const TestKernel kernel(testing::kernels::kPowerOff);
            Config config = kernel.config();
            config.nested = true;
            Machine machine(config);
        });
        EXPECT_TRUE(mentions(why, "Config::nested=true")) << why;
        return;
    }
    const auto answers = cpuid_of_guest({1, 0x80000001}, [](Config& config) { config.nested = true; });
    EXPECT_TRUE((answers[0][2] & (1U << 5)) != 0 || (answers[1][2] & (1U << 2)) != 0);
}

TEST_F(X86StateTest, PrefaultVcpusAreToldWhatTheGuestIs) {
    const TestKernel kernel(testing::kernels::kPowerOff);
    Config config = kernel.config();
    config.cpu = "x86-64-v1";
    config.prefault.scope = prefault::Scope::kAll;
    config.prefault.workers = 2;
    Machine machine(config);
    EXPECT_TRUE(machine.prefault().complete);
    EXPECT_EQ(machine.run(), ExitReason::kPowerOff);
    EXPECT_EQ(machine.report().cpu, "x86-64-v1");
}

TEST_F(X86StateTest, FeatureThatTheHostLacksIsRefused) {
    const auto host = kvm::System().supported_cpuid();
    for (const char* const feature : {"amx_tile", "xop", "mpx", "3dnow"}) {
        if (!has_cpu_feature(host, feature)) {
            const std::string why = error_of([&] {
                const TestKernel kernel(testing::kernels::kPowerOff);
                Config config = kernel.config();
                config.cpu = std::string("host,+") + feature;
                Machine machine(config);
            });
            EXPECT_TRUE(mentions(why, feature)) << why;
        }
    }
}

/// A vCPU in the state of the machine's vCPUs before the boot.
struct ResetVcpu {
    explicit ResetVcpu(unsigned id = 0) {
        vm.create_irqchip();
        if (id != 0) {
            static_cast<void>(first.emplace(vm, 0));
        }
        vcpu.emplace(vm, id);
        cpuid = CpuModel::parse("host", false).applied_to(guest_cpuid(system.supported_cpuid(), 2, id, true));
        vcpu->set_cpuid(cpuid);
        set_reset_state(*vcpu, cpuid, system.machine_check_capabilities());
    }
    [[nodiscard]] std::uint64_t msr(std::uint32_t index) const { return vcpu->msr(index).value_or(0xbad); }
    [[nodiscard]] std::uint32_t lapic(std::size_t offset) const {
        const kvm_lapic_state registers = vcpu->local_apic();
        std::uint32_t value = 0;
        std::memcpy(&value, &registers.regs[offset], sizeof value);
        return value;
    }

    kvm::System system;
    kvm::Vm vm{system};
    std::vector<kvm_cpuid_entry2> cpuid;
    std::optional<kvm::Vcpu> first;
    std::optional<kvm::Vcpu> vcpu;
};

TEST_F(X86StateTest, MachineChecksAreEnabled) {
    const ResetVcpu reset;
    const std::uint64_t capabilities = reset.system.machine_check_capabilities();
    if (capabilities == 0 || !has_cpu_feature(reset.cpuid, "mca")) {
        GTEST_SKIP() << "this host's KVM has no machine checks";
    }
    const std::uint64_t banks = std::min<std::uint64_t>(10, capabilities & 0xff);
    EXPECT_EQ(reset.msr(0x179) & 0xff, banks) << "MCG_CAP";
    if ((reset.msr(0x179) & 0x100) != 0) {
        EXPECT_EQ(reset.msr(0x17b), ~std::uint64_t{0}) << "MCG_CTL";
    }
    EXPECT_EQ(reset.msr(0x17a), 0U) << "MCG_STATUS";
    for (std::uint32_t bank = 0; bank < banks; ++bank) {
        EXPECT_EQ(reset.msr(0x400 + 4 * bank), ~std::uint64_t{0}) << "MC" << bank << "_CTL";
        EXPECT_EQ(reset.msr(0x401 + 4 * bank), 0U) << "MC" << bank << "_STATUS";
    }
}

TEST_F(X86StateTest, MemoryTypesAreThoseOfFirmware) {
    const ResetVcpu reset;
    if (!has_cpu_feature(reset.cpuid, "mtrr")) {
        GTEST_SKIP() << "this host's KVM has no memory type range registers";
    }
    EXPECT_EQ(reset.msr(0xfe) & 0x5ff, 0x508U) << "MTRRcap: eight ranges, fixed ones, write-combining";
    for (const MsrValue& each : memory_type_registers(physical_address_bits(reset.cpuid))) {
        EXPECT_EQ(reset.msr(each.index), each.value) << std::hex << each.index;
    }
    EXPECT_EQ(reset.msr(0x277), 0x0007040600070406U) << "PAT as after power-on";
}

TEST_F(X86StateTest, LocalInterruptsAreThoseOfVirtualWireMode) {
    const ResetVcpu first;
    EXPECT_EQ(first.lapic(0xf0), 0x1ffU) << "switched on";
    EXPECT_EQ(first.lapic(0x350), 0x700U) << "LINT0 takes the PIC's interrupts";
    EXPECT_EQ(first.lapic(0x360), 0x400U) << "LINT1 is NMI";
    const ResetVcpu second(1);
    EXPECT_NE(second.lapic(0x350) & 0x10000, 0U) << "LINT0 is masked";
    EXPECT_EQ(second.lapic(0x360), 0x400U) << "LINT1 is NMI";
}

TEST_F(X86StateTest, CachesAreOn) {
    for (const unsigned id : {0U, 1U}) {
        const ResetVcpu reset(id);
        EXPECT_EQ(reset.vcpu->special_registers().cr0 & 0x60000000, 0U) << id;
    }
}

/// Reads the masks of both PICs, writes them to the serial port, and powers off.
TEST_F(X86StateTest, PicsAreMasked) {
    Code code{0xe4, 0x21, 0x66, 0xba, 0xf8, 0x03, 0xee, // in $0x21, %al; mov $0x3f8, %dx; out %al, %dx
              0xe4, 0xa1, 0xee};                        // in $0xa1, %al; out %al, %dx
    code.insert(code.end(), testing::kernels::kPowerOff.begin(), testing::kernels::kPowerOff.end());
    const TestKernel kernel(code);
    Config config = kernel.config();
    std::vector<std::byte> output;
    config.serial.sink = [&output](std::span<const std::byte> bytes) {
        output.insert(output.end(), bytes.begin(), bytes.end());
    };
    Machine machine(config);
    EXPECT_EQ(machine.run(), ExitReason::kPowerOff);
    EXPECT_EQ(output, (std::vector{std::byte{0xfb}, std::byte{0xff}}));
}

// What broke: Linux with `noapic` never looks at the PICs here. The serial port's interrupt came as vector 4, an
// overflow exception.
TEST_F(X86StateTest, GuestThatNeverSetUpThePicsIsNotInterruptedByThem) {
    Code code{0x66, 0xba, 0xfc, 0x03, 0xb0, 0x0b, 0xee, // mov $0x3fc, %dx; mov $0x0b, %al; out: interrupts go out
              0x66, 0xba, 0xf9, 0x03, 0xb0, 0x02, 0xee, // mov $0x3f9, %dx; mov $2, %al; out: one at once
              0xfb, 0x90, 0xb9, 0x00, 0x10, 0x00, 0x00, // sti; nop; mov $0x1000, %ecx
              0xec, 0xe2, 0xfd};                        // again: in %dx, %al; loop again
    code.insert(code.end(), testing::kernels::kPowerOff.begin(), testing::kernels::kPowerOff.end());
    const TestKernel kernel(code);
    Machine machine(kernel.config());
    EXPECT_EQ(machine.run(), ExitReason::kPowerOff) << machine.crash_description();
}

/// mov $port, %dx; mov $value, %al; out %al, %dx, for each; then hlt for ever.
Code writes(std::initializer_list<std::pair<std::uint16_t, std::uint8_t>> all) {
    Code code;
    for (const auto& [port, value] : all) {
        append(code,
               {0x66, 0xba, static_cast<std::uint8_t>(port), static_cast<std::uint8_t>(port >> 8), 0xb0, value, 0xee});
    }
    code.insert(code.end(), testing::kernels::kHalt.begin(), testing::kernels::kHalt.end());
    return code;
}

ExitReason ended_by(const Code& code) {
    const TestKernel kernel(code);
    Machine machine(kernel.config());
    return machine.run();
}

TEST_F(X86StateTest, GuestThatWritesPort92Reboots) {
    EXPECT_EQ(ended_by(writes({{0x92, 0x03}})), ExitReason::kReboot);
}

TEST_F(X86StateTest, GuestThatWritesPortCf9Reboots) {
    EXPECT_EQ(ended_by(writes({{0xcf9, 0x02}, {0xcf9, 0x06}})), ExitReason::kReboot) << "hard";
    EXPECT_EQ(ended_by(writes({{0xcf9, 0x00}, {0xcf9, 0x04}})), ExitReason::kReboot) << "soft";
    EXPECT_EQ(ended_by(writes({{0xcf9, 0x0e}})), ExitReason::kReboot) << "power cycle";
}

TEST_F(X86StateTest, GuestThatSelectsAResetOrTheA20GateGoesOn) {
    Code code = writes({{0x92, 0x00}, {0x92, 0x02}, {0xcf9, 0x02}, {0xcf9, 0x0a}});
    code.resize(code.size() - testing::kernels::kHalt.size());
    code.insert(code.end(), testing::kernels::kPowerOff.begin(), testing::kernels::kPowerOff.end());
    EXPECT_EQ(ended_by(code), ExitReason::kPowerOff);
}

} // namespace
} // namespace vmm
