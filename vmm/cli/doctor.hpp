// What this host offers, with advice.
#pragma once

#include <string>
#include <vector>

namespace vmm {

/// One thing that was looked at.
struct Finding {
    enum class Verdict { kGood, kAdvice, kFatal };
    Verdict verdict = Verdict::kGood;
    std::string what;   ///< "second level"
    std::string value;  ///< "npt, TDP MMU on"
    std::string advice; ///< what to do; empty for kGood
};

struct SettingsSources;

/// Looks at KVM, the second level, huge pages, limits, nodes and the settings that undo a prefault. Changes nothing;
/// what is missing becomes a finding, so it does not throw for it. Never empty.
[[nodiscard]] std::vector<Finding> examine_host();

/// The same with files of other places than /proc and /sys.
[[nodiscard]] std::vector<Finding> examine_host(const SettingsSources& sources);

/// Whether a guest can run.
[[nodiscard]] bool can_run_guests(const std::vector<Finding>& findings);

/// The findings as lines for people.
[[nodiscard]] std::string to_text(const std::vector<Finding>& findings);

} // namespace vmm
