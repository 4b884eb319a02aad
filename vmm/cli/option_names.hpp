// Replaces the library's names by the command's names.
#pragma once

#include <string>
#include <string_view>

namespace vmm {

/// Returns `text`, which the library wrote, with the command's options in place of the members of Config:
/// "Config::pin=none" becomes "--pin=none". A member without an option of its own stays as it is.
[[nodiscard]] std::string with_option_names(std::string_view text);

} // namespace vmm
