// The table of options.
#pragma once

#include <span>
#include <string_view>

#include "vmm/cli/option.hpp"

namespace vmm {

/// Every option of every command, in the order of the commands' help.
[[nodiscard]] std::span<const Option> options();

/// The option that `place` has under this long name, which is without dashes; null if there is none.
[[nodiscard]] const Option* find_option(Place place, std::string_view long_name);

} // namespace vmm
