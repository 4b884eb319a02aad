// KVM's own counters, by name (Documentation/virt/kvm/api.rst, 4.134 KVM_GET_STATS_FD).
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "kvm/host/export.hpp"
#include "kvm/host/unique_fd.hpp"

VMM_API_BEGIN
namespace vmm::kvm {

/// The binary statistics of one VM or one vCPU, e.g. "pages_4k" of a VM, "pf_fixed" of a vCPU. The names are read once;
/// each value() reads the counter afresh.
///
/// Threads: value() may be called from any thread, while vCPUs run.
class Stats {
  public:
    /// Takes over a descriptor that KVM_GET_STATS_FD returned. Throws Error if it cannot be read or is not sane.
    explicit Stats(UniqueFd fd);

    /// The counter's value now, or nothing if this kernel has no counter of that name.
    [[nodiscard]] std::optional<std::uint64_t> value(std::string_view name) const;

    /// Every name there is, in the kernel's order. Histograms are left out: they are not single values.
    [[nodiscard]] std::vector<std::string> names() const;

  private:
    struct Counter {
        std::string name;
        std::uint64_t file_offset;
    };
    UniqueFd fd_;
    std::vector<Counter> counters_;
};

} // namespace vmm::kvm
VMM_API_END
