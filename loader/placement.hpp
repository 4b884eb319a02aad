// The ranges of guest memory that are taken while a guest is loaded, and by whom.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "kvm/host/guest_address.hpp"

namespace vmm::loader {

/// Knows the guest's RAM and what has been put into it, so that no two things get the same place.
///
/// Threads: one.
class Placement {
  public:
    /// `ram` is the RAM that the guest may use: ascending, not overlapping, and no range wraps.
    explicit Placement(std::span<const GuestRange> ram);

    /// Takes `range`, which must not be empty, for `what` (e.g. "the zero page", "the kernel vmlinux"), which goes into
    /// messages. Throws Error, which names both parties, if some of `range` is taken already or is not RAM.
    void claim(GuestRange range, std::string what);

    /// True if `claim(range, ...)` would succeed.
    [[nodiscard]] bool is_free(GuestRange range) const noexcept;

    /// The address of the highest free `size` bytes that end at or below `limit`, at a multiple of `alignment` (a power
    /// of two).
    [[nodiscard]] std::optional<GuestAddress> find_below(std::uint64_t size, std::uint64_t alignment,
                                                         GuestAddress limit) const;
    /// The address of the lowest free `size` bytes within `bounds`, at a multiple of `alignment` (a power of two).
    [[nodiscard]] std::optional<GuestAddress> find_above(std::uint64_t size, std::uint64_t alignment,
                                                         GuestRange bounds) const;
    /// The size of the largest free range that ends at or below `limit`, in bytes.
    [[nodiscard]] std::uint64_t largest_free_below(GuestAddress limit) const;

  private:
    struct Claim {
        GuestRange range;
        std::string what;
    };

    /// The RAM that is not taken, cut to `bounds`; ascending.
    [[nodiscard]] std::vector<GuestRange> free_ranges(GuestRange bounds) const;
    [[nodiscard]] bool is_ram(GuestRange range) const noexcept;

    std::vector<GuestRange> ram_; // ascending, neighbours that touch are merged
    std::vector<Claim> claims_;   // ascending, not overlapping
};

} // namespace vmm::loader
