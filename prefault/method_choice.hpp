// Which method fills the second level on this host.
#pragma once

#include <string>

#include "prefault/options.hpp"
#include "prefault/x86/second_level_host.hpp"

namespace vmm::prefault {

/// A method, and why it was chosen.
struct MethodChoice {
    Method method = Method::kNone;
    std::string reason;
};

/// Chooses the method for a host if `wanted` is kAuto; otherwise returns `wanted`. Throws Error if this host cannot use
/// the wanted method.
[[nodiscard]] MethodChoice choose_method(Method wanted, const SecondLevelHost& host, bool has_pre_fault_memory);

} // namespace vmm::prefault
