// The limits up to which this process may open, start and map more.
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
    std::uint64_t threads = 0; ///< includes KVM's own, and programs that are started
    std::uint64_t mappings = 0;
};

/// One limit, and how much of it is used now.
struct CountLimit {
    std::string what;   ///< "the limit on open files (RLIMIT_NOFILE)"
    std::string advice; ///< "raise it with `ulimit -n {}`": {} stands for the number that is needed in all
    std::uint64_t limit = 0;
    std::uint64_t used = 0;
};

/// The limits of this process. A limit that cannot be read is left out.
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

/// Says why `need` is too much, and what to do: "cannot run this machine: ..."; empty if it is not too much.
[[nodiscard]] std::string judge_process(const ProcessNeed& need, const ProcessFacts& facts);

/// Raises the soft limit on open files to the hard one, for the whole process. (The soft limit is low because many
/// programs still use select().) A program calls it at its start; the library does not. Programs that this process
/// starts get inherited_open_file_limit().
void raise_open_file_limit() noexcept;

/// Makes the kernel reserve room in this process's table for 1024 descriptors, or for as many as the limit allows. It
/// is for programs, and is called while there is one thread; then it takes microseconds. Once there are several
/// threads, the table grows in several steps, and each waits until all processors have passed through RCU
/// (expand_fdtable() in fs/file.c), which can take 20 ms.
void make_room_for_descriptors() noexcept;

/// The limit on open files as it was before raise_open_file_limit(). Nothing if that was not called, or changed
/// nothing.
[[nodiscard]] std::optional<rlimit> inherited_open_file_limit() noexcept;

} // namespace vmm
