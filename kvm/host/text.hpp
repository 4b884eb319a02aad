// Small work with words.
#pragma once

#include <cstddef>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace vmm {

/// Returns the words in a row, with `between` between each two of them.
[[nodiscard]] std::string joined(std::span<const std::string> words, std::string_view between = ", ");

/// Returns the words that the characters `at` separate in `text`: one word more than there are such characters.
[[nodiscard]] std::vector<std::string> split(std::string_view text, char at);

/// Returns `text` with small letters instead of the capital letters of ASCII.
[[nodiscard]] std::string lower_case(std::string_view text);

/// Returns a text that need not be trusted in a form that a message can show. Control characters for a terminal become
/// '?', and at most `most` bytes are shown.
[[nodiscard]] std::string shown(std::string_view text, std::size_t most = 40);

} // namespace vmm
