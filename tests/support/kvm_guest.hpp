// Guests of a few instructions, with KVM alone.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <variant>
#include <vector>

#include "kvm/exit.hpp"
#include "kvm/host/guest_memory.hpp"
#include "kvm/system.hpp"
#include "kvm/vcpu.hpp"
#include "kvm/vm.hpp"

namespace vmm::testing {

using Code = std::vector<std::uint8_t>;

/// A VM with only one memslot, from address 0 on.
struct SmallVm {
    static constexpr GuestAddress kCode{0x1000};
    static constexpr GuestAddress kData{0x2000};
    /// An address without a memslot.
    static constexpr std::uint64_t kNowhere = 0x10000000;

    enum class Interrupts { kNone, kInKernel };

    explicit SmallVm(Interrupts interrupts = Interrupts::kNone) {
        vm.add_memslot(0, memory.regions()[0].range, memory.regions()[0].host);
        if (interrupts == Interrupts::kInKernel) {
            vm.create_irqchip();
        }
    }

    /// A vCPU about to run `code` in real mode, with ES and DS at address 0 and SI, DI at kData.
    [[nodiscard]] kvm::Vcpu vcpu_with(const Code& code, unsigned id = 0) {
        EXPECT_TRUE(memory.copy_in(kCode, std::as_bytes(std::span(code))));
        kvm::Vcpu vcpu(vm, id);
        kvm_sregs special = vcpu.special_registers();
        special.cs.base = 0;
        special.cs.selector = 0;
        vcpu.set_special_registers(special);
        kvm_regs registers{};
        registers.rip = to_integer(kCode);
        registers.rsi = to_integer(kData);
        registers.rdi = to_integer(kData);
        registers.rflags = 2;
        vcpu.set_registers(registers);
        return vcpu;
    }

    kvm::System system;
    GuestMemory memory{std::array{GuestRange{GuestAddress{0}, 2 * kMiB}}, PageSize::k4K};
    kvm::Vm vm{system};
};

/// Loops for ever: `jmp .`
inline const Code kSpin{0xeb, 0xfe};
/// Halts for ever: `cli; hlt; jmp hlt`
inline const Code kHalt{0xfa, 0xf4, 0xeb, 0xfd};
/// Outputs one byte, and then loops for ever: `out %al, $0x80; jmp .`
inline const Code kSayAndSpin{0xe6, 0x80, 0xeb, 0xfe};

/// The name of the kind of exit, for messages.
[[nodiscard]] inline std::string name_of(const kvm::Exit& exit) {
    static constexpr std::array kNames{"port access", "memory access", "halt", "shutdown", "kick", "fault"};
    std::string name = kNames.at(exit.index());
    if (const auto* const fault = std::get_if<kvm::FaultExit>(&exit)) {
        name += ": " + fault->what;
    }
    return name;
}

[[nodiscard]] inline std::vector<unsigned> values_of(std::span<const std::byte> bytes) {
    std::vector<unsigned> values;
    for (const std::byte byte : bytes) {
        values.push_back(std::to_integer<unsigned>(byte));
    }
    return values;
}

} // namespace vmm::testing
