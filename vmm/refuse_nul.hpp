// Texts of a configuration that go to the kernel or to other programs.
#pragma once

#include <string>
#include <string_view>

#include "kvm/host/error.hpp"

namespace vmm {

/// Throws Error if `text` has a NUL in it. The kernel and other programs read a text only up to its first NUL, so they
/// would use another file or address than was meant. `what` is for the message: "the path of a disk".
inline void refuse_nul(std::string_view text, const std::string& what) {
    if (text.find('\0') != std::string_view::npos) {
        throw Error("cannot use " + what + ": it has a NUL character in it (remove that)");
    }
}

} // namespace vmm
