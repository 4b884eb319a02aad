// Sizes and ranges of guest memory, as people write them.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "kvm/host/guest_address.hpp"

namespace vmm {

/// An ECMAScript expression for the texts that parse_size() takes. It also accepts numbers that are too large.
inline constexpr std::string_view kSizePattern = "[0-9]+([KkMmGgTt]([Ii]?[Bb])?)?";

/// Parses "512M": a number and K, M, G or T (powers of 1024), with or without "B" or "iB" after it, in any case.
/// Returns nothing for any other text.
[[nodiscard]] std::optional<std::uint64_t> parse_size(std::string_view text);

/// The shortest text for which parse_size() returns `bytes`: "512M".
[[nodiscard]] std::string size_text(std::uint64_t bytes);

/// Parses "0-1G,4G-6G": ranges of guest-physical addresses. Each range contains its first address and ends before its
/// second. An address is a size, or hexadecimal: "0x100000-0x200000". Returns nothing if the text is no such list, or
/// if a range is empty.
[[nodiscard]] std::optional<std::vector<GuestRange>> parse_ranges(std::string_view text);

} // namespace vmm
