// Text from a format string and values, by {fmt}.
#pragma once

#include <string>
#include <utility>

#include <fmt/core.h>

namespace vmm {

namespace detail {
std::string format(fmt::string_view text, fmt::format_args values);
} // namespace detail

/// Like fmt::format(): it checks the format string at compile time. The formatting itself is compiled once, in
/// format.cpp. {fmt} exists as headers only if it is linked statically, and including all of it costs each file four
/// more seconds of compile time.
template <typename... Values>
[[nodiscard]] std::string format(fmt::format_string<Values...> text, Values&&... values) {
    return detail::format(text, fmt::make_format_args(values...));
}

} // namespace vmm
