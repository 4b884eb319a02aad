// The PVH start info, by which the PVH boot protocol tells a kernel about its machine.
#pragma once

#include <cstddef>
#include <vector>

#include "kvm/host/guest_address.hpp"
#include "loader/boot_info.hpp"

namespace vmm::loader {

/// The bytes of a `struct hvm_start_info`, version 1, which belong at `base` (Xen,
/// xen/include/public/arch-x86/hvm/start_info.h). They are followed by its module list (the initrd, if there is one)
/// and its memory map.
[[nodiscard]] std::vector<std::byte> build_pvh_start_info(const BootInfo& info, GuestAddress base);

} // namespace vmm::loader
