// Why a vCPU came back to us, as values that can be made by hand in a test.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <variant>

namespace vmm::kvm {

/// The guest accessed an I/O port. `data` holds `count` items of `width` bytes (1, 2 or 4), all for the same port
/// (count > 1: a string instruction). It lies in memory shared with the kernel: the caller fills it if
/// `is_write` is false, and it is valid until the next run().
struct PioExit {
    std::uint16_t port;
    std::uint8_t width;
    bool is_write;
    std::span<std::byte> data;
};

/// The guest accessed memory without a memslot. `data` has 1 to 8 bytes; filling and validity as in PioExit.
struct MmioExit {
    std::uint64_t address;
    bool is_write;
    std::span<std::byte> data;
};

/// HLT, on a VM without an in-kernel interrupt controller.
struct HaltExit {};

/// Triple fault.
struct ShutdownExit {};

/// A kick took the vCPU out of the guest. Nothing of the guest was lost: run() goes on where it was.
struct KickedExit {};

/// KVM cannot go on with this vCPU: an internal error, a failed entry, or an exit we never asked for.
struct FaultExit {
    std::string what; ///< for people: the reason, with its numbers
};

using Exit = std::variant<PioExit, MmioExit, HaltExit, ShutdownExit, KickedExit, FaultExit>;

} // namespace vmm::kvm
