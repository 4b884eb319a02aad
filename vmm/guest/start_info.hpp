// What the loader passes to the guest: the structures of the PVH boot protocol (Xen,
// include/public/arch-x86/hvm/start_info.h).
#pragma once

#include <cstdint>

namespace vmm::guest {

inline constexpr std::uint32_t kStartInfoMagic = 0x336ec578;

struct StartInfo {
    std::uint32_t magic;
    std::uint32_t version; // From 1 on, there is a memory map.
    std::uint32_t flags;
    std::uint32_t module_count;
    std::uint64_t modules_address; // The address of an array of Module.
    std::uint64_t command_line_address;
    std::uint64_t rsdp_address;
    std::uint64_t memory_map_address; // The address of an array of MemoryMapEntry.
    std::uint32_t memory_map_entries;
    std::uint32_t reserved;
};
static_assert(sizeof(StartInfo) == 56);

struct Module {
    std::uint64_t address;
    std::uint64_t size;
    std::uint64_t command_line_address;
    std::uint64_t reserved;
};
static_assert(sizeof(Module) == 32);

struct MemoryMapEntry {
    std::uint64_t address;
    std::uint64_t size;
    std::uint32_t type;
    std::uint32_t reserved;
};
static_assert(sizeof(MemoryMapEntry) == 24);

/// The type of memory that is free to use; memory of every other type is not.
inline constexpr std::uint32_t kMemoryTypeRam = 1;

} // namespace vmm::guest
