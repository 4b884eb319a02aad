#include "vmm/machine/pci_root.hpp"

#include <cassert>
#include <exception>
#include <utility>

#include "devices/pci/host_bridge.hpp"
#include "kvm/host/error.hpp"
#include "vmm/machine/memory_map.hpp"

namespace vmm {

/// One vector: an irqfd on a GSI of its own, whose route is the message.
class PciRoot::Message final : public devices::pci::MessageLine {
  public:
    Message(kvm::Vm& vm, kvm::InterruptRoutes& routes) : vm_(vm), routes_(routes), gsi_(routes.add()) {
        try {
            vm.attach_irqfd(event_.fd(), gsi_);
        } catch (...) {
            routes_.remove(gsi_);
            throw;
        }
    }
    ~Message() override { routes_.remove(gsi_); } // KVM releases the event when it is closed.
    Message(const Message&) = delete;
    Message& operator=(const Message&) = delete;

    void prepare(devices::pci::Message message) noexcept override {
        address_ = message.address;
        data_ = message.data;
        routes_.set(gsi_, message.address, message.data);
    }

    // Drivers write the messages of all vectors of all devices before the first interrupt. Here KVM takes all these
    // changes at once.
    void raise() noexcept override {
        if (routes_.commit()) {
            event_.signal();
        } else {
            vm_.signal_msi(address_.load(), data_.load());
        }
    }

  private:
    kvm::Vm& vm_;
    kvm::InterruptRoutes& routes_;
    const std::uint32_t gsi_;
    EventFd event_;
    std::atomic<std::uint64_t> address_ = 0;
    std::atomic<std::uint32_t> data_ = 0;
};

class PciRoot::Pin final : public devices::pci::PinLine {
  public:
    explicit Pin(SharedLine& line) noexcept : line_(line) {}
    ~Pin() override { set(false); }
    Pin(const Pin&) = delete;
    Pin& operator=(const Pin&) = delete;

    void set(bool up) noexcept override {
        if (up == up_) {
            return;
        }
        up_ = up;
        const std::lock_guard hold(line_.mutex);
        line_.up += up ? 1U : -1U;
        line_.line.set(line_.up != 0);
    }

  private:
    SharedLine& line_;
    bool up_ = false;
};

PciRoot::PciRoot(kvm::Vm& vm)
    : vm_(vm), routes_(vm),
      bus_(memory_map::kPciWindow, [this](unsigned slot, std::optional<GuestRange> to) { move_doorbells(slot, to); }) {
    for (const std::uint32_t gsi : memory_map::kPciPinGsis) {
        lines_.emplace_back(vm, gsi);
    }
    bus_.insert(0, std::make_shared<devices::pci::HostBridge>());
}

std::unique_ptr<devices::pci::MessageLine> PciRoot::make_message_line() {
    return std::make_unique<Message>(vm_, routes_);
}

std::unique_ptr<devices::pci::PinLine> PciRoot::make_pin(unsigned slot) {
    return std::make_unique<Pin>(lines_[slot % lines_.size()]);
}

void PciRoot::catch_doorbells(unsigned slot, std::vector<int> doorbells, std::uint64_t first, std::uint64_t stride) {
    const std::lock_guard hold(doorbells_mutex_);
    assert(doorbells_[slot].events.empty());
    doorbells_[slot] = {std::move(doorbells), first, stride, std::nullopt};
}

void PciRoot::release_doorbells(unsigned slot) noexcept {
    const std::lock_guard hold(doorbells_mutex_);
    detach(doorbells_[slot]);
    doorbells_[slot].events.clear();
}

/// A driver that finds out the size of a base address register switches decoding off and on again. No other function
/// uses that address meanwhile. So the events stay attached until the registers move elsewhere, or another function's
/// registers come to the address.
void PciRoot::move_doorbells(unsigned slot, std::optional<GuestRange> to) {
    const std::lock_guard hold(doorbells_mutex_);
    Doorbells& mine = doorbells_[slot];
    if (!to || mine.attached_at == to->base) {
        return;
    }
    detach(mine);
    for (Doorbells& other : doorbells_) {
        if (other.attached_at == to->base) {
            detach(other);
        }
    }
    mine.attached_at = to->base;
    try {
        for (std::size_t i = 0; i < mine.events.size(); ++i) {
            vm_.attach_ioeventfd(mine.events[i], GuestAddress{to_integer(to->base) + mine.first + i * mine.stride});
        }
    } catch (const Error&) {
        detach(mine); // Without the events a doorbell is an exit to user space, and still works.
    }
}

void PciRoot::detach(Doorbells& doorbells) noexcept {
    if (!doorbells.attached_at) {
        return;
    }
    for (std::size_t i = 0; i < doorbells.events.size(); ++i) {
        vm_.detach_ioeventfd(doorbells.events[i],
                             GuestAddress{to_integer(*doorbells.attached_at) + doorbells.first + i * doorbells.stride});
    }
    doorbells.attached_at.reset();
}

GuestAddress PciRoot::place(unsigned slot, std::uint64_t bytes) noexcept {
    assert(slot < devices::pci::RootBus::kSlots &&
           bytes * devices::pci::RootBus::kSlots <= memory_map::kPciWindow.size);
    return GuestAddress{to_integer(memory_map::kPciWindow.base) + slot * bytes};
}

void PciRoot::attach_to(devices::Bus& mmio) {
    mmio.attach(to_integer(memory_map::kPciEcam.base), memory_map::kPciEcam.size, bus_.ecam());
    mmio.attach(to_integer(memory_map::kPciWindow.base), memory_map::kPciWindow.size, bus_.window());
}

loader::PciHardware PciRoot::describe() {
    return {.ecam = memory_map::kPciEcam,
            .window = memory_map::kPciWindow,
            .config_ports = memory_map::kPciConfigPorts,
            .pin_gsis = memory_map::kPciPinGsis,
            .hotplug = loader::PciHardware::Hotplug{memory_map::kPciHotplugPorts, memory_map::kPciHotplugGsi}};
}

} // namespace vmm
