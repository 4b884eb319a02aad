#include "vmm/host/process_limits.hpp"

#include <fcntl.h>

#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <filesystem>
#include <fstream>
#include <limits>

#include "kvm/host/format.hpp"
#include "kvm/host/unique_fd.hpp"

namespace vmm {

namespace {

namespace fs = std::filesystem;

std::optional<std::uint64_t> read_number(const fs::path& path) {
    std::ifstream file(path);
    std::uint64_t value = 0;
    return file >> value ? std::optional(value) : std::nullopt;
}

std::optional<std::uint64_t> count_entries(const fs::path& folder) {
    std::error_code failed;
    std::uint64_t count = 0;
    for (fs::directory_iterator entry(folder, failed); !failed && entry != fs::directory_iterator();
         entry.increment(failed)) {
        ++count;
    }
    return failed ? std::nullopt : std::optional(count);
}

std::optional<std::uint64_t> count_lines(const fs::path& path) {
    std::ifstream file(path);
    std::uint64_t count = 0;
    for (std::string line; std::getline(file, line);) {
        ++count;
    }
    return count != 0 ? std::optional(count) : std::nullopt;
}

bool is_number(const std::string& name) {
    return !name.empty() && std::ranges::all_of(name, [](char c) { return c >= '0' && c <= '9'; });
}

/// The number of threads of the processes of the real user `user`, as far as they are visible.
std::uint64_t threads_of_user(const std::string& proc, uid_t user) {
    std::uint64_t threads = 0;
    std::error_code failed;
    for (fs::directory_iterator entry(proc, failed); !failed && entry != fs::directory_iterator();
         entry.increment(failed)) {
        if (!is_number(entry->path().filename().native())) {
            continue;
        }
        std::ifstream status(entry->path() / "status");
        std::string word;
        std::uint64_t of_process = 0;
        uid_t owner = std::numeric_limits<uid_t>::max();
        while (status >> word) {
            if (word == "Uid:") {
                status >> owner;
            } else if (word == "Threads:") {
                status >> of_process;
                break;
            }
            status.ignore(std::numeric_limits<std::streamsize>::max(), '\n');
        }
        threads += owner == user ? of_process : 0;
    }
    return threads;
}

/// Whether this process is in the initial user namespace. Only there do capabilities lift limits of the kernel
/// (user_namespaces(7)). False if that cannot be read.
bool in_initial_user_namespace(const std::string& proc) {
    std::ifstream map(proc + "/self/uid_map");
    std::uint64_t inside = 1;
    std::uint64_t outside = 1;
    std::uint64_t count = 0;
    return map >> inside >> outside >> count && inside == 0 && outside == 0 &&
           count == std::numeric_limits<std::uint32_t>::max();
}

void add_descriptors(const ProcessSources& sources, ProcessFacts& facts) {
    rlimit limit{};
    if (::getrlimit(RLIMIT_NOFILE, &limit) != 0 || limit.rlim_cur == RLIM_INFINITY) {
        return;
    }
    // One more descriptor is open during the count. If they cannot be counted, the number at the start of the C library
    // is assumed.
    constexpr std::uint64_t kAtLeast = 3;
    const std::uint64_t used = count_entries(sources.proc + "/self/fd").value_or(kAtLeast);
    const bool hard_is_higher = limit.rlim_max == RLIM_INFINITY || limit.rlim_max > limit.rlim_cur;
    facts.descriptors.push_back(
        {"the limit on open files (RLIMIT_NOFILE)",
         hard_is_higher ? "raise it with `ulimit -n {}`" : "raise it with `ulimit -n {}` as root, or LimitNOFILE=",
         limit.rlim_cur, used});
}

void add_threads(const ProcessSources& sources, ProcessFacts& facts) {
    rlimit limit{};
    const uid_t user = ::getuid();
    // This limit does not hold for root's processes and for those with CAP_SYS_RESOURCE (kernel/fork.c, copy_process).
    // The capability is not checked here, because a user who has it rarely sets the limit.
    const bool is_root = user == 0 && in_initial_user_namespace(sources.proc);
    if (!is_root && ::getrlimit(RLIMIT_NPROC, &limit) == 0 && limit.rlim_cur != RLIM_INFINITY) {
        facts.threads.push_back({"the limit on threads of this user (RLIMIT_NPROC)", "raise it with `ulimit -u {}`",
                                 limit.rlim_cur, threads_of_user(sources.proc, user)});
    }
    for (const CgroupLineage& lineage : cgroup_lineages("pids", sources.cgroups)) {
        for (const fs::path& folder : lineage.folders) {
            const auto most = read_cgroup_number(folder / "pids.max");
            const auto now = read_cgroup_number(folder / "pids.current");
            if (most) {
                facts.threads.push_back({"the limit on threads of its control group (pids.max)",
                                         "raise it: `echo {} | sudo tee " + (folder / "pids.max").native() + "`", *most,
                                         now.value_or(1)});
            }
        }
    }
    if (const auto most = read_number(sources.proc + "/sys/kernel/threads-max")) {
        // In "0.20 0.18 0.12 1/80 11206", the number of existing threads is 80.
        std::ifstream load(sources.proc + "/loadavg");
        std::string word;
        std::uint64_t now = 0;
        for (int i = 0; i < 4 && load >> word; ++i) {
        }
        if (const std::size_t slash = word.find('/'); slash != std::string::npos) {
            std::from_chars(word.data() + slash + 1, word.data() + word.size(), now);
        }
        facts.threads.push_back({"the host's limit on threads (kernel.threads-max)",
                                 "raise it with `sudo sysctl kernel.threads-max={}`", *most, now});
    }
}

void add_mappings(const ProcessSources& sources, ProcessFacts& facts) {
    if (const auto most = read_number(sources.proc + "/sys/vm/max_map_count")) {
        facts.mappings.push_back({"the limit on mappings of a process (vm.max_map_count)",
                                  "raise it with `sudo sysctl vm.max_map_count={}`", *most,
                                  count_lines(sources.proc + "/self/maps").value_or(0)});
    }
}

/// The descriptors that a program opens for itself between this check and the making of a machine. With them the advice
/// is large enough.
constexpr std::uint64_t kMoreDescriptors = 16;

std::string judge(std::uint64_t needed, const char* of_what, const std::vector<CountLimit>& limits,
                  std::uint64_t headroom = 0) {
    for (const CountLimit& limit : limits) {
        const std::uint64_t left = limit.limit > limit.used ? limit.limit - limit.used : 0;
        if (needed > left) {
            std::string advice = limit.advice;
            if (const std::size_t place = advice.find("{}"); place != std::string::npos) {
                advice.replace(place, 2, std::to_string(limit.used + needed + headroom));
            }
            return vmm::format("cannot run this machine: it takes up to {} {}, and {} is {}, with {} in use ({})",
                               needed, of_what, limit.what, limit.limit, limit.used, advice);
        }
    }
    return {};
}

std::optional<rlimit>& inherited() noexcept {
    static std::optional<rlimit> limit;
    return limit;
}

} // namespace

ProcessFacts read_process_facts(const ProcessSources& sources) {
    ProcessFacts facts;
    add_descriptors(sources, facts);
    add_threads(sources, facts);
    add_mappings(sources, facts);
    return facts;
}

std::string judge_process(const ProcessNeed& need, const ProcessFacts& facts) {
    if (auto refusal = judge(need.descriptors, "descriptors", facts.descriptors, kMoreDescriptors); !refusal.empty()) {
        return refusal;
    }
    if (auto refusal = judge(need.threads, "threads", facts.threads); !refusal.empty()) {
        return refusal;
    }
    return judge(need.mappings, "mappings", facts.mappings);
}

void raise_open_file_limit() noexcept {
    rlimit limit{};
    if (::getrlimit(RLIMIT_NOFILE, &limit) != 0 || limit.rlim_cur == limit.rlim_max) {
        return;
    }
    const rlimit before = limit;
    limit.rlim_cur = limit.rlim_max;
    if (::setrlimit(RLIMIT_NOFILE, &limit) == 0) {
        inherited() = before;
    }
}

void make_room_for_descriptors() noexcept {
    constexpr rlim_t kMany = 1024;
    rlimit limit{};
    if (::getrlimit(RLIMIT_NOFILE, &limit) != 0 || limit.rlim_cur == 0) {
        return;
    }
    const auto last = static_cast<int>(std::min(limit.rlim_cur, kMany) - 1);
    const UniqueFd copy(::fcntl(STDIN_FILENO, F_DUPFD_CLOEXEC, last));
}

std::optional<rlimit> inherited_open_file_limit() noexcept {
    return inherited();
}

} // namespace vmm
