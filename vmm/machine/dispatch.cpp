#include "vmm/machine/dispatch.hpp"

#include <algorithm>
#include <variant>

namespace vmm {

namespace {

class Dispatcher {
  public:
    Dispatcher(devices::Bus& ports, devices::Bus& mmio) : ports_(ports), mmio_(mmio) {}

    AfterExit operator()(const kvm::PioExit& exit) const {
        // A string instruction is `count` accesses to the same port. The kernel bounds it to a page.
        for (std::size_t offset = 0; exit.width != 0 && offset < exit.data.size(); offset += exit.width) {
            const auto item = exit.data.subspan(offset, std::min<std::size_t>(exit.width, exit.data.size() - offset));
            if (exit.is_write) {
                ports_.write(exit.port, item);
            } else {
                ports_.read(exit.port, item);
            }
        }
        return {};
    }
    AfterExit operator()(const kvm::MmioExit& exit) const {
        if (exit.is_write) {
            mmio_.write(exit.address, exit.data);
        } else {
            mmio_.read(exit.address, exit.data);
        }
        return {};
    }
    AfterExit operator()(const kvm::HaltExit& /*exit*/) const { return {}; }
    AfterExit operator()(const kvm::ShutdownExit& /*exit*/) const {
        return {AfterExit::Next::kCrash,
                "triple fault (an exception it could not handle; on AMD the registers below may "
                "be those of a reset)"};
    }
    AfterExit operator()(const kvm::KickedExit& /*exit*/) const { return {}; }
    AfterExit operator()(const kvm::FaultExit& exit) const { return {AfterExit::Next::kCrash, exit.what}; }

  private:
    devices::Bus& ports_;
    devices::Bus& mmio_;
};

} // namespace

AfterExit dispatch(const kvm::Exit& exit, devices::Bus& ports, devices::Bus& mmio) {
    return std::visit(Dispatcher(ports, mmio), exit);
}

} // namespace vmm
