// Lists of host CPUs as people and the kernel write them, and the affinity of threads.
#pragma once

#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "kvm/host/export.hpp"

VMM_API_BEGIN
namespace vmm::prefault {

/// Numbers of CPUs (or of NUMA nodes, which the kernel lists alike): ascending, none twice, each below kMaxCpus.
using CpuList = std::vector<unsigned>;

/// One above the highest CPU number Linux can have on x86 (arch/x86/Kconfig, NR_CPUS_RANGE_END).
inline constexpr unsigned kMaxCpus = 8192;

/// The CPUs of a text in the kernel's list format (cpuset(7), "List format"), e.g. "0-3,8,10-12". The order is free,
/// and a number named twice counts once. Returns nothing if the text is not such a list: if it or an item is empty, if
/// a range goes down, if a number is kMaxCpus or more, or if there is any other character (a space, a newline).
[[nodiscard]] std::optional<CpuList> parse_cpu_list(std::string_view text);

/// The reverse: "0-3,8" for 0, 1, 2, 3 and 8; "" for none. `cpus` is ascending and names none twice.
[[nodiscard]] std::string format_cpu_list(std::span<const unsigned> cpus);

/// The CPUs that the calling thread and the threads it starts may use; never none. Also right on hosts with more CPUs
/// than the 1024 that fit a cpu_set_t. Throws Error.
[[nodiscard]] CpuList usable_cpu_list();

/// Throws Error unless the calling thread may use all of `cpus`. The error names the CPUs that it may not use, those
/// that it may, and `member`, which is the member that names them, e.g. "Config::prefault.cpus". An empty list is no
/// error.
void check_cpus_usable(std::span<const unsigned> cpus, std::string_view member);

/// Lets the calling thread run on `cpus` only; changes nothing if the list is empty. If only some of them are online
/// and allowed to this process, the kernel takes these (sched_setaffinity(2)): check first. Throws Error if none is.
void bind_this_thread(std::span<const unsigned> cpus);

} // namespace vmm::prefault
VMM_API_END
