// From an exit to what it means: pure, tested with exits made by hand.
#pragma once

#include <string>

#include "devices/bus.hpp"
#include "kvm/exit.hpp"

namespace vmm {

/// What the thread of a vCPU does next.
struct Outcome {
    enum class Next {
        kRun,     ///< enter the guest again
        kKicked,  ///< see whether to stop, then as kRun
        kCrashed, ///< the guest cannot go on
    };
    Next next = Next::kRun;
    std::string why; ///< for kCrashed

    friend bool operator==(const Outcome&, const Outcome&) = default;
};

/// Carries port and memory accesses to the buses, filling in what the guest reads. Both buses are frozen.
[[nodiscard]] Outcome dispatch(const kvm::Exit& exit, devices::Bus& ports, devices::Bus& mmio);

} // namespace vmm
