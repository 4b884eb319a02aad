#include "vmm/machine/x86/cpu_model.hpp"

#include <algorithm>
#include <array>
#include <numeric>
#include <optional>
#include <set>
#include <utility>

#include "kvm/host/error.hpp"
#include "kvm/host/text.hpp"
#include "vmm/machine/x86/cpu_features.hpp"

namespace vmm {

namespace {

using Names = std::set<std::string_view>;

constexpr std::uint32_t kExtendedState = 0xd;

// These are the levels of the x86-64 psABI. Each has all features of those before it.
constexpr auto kLevel1 =
    std::to_array<std::string_view>({"cmov", "cx8", "fpu", "fxsr", "mmx", "syscall", "sse", "sse2"});
constexpr auto kLevel2 =
    std::to_array<std::string_view>({"cx16", "lahf_lm", "popcnt", "pni", "sse4_1", "sse4_2", "ssse3"});
constexpr auto kLevel3 =
    std::to_array<std::string_view>({"avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "abm", "movbe", "xsave"});
constexpr auto kLevel4 = std::to_array<std::string_view>({"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"});
constexpr std::array<std::span<const std::string_view>, 4> kLevels{kLevel1, kLevel2, kLevel3, kLevel4};

/// Features of every processor with long mode that are not in a level, and features that the machine adds. If the base
/// is a list, the guest has such a feature if the host has it.
constexpr auto kSystemFeatures =
    std::to_array<std::string_view>({"vme",        "de",  "pse",  "tsc", "msr",        "pae",    "mce",
                                     "apic",       "sep", "mtrr", "pge", "mca",        "pat",    "pse36",
                                     "clflush",    "ht",  "nx",   "lm",  "hypervisor", "x2apic", "tsc_deadline_timer",
                                     "cmp_legacy", "arat"});

/// Features that the boot protocols, the prefault vCPUs and the local APICs need.
constexpr auto kIndispensable = std::to_array<std::string_view>({"fpu", "tsc", "msr", "pae", "cx8", "apic", "lm"});

/// Leaves that describe one host alone. If the base is a list, they are zeros.
constexpr auto kHostLeaves = std::to_array<std::uint32_t>(
    {0xa, 0x12, 0x14, 0x19, 0x1c, 0x1d, 0x1e, 0x23, 0x24, 0x8000001b, 0x8000001f, 0x80000021, 0x80000022});

struct BaseName {
    std::string_view name;
    CpuModel::Base base;
};
constexpr auto kBases = std::to_array<BaseName>({{"host", CpuModel::Base::kHost},
                                                 {"x86-64", CpuModel::Base::kV1},
                                                 {"x86-64-v1", CpuModel::Base::kV1},
                                                 {"x86-64-v2", CpuModel::Base::kV2},
                                                 {"x86-64-v3", CpuModel::Base::kV3},
                                                 {"x86-64-v4", CpuModel::Base::kV4}});

/// Other names of features.
struct OtherName {
    std::string_view other;
    std::string_view name;
};
constexpr auto kOtherNames = std::to_array<OtherName>({{"sse3", "pni"},
                                                       {"lzcnt", "abm"},
                                                       {"sha", "sha_ni"},
                                                       {"invtsc", "nonstop_tsc"},
                                                       {"pclmul", "pclmulqdq"},
                                                       {"osxsave", "xsave"},
                                                       {"spec_ctrl", "ibrs"},
                                                       {"1gb-pages", "pdpe1gb"},
                                                       {"cmpxchg16b", "cx16"},
                                                       {"xd", "nx"},
                                                       {"tsc_deadline", "tsc_deadline_timer"},
                                                       {"sse5", "xop"}});

/// The number of characters that must be changed, added or removed to turn one word into the other.
std::size_t distance(std::string_view a, std::string_view b) {
    std::vector<std::size_t> row(b.size() + 1);
    std::iota(row.begin(), row.end(), std::size_t{0});
    for (std::size_t i = 1; i <= a.size(); ++i) {
        std::size_t diagonal = std::exchange(row[0], i);
        for (std::size_t j = 1; j <= b.size(); ++j) {
            const std::size_t changed = diagonal + (a[i - 1] == b[j - 1] ? 0 : 1);
            diagonal = row[j];
            row[j] = std::min({row[j] + 1, row[j - 1] + 1, changed});
        }
    }
    return row.back();
}

template <typename Range>
std::string list_of(const Range& names, std::string_view last_word = {}) {
    std::string text;
    std::size_t left = std::size(names);
    for (const auto& name : names) {
        --left;
        text += (text.empty()                      ? std::string()
                 : left == 0 && !last_word.empty() ? " " + std::string(last_word) + " "
                                                   : std::string(", ")) +
                std::string(name);
    }
    return text;
}

/// The names among `known` that a person may have meant: at most three, the nearest first.
std::vector<std::string_view> near_names(const std::string& word, std::span<const std::string_view> known) {
    constexpr std::size_t kMost = 3;
    std::string wanted = word;
    std::ranges::replace(wanted, '-', '_');
    std::ranges::replace(wanted, '.', '_');
    std::vector<std::pair<std::size_t, std::string_view>> near;
    for (const auto& [other, name] : kOtherNames) {
        if (word == other || wanted == other) {
            near.emplace_back(0, name);
        }
    }
    for (const std::string_view name : known) {
        std::string comparable(name);
        std::ranges::replace(comparable, '-', '_');
        const std::size_t apart = distance(wanted, comparable);
        const bool begins_alike = wanted.size() >= 3 && comparable.starts_with(wanted);
        if (apart <= (word.size() <= 3 ? 1U : word.size() <= 8 ? 2U : 3U) || begins_alike) {
            near.emplace_back(std::min<std::size_t>(apart, 4), name);
        }
    }
    std::ranges::sort(near);
    std::vector<std::string_view> names;
    for (const auto& [apart, name] : near) {
        if (names.size() < kMost && std::ranges::find(names, name) == names.end()) {
            names.push_back(name);
        }
    }
    return names;
}

std::string did_you_mean(const std::string& word, std::span<const std::string_view> known) {
    const auto near = near_names(word, known);
    return near.empty() ? std::string() : "; did you mean " + list_of(near, "or") + "?";
}

/// The features that cannot be used without one of `names`, and `names` themselves.
Names with_dependents(Names names) {
    for (std::size_t before = 0; before != names.size();) {
        before = names.size();
        for (const auto& [feature, needs] : cpu_feature_needs()) {
            if (names.contains(needs)) {
                names.insert(feature);
            }
        }
    }
    return names;
}

/// The features without which `names` cannot be used, and `names` themselves.
Names with_needs(Names names) {
    for (std::size_t before = 0; before != names.size();) {
        before = names.size();
        for (const auto& [feature, needs] : cpu_feature_needs()) {
            if (names.contains(feature)) {
                names.insert(needs);
            }
        }
    }
    return names;
}

std::vector<std::string_view> sorted(const Names& names) {
    return {names.begin(), names.end()};
}

bool contains(std::span<const std::string_view> sorted_names, std::string_view name) {
    return std::ranges::binary_search(sorted_names, name);
}

/// Returns the name from the table, because it outlives `word`.
std::optional<std::string_view> known_name(std::string_view word) {
    for (const CpuFeatureBit& feature : cpu_feature_bits()) {
        if (feature.name == word) {
            return feature.name;
        }
    }
    return std::nullopt;
}

const kvm_cpuid_entry2* find(std::span<const kvm_cpuid_entry2> cpuid, std::uint32_t function, std::uint32_t index) {
    const auto found = std::ranges::find_if(
        cpuid, [&](const kvm_cpuid_entry2& entry) { return entry.function == function && entry.index == index; });
    return found == cpuid.end() ? nullptr : &*found;
}

void clear(kvm_cpuid_entry2& entry) {
    entry.eax = entry.ebx = entry.ecx = entry.edx = 0;
}

/// Removes the parts in `mask` from leaf 0xd: from the lists of components, and from the sizes (Intel SDM volume 2,
/// CPUID, leaf 0xd).
void remove_state_components(std::vector<kvm_cpuid_entry2>& cpuid, std::uint64_t mask) {
    constexpr std::uint32_t kLegacyBytes = 576;   // x87, SSE and the header, which are always there
    constexpr std::uint32_t kSupervisorState = 1; // ECX of a component
    std::uint32_t bytes = kLegacyBytes;
    bool has_xsaves = false;
    if (const kvm_cpuid_entry2* const more = find(cpuid, kExtendedState, 1)) {
        has_xsaves = (more->eax & (1U << 3)) != 0;
    }
    for (kvm_cpuid_entry2& entry : cpuid) {
        if (entry.function != kExtendedState || entry.index < 2 || entry.index > 63) {
            continue;
        }
        const bool is_supervisors = (entry.ecx & kSupervisorState) != 0;
        if (((mask >> entry.index) & 1) != 0 || (is_supervisors && !has_xsaves)) {
            clear(entry);
        } else if (!is_supervisors) {
            bytes = std::max(bytes, entry.ebx + entry.eax);
        }
    }
    for (kvm_cpuid_entry2& entry : cpuid) {
        if (entry.function != kExtendedState) {
            continue;
        }
        if (entry.index == 0) {
            entry.eax &= ~static_cast<std::uint32_t>(mask);
            entry.edx &= ~static_cast<std::uint32_t>(mask >> 32);
            entry.ecx = std::min(entry.ecx, bytes);
            // This is the size of the parts that are switched on. From here on KVM keeps it up to date.
            entry.ebx = std::min(entry.ebx, bytes);
        } else if (entry.index == 1) {
            entry.ecx &= has_xsaves ? ~static_cast<std::uint32_t>(mask) : 0;
            entry.edx &= has_xsaves ? ~static_cast<std::uint32_t>(mask >> 32) : 0;
        }
    }
}

/// One word with its sign.
struct Change {
    bool add;
    std::string_view feature;
};

Change parse_change(const std::string& word, const std::string& tried) {
    const std::string name = word.substr(word.empty() ? 0 : 1);
    const auto names = cpu_feature_names();
    if (word.empty() || (word[0] != '+' && word[0] != '-')) {
        throw Error(tried + ": '" + word + "' begins with neither + nor - (write " +
                    (word.empty() ? "e.g. -x2apic" : "+" + word + " or -" + word) + ")");
    }
    const auto feature = known_name(name);
    if (!feature) {
        throw Error(tried + ": there is no feature '" + name + "' (they are called as in /proc/cpuinfo" +
                    did_you_mean(name, names) + ")");
    }
    return {word[0] == '+', *feature};
}

CpuModel::Base parse_base(const std::string& word, const std::string& tried) {
    for (const auto& [name, base] : kBases) {
        if (name == word) {
            return base;
        }
    }
    throw Error(tried + ": '" + word + "' is no processor: it is " + list_of(cpu_base_names(), "or"));
}

} // namespace

std::vector<std::string_view> cpu_base_names() {
    std::vector<std::string_view> names;
    for (const BaseName& base : kBases) {
        names.push_back(base.name);
    }
    return names;
}

std::vector<std::string_view> cpu_feature_names() {
    Names names;
    for (const CpuFeatureBit& feature : cpu_feature_bits()) {
        names.insert(feature.name);
    }
    return sorted(names);
}

bool has_cpu_feature(std::span<const kvm_cpuid_entry2> cpuid, std::string_view feature) {
    return std::ranges::any_of(cpu_feature_bits(), [&](const CpuFeatureBit& known) {
        const kvm_cpuid_entry2* const entry =
            known.name == feature ? find(cpuid, known.word.function, known.word.index) : nullptr;
        return entry != nullptr && ((entry->*known.word.register_ >> known.bit) & 1) != 0;
    });
}

CpuModel CpuModel::parse(std::string_view text, bool nested) {
    constexpr std::size_t kMostBytes = 16384;
    if (text.size() > kMostBytes) {
        throw Error("cannot give the guest the processor that was asked for: its description has more than " +
                    std::to_string(kMostBytes) + " bytes");
    }
    const std::string tried = "cannot give the guest the processor '" + std::string(text) + "'";
    const std::vector<std::string> words = split(lower_case(text), ',');
    CpuModel model;
    model.text_ = text;
    model.nested_ = nested;
    model.base_ = parse_base(words.front(), tried);
    Names added;
    Names removed;
    for (std::size_t i = 1; i < words.size(); ++i) {
        const Change change = parse_change(words[i], tried);
        (change.add ? added : removed).insert(change.feature);
    }
    for (const std::string_view feature : removed) {
        if (std::ranges::find(kIndispensable, feature) != kIndispensable.end()) {
            throw Error(tried + ": no guest can do without " + std::string(feature));
        }
    }
    if (!nested && (added.contains("vmx") || added.contains("svm"))) {
        throw Error(tried + ": guests of its own are switched on by Config::nested=true");
    }
    if (!nested) {
        removed.insert({"vmx", "svm"});
    }
    const Names hidden = with_dependents(removed);
    for (const std::string_view feature : added) {
        if (removed.contains(feature)) {
            throw Error(tried + ": " + std::string(feature) + " is both asked for and taken away");
        }
        if (hidden.contains(feature)) {
            const Names needs = with_needs({feature});
            const auto missing = std::ranges::find_if(needs, [&](auto name) { return removed.contains(name); });
            throw Error(tried + ": " + std::string(feature) + " needs " + std::string(*missing) +
                        ", which is taken away");
        }
    }
    Names kept(kSystemFeatures.begin(), kSystemFeatures.end());
    Names wanted = with_needs(added);
    if (model.base_ != Base::kHost) {
        const auto levels = static_cast<std::size_t>(model.base_);
        for (std::size_t level = 0; level < levels; ++level) {
            for (const std::string_view feature : kLevels.at(level)) {
                if (!hidden.contains(feature)) {
                    wanted.insert(feature);
                }
            }
        }
    }
    kept.insert(wanted.begin(), wanted.end());
    if (nested) {
        kept.insert({"vmx", "svm"});
    }
    model.hidden_ = sorted(hidden);
    model.kept_ = sorted(kept);
    model.wanted_ = sorted(wanted);
    return model;
}

bool CpuModel::hides(std::string_view feature) const {
    return contains(hidden_, feature) || (base_ != Base::kHost && !contains(kept_, feature));
}

std::uint32_t CpuModel::mask_of(const CpuidWord& word) const {
    std::uint32_t hidden = 0;
    std::uint32_t kept = 0;
    bool is_of_features = false;
    for (const CpuFeatureBit& feature : cpu_feature_bits()) {
        if (feature.word == word) {
            is_of_features = true;
            hidden |= contains(hidden_, feature.name) ? 1U << feature.bit : 0U;
            kept |= hides(feature.name) ? 0U : 1U << feature.bit;
        }
    }
    const bool only_kept = is_of_features && base_ != Base::kHost;
    return (only_kept ? kept : ~std::uint32_t{0}) & ~hidden;
}

std::vector<kvm_cpuid_entry2> CpuModel::applied_to(std::vector<kvm_cpuid_entry2> cpuid) const {
    const bool is_list = base_ != Base::kHost;
    for (kvm_cpuid_entry2& entry : cpuid) {
        for (const auto member :
             {&kvm_cpuid_entry2::eax, &kvm_cpuid_entry2::ebx, &kvm_cpuid_entry2::ecx, &kvm_cpuid_entry2::edx}) {
            entry.*member &= mask_of({entry.function, entry.index, member});
        }
        if (is_list && std::ranges::find(kHostLeaves, entry.function) != kHostLeaves.end()) {
            clear(entry);
        }
    }
    constexpr std::uint64_t kX87AndSse = 3;
    std::uint64_t unused = is_list ? ~kX87AndSse : 0;
    for (const CpuStateComponent& component : cpu_state_components()) {
        unused |= std::uint64_t{1} << component.bit;
    }
    for (const CpuStateComponent& component : cpu_state_components()) {
        if (has_cpu_feature(cpuid, component.feature)) {
            unused &= ~(std::uint64_t{1} << component.bit);
        }
    }
    remove_state_components(cpuid, unused);
    for (const CpuFeatureLeaf& leaf : cpu_feature_leaves()) {
        if (!has_cpu_feature(cpuid, leaf.feature)) {
            for (kvm_cpuid_entry2& entry : cpuid) {
                if (entry.function == leaf.function) {
                    clear(entry);
                }
            }
        }
    }
    return cpuid;
}

void CpuModel::check_offered(std::span<const kvm_cpuid_entry2> offered) const {
    std::vector<std::string_view> missing;
    std::ranges::copy_if(wanted_, std::back_inserter(missing),
                         [&](std::string_view feature) { return !has_cpu_feature(offered, feature); });
    if (!missing.empty()) {
        throw Error("cannot give the guest the processor '" + text_ + "': this host's KVM does not offer " +
                    list_of(missing, "and") +
                    (base_ == Base::kHost
                         ? " (leave out what is asked for there)"
                         : " (take a lower level, or take away what is missing, as in x86-64-v3,-abm)"));
    }
    if (nested_ && !has_cpu_feature(offered, "vmx") && !has_cpu_feature(offered, "svm")) {
        throw Error(
            "cannot let the guest have guests of its own (Config::nested=true): this host's KVM offers neither VMX nor "
            "SVM (load kvm_intel or kvm_amd with nested=1; where this host is a guest itself, its own host has "
            "to offer nesting, too)");
    }
}

} // namespace vmm
