// The parts of a machine.
#pragma once

#include <cstdint>
#include <deque>
#include <memory>
#include <vector>

#include "kvm/system.hpp"
#include "kvm/uapi.hpp"
#include "kvm/vcpu.hpp"
#include "kvm/vm.hpp"
#include "vmm/config.hpp"
#include "vmm/machine/board.hpp"
#include "vmm/machine/character_console.hpp"
#include "vmm/machine/custom_devices.hpp"
#include "vmm/machine/embedder.hpp"
#include "vmm/machine/fault_counters.hpp"
#include "vmm/machine/first_state.hpp"
#include "vmm/machine/guest_ram.hpp"
#include "vmm/machine/machine_second_level.hpp"
#include "vmm/machine/pci_root.hpp"
#include "vmm/machine/virtio_devices.hpp"
#include "vmm/machine/x86/cpu_model.hpp"
#include "vmm/state/machine_state.hpp"
#include "vmm/stop_request.hpp"

namespace vmm {

/// The CPUID leaves of every vCPU of a machine.
class GuestCpuid {
  public:
    /// `config` must outlive it. Throws Error.
    GuestCpuid(const Config& config, const kvm::System& system);

    /// The leaves of vCPU `id`. A prefault vCPU has the leaves of vCPU 0.
    [[nodiscard]] std::vector<kvm_cpuid_entry2> of(unsigned id) const;
    /// All leaves that vCPU 0 can have on this host, whatever Config::cpu says.
    [[nodiscard]] std::vector<kvm_cpuid_entry2> most() const;

  private:
    const Config& config_;
    CpuModel model_;
    std::vector<kvm_cpuid_entry2> supported_;
    bool tsc_deadline_;
};

/// The memory, the VM, its vCPUs and its devices. Construction makes all of them, in the order of the members.
/// Afterwards memory is empty, the vCPUs are as after a reset, and no device has a thread.
///
/// The order of the members follows their dependencies: memory outlives the VM, and the VM outlives its vCPUs. Threads:
/// those of each member.
struct Hardware {
    /// `config` must be valid and resolved, and all arguments must outlive the hardware. If `first` has a state, the
    /// devices, the vCPUs and the size of memory are made as the state says. The state need not be trusted. Its clocks
    /// and interrupt controllers are set last, by restore_clocks_and_interrupts(). Throws Error, also if the state is
    /// that of another machine than `config` describes, and what a DeviceConfig::make throws.
    Hardware(const Config& config, StopRequest& stop, Embedder& embedder, FirstState& first);
    Hardware(const Hardware&) = delete;
    Hardware& operator=(const Hardware&) = delete;

    std::unique_ptr<CharacterConsole> virtio_console; ///< null: the guest has none
    VirtioSet virtio_devices;                         ///< holds the devices until `virtio` has them; see below
    kvm::System system;
    GuestRam ram;
    /// Destroyed when nobody can touch memory any more. It then tells `first`, which gives memory its content.
    struct MemoryUse {
        ~MemoryUse() { first.let_go_of_memory(); }
        FirstState& first;
    } memory_use;
    kvm::Vm vm;
    GuestCpuid cpuid; ///< for a machine that does not go on from a state
    MachineSecondLevel second_level;
    /// The interrupt controllers and the timer in the kernel. They are made after the memslots of the members above:
    /// once there are controllers, adding a memslot may wait for a grace period of the kernel (measured: 5 to 8 ms
    /// instead of 0.3 ms).
    struct KernelChips {
        explicit KernelChips(kvm::Vm& vm);
    } kernel_chips;
    std::vector<std::string> refused_registers; ///< of a saved state: one line for each register that KVM refused
    std::deque<kvm::Vcpu> vcpus;                ///< a deque: a vCPU's address never changes
    FaultCounters faults;
    /// If a guest arrives (FirstState::comes_later()), the members above exist while it is waited for. The members
    /// below are made when it has arrived.
    CharacterConsole serial_console;
    std::unique_ptr<PciRoot> pci; ///< null: the machine has none
    VirtioDevices virtio;
    CustomDevices custom;
    Board board;

  private:
    Hardware(const Config& config, StopRequest& stop, Embedder& embedder, FirstState& first, const MachineState* state);
};

/// The services that devices get from the machine. `ram` and `embedder` must outlive the devices. `ram` need not exist
/// until a device's thread asks for its memory. `console` may be null.
[[nodiscard]] DeviceServices device_services(const Config& config, CharacterConsole* console, const GuestRam& ram,
                                             Embedder& embedder);

} // namespace vmm
