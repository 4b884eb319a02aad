// The program of the guest in tests/support/fuzz_guest.cpp. For that guest and for the code that makes the program.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

namespace vmm::testing::fuzz_guest {

inline constexpr std::size_t kCpus = 2;
inline constexpr std::size_t kMostSteps = 256; ///< of each CPU: ring 0 is emulated on some hosts
inline constexpr std::size_t kDevices = 8;     ///< whose registers are driven
inline constexpr std::uint32_t kQueuesOfADevice = 3;
inline constexpr std::size_t kQueues = 8; ///< rings, which the devices share
inline constexpr std::uint16_t kQueueSize = 16;
inline constexpr std::size_t kBufferBytes = 65536;

enum Kind : std::uint8_t { kPort, kDeviceMemory, kStartDevice, kRings, kDoorbell, kMemory, kKinds };

/// One operation.
struct Step {
    std::uint8_t kind;
    std::uint8_t detail;
    std::uint16_t place;
    std::uint32_t value;
};
static_assert(sizeof(Step) == 8);

/// The places of devices' registers: virtio, the range after it, PCI's configuration, interrupt controllers.
inline constexpr std::array<std::uint64_t, 5> kWindows{0xd0000000, 0xd0010000, 0xd0100000, 0xfec00000, 0xd1000000};

} // namespace vmm::testing::fuzz_guest
