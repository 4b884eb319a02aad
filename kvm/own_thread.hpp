// Advice if KVM could not start the thread that it keeps for each VM.
#pragma once

#include <string>

#include "kvm/host/cgroup.hpp"

namespace vmm::kvm {

/// What to do if KVM answers EAGAIN to a vCPU that is ready to run: KVM cannot start its own thread (the one that
/// recovers huge pages, arch/x86/kvm/mmu/mmu.c), and the kernel counts that thread among those of this process. The
/// advice names the control group whose limit is reached, if there is one and this thread may open files.
[[nodiscard]] std::string own_thread_advice(const CgroupRoots& roots = {});

} // namespace vmm::kvm
