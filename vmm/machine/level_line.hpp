// A level-triggered interrupt line of the in-kernel interrupt controller.
#pragma once

#include <cstdint>
#include <mutex>

#include "kvm/vm.hpp"

namespace vmm {

/// The line keeps its level until set() changes it. Threads: any.
class LevelLine {
  public:
    /// It must be called after kvm::Vm::create_irqchip(). `vm` is not used after disconnect().
    LevelLine(const kvm::Vm& vm, std::uint32_t gsi) noexcept : vm_(&vm), gsi_(gsi) {}

    void set(bool up) noexcept {
        const std::lock_guard hold(lock_);
        if (vm_ != nullptr) {
            // KVM refuses only numbers that are no lines of its interrupt controllers.
            static_cast<void>(vm_->set_interrupt_line(gsi_, up));
        }
    }
    /// Must be called before the VM ends. From then on set() does nothing.
    void disconnect() noexcept {
        const std::lock_guard hold(lock_);
        vm_ = nullptr;
    }

  private:
    std::mutex lock_;
    const kvm::Vm* vm_;
    std::uint32_t gsi_;
};

} // namespace vmm
