// How a kernel is entered, and where it has been loaded.
#pragma once

#include <string_view>

#include "kvm/host/guest_address.hpp"

namespace vmm::loader {

/// The state of the first vCPU that a kernel expects.
enum class EntryProtocol {
    kLinux64, ///< 64-bit mode, identity-mapped, RSI = zero page (Documentation/arch/x86/boot.rst, "64-bit boot
              ///< protocol").
    kLinux32, ///< 32-bit protected mode without paging, ESI = zero page (the same, "32-bit boot protocol").
    kPvh,     ///< 32-bit protected mode without paging, EBX = start info (Xen, docs/misc/pvh.pandoc).
};

/// For messages: "PVH", "the 64-bit protocol", "the 32-bit protocol".
[[nodiscard]] constexpr std::string_view to_string(EntryProtocol protocol) noexcept {
    switch (protocol) {
    case EntryProtocol::kLinux64:
        return "the 64-bit protocol";
    case EntryProtocol::kLinux32:
        return "the 32-bit protocol";
    case EntryProtocol::kPvh:
        break;
    }
    return "PVH";
}

struct LoadedKernel {
    GuestRange range;   ///< from the first to the last byte that was claimed
    GuestAddress entry; ///< the first instruction; below 4 GiB
};

} // namespace vmm::loader
