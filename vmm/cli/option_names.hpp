// From the library's words to the command's.
#pragma once

#include <string>
#include <string_view>

namespace vmm {

/// `text`, which the library wrote, with the command's options in place of the members of Config and MemoryPoolConfig
/// that it names: "Config::pin=none" becomes "--pin=none". A member that has no option of that name stays as it is.
[[nodiscard]] std::string with_option_names(std::string_view text);

} // namespace vmm
