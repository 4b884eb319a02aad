// The registers of an x86 vCPU as text.
#pragma once

#include <string>

#include "kvm/uapi.hpp"

namespace vmm::kvm {

/// The registers as lines of text, for the report of a guest's crash.
std::string describe_registers(const kvm_regs& registers, const kvm_sregs& special);

} // namespace vmm::kvm
