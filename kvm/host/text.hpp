// Small work with words.
#pragma once

#include <cstddef>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace vmm {

/// The words in a row, with `between` between each two of them.
[[nodiscard]] std::string joined(std::span<const std::string> words, std::string_view between = ", ");

/// What stands between the characters `at` of `text`: one word more than there are of them.
[[nodiscard]] std::vector<std::string> split(std::string_view text, char at);

/// `text` with small letters for the capital letters of ASCII.
[[nodiscard]] std::string lower_case(std::string_view text);

/// `text`, which came from anywhere, as a message can show it: what no terminal should obey is a '?', and at most
/// `most` bytes are shown.
[[nodiscard]] std::string shown(std::string_view text, std::size_t most = 40);

} // namespace vmm
