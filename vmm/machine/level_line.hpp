// A level-triggered interrupt line of the in-kernel interrupt controller.
#pragma once

#include <cstdint>
#include <mutex>

#include "kvm/vm.hpp"

namespace vmm {

/// Stays where it is put until it is put elsewhere. Threads: any.
class LevelLine {
  public:
    /// After kvm::Vm::create_irqchip(). `vm` is not used after disconnect().
    LevelLine(const kvm::Vm& vm, std::uint32_t gsi) noexcept : vm_(&vm), gsi_(gsi) {}

    void set(bool up) noexcept {
        const std::lock_guard hold(lock_);
        if (vm_ != nullptr) {
            // KVM refuses only what is no line of its interrupt controllers.
            static_cast<void>(vm_->set_interrupt_line(gsi_, up));
        }
    }
    /// The VM ends: from now on nothing happens.
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
