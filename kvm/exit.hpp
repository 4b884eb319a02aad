// The reasons why a vCPU leaves the guest, as values that a test can make by hand.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <variant>

namespace vmm::kvm {

/// The guest accessed an I/O port. `data` holds `count` items of `width` bytes (1, 2 or 4), all for the same port
/// (count > 1: a string instruction). `data` lies in memory shared with the kernel and is valid until the next run();
/// the caller fills it if `is_write` is false.
struct PioExit {
    std::uint16_t port;
    std::uint8_t width;
    bool is_write;
    std::span<std::byte> data;
};

/// The guest accessed memory that has no memslot. `data` has 1 to 8 bytes; it is filled and stays valid as in PioExit.
struct MmioExit {
    std::uint64_t address;
    bool is_write;
    std::span<std::byte> data;
};

/// The guest executed HLT, on a VM without an in-kernel interrupt controller.
struct HaltExit {};

/// The guest made a triple fault.
struct ShutdownExit {};

/// A kick took the vCPU out of the guest. No state of the guest was lost: the next run() continues where the guest was.
struct KickedExit {};

/// KVM cannot go on with this vCPU: an internal error, a failed entry, or an exit we never asked for.
struct FaultExit {
    std::string what; ///< for people: the reason, with its numbers
};

using Exit = std::variant<PioExit, MmioExit, HaltExit, ShutdownExit, KickedExit, FaultExit>;

} // namespace vmm::kvm
