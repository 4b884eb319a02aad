// `vmm doctor`: what this host offers, with advice.
#pragma once

#include <string>
#include <vector>

namespace vmm {

/// The answer to one question about the host.
struct Finding {
    enum class Verdict { kGood, kAdvice, kFatal };
    Verdict verdict = Verdict::kGood;
    std::string what;   ///< "second level"
    std::string value;  ///< "npt, TDP MMU on"
    std::string advice; ///< what to do; empty for kGood
};

struct SettingsSources;

/// Looks at KVM, the second level, huge pages, limits, nodes and the settings that undo a prefault. Changes nothing.
/// Something that is missing is a finding, not an error. The result is never empty.
[[nodiscard]] std::vector<Finding> examine_host();

/// Does the same with other folders than /proc and /sys.
[[nodiscard]] std::vector<Finding> examine_host(const SettingsSources& sources);

/// Whether a guest can run.
[[nodiscard]] bool can_run_guests(const std::vector<Finding>& findings);

/// The findings as lines for people.
[[nodiscard]] std::string to_text(const std::vector<Finding>& findings);

} // namespace vmm
