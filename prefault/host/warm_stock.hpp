// The stock of a pool of warm memory: what it has, and what it must make.
#pragma once

#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <mutex>
#include <optional>
#include <span>
#include <stop_token>
#include <vector>

#include "prefault/host/warm_piece.hpp"
#include "prefault/host/warm_protocol.hpp"

namespace vmm::prefault {

/// The pieces that a pool has ready, and those that it lacks.
///
/// Threads: any.
class WarmStock {
  public:
    /// How many pieces the pool should have on one node; no node means any.
    struct Target {
        std::optional<unsigned> node;
        std::size_t pieces = 0;
    };
    /// `piece_bytes` must be a multiple of the largest page of `page_size`. `targets` must name each node once.
    WarmStock(PageSize page_size, std::uint64_t piece_bytes, const std::vector<Target>& targets);

    /// A piece on its way to a client, which gets the first `bytes` of it.
    struct Portion {
        WarmPiece piece;
        std::uint32_t share = 0; ///< of the request
        std::uint64_t bytes = 0; ///< whole pages of the largest size
    };
    struct Grant {
        warm::Status status = warm::Status::kGranted;
        std::uint64_t bytes = 0;      ///< granted
        std::uint64_t free_bytes = 0; ///< what the pool had before
        std::vector<Portion> portions;
    };
    /// Takes out what a valid `request` asks for: all of it, or nothing, or what there is if the request accepts less.
    [[nodiscard]] Grant take(const warm::Request& request);

    /// Puts in a whole piece: one that was made, or one that was taken out and did not leave the process.
    void put(WarmPiece piece);

    /// Waits until there is something to make, and returns what to make. Returns nothing if `stop` was requested first.
    /// The node that lacks most comes first. The caller must make it before it asks again.
    [[nodiscard]] std::optional<WarmPiece::Spec> wait_for_lack(const std::stop_token& stop);
    /// True if no piece is lacking.
    [[nodiscard]] bool is_full() const;

    [[nodiscard]] PageSize page_size() const noexcept { return page_size_; }
    [[nodiscard]] std::uint64_t piece_bytes() const noexcept { return piece_bytes_; }
    [[nodiscard]] std::size_t ready_pieces() const;

  private:
    struct Shelf {
        Target target;
        std::deque<WarmPiece> pieces;
    };

    [[nodiscard]] std::uint64_t free_bytes_locked() const noexcept;
    [[nodiscard]] Shelf* shelf_for(std::uint32_t node) noexcept;
    [[nodiscard]] const Shelf& emptiest() const noexcept;

    const PageSize page_size_;
    const std::uint64_t piece_bytes_;
    mutable std::mutex lock_; ///< guards what follows
    std::condition_variable_any taken_;
    std::deque<Shelf> shelves_; ///< a deque, because a shelf cannot be copied
};

} // namespace vmm::prefault
