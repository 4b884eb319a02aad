#include "vmm/state/memory_layout.hpp"

#include <algorithm>
#include <cassert>
#include <string>

#include "kvm/host/error.hpp"
#include "kvm/host/format.hpp"
#include "vmm/machine/memory_map.hpp"

namespace vmm {

namespace {

constexpr std::size_t kMostRegions = memory_map::kScratchMemslot;

[[noreturn]] void refuse(const std::string& why) {
    throw Error("cannot use the memory of this state: " + why + " (take a snapshot that is whole)");
}

/// Throws Error if `range` cannot follow a region that ends at `end`.
void check(GuestRange range, std::uint64_t end) {
    const std::uint64_t base = to_integer(range.base);
    if (range.size == 0 || !is_aligned(base, kSmallPageBytes) || !is_aligned(range.size, kSmallPageBytes)) {
        refuse(format("a region of {} bytes at {} is not of whole pages", range.size, to_string(range.base)));
    }
    if (base > memory_map::kMaxAddressBytes || range.size > memory_map::kMaxAddressBytes - base) {
        refuse(format("a region of {} bytes at {} is beyond what a guest can have", range.size, to_string(range.base)));
    }
    if (base < end) {
        refuse("the region " + to_string(range) + " does not come after the one before it");
    }
}

} // namespace

MemoryLayout::MemoryLayout(std::span<const GuestRange> memory) {
    if (memory.empty() || memory.size() > kMostRegions) {
        refuse(format("it has {} regions, and has to have 1 to {}", memory.size(), kMostRegions));
    }
    std::uint64_t end = 0;
    for (const GuestRange range : memory) {
        check(range, end);
        end = to_integer(range.end());
        memory_bytes_ += range.size;
        regions_.push_back({range, file_bytes()});
        chunks_ += align_up(range.size, kMemoryChunkBytes).value_or(0) / kMemoryChunkBytes;
    }
    if (memory_bytes_ > memory_map::kMaxMemoryBytes) {
        refuse("it has " + format_bytes(memory_bytes_) + ", and a guest can have " +
               format_bytes(memory_map::kMaxMemoryBytes));
    }
}

MemoryPiece MemoryLayout::chunk(std::size_t index) const {
    assert(index < chunks_);
    const std::uint64_t offset = index * kMemoryChunkBytes;
    // Finds the last region that begins at or before the chunk. The first region begins at offset 0.
    const auto after = std::ranges::upper_bound(regions_, offset, {}, &MemoryPiece::file_offset);
    const MemoryPiece& region = *std::prev(after);
    const std::uint64_t within = offset - region.file_offset;
    return {.range = {GuestAddress{to_integer(region.range.base) + within},
                      std::min(kMemoryChunkBytes, region.range.size - within)},
            .file_offset = offset};
}

} // namespace vmm
