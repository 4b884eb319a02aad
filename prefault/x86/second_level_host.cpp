#include "prefault/x86/second_level_host.hpp"

#include <cpuid.h>

#include <array>
#include <cstring>
#include <fstream>
#include <string>

#include "kvm/host/error.hpp"
#include "kvm/system.hpp"
#include "kvm/uapi.hpp"
#include "kvm/vm.hpp"

#ifndef KVM_CAP_X86_APIC_BUS_CYCLES_NS
#define KVM_CAP_X86_APIC_BUS_CYCLES_NS 237 // Linux 6.11
#endif

namespace vmm::prefault {

namespace {

constexpr const char* kSysfsModule = "/sys/module";

/// Reads a module parameter: Y or 1 is true, N or 0 is false. Returns nothing if it is neither, or cannot be read.
std::optional<bool> parameter(std::string_view sysfs_module, std::string_view name) {
    std::ifstream file(std::string(sysfs_module) + "/" + std::string(name));
    char value = 0;
    if (!(file >> value) || std::string_view("YN10").find(value) == std::string_view::npos) {
        return std::nullopt;
    }
    return value == 'Y' || value == '1';
}

bool is_amd_processor() {
    std::array<unsigned, 4> leaf{};
    if (__get_cpuid(0, leaf.data(), &leaf[1], &leaf[2], &leaf[3]) == 0) {
        return false;
    }
    std::array<char, 13> vendor{};
    std::memcpy(vendor.data(), &leaf[1], 4);
    std::memcpy(vendor.data() + 4, &leaf[3], 4);
    std::memcpy(vendor.data() + 8, &leaf[2], 4);
    const std::string_view name(vendor.data());
    return name == "AuthenticAMD" || name == "HygonGenuine";
}

} // namespace

bool host_is_guest() noexcept {
    constexpr unsigned kHypervisorBit = 1U << 31;
    unsigned eax = 0;
    unsigned ebx = 0;
    unsigned ecx = 0;
    unsigned edx = 0;
    return __get_cpuid(1, &eax, &ebx, &ecx, &edx) != 0 && (ecx & kHypervisorBit) != 0;
}

namespace {

template <typename Asked>
PagingAnswers ask(const Asked& asked) {
    return {asked.extension(KVM_CAP_PRE_FAULT_MEMORY) != 0, asked.extension(KVM_CAP_X86_APIC_BUS_CYCLES_NS) != 0,
            asked.extension(KVM_CAP_SMALLER_MAXPHYADDR) != 0, is_amd_processor(), host_is_guest()};
}

} // namespace

std::string_view to_string(SecondLevelKind kind) noexcept {
    switch (kind) {
    case SecondLevelKind::kNpt:
        return "npt";
    case SecondLevelKind::kEpt:
        return "ept";
    case SecondLevelKind::kShadow:
        return "shadow";
    case SecondLevelKind::kUnknown:
        return "unknown";
    }
    return "?";
}

SecondLevelKind second_level_kind(const PagingAnswers& answers) noexcept {
    const SecondLevelKind nested = answers.is_amd ? SecondLevelKind::kNpt : SecondLevelKind::kEpt;
    if (answers.pre_fault_memory || !answers.smaller_maxphyaddr) {
        return nested;
    }
    return answers.apic_bus_cycles || answers.is_amd ? SecondLevelKind::kShadow : SecondLevelKind::kUnknown;
}

namespace {

/// What is known about a second level of `kind`, together with the module parameters.
SecondLevelHost host_of(SecondLevelKind kind, std::string_view sysfs_module, bool is_guest) {
    SecondLevelHost host;
    host.kind = kind;
    host.nested = is_guest;
    if (kind == SecondLevelKind::kUnknown) {
        return host;
    }
    if (kind == SecondLevelKind::kShadow) {
        host.tdp_mmu = false;
        host.accessed_dirty = false;
        return host;
    }
    host.tdp_mmu = parameter(sysfs_module, "kvm/parameters/tdp_mmu");
    host.accessed_dirty = kind == SecondLevelKind::kNpt ? true // AMD64 volume 2, 15.25.8.
                                                        : parameter(sysfs_module, "kvm_intel/parameters/eptad");
    return host;
}

} // namespace

SecondLevelHost detect_second_level(std::string_view sysfs_module, bool is_guest) {
    const auto npt = parameter(sysfs_module, "kvm_amd/parameters/npt");
    const auto ept = parameter(sysfs_module, "kvm_intel/parameters/ept");
    SecondLevelKind kind = SecondLevelKind::kUnknown;
    if (npt.value_or(false)) {
        kind = SecondLevelKind::kNpt;
    } else if (ept.value_or(false)) {
        kind = SecondLevelKind::kEpt;
    } else if (npt || ept) {
        kind = SecondLevelKind::kShadow;
    }
    return host_of(kind, sysfs_module, is_guest);
}

SecondLevelHost detect_second_level(const PagingAnswers& answers, std::string_view sysfs_module) {
    const SecondLevelKind kind = second_level_kind(answers);
    return kind == SecondLevelKind::kUnknown ? detect_second_level(sysfs_module, answers.is_guest)
                                             : host_of(kind, sysfs_module, answers.is_guest);
}

SecondLevelHost detect_second_level() {
    std::optional<PagingAnswers> answers;
    try {
        answers = ask(kvm::System());
    } catch (const Error&) { // Other users of KVM report why it cannot be opened.
    }
    return answers ? detect_second_level(*answers, kSysfsModule) : detect_second_level(kSysfsModule);
}

SecondLevelHost detect_second_level(const kvm::Vm& vm) {
    return detect_second_level(ask(vm), kSysfsModule);
}

} // namespace vmm::prefault
