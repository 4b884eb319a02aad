// Translates an exit of a vCPU into accesses on the buses. It has no state, and tests give it exits that they make.
#pragma once

#include <string>

#include "devices/bus.hpp"
#include "kvm/exit.hpp"

namespace vmm {

/// What the thread of a vCPU does after an exit.
struct AfterExit {
    enum class Next {
        kEnterGuest, ///< unless a stop or a pause was requested
        kCrash,      ///< the guest cannot go on
    };
    Next next = Next::kEnterGuest;
    std::string why; ///< for kCrash, as text for people

    friend bool operator==(const AfterExit&, const AfterExit&) = default;
};

/// Carries port and memory accesses to the buses, and fills in what the guest reads. Both buses are frozen.
[[nodiscard]] AfterExit dispatch(const kvm::Exit& exit, devices::Bus& ports, devices::Bus& mmio);

} // namespace vmm
