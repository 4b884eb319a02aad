// An interrupt line of the in-kernel interrupt controller, raised through an eventfd.
#pragma once

#include <cstdint>

#include "devices/device.hpp"
#include "kvm/host/event_fd.hpp"
#include "kvm/vm.hpp"

namespace vmm {

/// Each raise() is one edge on `gsi`. The kernel delivers it without an exit of a vCPU. Threads: any.
class IrqfdLine final : public devices::IrqLine {
  public:
    /// After kvm::Vm::create_irqchip(). Throws Error.
    IrqfdLine(kvm::Vm& vm, std::uint32_t gsi) { vm.attach_irqfd(event_.fd(), gsi); }

    void raise() noexcept override { event_.signal(); }

  private:
    EventFd event_;
};

} // namespace vmm
