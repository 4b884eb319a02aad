// What this process may still open, start and map.
#pragma once

#include <sys/resource.h>

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "kvm/host/cgroup.hpp"

namespace vmm {

struct ProcessNeed {
    std::uint64_t descriptors = 0;
    std::uint64_t threads = 0; ///< KVM's own included, and programs that are started
    std::uint64_t mappings = 0;
};

/// One limit, and what counts against it now.
struct CountLimit {
    std::string what;   ///< "the limit on open files (RLIMIT_NOFILE)"
    std::string advice; ///< "raise it with `ulimit -n {}`": {} is what is needed in all
    std::uint64_t limit = 0;
    std::uint64_t used = 0;
};

/// The limits that bind this process. One that cannot be read is not among them.
struct ProcessFacts {
    std::vector<CountLimit> descriptors;
    std::vector<CountLimit> threads;
    std::vector<CountLimit> mappings;
};

/// The places where the facts are read.
struct ProcessSources {
    std::string proc = "/proc";
    CgroupRoots cgroups;
};

[[nodiscard]] ProcessFacts read_process_facts(const ProcessSources& sources = {});

/// Why `need` cannot be had, and what to do: "cannot run this machine: ..."; empty: it can be.
[[nodiscard]] std::string judge_process(const ProcessNeed& need, const ProcessFacts& facts);

/// Raises the soft limit on open files to the hard one, for the whole process. (The soft one is low because many
/// programs still use select().) A program calls it at its start; the library does not. Programs that are started get
/// inherited_open_file_limit().
void raise_open_file_limit() noexcept;

/// Has the kernel make room in this process's table for 1024 descriptors, or as many as the limit allows. While there
/// is one thread that takes microseconds; once there are several, the table grows only after all processors have been
/// seen elsewhere (expand_fdtable() in fs/file.c waits for RCU), which takes 20 ms at times, and it grows in several
/// steps. For programs, as raise_open_file_limit().
void make_room_for_descriptors() noexcept;

/// The limit on open files as it was before raise_open_file_limit(); nothing if that was not called or changed
/// nothing.
[[nodiscard]] std::optional<rlimit> inherited_open_file_limit() noexcept;

} // namespace vmm
