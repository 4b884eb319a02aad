// Cuts the memory to populate into disjoint chunks that workers take one by one. Pure: no KVM, no memory touched.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "kvm/host/guest_address.hpp"

namespace vmm::prefault {

/// Guest ranges cut into chunks. The chunks are disjoint and together cover the ranges exactly. Each chunk but the
/// first and the last of a range begins and ends at a multiple of the chunk size, so that no two workers need the same
/// page of a page table: on 96 vCPUs, overlapping ranges took 141 s and disjoint ones 16 s (cover letters of KVM's TDP
/// MMU, 2021).
///
/// The plan needs memory for each range, not for each chunk: a plan for 16 TiB is a few dozen bytes.
///
/// Threads: const after construction.
class Plan {
  public:
    /// `ranges` are in ascending order and do not overlap. `chunk_bytes` is a power of two.
    Plan(std::span<const GuestRange> ranges, std::uint64_t chunk_bytes);

    /// Chooses a chunk size of about 16 chunks for each worker, so that one slow worker does not keep the others
    /// waiting at the end. It is at least 2 MiB and at least `mapping_bytes` (a power of two), which is what one
    /// mapping covers. It is at most 1 GiB and 32,768 mappings, unless one mapping is more, so that stop requests and
    /// progress are handled soon.
    static std::uint64_t chunk_bytes_for(std::uint64_t total_bytes, unsigned workers, std::uint64_t mapping_bytes);

    /// The number of `workers` that have work: at most the number of chunks; at least 1.
    static unsigned useful_workers(std::uint64_t total_bytes, unsigned workers, std::uint64_t mapping_bytes);

    [[nodiscard]] std::size_t chunk_count() const noexcept { return chunk_count_; }
    [[nodiscard]] std::uint64_t total_bytes() const noexcept { return total_bytes_; }
    /// Chunk `index`, 0 to chunk_count() - 1, in ascending order of address.
    [[nodiscard]] GuestRange chunk(std::size_t index) const;

  private:
    struct Piece {
        GuestRange range;
        std::size_t first_chunk; ///< the index of the range's first chunk
    };
    std::uint64_t chunk_bytes_;
    std::vector<Piece> pieces_;
    std::size_t chunk_count_ = 0;
    std::uint64_t total_bytes_ = 0;
};

/// Hands out each chunk of a plan once. Threads: any thread may call take().
class ChunkQueue {
  public:
    explicit ChunkQueue(const Plan& plan) : plan_(plan) {}

    /// The next chunk, or nothing if all are taken.
    [[nodiscard]] std::optional<GuestRange> take() noexcept {
        const std::size_t index = next_.fetch_add(1, std::memory_order_relaxed);
        if (index >= plan_.chunk_count()) {
            return std::nullopt;
        }
        return plan_.chunk(index);
    }

  private:
    const Plan& plan_;
    std::atomic<std::size_t> next_{0};
};

} // namespace vmm::prefault
