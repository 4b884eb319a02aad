// The CPUID leaves of a vCPU.
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <vector>

#include "kvm/uapi.hpp"

namespace vmm {

/// Returns what KVM supports for the vCPU with APIC id `apic_id` (0 to 254), with the topology of one socket of `vcpus`
/// cores of one thread each. `tsc_deadline` says whether the in-kernel local APIC has that timer, because KVM does not
/// report it in `supported`. (AMD64 volume 3, appendix E; Intel SDM volume 2, CPUID.)
[[nodiscard]] std::vector<kvm_cpuid_entry2> guest_cpuid(std::span<const kvm_cpuid_entry2> supported, unsigned vcpus,
                                                        unsigned apic_id, bool tsc_deadline);

/// The processor's name, as in leaves 0x80000002 to 0x80000004: EAX, EBX, ECX and EDX of each.
using CpuBrand = std::array<std::uint32_t, 12>;

/// The maker of the processor we run on, as leaf 0 has it: EBX, EDX and ECX.
[[nodiscard]] std::array<std::uint32_t, 3> host_cpu_vendor() noexcept;

/// The name of the processor we run on; zeros if it has none.
[[nodiscard]] CpuBrand host_cpu_brand() noexcept;

/// Returns `cpuid` with that name. KVM does not report it, and without it a guest can only show the numbers of its
/// processor.
[[nodiscard]] std::vector<kvm_cpuid_entry2> with_cpu_brand(std::vector<kvm_cpuid_entry2> cpuid, const CpuBrand& brand);

/// True if `cpuid` offers 1 GiB pages to the guest.
[[nodiscard]] bool has_one_gib_pages(std::span<const kvm_cpuid_entry2> cpuid);

/// The number of bits of a guest-physical address in a CPUID; 36 if it does not say.
[[nodiscard]] unsigned physical_address_bits(std::span<const kvm_cpuid_entry2> cpuid);

/// True if every address below `end` fits in `bits` bits.
[[nodiscard]] constexpr bool fits_address_bits(std::uint64_t end, unsigned bits) noexcept {
    return bits >= 64 || end == 0 || ((end - 1) >> bits) == 0;
}

} // namespace vmm
