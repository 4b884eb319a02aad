// Text from a format string and values, by {fmt}.
#pragma once

#include <string>
#include <utility>

#include <fmt/core.h>

namespace vmm {

namespace detail {
std::string format(fmt::string_view text, fmt::format_args values);
} // namespace detail

/// As fmt::format(), which checks the format string when this is compiled. What is behind it is compiled once, in
/// format.cpp: {fmt} comes as headers only where one links statically, and takes each file that includes all of it four
/// seconds more.
template <typename... Values>
[[nodiscard]] std::string format(fmt::format_string<Values...> text, Values&&... values) {
    return detail::format(text, fmt::make_format_args(values...));
}

} // namespace vmm
