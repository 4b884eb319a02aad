// The registers a vCPU has when the kernel's first instruction runs.
#pragma once

#include "kvm/vcpu.hpp"
#include "loader/boot_images.hpp"

namespace vmm {

/// Puts the boot processor into the state that `entry.protocol` asks for: 64-bit mode on the boot page tables
/// (Documentation/arch/x86/boot.rst), or 32-bit protected mode without paging (PVH). Throws Error.
void set_boot_state(kvm::Vcpu& vcpu, const loader::BootEntry& entry, const loader::BootLayout& layout);

/// What firmware would have set in every processor's model-specific registers. Refusals are ignored: the values are
/// what most guests only look at.
void set_boot_msrs(kvm::Vcpu& vcpu);

} // namespace vmm
