// KVM's interface. In C++ some of its structures have other sizes than in C, with the headers of Linux 6.1: those that
// end in an array without a length (kvm_cpuid2, kvm_msrs and the like). A program that includes this uses none of them.
#pragma once

#include <linux/kvm.h>
