// The PVH start info: how the PVH boot protocol tells a kernel about its machine.
#pragma once

#include <cstddef>
#include <vector>

#include "kvm/host/guest_address.hpp"
#include "loader/boot_info.hpp"

namespace vmm::loader {

/// `struct hvm_start_info`, version 1, followed by its module list (the initrd, if there is one) and its memory map:
/// the bytes that belong at `base` (Xen, xen/include/public/arch-x86/hvm/start_info.h).
[[nodiscard]] std::vector<std::byte> build_pvh_start_info(const BootInfo& info, GuestAddress base);

} // namespace vmm::loader
