#define FMT_HEADER_ONLY // Defined here, and in no other file.
#include "kvm/host/format.hpp"

#include <fmt/format.h>

namespace vmm::detail {

std::string format(fmt::string_view text, fmt::format_args values) {
    return fmt::vformat(text, values);
}

} // namespace vmm::detail
