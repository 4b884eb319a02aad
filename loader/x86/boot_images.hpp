// Loads a kernel and all it needs into guest memory.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string_view>

#include "kvm/host/guest_address.hpp"
#include "kvm/host/guest_memory.hpp"
#include "loader/image_file.hpp"
#include "loader/kernel.hpp"
#include "loader/loaded_kernel.hpp"
#include "loader/memory_map_entry.hpp"

namespace vmm::loader {

/// What the user asked to boot.
struct BootImages {
    const Kernel& kernel;
    const ImageFile* initrd = nullptr; ///< none if null
    std::string_view command_line;
};

/// The places of the boot information. All of them are RAM below 4 GiB, and none overlaps another.
struct BootLayout {
    GuestAddress zero_page;   ///< kZeroPageBytes, a multiple of 4096
    GuestRange command_line;  ///< room for the command line and its NUL
    GuestRange start_info;    ///< room for the PVH start info, its module list and its memory map: 4 KiB are enough
    GuestAddress gdt;         ///< sizeof(BootGdt), a multiple of 8
    GuestAddress page_tables; ///< kIdentityMapBytes, a multiple of 4096
    std::optional<GuestAddress> rsdp; ///< where the ACPI tables start; the caller writes them
    /// The zero page's list of setup_data; the caller writes it. PVH has no such list, so a kernel with a PVH note is
    /// then entered by linux64 if that is possible.
    std::optional<GuestAddress> setup_data{};
    std::span<const MemoryMapEntry> memory_map; ///< as in BootInfo; its RAM must be RAM of the guest memory
};

/// How the first vCPU starts, and where the images are.
struct BootEntry {
    EntryProtocol protocol;
    GuestAddress entry;
    GuestAddress argument; ///< the zero page, for RSI (linux64, linux32), or the start info, for EBX (pvh)
    GuestRange kernel;
    std::optional<GuestRange> initrd;
};

/// Loads kernel and initrd and writes the boot information: the zero page and GDT for linux64 and linux32, page tables
/// for linux64, the start info for pvh. Everything is placed in the RAM of `layout.memory_map`, and the initrd as high
/// as possible. Throws Error: the images do not fit, the command line is too long, a file cannot be read.
[[nodiscard]] BootEntry load_boot_images(const GuestMemory& memory, const BootImages& images, const BootLayout& layout);

} // namespace vmm::loader
