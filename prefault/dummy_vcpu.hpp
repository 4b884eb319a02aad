// A vCPU that never runs the guest: it touches memory so that KVM maps it.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <stop_token>
#include <string>

#include "kvm/vcpu.hpp"
#include "kvm/vm.hpp"
#include "prefault/scratch.hpp"

namespace vmm::prefault {

/// A prefault vCPU. Its local APIC is switched off, so no interrupt of the guest, not even a broadcast, can name it; it
/// is parked except inside touch(). It stays open as long as the VM: vCPUs cannot be destroyed before it, and before
/// Linux 6.4 a root no vCPU uses may be freed.
///
/// Threads: one at a time, which has called block_signals_in_this_thread(); the constructor's may be any.
class DummyVcpu {
  public:
    /// `id` lies above those of the real vCPUs. `cpuid` is the same as theirs: the width of physical addresses is part
    /// of the role by which vCPUs share a root. In kSmm it is for ever in system management mode. Throws Error.
    DummyVcpu(const kvm::Vm& vm, unsigned id, std::span<const kvm_cpuid_entry2> cpuid, const Scratch& scratch,
              kvm::AddressSpace address_space = kvm::AddressSpace::kNormal);

    /// Of a vCPU that exists already, has never run, and has its CPUID. Throws Error.
    DummyVcpu(kvm::Vcpu vcpu, const Scratch& scratch);

    /// How a chunk ended.
    struct Outcome {
        enum class End {
            kDone,
            kStopped,
            kFailed, ///< it came back before its end, or from elsewhere
            kHeld,   ///< it did not come back in kMostCpuSeconds, or stands still
        };
        End end = End::kDone;
        std::string why; ///< of kFailed and kHeld, for people
    };

    enum class Access {
        kWrite, ///< a write that changes nothing
        kRead,
    };

    /// Touches, in the guest, one word every `stride_bytes` of `range`. If the stub does not run to its end (kFailed),
    /// not within kMostCpuSeconds of processor time, or stands still (kHeld), that is the guest's doing where one runs,
    /// for it may be able to write to the scratch slot, and else the host's. Throws Error where KVM refuses to run the
    /// vCPU.
    [[nodiscard]] Outcome touch(GuestRange range, std::uint64_t stride_bytes, const std::stop_token& stop,
                                Access access = Access::kWrite);

    /// Has KVM map `range` (KVM_PRE_FAULT_MEMORY), without entering the guest. A stop is heard between two system
    /// calls, each of at most some milliseconds. Throws Error where KVM refuses: kFailed does not happen.
    [[nodiscard]] Outcome pre_fault(GuestRange range, std::uint64_t mapping_bytes, const std::stop_token& stop);

    /// The counters of this vCPU.
    [[nodiscard]] const kvm::Stats& stats() const noexcept { return stats_; }

    /// Far beyond what a chunk takes: 32,768 faults of 50 microseconds are 1.6 s.
    static constexpr double kMostCpuSeconds = 20;

  private:
    void take_state();
    /// Why the vCPU that came back with `exit` is not to be let in again; nothing if it is.
    [[nodiscard]] std::optional<Outcome> verdict(const kvm::Exit& exit, double deadline) const;
    /// After a failure: as new, whatever the guest has had it do.
    void recover();

    kvm::Vcpu vcpu_;
    kvm::Stats stats_;
    const Scratch& scratch_;
    kvm::AddressSpace address_space_;
    bool lost_ = false; ///< an instruction that it began cannot be brought to its end: it is never let in again
};

} // namespace vmm::prefault
