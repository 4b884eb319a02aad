// Sizes and ranges of guest memory, as people write them.
#pragma once

#include <cstdint>
#include <optional>
#include <string_view>
#include <vector>

#include "kvm/host/guest_address.hpp"

namespace vmm {

/// What parse_size() takes, but for numbers that are too large: an ECMAScript expression.
inline constexpr std::string_view kSizePattern = "[0-9]+([KkMmGgTt]([Ii]?[Bb])?)?";

/// "512M": a number and K, M, G or T (powers of 1024), with or without "B" or "iB" behind it, in any case; nothing
/// else.
[[nodiscard]] std::optional<std::uint64_t> parse_size(std::string_view text);

/// "0-1G,4G-6G": ranges of guest-physical addresses, each from its first byte to before the second address. An address
/// is a size, or hexadecimal: "0x100000-0x200000". Returns nothing if the text is no such list, or if a range is empty.
[[nodiscard]] std::optional<std::vector<GuestRange>> parse_ranges(std::string_view text);

} // namespace vmm
