// What tells one migration from another.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

namespace vmm {

/// Random bytes that both ends of a migration know, and nobody else: whoever has them belongs to it.
using SessionId = std::array<std::byte, 16>;

/// A new one, from the kernel's source of randomness. Throws Error.
[[nodiscard]] SessionId new_session_id();

} // namespace vmm
