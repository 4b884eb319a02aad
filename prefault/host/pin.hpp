// Keeps populated pages where they are.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <stop_token>
#include <vector>

#include "kvm/host/guest_memory.hpp"
#include "prefault/host/longterm_pin.hpp"
#include "prefault/host/pin_kind.hpp"

namespace vmm::prefault {

/// Throws Error if this process may not pin `bytes` more, or if there is no io_uring for kLongterm. The error says the
/// limit, the need and how to raise the limit. Must be called before anything is created.
void check_may_pin(Pin pin, std::uint64_t bytes);

/// The pin of guest memory, which ends with the object. Declare it after the memory.
///
/// Threads: one at a time.
class PinnedMemory {
  public:
    /// A part of guest memory that is pinned by one system call. For kLongterm it is one buffer of a ring.
    struct Piece {
        GuestRange range;
        std::span<std::byte> bytes; ///< where it is on the host
    };
    /// The pin of all pieces in a range, for kLongterm.
    struct Ring {
        GuestRange range;
        BufferRing ring;
    };
    /// Receives the number of bytes that were pinned last. If it throws, the work ends. Threads: each worker's.
    using Progress = std::function<void(std::uint64_t bytes)>;

    explicit PinnedMemory(Pin kind) noexcept : kind_(kind) {}
    PinnedMemory(PinnedMemory&&) = delete;
    PinnedMemory& operator=(PinnedMemory&&) = delete;
    PinnedMemory(const PinnedMemory&) = delete;
    PinnedMemory& operator=(const PinnedMemory&) = delete;
    /// Unpins everything before it returns.
    ~PinnedMemory();

    /// Pins those parts of `ranges` that are not pinned yet. `ranges` are parts of `memory` in whole pages of its
    /// backing; they do not overlap, may have any order, and each lies in one region. Returns false if `stop` was
    /// requested before all was pinned: what is pinned stays pinned, and the next call continues there.
    ///
    /// kMlock only marks mappings, in one thread (the kernel holds its lock on the memory map). Pages that do not exist
    /// yet are pinned when they are made.
    ///
    /// kLongterm pins the pages themselves, with up to `workers` threads, and populates those that do not exist. It
    /// pins huge pages as a whole, even if only a part of one is in `ranges`. If two calls pin parts of the same huge
    /// page, VmPin in /proc/self/status counts it twice.
    ///
    /// Throws Error, and what `progress` throws; then nothing of this call is pinned.
    bool add(const GuestMemory& memory, std::span<const GuestRange> ranges, unsigned workers,
             const std::stop_token& stop, const Progress& progress = {});

    /// Unpins the pinned parts of `range`, which is about to be mapped anew. For kMlock this only updates the records,
    /// because the lock ends with the mapping. kLongterm can unpin only whole rings: the other ranges that are unpinned
    /// with them are returned, in ascending order, for another add().
    [[nodiscard]] std::vector<GuestRange> remove(GuestRange range);

    [[nodiscard]] Pin kind() const noexcept { return kind_; }
    [[nodiscard]] std::uint64_t bytes() const noexcept { return bytes_; }
    /// The pinned parts, in ascending order; none is larger than 1 GiB.
    [[nodiscard]] std::span<const Piece> pieces() const noexcept { return pieces_; }

  private:
    /// Those parts of `ranges` that are not pinned, in ascending order, with neighbours in one region joined.
    [[nodiscard]] std::vector<GuestRange> missing(const GuestMemory& memory, std::span<const GuestRange> ranges) const;
    /// Records what a call has pinned, and returns the number of bytes.
    std::uint64_t keep(std::vector<Piece> pieces, std::vector<Ring> rings);
    /// Removes `range` from the pieces. Each remaining part stays a piece.
    void forget(GuestRange range);

    Pin kind_;
    std::uint64_t bytes_ = 0;
    std::vector<Piece> pieces_;
    std::vector<Ring> rings_;
};

} // namespace vmm::prefault
