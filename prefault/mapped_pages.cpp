#include "prefault/mapped_pages.hpp"

#include "kvm/host/error.hpp"

namespace vmm::prefault {

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
