// The message of an action that fails.
#pragma once

#include <string>
#include <string_view>

#include "kvm/host/error.hpp"

namespace vmm::testing {

/// The message of the vmm::Error that `action` throws, or "" if it throws nothing.
template <typename Action>
std::string error_of(Action action) {
    try {
        static_cast<void>(action());
    } catch (const Error& error) {
        return error.what();
    }
    return {};
}

[[nodiscard]] inline bool mentions(std::string_view text, std::string_view part) {
    return text.find(part) != std::string_view::npos;
}

} // namespace vmm::testing
