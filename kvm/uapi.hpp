// The only place that includes <linux/kvm.h>. It corrects the header for C++ and completes older header packages.
//
// Linux 6.1's __DECLARE_FLEX_ARRAY puts an empty struct before a flexible array. An empty struct has size 0 in C and
// size 1 in C++, so structures grow, and so do the sizes in their ioctl numbers: the kernel would answer ENOTTY, or
// read past what we passed. The macro is replaced while the header is read, and the asserts below check that the sizes
// are those of C.
#pragma once

#include <linux/stddef.h>

// The names below come from the kernel.
// NOLINTBEGIN(bugprone-reserved-identifier, modernize-avoid-c-arrays, readability-identifier-naming)
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wpedantic"
#pragma push_macro("__DECLARE_FLEX_ARRAY")
#undef __DECLARE_FLEX_ARRAY
#define __DECLARE_FLEX_ARRAY(TYPE, NAME) TYPE NAME[0]
#include <linux/kvm.h>
// The pragma below marks the restored macro as part of a system header. Without it, the compiler would warn of code
// that other kernel headers make with this macro as if it were our code.
#pragma GCC system_header
#pragma pop_macro("__DECLARE_FLEX_ARRAY")
#pragma GCC diagnostic pop

#include <cstddef>

static_assert(sizeof(kvm_cpuid2) == 8 && offsetof(kvm_cpuid2, entries) == 8);
static_assert(sizeof(kvm_msrs) == 8 && offsetof(kvm_msrs, entries) == 8);
static_assert(sizeof(kvm_xsave) == 4096);
static_assert(sizeof(kvm_signal_mask) == 4 && offsetof(kvm_signal_mask, sigset) == 4);
static_assert(sizeof(kvm_irq_routing) == 8 && offsetof(kvm_irq_routing, entries) == 8);
static_assert(sizeof(kvm_stats_header) == 24);
static_assert(sizeof(kvm_stats_desc) == 16 && offsetof(kvm_stats_desc, name) == 16);
static_assert(KVM_SET_CPUID2 == 0x4008ae90UL);
static_assert(KVM_SET_SIGNAL_MASK == 0x4004ae8bUL);

// These definitions are newer than the oldest header package we build against (Documentation/virt/kvm/api.rst).
#ifndef KVM_CAP_PRE_FAULT_MEMORY
#define KVM_CAP_PRE_FAULT_MEMORY 236
#endif
#ifndef KVM_PRE_FAULT_MEMORY
struct kvm_pre_fault_memory {
    __u64 gpa;
    __u64 size;
    __u64 flags;
    __u64 padding[5];
};
#define KVM_PRE_FAULT_MEMORY _IOWR(KVMIO, 0xd5, struct kvm_pre_fault_memory)
#endif
// NOLINTEND(bugprone-reserved-identifier, modernize-avoid-c-arrays, readability-identifier-naming)
static_assert(sizeof(kvm_pre_fault_memory) == 64);
#ifndef KVM_CAP_MEMORY_FAULT_INFO
#define KVM_EXIT_MEMORY_FAULT 39
#endif
