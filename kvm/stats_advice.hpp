// What to do if KVM's counters are not available.
#pragma once

#include <array>
#include <cerrno>

#include "kvm/host/error.hpp"

namespace vmm::kvm {

/// Advice for KVM_GET_STATS_FD on a VM or on a vCPU.
inline constexpr std::array kStatsAdvice{ErrnoAdvice{EINVAL, "they came with Linux 5.14: a newer kernel is needed"},
                                         ErrnoAdvice{ENOTTY, "they came with Linux 5.14: a newer kernel is needed"}};

} // namespace vmm::kvm
