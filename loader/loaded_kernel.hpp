// How a kernel is entered, and where it has been loaded.
#pragma once

#include <string_view>

#include "kvm/host/guest_address.hpp"

namespace vmm::loader {

/// The state of the first vCPU that a kernel expects.
enum class EntryProtocol {
    linux64, ///< 64-bit mode, identity-mapped, RSI = zero page (Documentation/arch/x86/boot.rst, "64-bit boot
             ///< protocol").
    linux32, ///< 32-bit protected mode without paging, ESI = zero page (the same, "32-bit boot protocol").
    pvh,     ///< 32-bit protected mode without paging, EBX = start info (Xen, docs/misc/pvh.pandoc).
};

/// For messages: "PVH", "the 64-bit protocol", "the 32-bit protocol".
[[nodiscard]] constexpr std::string_view to_string(EntryProtocol protocol) noexcept {
    switch (protocol) {
    case EntryProtocol::linux64:
        return "the 64-bit protocol";
    case EntryProtocol::linux32:
        return "the 32-bit protocol";
    case EntryProtocol::pvh:
        break;
    }
    return "PVH";
}

struct LoadedKernel {
    GuestRange range;   ///< from the first to the last byte that was claimed
    GuestAddress entry; ///< the first instruction; below 4 GiB
};

} // namespace vmm::loader
