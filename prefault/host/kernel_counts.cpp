#include "prefault/host/kernel_counts.hpp"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <functional>
#include <span>

namespace vmm::prefault {

namespace {

enum class Cause { kCollapse, kCompaction, kKsm, kNuma, kDemotion, kSwap, kSplit, kMigration };

constexpr std::array<std::string_view, 8> kWords{"khugepaged",
                                                 "compaction",
                                                 "KSM",
                                                 "NUMA balancing",
                                                 "demotion to slower memory",
                                                 "swap",
                                                 "the splitting of huge pages",
                                                 "migration of pages"};

struct Counter {
    std::string_view name;
    Cause cause;
    unsigned pages;        ///< the pages that one count stands for
    bool migrates = false; ///< whether pgmigrate_success counts the same pages
};

constexpr unsigned kHuge = 512;

/// The last entry is not a line of vmstat.
constexpr std::array<Counter, KernelCounts::kCounters> kTable{{
    {"thp_collapse_alloc", Cause::kCollapse, kHuge},
    {"compact_isolated", Cause::kCompaction, 1, true},
    {"cow_ksm", Cause::kKsm, 1},
    {"ksm_swpin_copy", Cause::kKsm, 1},
    {"numa_pte_updates", Cause::kNuma, 1},
    {"numa_huge_pte_updates", Cause::kNuma, kHuge},
    {"numa_pages_migrated", Cause::kNuma, 1, true},
    {"pgdemote_kswapd", Cause::kDemotion, 1, true},
    {"pgdemote_direct", Cause::kDemotion, 1, true},
    {"pgdemote_khugepaged", Cause::kDemotion, 1, true},
    {"pswpout", Cause::kSwap, 1},
    {"pswpin", Cause::kSwap, 1},
    {"zswpout", Cause::kSwap, 1},
    {"thp_swpout", Cause::kSwap, kHuge},
    {"thp_split_page", Cause::kSplit, kHuge},
    {"thp_split_pmd", Cause::kSplit, kHuge},
    {"thp_underused_split_page", Cause::kSplit, kHuge},
    {"pgmigrate_success", Cause::kMigration, 1},
    {"thp_migration_success", Cause::kMigration, 0}, // Its pages are also counted by the entry before.
    {"ksm/pages_sharing", Cause::kKsm, 1},
}};
constexpr std::size_t kKsmSharing = kTable.size() - 1;

/// The most bytes that are read from a file. vmstat has about 4 KiB.
constexpr std::size_t kMostBytes = 32 * std::size_t{1024};

UniqueFd open_if_there(const std::string& path) {
    return UniqueFd(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
}

/// Returns the whole content of a file; empty if it cannot be read.
std::string_view read_whole(int fd, std::span<char> buffer) {
    std::size_t done = 0;
    while (fd >= 0 && done < buffer.size()) {
        const ssize_t count = ::pread(fd, buffer.data() + done, buffer.size() - done, static_cast<off_t>(done));
        if (count <= 0) {
            break;
        }
        done += static_cast<std::size_t>(count);
    }
    return {buffer.data(), done};
}

std::optional<std::uint64_t> parse_number(std::string_view text) {
    std::uint64_t number = 0;
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
    return error == std::errc{} && end != text.data() ? std::optional(number) : std::nullopt;
}

std::uint64_t rise_of(const KernelCounts::Values& before, const KernelCounts::Values& after, std::size_t index) {
    return before[index] && after[index] && *after[index] > *before[index] ? *after[index] - *before[index] : 0;
}

} // namespace

KernelCounts::KernelCounts(const std::string& root)
    : vmstat_(open_if_there(root + "/proc/vmstat")), ksm_(open_if_there(root + "/sys/kernel/mm/ksm/pages_sharing")) {}

KernelCounts::Values KernelCounts::read() const {
    Values values;
    std::array<char, kMostBytes> buffer; // NOLINT(cppcoreguidelines-pro-type-member-init): read before it is looked at
    std::string_view text = read_whole(vmstat_.get(), buffer);
    while (!text.empty()) {
        const std::string_view line = text.substr(0, std::min(text.find('\n'), text.size()));
        text.remove_prefix(std::min(line.size() + 1, text.size()));
        const std::size_t blank = line.find(' ');
        if (blank == std::string_view::npos) {
            continue;
        }
        const auto* const counter = std::ranges::find(kTable, line.substr(0, blank), &Counter::name);
        if (counter != kTable.end()) {
            values[static_cast<std::size_t>(counter - kTable.begin())] = parse_number(line.substr(blank + 1));
        }
    }
    values[kKsmSharing] = parse_number(read_whole(ksm_.get(), buffer));
    return values;
}

std::vector<std::string> KernelCounts::causes(const Values& before, const Values& after) {
    struct Weight {
        std::string_view words;
        std::uint64_t pages = 0;
    };
    std::array<Weight, kWords.size()> weights;
    std::ranges::transform(kWords, weights.begin(), [](std::string_view words) { return Weight{words}; });
    std::uint64_t explained = 0;
    for (std::size_t index = 0; index < kTable.size(); ++index) {
        const std::uint64_t pages = rise_of(before, after, index) * kTable[index].pages;
        weights.at(static_cast<std::size_t>(kTable[index].cause)).pages += pages;
        explained += kTable[index].migrates ? pages : 0;
    }
    std::uint64_t& migrated = weights.at(static_cast<std::size_t>(Cause::kMigration)).pages;
    migrated -= std::min(migrated, explained);
    std::ranges::stable_sort(weights, std::ranges::greater{}, &Weight::pages);
    std::vector<std::string> causes;
    for (const Weight& weight : weights) {
        if (weight.pages != 0) {
            causes.emplace_back(weight.words);
        }
    }
    return causes;
}

std::vector<std::pair<std::string_view, std::uint64_t>> KernelCounts::rises(const Values& before, const Values& after) {
    std::vector<std::pair<std::string_view, std::uint64_t>> rises;
    for (std::size_t index = 0; index < kTable.size(); ++index) {
        if (const std::uint64_t rise = rise_of(before, after, index); rise != 0) {
            rises.emplace_back(kTable[index].name, rise);
        }
    }
    return rises;
}

} // namespace vmm::prefault
