// The members of Vm that only an x86 VM has: PIC, I/O APIC and PIT, and the pages that real mode needs.
#include "kvm/vm.hpp"

#include <sys/ioctl.h>

#include <cerrno>

#include "kvm/host/error.hpp"

namespace vmm::kvm {

void Vm::create_irqchip() {
    if (::ioctl(fd_.get(), KVM_CREATE_IRQCHIP, 0) != 0) {
        throw_errno(errno, "create the in-kernel interrupt controllers");
    }
}

void Vm::create_pit() {
    kvm_pit_config config{};
    config.flags = KVM_PIT_SPEAKER_DUMMY;
    if (::ioctl(fd_.get(), KVM_CREATE_PIT2, &config) != 0) {
        throw_errno(errno, "create the in-kernel timer");
    }
}

void Vm::reserve_real_mode_pages(GuestAddress base) {
    constexpr std::uint64_t kTssBytes = 12 * kKiB; // three pages
    const std::uint64_t identity_map = to_integer(base) + kTssBytes;
    if (::ioctl(fd_.get(), KVM_SET_IDENTITY_MAP_ADDR, &identity_map) != 0 ||
        ::ioctl(fd_.get(), KVM_SET_TSS_ADDR, to_integer(base)) != 0) {
        throw_errno(errno, "reserve KVM's own pages at " + to_string(base));
    }
}

} // namespace vmm::kvm
