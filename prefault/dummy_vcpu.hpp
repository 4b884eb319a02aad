// A vCPU that never runs the guest: it touches memory so that KVM maps it.
#pragma once

#include <cstdint>
#include <span>
#include <stop_token>

#include "kvm/vcpu.hpp"
#include "kvm/vm.hpp"
#include "prefault/scratch.hpp"

namespace vmm::prefault {

/// A prefault vCPU. Its local APIC is switched off, so no interrupt of the guest, not even a broadcast, can name it; it
/// is parked except inside touch(). It stays open as long as the VM: vCPUs cannot be destroyed before it, and before
/// Linux 6.4 a root no vCPU uses may be freed.
///
/// Threads: one at a time.
class DummyVcpu {
  public:
    /// `id` lies above those of the real vCPUs. `cpuid` is the same as theirs: the width of physical addresses is part
    /// of the role by which vCPUs share a root. Throws Error.
    DummyVcpu(const kvm::Vm& vm, unsigned id, std::span<const kvm_cpuid_entry2> cpuid, const Scratch& scratch);

    /// Writes, without changing it, one word every `stride_bytes` of `range`, in the guest, from the calling thread,
    /// which has called block_signals_in_this_thread(). Returns false if `stop` was requested before the end. Throws
    /// Error if the vCPU fails.
    bool touch(GuestRange range, std::uint64_t stride_bytes, const std::stop_token& stop);

    /// The counters of this vCPU.
    [[nodiscard]] kvm::Stats stats() const { return vcpu_.stats(); }

  private:
    kvm::Vcpu vcpu_;
    const Scratch& scratch_;
};

} // namespace vmm::prefault
