// Where guest memory is in the memory file of a snapshot.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "kvm/host/guest_address.hpp"

namespace vmm {

/// The memory file has a checksum for each piece of this size, and may be read and written in such pieces. Each region
/// of memory begins at a multiple of this size.
inline constexpr std::uint64_t kMemoryChunkBytes = 2 * kMiB;

/// A part of guest memory, and where it begins in the file.
struct MemoryPiece {
    GuestRange range;
    std::uint64_t file_offset = 0;

    friend bool operator==(const MemoryPiece&, const MemoryPiece&) = default;
};

/// The regions of memory lie in the file one after the other, in ascending order. The file ends at a multiple of
/// kMemoryChunkBytes. The space between two regions is a hole and reads as zeros.
///
/// Threads: any; nothing changes after construction.
class MemoryLayout {
  public:
    /// `memory` is MachineState::memory. Throws Error if it is empty, has more than 16 regions, or is more memory than
    /// a guest can have. Throws Error, too, if a region is empty, is not whole pages of 4 KiB, or does not come after
    /// the one before.
    explicit MemoryLayout(std::span<const GuestRange> memory);

    [[nodiscard]] const std::vector<MemoryPiece>& regions() const noexcept { return regions_; }
    /// The size of the file.
    [[nodiscard]] std::uint64_t file_bytes() const noexcept { return chunks_ * kMemoryChunkBytes; }
    /// The size of guest memory.
    [[nodiscard]] std::uint64_t memory_bytes() const noexcept { return memory_bytes_; }
    [[nodiscard]] std::size_t chunks() const noexcept { return chunks_; }
    /// The memory in chunk `index`, which must be less than chunks(). It begins at the start of the chunk, and is
    /// shorter at the end of a region.
    [[nodiscard]] MemoryPiece chunk(std::size_t index) const;

  private:
    std::vector<MemoryPiece> regions_;
    std::size_t chunks_ = 0;
    std::uint64_t memory_bytes_ = 0;
};

} // namespace vmm
