// Settings of this host by which the kernel takes mappings away from running guests.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "vmm/cli/doctor.hpp"

namespace vmm {

/// Whether all anonymous memory of this process is offered to KSM, as a parent may have asked for (PR_SET_MEMORY_MERGE
/// in prctl(2), since Linux 6.4).
[[nodiscard]] bool merges_own_memory() noexcept;

/// Why no io_uring for a pin can be made, which is tried; empty if one can.
[[nodiscard]] std::string why_no_io_uring();

/// Where settings are read.
struct SettingsSources {
    std::filesystem::path proc = "/proc";
    std::filesystem::path sys = "/sys";
    bool merges_own_memory = vmm::merges_own_memory();
    std::string why_no_io_uring = vmm::why_no_io_uring();
};

/// Looks for what can undo a prefault, or stand in the way of a pin (docs/prefault.md, "Undoing"). A setting that
/// reaches guest memory is advice, one that is on but does not is good; what is off, or cannot be read, is no finding.
/// Changes nothing. Never empty. Throws Error as prefault::usable_cpu_list().
[[nodiscard]] std::vector<Finding> examine_settings(const SettingsSources& sources = {});

} // namespace vmm
