// Keeping populated pages where they are.
#pragma once

#include <cstdint>
#include <span>
#include <string_view>

#include "kvm/guest_memory.hpp"

namespace vmm::prefault {

/// How guest memory is kept resident.
enum class Pin {
    kNone,
    kMlock, ///< mlock2(MLOCK_ONFAULT): never swapped out. It does not keep pages from being migrated or compacted.
};

/// The name used on the command line and in the report: "none", "mlock".
[[nodiscard]] std::string_view to_string(Pin pin) noexcept;

/// Throws Error where this process may not lock `bytes` more: says the limit, the need and how to raise it. To be
/// called before anything is created.
void check_may_pin(Pin pin, std::uint64_t bytes);

/// Locks `ranges` (parts of `memory`). After population, with MLOCK_ONFAULT, so that it only marks the mappings: mlock
/// itself would populate with one thread. Throws Error.
void pin_memory(const GuestMemory& memory, std::span<const GuestRange> ranges, Pin pin);

} // namespace vmm::prefault
