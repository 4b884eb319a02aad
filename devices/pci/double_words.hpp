// Cuts accesses to configuration space into double words.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>

namespace vmm::devices::pci {

/// Calls `on_part(offset, bytes)` for each part of an access that lies within one double word.
template <typename Byte, typename OnPart>
void by_double_words(std::uint64_t offset, std::span<Byte> data, OnPart on_part) {
    constexpr std::uint64_t kBytes = 4;
    while (!data.empty()) {
        const std::size_t length = std::min<std::uint64_t>(data.size(), kBytes - offset % kBytes);
        on_part(offset, data.first(length));
        offset += length;
        data = data.subspan(length);
    }
}

} // namespace vmm::devices::pci
