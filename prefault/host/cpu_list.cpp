#include "prefault/host/cpu_list.hpp"

#include <sched.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cstddef>
#include <iterator>
#include <system_error>

#include "kvm/host/error.hpp"

namespace vmm::prefault {

namespace {

/// A mask of any number of CPUs: several cpu_set_t in a row, as the CPU_*_S macros expect.
using CpuMask = std::vector<cpu_set_t>;

std::size_t size_in_bytes(const CpuMask& mask) {
    return mask.size() * sizeof(cpu_set_t);
}

/// Removes the number at the front of `text` and returns it. Returns nothing if there is none, or if it is kMaxCpus or
/// more.
std::optional<unsigned> take_number(std::string_view& text) {
    unsigned number = 0;
    const char* const end = text.data() + text.size();
    const auto [rest, error] = std::from_chars(text.data(), end, number);
    if (error != std::errc{} || number >= kMaxCpus) {
        return std::nullopt;
    }
    text = {rest, static_cast<std::size_t>(end - rest)};
    return number;
}

bool take_character(std::string_view& text, char character) {
    const bool there = text.starts_with(character);
    text.remove_prefix(there ? 1 : 0);
    return there;
}

} // namespace

std::optional<CpuList> parse_cpu_list(std::string_view text) {
    std::vector<bool> named(
        kMaxCpus); // Flags and not a list, because a text of overlapping ranges could make a list as long as it likes.
    do {
        const auto first = take_number(text);
        const auto last = first && take_character(text, '-') ? take_number(text) : first;
        if (!first || !last || *last < *first) {
            return std::nullopt;
        }
        std::fill(named.begin() + *first, named.begin() + *last + 1, true);
    } while (take_character(text, ','));
    if (!text.empty()) {
        return std::nullopt;
    }
    CpuList cpus;
    for (unsigned cpu = 0; cpu < kMaxCpus; ++cpu) {
        if (named[cpu]) {
            cpus.push_back(cpu);
        }
    }
    return cpus;
}

namespace {

/// `cpus` in ascending order, each once. An embedding program may give a list in any order.
CpuList in_order(std::span<const unsigned> cpus) {
    CpuList sorted(cpus.begin(), cpus.end());
    std::ranges::sort(sorted);
    const auto doubles = std::ranges::unique(sorted);
    sorted.erase(doubles.begin(), doubles.end());
    return sorted;
}

} // namespace

std::string format_cpu_list(std::span<const unsigned> cpus) {
    const CpuList list = in_order(cpus);
    std::string text;
    for (std::size_t first = 0; first < list.size();) {
        std::size_t last = first;
        while (last + 1 < list.size() && list[last + 1] == list[last] + 1) {
            ++last;
        }
        text += text.empty() ? "" : ",";
        text += std::to_string(list[first]);
        text += last > first ? "-" + std::to_string(list[last]) : "";
        first = last + 1;
    }
    return text;
}

CpuList usable_cpu_list() {
    // The kernel refuses a mask that is shorter than its own, and does not tell the length of its own.
    CpuMask mask(1);
    while (::sched_getaffinity(0, size_in_bytes(mask), mask.data()) != 0) {
        if (errno != EINVAL || mask.size() * CPU_SETSIZE >= kMaxCpus) {
            throw_errno(errno, "ask which CPUs this process may use");
        }
        mask.resize(mask.size() * 2);
    }
    CpuList cpus;
    for (unsigned cpu = 0; cpu < mask.size() * CPU_SETSIZE; ++cpu) {
        if (CPU_ISSET_S(cpu, size_in_bytes(mask), mask.data())) {
            cpus.push_back(cpu);
        }
    }
    return cpus;
}

void check_cpus_usable(std::span<const unsigned> cpus, std::string_view member) {
    if (cpus.empty()) {
        return;
    }
    const CpuList usable = usable_cpu_list();
    CpuList refused;
    std::ranges::set_difference(in_order(cpus), usable, std::back_inserter(refused));
    if (!refused.empty()) {
        throw Error("cannot use CPU" + std::string(refused.size() > 1 ? "s " : " ") + format_cpu_list(refused) +
                    " for " + std::string(member) + ": this process may use " + format_cpu_list(usable) +
                    " (see taskset and the cpuset of its cgroup)");
    }
}

void bind_this_thread(std::span<const unsigned> cpus) {
    if (cpus.empty()) {
        return;
    }
    // The mask is only as long as needed: the kernel ignores the bits that do not fit its own mask.
    const unsigned highest = *std::ranges::max_element(cpus);
    if (highest >= kMaxCpus) {
        throw Error("cannot run a thread on CPU " + std::to_string(highest) + ": the highest one possible is " +
                    std::to_string(kMaxCpus - 1));
    }
    CpuMask mask(highest / CPU_SETSIZE + 1);
    for (const unsigned cpu : cpus) {
        CPU_SET_S(cpu, size_in_bytes(mask), mask.data());
    }
    if (::sched_setaffinity(0, size_in_bytes(mask), mask.data()) != 0) {
        throw_errno(errno, "run a thread on CPUs " + format_cpu_list(cpus),
                    {{EINVAL, "none of them is online and allowed to this process: see taskset and the cpuset of its "
                              "cgroup"},
                     {EPERM, "a seccomp filter may forbid it: see that of the container"}});
    }
}

} // namespace vmm::prefault
