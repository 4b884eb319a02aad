// What to do if /dev/kvm does not answer a question.
#pragma once

#include <array>
#include <cerrno>

#include "kvm/host/error.hpp"

namespace vmm::kvm {

/// Advice for an ioctl that asks the opened KVM device a question.
inline constexpr std::array kAskAdvice{
    ErrnoAdvice{ENOTTY, "it is not the KVM device: take /dev/kvm"},
    ErrnoAdvice{EINVAL, "it is not the KVM device, or its KVM is too old: take /dev/kvm"}};

} // namespace vmm::kvm
