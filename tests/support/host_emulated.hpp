// Tells if the processor is emulated. Then everything takes twenty times as long, and tests make fewer repetitions.
#pragma once

#include <cpuid.h>

#include <algorithm>
#include <array>
#include <cstring>

namespace vmm::testing {

/// True if QEMU emulates the processor (the hypervisor's name: CPUID 0x40000000).
[[nodiscard]] inline bool is_emulated() {
    unsigned eax = 0;
    std::array<unsigned, 3> name{};
    __cpuid(0x40000000, eax, name[0], name[1], name[2]);
    return std::memcmp(name.data(), "TCGTCGTCGTCG", sizeof name) == 0;
}

/// `rounds`, or a tenth of them in emulation; at least 2 there.
[[nodiscard]] inline int fewer_in_emulation(int rounds) {
    return is_emulated() ? std::max(2, rounds / 10) : rounds;
}

} // namespace vmm::testing
