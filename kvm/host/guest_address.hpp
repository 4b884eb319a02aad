// Guest-physical addresses and ranges as types of their own, with arithmetic that cannot wrap.
#pragma once

#include <compare>
#include <cstdint>
#include <optional>
#include <string>

#include "kvm/host/export.hpp"

VMM_API_BEGIN
namespace vmm {

inline constexpr std::uint64_t kKiB = 1ULL << 10;
inline constexpr std::uint64_t kMiB = 1ULL << 20;
inline constexpr std::uint64_t kGiB = 1ULL << 30;
inline constexpr std::uint64_t kTiB = 1ULL << 40;

/// The smallest page, of guests and of the host.
inline constexpr std::uint64_t kSmallPageBytes = 4 * kKiB;

/// A guest-physical address (GPA), in bytes.
enum class GuestAddress : std::uint64_t {};

[[nodiscard]] constexpr std::uint64_t to_integer(GuestAddress address) noexcept {
    return static_cast<std::uint64_t>(address);
}

/// `address + bytes`, or nothing if that passes the end of the address space.
[[nodiscard]] constexpr std::optional<GuestAddress> checked_add(GuestAddress address, std::uint64_t bytes) noexcept {
    if (bytes > UINT64_MAX - to_integer(address)) {
        return std::nullopt;
    }
    return GuestAddress{to_integer(address) + bytes};
}

/// `size` bytes of guest-physical memory from `base` on. A range that was read from the guest or from a file may wrap;
/// `contains` and `overlaps` are correct for every value.
struct GuestRange {
    GuestAddress base{};
    std::uint64_t size = 0;

    friend constexpr bool operator==(const GuestRange&, const GuestRange&) = default;

    /// The address after the last byte. Only for ranges known not to wrap.
    [[nodiscard]] constexpr GuestAddress end() const noexcept { return GuestAddress{to_integer(base) + size}; }

    /// True if all of `inner` lies within this range. An empty `inner` is inside if its base is inside or is the end.
    [[nodiscard]] constexpr bool contains(GuestRange inner) const noexcept {
        if (inner.base < base) {
            return false;
        }
        const std::uint64_t offset = to_integer(inner.base) - to_integer(base);
        return offset <= size && inner.size <= size - offset;
    }

    /// True if at least one byte is in both ranges.
    [[nodiscard]] constexpr bool overlaps(GuestRange other) const noexcept {
        if (size == 0 || other.size == 0) {
            return false;
        }
        return other.base >= base ? to_integer(other.base) - to_integer(base) < size
                                  : to_integer(base) - to_integer(other.base) < other.size;
    }
};

[[nodiscard]] constexpr bool is_aligned(std::uint64_t value, std::uint64_t power_of_two) noexcept {
    return (value & (power_of_two - 1)) == 0;
}
[[nodiscard]] constexpr std::uint64_t align_down(std::uint64_t value, std::uint64_t power_of_two) noexcept {
    return value & ~(power_of_two - 1);
}
/// `value` rounded up, or nothing if that passes 2^64.
[[nodiscard]] constexpr std::optional<std::uint64_t> align_up(std::uint64_t value,
                                                              std::uint64_t power_of_two) noexcept {
    const std::uint64_t down = align_down(value, power_of_two);
    if (down == value) {
        return value;
    }
    if (down > UINT64_MAX - power_of_two) {
        return std::nullopt;
    }
    return down + power_of_two;
}

/// "0x1000-0x1fff", for messages; the last address is inclusive.
std::string to_string(GuestRange range);
/// "0x1000", for messages.
std::string to_string(GuestAddress address);
/// A byte count for people: "512 MiB", "3.5 GiB", "17 bytes".
std::string format_bytes(std::uint64_t bytes);

} // namespace vmm
VMM_API_END
