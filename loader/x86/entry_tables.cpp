#include "loader/x86/entry_tables.hpp"

#include <cassert>

#include "loader/little_endian.hpp"

namespace vmm::loader {
namespace {

// Intel SDM volume 3A, 4.5 ("4-level paging").
constexpr std::uint64_t kPresent = 1U << 0U;
constexpr std::uint64_t kWritable = 1U << 1U;
constexpr std::uint64_t kAccessed = 1U << 5U;
constexpr std::uint64_t kDirty = 1U << 6U;
constexpr std::uint64_t kPageSize = 1U << 7U; // in a page directory: maps 2 MiB
constexpr std::uint64_t kTable = kPresent | kWritable | kAccessed;
constexpr std::uint64_t kLargePage = kTable | kDirty | kPageSize;

constexpr std::uint64_t kTableBytes = 4096;
constexpr std::size_t kTableEntries = 512;
constexpr std::uint64_t kLargePageBytes = 2 * kMiB;
constexpr std::size_t kDirectories = kIdentityMappedBytes / kGiB;
static_assert(kIdentityMapBytes == (2 + kDirectories) * kTableBytes);

/// Appends one table that starts with `entries`. The other entries are zero: not present.
void append_table(std::vector<std::byte>& tables, const std::vector<std::uint64_t>& entries) {
    const std::size_t end = tables.size() + kTableBytes;
    for (const std::uint64_t entry : entries) {
        append_little_endian(tables, entry);
    }
    tables.resize(end);
}

} // namespace

BootGdt build_boot_gdt(CodeSize code) noexcept {
    // Base 0, limit 4 GiB, present, accessed (Intel SDM volume 3A, 3.4.5). L is set for 64-bit code, otherwise D/B.
    constexpr std::uint64_t kCode64 = 0x00af'9b00'0000'ffff;
    constexpr std::uint64_t kCode32 = 0x00cf'9b00'0000'ffff;
    constexpr std::uint64_t kData = 0x00cf'9300'0000'ffff;
    BootGdt gdt{};
    gdt[kBootCodeSelector / sizeof(std::uint64_t)] = code == CodeSize::k64Bit ? kCode64 : kCode32;
    gdt[kBootDataSelector / sizeof(std::uint64_t)] = kData;
    return gdt;
}

std::vector<std::byte> build_identity_map(GuestAddress base) {
    assert(is_aligned(to_integer(base), kTableBytes));
    const std::uint64_t pointers = to_integer(base) + kTableBytes;
    const std::uint64_t directories = pointers + kTableBytes;

    std::vector<std::byte> tables;
    tables.reserve(kIdentityMapBytes);
    append_table(tables, {pointers | kTable});
    std::vector<std::uint64_t> entries;
    entries.reserve(kTableEntries);
    for (std::size_t i = 0; i < kDirectories; ++i) {
        entries.push_back((directories + i * kTableBytes) | kTable);
    }
    append_table(tables, entries);
    for (std::uint64_t address = 0; address < kIdentityMappedBytes;) {
        entries.clear();
        for (std::size_t i = 0; i < kTableEntries; ++i, address += kLargePageBytes) {
            entries.push_back(address | kLargePage);
        }
        append_table(tables, entries);
    }
    return tables;
}

} // namespace vmm::loader
