// Methods as words in the names of tests.
#pragma once

#include <algorithm>
#include <string>

#include "prefault/options.hpp"

namespace vmm::testing {

/// The method's name as GoogleTest takes it: "ioctl_touch" for "ioctl+touch".
inline std::string test_name_of(prefault::Method method) {
    std::string name(to_string(method));
    std::replace(name.begin(), name.end(), '+', '_');
    return name;
}

} // namespace vmm::testing
