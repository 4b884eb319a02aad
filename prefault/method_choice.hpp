// Which method fills the second level on this host.
#pragma once

#include <string>

#include "prefault/options.hpp"
#include "prefault/x86/second_level_host.hpp"

namespace vmm::prefault {

/// A method, and why it is the one.
struct MethodChoice {
    Method method = Method::kNone;
    std::string reason;
};

/// The method for a host, if `wanted` is kAuto; else `wanted`. Throws Error if this host cannot do what is wanted.
[[nodiscard]] MethodChoice choose_method(Method wanted, const SecondLevelHost& host, bool has_pre_fault_memory);

} // namespace vmm::prefault
