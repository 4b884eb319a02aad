// A vCPU that never runs the guest: it touches memory so that KVM maps it.
#pragma once

#include <cstdint>
#include <optional>
#include <stop_token>
#include <string>

#include "kvm/vcpu.hpp"
#include "kvm/vm.hpp"
#include "prefault/x86/scratch.hpp"

namespace vmm::prefault {

/// How touching a range ended.
struct TouchResult {
    enum class End {
        kDone,
        kStopped, ///< a stop was requested first
        kFailed,  ///< the vCPU exited before the end of the stub, or from another place
        kHeld,    ///< the vCPU did not come back within kMostCpuSeconds, or it stands still
    };
    End end = End::kDone;
    std::string why; ///< for people; of kFailed and kHeld
};

/// A prefault vCPU. It is parked except inside touch(), and its local APIC is switched off, so that no interrupt of the
/// guest can name it, not even a broadcast. It stays open as long as the VM: a vCPU cannot be destroyed before its VM,
/// and before Linux 6.4 KVM may free a root that no vCPU uses.
///
/// Threads: one at a time, which has called block_signals_in_this_thread(). Any thread may call the constructor.
class PrefaultVcpu {
  public:
    /// `vcpu` must never have run. Its id must be above those of the guest's vCPUs, and its CPUID the same as theirs,
    /// because the width of physical addresses is part of the role by which vCPUs share a root. With kSmm it is always
    /// in system management mode. Throws Error.
    PrefaultVcpu(kvm::Vcpu vcpu, const Scratch& scratch, kvm::AddressSpace address_space = kvm::AddressSpace::kNormal);

    enum class Access {
        kWrite, ///< a write that changes nothing
        kRead,
    };

    /// Runs the stub, which touches one word every `stride_bytes` of `range`. If a guest runs, it may be the cause of
    /// kFailed and kHeld, because it may be able to write to the scratch memslot; otherwise the host is the cause.
    /// Throws Error if KVM refuses to run the vCPU.
    [[nodiscard]] TouchResult touch(GuestRange range, std::uint64_t stride_bytes, const std::stop_token& stop,
                                    Access access = Access::kWrite);

    /// Makes KVM map `range` by KVM_PRE_FAULT_MEMORY, without entering the guest. A stop is noticed between two system
    /// calls, each of which takes at most some milliseconds. The result is kDone or kStopped. Throws Error if KVM
    /// refuses.
    [[nodiscard]] TouchResult pre_fault(GuestRange range, std::uint64_t mapping_bytes, const std::stop_token& stop);

    /// The counters of this vCPU. Threads: any.
    [[nodiscard]] const kvm::Stats& stats() const noexcept { return stats_; }

    /// The limit for one touch() in processor time. It is far above what a chunk takes: 32,768 faults of 50
    /// microseconds are 1.6 s.
    static constexpr double kMostCpuSeconds = 20;

  private:
    void take_state();
    /// Why the vCPU that came back with `exit` must not run on; nothing if it may.
    [[nodiscard]] std::optional<TouchResult> verdict(const kvm::Exit& exit, double deadline) const;
    /// Puts the vCPU into its initial state after a failure, whatever the guest made it do.
    void recover();

    kvm::Vcpu vcpu_;
    kvm::Stats stats_;
    const Scratch& scratch_;
    kvm::AddressSpace address_space_;
    bool lost_ = false; ///< it began an instruction that cannot be finished, so it never runs again
};

} // namespace vmm::prefault
