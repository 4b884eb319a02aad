// What to do where KVM's counters cannot be had.
#pragma once

#include <array>
#include <cerrno>

#include "kvm/host/error.hpp"

namespace vmm::kvm {

/// For KVM_GET_STATS_FD, of a VM and of a vCPU.
inline constexpr std::array kStatsAdvice{ErrnoAdvice{EINVAL, "they came with Linux 5.14: a newer kernel is needed"},
                                         ErrnoAdvice{ENOTTY, "they came with Linux 5.14: a newer kernel is needed"}};

} // namespace vmm::kvm
