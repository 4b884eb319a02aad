// The registers that a vCPU has when the kernel's first instruction runs.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "kvm/vcpu.hpp"
#include "kvm/vm.hpp"
#include "loader/x86/boot_images.hpp"

namespace vmm {

/// Puts the boot processor into the state that `entry.protocol` asks for: 64-bit mode on the boot page tables
/// (Documentation/arch/x86/boot.rst), or 32-bit protected mode without paging (PVH). Throws Error.
void set_boot_state(kvm::Vcpu& vcpu, const loader::BootEntry& entry, const loader::BootLayout& layout);

/// The state in which firmware leaves every processor, before set_boot_state() of the first:
///
/// - Memory types: RAM is cached, the hole of the devices (memory_map::kHole) and the window of a VGA adapter are not.
/// - Machine checks: ten banks, or as many as KVM has, all enabled.
/// - Local APIC: LINT1 is NMI, and LINT0 of the first processor takes the interrupts of the PIC.
/// - CR0 of all but the first: the cache is on. They are started by INIT, which does not change this.
///
/// `cpuid` is the vCPU's, and `machine_check_capabilities` are KVM's (kvm::System). MSRs that KVM refuses are ignored,
/// because most guests only look at them. Throws Error.
void set_reset_state(kvm::Vcpu& vcpu, std::span<const kvm_cpuid_entry2> cpuid,
                     std::uint64_t machine_check_capabilities);

/// Sets up the two 8259s as firmware leaves them: their interrupts are vectors 0x08 to 0x0f and 0x70 to 0x77, and only
/// the cascade is not masked. After power-on nothing would be masked, and the vectors would begin at 0. Linux with
/// hardware-reduced ACPI never sets up the 8259s: without an I/O APIC (`noapic`) it took the interrupt of the serial
/// port for an overflow exception (vector 4). This function must be called after kvm::Vm::create_irqchip(). Throws
/// Error.
void set_up_pics(kvm::Vm& vm);

/// A model-specific register and its value.
struct MsrValue {
    std::uint32_t index;
    std::uint64_t value;

    friend bool operator==(const MsrValue&, const MsrValue&) = default;
};

/// The memory type range registers as firmware leaves them, for physical addresses of `address_bits` bits (Intel SDM
/// volume 3, 12.11; AMD64 volume 2, 7.7).
[[nodiscard]] std::vector<MsrValue> memory_type_registers(unsigned address_bits);

} // namespace vmm
