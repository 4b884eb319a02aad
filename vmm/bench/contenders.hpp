// The commands that start a contender for a cell, as lists of words. Nothing here depends on the host.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "vmm/bench/cell.hpp"
#include "vmm/config.hpp"

namespace vmm::bench {

/// The settings of all runs.
struct RunSettings {
    unsigned passes = 5; ///< of the guest over its memory, kMinPasses to kMaxPasses
    double timeout_seconds = 600;
    std::string qemu = "qemu-system-x86_64";
    std::string qemu_machine = "microvm";
    /// The feature is taken away because some hosts refuse its register.
    std::string qemu_cpu = "host,-arch-capabilities";
    std::string command; ///< the template of Contender::kCommand
    std::string pool;    ///< the socket of the pool for Method::kPool

    static constexpr unsigned kMinPasses = 2; ///< the first pass takes the faults
    static constexpr unsigned kMaxPasses = 1000;
};

/// The options of the built-in guest.
[[nodiscard]] std::string guest_options(const Cell& cell, const RunSettings& settings);

/// The configuration of this cell's machine, for checks before the first run.
[[nodiscard]] Config config_of(const Cell& cell);

/// The words of `vmm run`. The report and the console go to these files.
[[nodiscard]] std::vector<std::string> vmm_words(const Cell& cell, const RunSettings& settings,
                                                 const std::string& program, const std::string& report,
                                                 const std::string& console);

/// The words of QEMU with the same guest. QEMU speaks QMP (QEMU's docs/interop/qmp-spec) on its standard input and
/// output.
[[nodiscard]] std::vector<std::string> qemu_words(const Cell& cell, const RunSettings& settings,
                                                  const std::string& kernel, const std::string& console);

/// The names in braces that a template may have, for people.
inline constexpr std::string_view kTemplateNames =
    "{kernel} {cmdline} {memory_mib} {memory_bytes} {vcpus} {workers} {page_size}";

/// Makes a shell command from the user's template: {kernel} and the other names are replaced. Throws Error for an
/// unknown name, or if there is no {kernel}.
[[nodiscard]] std::string expand_template(const Cell& cell, const RunSettings& settings, const std::string& kernel);

} // namespace vmm::bench
