#include "vmm/guest/page_tables.hpp"

#include <cstddef>
#include <optional>

#include "vmm/guest/machine.hpp"

// page_tables.S
extern "C" std::uint64_t static_pml4[512];
extern "C" std::uint64_t static_pdpt[512];

namespace vmm::guest {
namespace {

constexpr std::size_t kEntries = 512;
constexpr std::uint64_t kTableBytes = kEntries * sizeof(std::uint64_t);
constexpr unsigned kLargePageShift = 21;

/// Returns a page for a table, with undefined content. It is below 4 GiB, so the static tables map it and the cast is
/// in bounds.
std::uint64_t* take_table(MemoryRanges& free) noexcept {
    const auto address = free.take(kTableBytes, kStaticMapEnd);
    return address ? reinterpret_cast<std::uint64_t*>(*address) : nullptr;
}

std::uint64_t entry_for(const std::uint64_t* table) noexcept {
    return reinterpret_cast<std::uint64_t>(table) + GUEST_TABLE_FLAGS;
}

} // namespace

std::uint64_t static_tables() noexcept {
    return reinterpret_cast<std::uint64_t>(static_pml4);
}

bool extend_identity_map(std::uint64_t top, MemoryRanges& free) noexcept {
    std::uint64_t* pdpt = static_pdpt;
    for (std::uint64_t gib = GUEST_STATIC_GIB; gib << 30 < top; ++gib) {
        if (gib % kEntries == 0) {
            pdpt = take_table(free);
            if (pdpt == nullptr) {
                return false;
            }
            for (std::size_t i = 0; i < kEntries; ++i) {
                pdpt[i] = 0;
            }
            static_pml4[gib / kEntries] = entry_for(pdpt);
        }
        std::uint64_t* const directory = take_table(free);
        if (directory == nullptr) {
            return false;
        }
        for (std::size_t i = 0; i < kEntries; ++i) {
            directory[i] = ((gib * kEntries + i) << kLargePageShift) | GUEST_LEAF_FLAGS;
        }
        // Entries only change from absent to present. This needs no flush.
        pdpt[gib % kEntries] = entry_for(directory);
    }
    asm volatile("" : : : "memory");
    return true;
}

} // namespace vmm::guest
