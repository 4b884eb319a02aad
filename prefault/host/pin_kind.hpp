// The ways of keeping guest memory resident.
#pragma once

#include <array>
#include <string_view>

#include "kvm/host/export.hpp"

VMM_API_BEGIN
namespace vmm::prefault {

/// How guest memory is kept resident.
enum class Pin {
    kNone,
    kMlock,    ///< by mlock2(MLOCK_ONFAULT): never swapped out, but may be migrated or compacted
    kLongterm, ///< as fixed buffers of io_uring: neither swapped out, nor migrated, nor compacted
    kAuto,     ///< kMlock if a prefault is asked for, otherwise kNone; in configurations only
};

/// All of them, in the order in which help lists them, which leaves out the last. The C API numbers them by it.
inline constexpr std::array kPins{Pin::kNone, Pin::kMlock, Pin::kLongterm, Pin::kAuto};

/// The name used on the command line and in the report: "none", "mlock", "longterm"; "auto" for kAuto.
[[nodiscard]] std::string_view to_string(Pin pin) noexcept;

} // namespace vmm::prefault
VMM_API_END
