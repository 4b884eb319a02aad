// Which interrupt each GSI of a VM is (api.rst, 4.52, KVM_SET_GSI_ROUTING).
#pragma once

#include <atomic>
#include <cstdint>
#include <mutex>
#include <vector>

#include "kvm/uapi.hpp"
#include "kvm/vm.hpp"

namespace vmm::kvm {

/// The routes of a VM: those that KVM has from the start, to the PICs and to the I/O APIC, and messages (MSI) on GSIs
/// of their own. KVM takes all of them at once and waits for its readers each time, so changes are collected: set()
/// only notes, and commit() hands over whatever has been noted.
///
/// Threads: any, at once.
class InterruptRoutes {
  public:
    /// The GSIs from here on are for messages.
    static constexpr std::uint32_t kFirstMessageGsi = 24;

    /// After Vm::create_irqchip(). `vm` outlives it.
    explicit InterruptRoutes(const Vm& vm);

    /// A GSI that nobody else has, without a route. Throws Error if there is none left.
    [[nodiscard]] std::uint32_t add();
    /// Nobody uses `gsi`, which add() has returned, any more.
    void remove(std::uint32_t gsi);

    /// From the next commit() on an edge on `gsi` is this message.
    void set(std::uint32_t gsi, std::uint64_t address, std::uint32_t data);

    /// Returns when KVM knows all that was set before. It takes no lock if nothing has changed. False if KVM refuses:
    /// then the routes are as they were, and the next call tries it again.
    [[nodiscard]] bool commit() noexcept;

  private:
    const Vm& vm_;
    std::atomic<bool> has_changed_ = false;
    std::mutex mutex_; ///< guards the two below
    std::vector<kvm_irq_routing_entry> fixed_;
    struct Route {
        bool is_taken = false;
        bool is_set = false;
        kvm_irq_routing_msi message{};
    };
    std::vector<Route> messages_;  ///< by GSI, from kFirstMessageGsi on
    std::vector<std::byte> table_; ///< struct kvm_irq_routing, with room for all
};

} // namespace vmm::kvm
