// The second-level faults and the exits of a machine's vCPUs.
#pragma once

#include <cstdint>
#include <deque>
#include <vector>

#include "kvm/stats.hpp"
#include "kvm/vcpu.hpp"

namespace vmm {

/// KVM's counters of each vCPU. They are opened once, before the vCPUs run: opening them takes the vCPU's lock, which a
/// running vCPU holds all the time. Reading them takes no lock.
///
/// Threads: any.
class FaultCounters {
  public:
    /// It must be called while none of `vcpus` runs. Throws Error if this kernel does not count.
    explicit FaultCounters(const std::deque<kvm::Vcpu>& vcpus);

    /// How many second-level faults KVM has resolved by making a mapping (pf_fixed) since reset(), for each vCPU.
    [[nodiscard]] std::vector<std::uint64_t> counts() const;
    [[nodiscard]] std::uint64_t total() const;

    /// How often KVM left the guest since reset(), for itself or for this process (exits), for each vCPU. Empty if this
    /// kernel does not count exits.
    [[nodiscard]] std::vector<std::uint64_t> exits() const;

    /// Counts from zero again. Other threads must not read the counters meanwhile.
    void reset();

  private:
    [[nodiscard]] static std::uint64_t read(const kvm::Stats& stats);

    std::vector<kvm::Stats> stats_;
    std::vector<std::uint64_t> before_;
    std::vector<std::uint64_t> exits_before_; ///< empty if they are not counted
};

} // namespace vmm
