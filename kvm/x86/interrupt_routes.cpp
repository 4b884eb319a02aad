#include "kvm/x86/interrupt_routes.hpp"

#include <sys/ioctl.h>

#include <algorithm>
#include <cassert>
#include <cerrno>
#include <cstddef>
#include <cstring>
#include <string>

#include "kvm/host/error.hpp"

namespace vmm::kvm {
namespace {

/// KVM's initial table of an x86 VM: the first 16 lines go to a PIC and the I/O APIC, the others to the I/O APIC only.
std::vector<kvm_irq_routing_entry> chip_routes() {
    constexpr std::uint32_t kLinesOfPics = 16;
    constexpr std::uint32_t kLinesOfPic = 8;
    std::vector<kvm_irq_routing_entry> routes;
    const auto add = [&routes](std::uint32_t gsi, std::uint32_t chip, std::uint32_t pin) {
        kvm_irq_routing_entry entry{};
        entry.gsi = gsi;
        entry.type = KVM_IRQ_ROUTING_IRQCHIP;
        entry.u.irqchip.irqchip = chip;
        entry.u.irqchip.pin = pin;
        routes.push_back(entry);
    };
    for (std::uint32_t gsi = 0; gsi < InterruptRoutes::kFirstMessageGsi; ++gsi) {
        add(gsi, KVM_IRQCHIP_IOAPIC, gsi);
        if (gsi < kLinesOfPics) {
            add(gsi, gsi < kLinesOfPic ? KVM_IRQCHIP_PIC_MASTER : KVM_IRQCHIP_PIC_SLAVE, gsi % kLinesOfPic);
        }
    }
    return routes;
}

} // namespace

InterruptRoutes::InterruptRoutes(const Vm& vm) : vm_(vm), fixed_(chip_routes()) {}

std::uint32_t InterruptRoutes::add() {
    constexpr std::size_t kMostRoutes = 4096; // KVM_MAX_IRQ_ROUTES
    const std::size_t most = kMostRoutes - fixed_.size();
    const std::lock_guard hold(mutex_);
    auto free = std::ranges::find(messages_, false, &Route::is_taken);
    if (free == messages_.end()) {
        if (messages_.size() == most) {
            throw Error("cannot give a device of the guest another interrupt: all " + std::to_string(most) +
                        " that a virtual machine of KVM has are taken (configure fewer devices or queues)");
        }
        messages_.emplace_back();
        free = std::prev(messages_.end());
        // The table is enlarged here, so that commit() allocates no memory.
        table_.resize(sizeof(kvm_irq_routing) + (fixed_.size() + messages_.size()) * sizeof(kvm_irq_routing_entry));
    }
    *free = {.is_taken = true};
    return kFirstMessageGsi + static_cast<std::uint32_t>(free - messages_.begin());
}

void InterruptRoutes::remove(std::uint32_t gsi) {
    const std::lock_guard hold(mutex_);
    assert(gsi >= kFirstMessageGsi && gsi - kFirstMessageGsi < messages_.size());
    messages_[gsi - kFirstMessageGsi] = {};
    has_changed_ = true;
}

void InterruptRoutes::set(std::uint32_t gsi, std::uint64_t address, std::uint32_t data) {
    constexpr unsigned kHighShift = 32;
    const std::lock_guard hold(mutex_);
    assert(gsi >= kFirstMessageGsi && gsi - kFirstMessageGsi < messages_.size());
    Route& route = messages_[gsi - kFirstMessageGsi];
    kvm_irq_routing_msi message{};
    message.address_lo = static_cast<std::uint32_t>(address);
    message.address_hi = static_cast<std::uint32_t>(address >> kHighShift);
    message.data = data;
    const bool is_same = route.is_set && route.message.address_lo == message.address_lo &&
                         route.message.address_hi == message.address_hi && route.message.data == message.data;
    if (is_same) {
        return;
    }
    route.message = message;
    route.is_set = true;
    has_changed_ = true;
}

bool InterruptRoutes::commit() noexcept {
    if (!has_changed_.load()) {
        return true;
    }
    const std::lock_guard hold(mutex_);
    if (!has_changed_.load()) {
        return true; // Another thread has done it.
    }
    std::byte* const entries = table_.data() + sizeof(kvm_irq_routing);
    std::uint32_t count = 0;
    const auto put = [entries, &count](const kvm_irq_routing_entry& entry) {
        std::memcpy(entries + count++ * sizeof entry, &entry, sizeof entry);
    };
    std::ranges::for_each(fixed_, put);
    for (std::size_t i = 0; i < messages_.size(); ++i) {
        if (messages_[i].is_set) {
            kvm_irq_routing_entry entry{};
            entry.gsi = kFirstMessageGsi + static_cast<std::uint32_t>(i);
            entry.type = KVM_IRQ_ROUTING_MSI;
            entry.u.msi = messages_[i].message;
            put(entry);
        }
    }
    kvm_irq_routing head{};
    head.nr = count;
    std::memcpy(table_.data(), &head, sizeof head);
    if (::ioctl(vm_.fd(), KVM_SET_GSI_ROUTING, table_.data()) != 0) {
        return false;
    }
    has_changed_ = false;
    return true;
}

} // namespace vmm::kvm
