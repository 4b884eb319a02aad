// The routes of a VM's GSIs: the interrupt that each one raises (api.rst, 4.52, KVM_SET_GSI_ROUTING).
#pragma once

#include <atomic>
#include <cstdint>
#include <mutex>
#include <vector>

#include "kvm/uapi.hpp"
#include "kvm/vm.hpp"

namespace vmm::kvm {

/// The routes of a VM: KVM's initial routes to the PICs and the I/O APIC, and messages (MSI) on further GSIs. KVM takes
/// only the whole table and waits for its readers each time, so changes are collected: set() only records a change, and
/// commit() hands all recorded changes to KVM.
///
/// Threads: any number of threads at once.
class InterruptRoutes {
  public:
    /// GSIs from this number on are for messages.
    static constexpr std::uint32_t kFirstMessageGsi = 24;

    /// Must be made after Vm::create_irqchip(). `vm` must outlive it.
    explicit InterruptRoutes(const Vm& vm);

    /// Returns a free GSI, which has no route yet. Throws Error if there is none left.
    [[nodiscard]] std::uint32_t add();
    /// Frees `gsi`, which add() has returned and which nobody uses any more.
    void remove(std::uint32_t gsi);

    /// From the next commit() on, an edge on `gsi` sends this message.
    void set(std::uint32_t gsi, std::uint64_t address, std::uint32_t data);

    /// Returns after KVM knows all changes that were set before. It takes no lock if nothing has changed. Returns false
    /// if KVM refuses: the routes are then unchanged, and the next call tries again.
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
