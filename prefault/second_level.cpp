#include "prefault/second_level.hpp"

#include <fstream>
#include <string>

#include "kvm/error.hpp"

namespace vmm::prefault {

namespace {

/// Module parameters say Y or 1 for true.
bool parameter_is_on(std::string_view sysfs_module, std::string_view parameter) {
    std::ifstream file(std::string(sysfs_module) + "/" + std::string(parameter));
    char value = 'N';
    return (file >> value) && (value == 'Y' || value == '1');
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
    }
    return "?";
}

SecondLevelHost detect_second_level(std::string_view sysfs_module) {
    SecondLevelHost host;
    if (parameter_is_on(sysfs_module, "kvm_amd/parameters/npt")) {
        host.kind = SecondLevelKind::kNpt;
        host.accessed_dirty = true; // NPT has them always (AMD64 volume 2, 15.25.8).
    } else if (parameter_is_on(sysfs_module, "kvm_intel/parameters/ept")) {
        host.kind = SecondLevelKind::kEpt;
        host.accessed_dirty = parameter_is_on(sysfs_module, "kvm_intel/parameters/eptad");
    }
    host.tdp_mmu = host.kind != SecondLevelKind::kShadow && parameter_is_on(sysfs_module, "kvm/parameters/tdp_mmu");
    return host;
}

MappedPages mapped_pages(const kvm::Stats& vm_stats) {
    const auto small = vm_stats.value("pages_4k");
    const auto large = vm_stats.value("pages_2m");
    const auto huge = vm_stats.value("pages_1g");
    if (!small || !large || !huge) {
        throw Error(
            "cannot verify the second level: this KVM does not count pages_4k, pages_2m and pages_1g (they came "
            "with Linux 5.14)");
    }
    return {*small, *large, *huge};
}

} // namespace vmm::prefault
