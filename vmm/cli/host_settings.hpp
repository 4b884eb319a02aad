// Settings of this host by which the kernel takes mappings away from running guests.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "vmm/cli/doctor.hpp"

namespace vmm {

/// Whether all anonymous memory of this process is offered to KSM. A parent process may have asked for that
/// (PR_SET_MEMORY_MERGE in prctl(2), since Linux 6.4).
[[nodiscard]] bool merges_own_memory() noexcept;

/// Tries to make an io_uring for a pin. Returns why that fails; empty if it succeeds.
[[nodiscard]] std::string why_no_io_uring();

/// The folders from which settings are read, and facts that only the process itself can tell.
struct SettingsSources {
    std::filesystem::path proc = "/proc";
    std::filesystem::path sys = "/sys";
    bool merges_own_memory = vmm::merges_own_memory();
    std::string why_no_io_uring = vmm::why_no_io_uring();
};

/// Looks for settings that can undo a prefault, or stand in the way of a pin (docs/prefault.md, "Undoing"). A setting
/// that reaches guest memory becomes a finding of kAdvice. A setting that is on but does not reach guest memory becomes
/// one of kGood. A setting that is off, or that cannot be read, becomes no finding. The function changes nothing, and
/// the result is never empty. Throws Error as prefault::usable_cpu_list().
[[nodiscard]] std::vector<Finding> examine_settings(const SettingsSources& sources = {});

} // namespace vmm
