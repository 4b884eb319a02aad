// Keeping populated pages where they are.
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
/// limit, the need and how to raise it. To be called before anything is created.
void check_may_pin(Pin pin, std::uint64_t bytes);

/// The pin of guest memory, which ends with the object. To be declared after the memory.
///
/// Threads: one at a time.
class PinnedMemory {
  public:
    /// A part of guest memory that is pinned at once. For kLongterm it is what one buffer of a ring can be.
    struct Piece {
        GuestRange range;
        std::span<std::byte> bytes; ///< where it is on the host
    };
    /// All pieces in a range, for kLongterm.
    struct Ring {
        GuestRange range;
        BufferRing ring;
    };
    /// Is told how many bytes more are pinned. What it throws ends the work. Threads: each worker's.
    using Progress = std::function<void(std::uint64_t bytes)>;

    explicit PinnedMemory(Pin kind) noexcept : kind_(kind) {}
    PinnedMemory(PinnedMemory&&) = delete;
    PinnedMemory& operator=(PinnedMemory&&) = delete;
    PinnedMemory(const PinnedMemory&) = delete;
    PinnedMemory& operator=(const PinnedMemory&) = delete;
    /// Unpins everything before it returns.
    ~PinnedMemory();

    /// Pins those parts of `ranges` that are not pinned yet. `ranges` are parts of `memory`, whole pages of its
    /// backing, not overlapping, in any order; each lies in one region. Returns false if `stop` was requested before
    /// all was pinned; what is pinned by then stays so, and the next call goes on from there.
    ///
    /// kMlock only marks mappings, in one thread (the kernel takes its lock on the memory map). Pages that do not exist
    /// are pinned when they come to exist.
    ///
    /// kLongterm pins the pages themselves, with up to `workers` threads, and populates those that do not exist. It
    /// pins huge pages as a whole, also those of which `ranges` have only a part. If two calls pin parts of one, VmPin
    /// in /proc/self/status counts it twice.
    ///
    /// Throws Error, and what `progress` throws; nothing of this call is pinned then.
    bool add(const GuestMemory& memory, std::span<const GuestRange> ranges, unsigned workers,
             const std::stop_token& stop, const Progress& progress = {});

    /// Unpins what is pinned of `range`, which is about to be mapped anew. kMlock ends with the mapping, and is only
    /// noted. kLongterm is unpinned as it was pinned, a ring at a time: what else goes with that is returned, in
    /// ascending order, for another add().
    [[nodiscard]] std::vector<GuestRange> remove(GuestRange range);

    [[nodiscard]] Pin kind() const noexcept { return kind_; }
    [[nodiscard]] std::uint64_t bytes() const noexcept { return bytes_; }
    /// What is pinned, in ascending order; none larger than 1 GiB.
    [[nodiscard]] std::span<const Piece> pieces() const noexcept { return pieces_; }

  private:
    /// Those parts of `ranges` that are not pinned, in ascending order, with neighbours in one region joined.
    [[nodiscard]] std::vector<GuestRange> missing(const GuestMemory& memory, std::span<const GuestRange> ranges) const;
    /// Takes over what a call has pinned, and returns how many bytes that is.
    std::uint64_t keep(std::vector<Piece> pieces, std::vector<Ring> rings);
    /// Takes `range` out of the pieces; what is left of each stays one.
    void forget(GuestRange range);

    Pin kind_;
    std::uint64_t bytes_ = 0;
    std::vector<Piece> pieces_;
    std::vector<Ring> rings_;
};

} // namespace vmm::prefault
