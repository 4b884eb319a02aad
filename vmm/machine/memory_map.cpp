#include "vmm/machine/memory_map.hpp"

#include <algorithm>

namespace vmm::memory_map {

std::vector<GuestRange> ram_layout(std::uint64_t memory_bytes) {
    const std::uint64_t hole_start = to_integer(kHole.base);
    std::vector<GuestRange> layout{{GuestAddress{0}, std::min(memory_bytes, hole_start)}};
    if (memory_bytes > hole_start) {
        layout.push_back({kHole.end(), memory_bytes - hole_start});
    }
    return layout;
}

std::vector<loader::MemoryMapEntry> guest_memory_map(std::uint64_t memory_bytes, bool has_pci) {
    using loader::MemoryKind;
    std::vector<loader::MemoryMapEntry> map{{kLowRam, MemoryKind::kRam}};
    const std::uint64_t high_start = to_integer(kHighRamStart);
    const auto reserve = [&map](GuestAddress from, GuestAddress to) {
        map.push_back({{from, to_integer(to) - to_integer(from)}, MemoryKind::kReserved});
    };
    reserve(kLowRam.end(), kGenerationIdPage.base);
    reserve(kGenerationIdPage.end(), kHighRamStart);
    for (const GuestRange& ram : ram_layout(memory_bytes)) {
        if (has_pci && ram.base >= kHole.end()) {
            map.push_back({kPciEcam, MemoryKind::kReserved});
            has_pci = false;
        }
        const std::uint64_t start = std::max(to_integer(ram.base), high_start);
        if (start < to_integer(ram.end())) {
            map.push_back({{GuestAddress{start}, to_integer(ram.end()) - start}, MemoryKind::kRam});
        }
    }
    if (has_pci) {
        map.push_back({kPciEcam, MemoryKind::kReserved});
    }
    return map;
}

std::uint64_t address_space_bytes(std::uint64_t memory_bytes) {
    return std::max(to_integer(kHole.end()), to_integer(ram_layout(memory_bytes).back().end()));
}

GuestRange pluggable_range(std::uint64_t memory_bytes, std::uint64_t pluggable_bytes) {
    return {GuestAddress{*align_up(address_space_bytes(memory_bytes), kPluggableAlignment)}, pluggable_bytes};
}

std::uint64_t whole_address_space_bytes(std::uint64_t memory_bytes, std::uint64_t max_bytes) {
    return max_bytes <= memory_bytes ? address_space_bytes(memory_bytes)
                                     : to_integer(pluggable_range(memory_bytes, max_bytes - memory_bytes).end());
}

std::uint64_t end_of_room(std::uint64_t memory_bytes, std::uint64_t max_bytes) {
    return std::min(*align_up(whole_address_space_bytes(memory_bytes, max_bytes), kGiB) + kRoomForMoreMemory,
                    kMaxAddressBytes);
}

} // namespace vmm::memory_map
