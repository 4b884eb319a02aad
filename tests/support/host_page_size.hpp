// Names of page sizes in the names of tests.
#pragma once

#include <ostream>

#include "kvm/host/guest_memory.hpp"

namespace vmm {

// NOLINTNEXTLINE(readability-identifier-naming): the name GoogleTest looks for.
inline void PrintTo(PageSize page_size, std::ostream* out) {
    *out << to_string(page_size);
}

} // namespace vmm
