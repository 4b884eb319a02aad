// How a kernel is entered, and where it has been loaded.
#pragma once

#include "kvm/guest_address.hpp"

namespace vmm::loader {

/// The state of the first vCPU that a kernel expects.
enum class EntryProtocol {
    linux64, ///< 64-bit mode, identity-mapped, RSI = zero page (Documentation/arch/x86/boot.rst, "64-bit boot
             ///< protocol").
    pvh,     ///< 32-bit protected mode without paging, EBX = start info (Xen, docs/misc/pvh.pandoc).
};

struct LoadedKernel {
    GuestRange range;   ///< from the first to the last byte that was claimed
    GuestAddress entry; ///< the first instruction; below 4 GiB
};

} // namespace vmm::loader
