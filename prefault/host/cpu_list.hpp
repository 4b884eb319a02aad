// Lists of host CPUs in the text form of the kernel, and the affinity of threads.
#pragma once

#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "kvm/host/export.hpp"

VMM_API_BEGIN
namespace vmm::prefault {

/// Numbers of CPUs (or of NUMA nodes, which the kernel lists in the same way): ascending, each once, below kMaxCpus.
using CpuList = std::vector<unsigned>;

/// One above the highest CPU number Linux can have on x86 (arch/x86/Kconfig, NR_CPUS_RANGE_END).
inline constexpr unsigned kMaxCpus = 8192;

/// Parses a text in the kernel's list format (cpuset(7), "List format"), e.g. "0-3,8,10-12". The order is free, and a
/// number named twice counts once. Returns nothing if the text is not such a list: the text or an item is empty, a
/// range goes down, a number is kMaxCpus or more, or there is any other character (a space, a newline).
[[nodiscard]] std::optional<CpuList> parse_cpu_list(std::string_view text);

/// The reverse of parse_cpu_list(): "0-3,8" for 0, 1, 2, 3 and 8; "" for no CPU. `cpus` is ascending and names each
/// once.
[[nodiscard]] std::string format_cpu_list(std::span<const unsigned> cpus);

/// The CPUs that the calling thread and the threads it starts may use; at least one. It also works on hosts with more
/// CPUs than the 1024 that fit a cpu_set_t. Throws Error.
[[nodiscard]] CpuList usable_cpu_list();

/// Throws Error unless the calling thread may use all of `cpus`. The error names the CPUs that it may not use, those
/// that it may use, and `option`, which is the command line's word for their use, e.g. "--prefault-cpus". An empty list
/// is no error.
void check_cpus_usable(std::span<const unsigned> cpus, std::string_view member);

/// Lets the calling thread run only on `cpus`; does nothing if the list is empty. If only some of them are online and
/// allowed to this process, the kernel uses only these (sched_setaffinity(2)), so check before. Throws Error if none of
/// them is.
void bind_this_thread(std::span<const unsigned> cpus);

} // namespace vmm::prefault
VMM_API_END
