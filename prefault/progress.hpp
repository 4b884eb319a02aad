// What an observer of a long prefault learns.
#pragma once

#include <cstdint>
#include <functional>
#include <string_view>

#include "kvm/host/export.hpp"

VMM_API_BEGIN
namespace vmm::prefault {

/// The parts of a prefault, in the order in which they run.
enum class Stage {
    kHost,        ///< host memory
    kPin,         ///< the pin
    kSecondLevel, ///< the second-level page table
    kSmm,         ///< the second-level page table of system management mode
};

/// The name for people: "host memory", "pin", "second level", "second level of SMM".
[[nodiscard]] std::string_view to_string(Stage stage) noexcept;

/// How far one stage has come. A stage may take several passes over the same memory, to find and map what is missing.
/// Each pass begins at zero.
struct Progress {
    Stage stage = Stage::kHost;
    std::uint64_t done_bytes = 0;  ///< of guest memory; never less than before in the same pass of a stage
    std::uint64_t total_bytes = 0; ///< of guest memory; what the stage has to do
    double seconds = 0;            ///< since the pass began
};

/// Called about ten times a second and at the end of each stage. If it throws, the prefault ends and passes the
/// exception on. If it is empty, nothing is reported. Threads: the one that runs the prefault.
using ProgressSink = std::function<void(const Progress&)>;

} // namespace vmm::prefault
VMM_API_END
