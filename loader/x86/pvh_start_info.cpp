#include "loader/x86/pvh_start_info.hpp"

#include <cassert>
#include <cstdint>
#include <span>
#include <type_traits>

namespace vmm::loader {
namespace {

constexpr std::uint32_t kMagic = 0x336ec578; // "xEn3" with the 0x80 bit of the "E" set
constexpr std::uint32_t kVersion = 1;        // the first with a memory map

struct StartInfo {
    std::uint32_t magic;
    std::uint32_t version;
    std::uint32_t flags;
    std::uint32_t module_count;
    std::uint64_t module_list;
    std::uint64_t command_line;
    std::uint64_t rsdp;
    std::uint64_t memory_map;
    std::uint32_t memory_map_entries;
    std::uint32_t reserved;
};
static_assert(sizeof(StartInfo) == 56);

struct ModuleListEntry {
    std::uint64_t address;
    std::uint64_t size;
    std::uint64_t command_line;
    std::uint64_t reserved;
};
static_assert(sizeof(ModuleListEntry) == 32);

struct MemoryMapTableEntry {
    std::uint64_t address;
    std::uint64_t size;
    std::uint32_t type;
    std::uint32_t reserved;
};
static_assert(sizeof(MemoryMapTableEntry) == 24);

template <typename T>
void append(std::vector<std::byte>& bytes, const T& object) {
    static_assert(std::has_unique_object_representations_v<T>, "padding would leak host memory to the guest");
    const auto raw = std::as_bytes(std::span{&object, 1});
    bytes.insert(bytes.end(), raw.begin(), raw.end());
}

} // namespace

std::vector<std::byte> build_pvh_start_info(const BootInfo& info, GuestAddress base) {
    assert(info.memory_map.size() <= kMaxMemoryMapEntries);
    const std::uint64_t module_list = to_integer(base) + sizeof(StartInfo);
    const std::uint64_t memory_map = module_list + (info.initrd ? sizeof(ModuleListEntry) : 0);

    std::vector<std::byte> bytes;
    append(bytes, StartInfo{
                      .magic = kMagic,
                      .version = kVersion,
                      .flags = 0,
                      .module_count = info.initrd ? 1U : 0U,
                      .module_list = info.initrd ? module_list : 0,
                      .command_line = to_integer(info.command_line),
                      .rsdp = info.rsdp ? to_integer(*info.rsdp) : 0,
                      .memory_map = memory_map,
                      .memory_map_entries = static_cast<std::uint32_t>(info.memory_map.size()),
                      .reserved = 0,
                  });
    if (info.initrd) {
        append(bytes, ModuleListEntry{to_integer(info.initrd->base), info.initrd->size, 0, 0});
    }
    for (const MemoryMapEntry& entry : info.memory_map) {
        append(bytes, MemoryMapTableEntry{to_integer(entry.range.base), entry.range.size,
                                          static_cast<std::uint32_t>(entry.kind), 0});
    }
    return bytes;
}

} // namespace vmm::loader
