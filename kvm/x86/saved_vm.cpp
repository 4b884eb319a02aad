#include "kvm/x86/saved_vm.hpp"

#include <sys/ioctl.h>

#include <cerrno>
#include <ctime>

#include "kvm/host/error.hpp"

namespace vmm::kvm {

namespace {

std::uint64_t realtime_now_ns() {
    timespec now{};
    ::clock_gettime(CLOCK_REALTIME, &now);
    constexpr std::uint64_t kNanoseconds = 1'000'000'000;
    return static_cast<std::uint64_t>(now.tv_sec) * kNanoseconds + static_cast<std::uint64_t>(now.tv_nsec);
}

} // namespace

VmState save_vm(const Vm& vm) {
    VmState state;
    if (::ioctl(vm.fd(), KVM_GET_CLOCK, &state.clock) != 0) {
        throw_errno(errno, "save the guest's clock");
    }
    state.realtime_ns = realtime_now_ns();
    for (std::uint32_t chip = 0; chip < state.interrupt_controllers.size(); ++chip) {
        state.interrupt_controllers[chip].chip_id = chip;
        if (::ioctl(vm.fd(), KVM_GET_IRQCHIP, &state.interrupt_controllers[chip]) != 0) {
            throw_errno(errno, "save the interrupt controllers");
        }
    }
    if (::ioctl(vm.fd(), KVM_GET_PIT2, &state.timer) != 0) {
        throw_errno(errno, "save the timer (i8254)");
    }
    return state;
}

void restore_interrupts(Vm& vm, const VmState& state) {
    for (std::uint32_t chip = 0; chip < state.interrupt_controllers.size(); ++chip) {
        kvm_irqchip copy = state.interrupt_controllers[chip];
        copy.chip_id = chip;
        if (::ioctl(vm.fd(), KVM_SET_IRQCHIP, &copy) != 0) {
            throw_errno(errno, "restore the interrupt controllers");
        }
    }
    kvm_pit_state2 timer = state.timer;
    if (::ioctl(vm.fd(), KVM_SET_PIT2, &timer) != 0) {
        throw_errno(errno, "restore the timer (i8254)");
    }
}

std::uint64_t elapsed_ns(const VmState& state, ClockPolicy policy) {
    if (policy == ClockPolicy::kStopped) {
        return 0;
    }
    const std::uint64_t now = realtime_now_ns();
    return now > state.realtime_ns ? now - state.realtime_ns : 0;
}

void restore_clock(Vm& vm, const VmState& state, std::uint64_t later_ns) {
    kvm_clock_data clock{};
    clock.clock = state.clock.clock + later_ns;
    if (::ioctl(vm.fd(), KVM_SET_CLOCK, &clock) != 0) {
        throw_errno(errno, "restore the guest's clock");
    }
}

} // namespace vmm::kvm
