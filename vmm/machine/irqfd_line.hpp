// An interrupt line of the in-kernel interrupt controller, raised through an eventfd.
#pragma once

#include <atomic>
#include <cstdint>

#include "devices/device.hpp"
#include "kvm/host/event_fd.hpp"
#include "kvm/vm.hpp"

namespace vmm {

/// Each raise() is one edge on `gsi`. The kernel delivers it without an exit of a vCPU. Threads: any.
class IrqfdLine final : public devices::IrqLine {
  public:
    /// It must be called after kvm::Vm::create_irqchip(). Throws Error.
    IrqfdLine(kvm::Vm& vm, std::uint32_t gsi) { vm.attach_irqfd(event_.fd(), gsi); }

    void raise() noexcept override {
        raised_.fetch_add(1, std::memory_order_relaxed);
        event_.signal();
    }
    /// How often it was raised.
    [[nodiscard]] std::uint64_t raised() const noexcept { return raised_.load(std::memory_order_relaxed); }

  private:
    EventFd event_;
    std::atomic<std::uint64_t> raised_{0};
};

} // namespace vmm
