// The host on which a benchmark ran.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

namespace vmm::bench {

/// The host. Results of different hosts cannot be compared.
struct HostFacts {
    std::string node;   ///< its name
    std::string kernel; ///< release
    std::string cpu;    ///< model
    unsigned cpus = 0;  ///< CPUs that this process may use
    std::uint64_t memory_bytes = 0;
    std::string second_level;    ///< "npt", "ept", "shadow"
    std::optional<bool> tdp_mmu; ///< nothing: not known
    bool prefault_ioctl = false; ///< KVM_PRE_FAULT_MEMORY
    bool nested = false;         ///< it is itself a guest
    std::string microcode{};     ///< its revision as in /proc/cpuinfo, "0xa101148"; empty: not known

    friend bool operator==(const HostFacts&, const HostFacts&) = default;
};

[[nodiscard]] HostFacts read_host_facts();

/// Whether both hosts are of one kind, so that their figures can be compared: the processor, its microcode, the number
/// of CPUs that may be used, the kernel, and the second level are the same. Name and memory may differ.
[[nodiscard]] bool same_kind(const HostFacts& one, const HostFacts& other) noexcept;

/// The kind for people: "AMD EPYC 9654 (microcode 0xa101148), 4 CPUs, Linux 6.12.9, npt with TDP MMU".
[[nodiscard]] std::string kind_text(const HostFacts& host);

/// The host's load average over a minute; nothing if it is not known.
[[nodiscard]] std::optional<double> load_average();

/// A line for people with the load average before and after a benchmark. It is empty if one of them is not known.
[[nodiscard]] std::string load_line(std::optional<double> before, std::optional<double> after, unsigned cpus);

} // namespace vmm::bench
