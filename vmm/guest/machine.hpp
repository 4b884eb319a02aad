// The machine as ring 3 sees it: ports, the local APIC, the time-stamp counter, and memory at its physical address.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "vmm/guest/machine_state.h"

namespace vmm::guest {

inline void out8(std::uint16_t port, std::uint8_t value) noexcept {
    asm volatile("outb %0, %1" : : "a"(value), "Nd"(port));
}
inline void out16(std::uint16_t port, std::uint16_t value) noexcept {
    asm volatile("outw %0, %1" : : "a"(value), "Nd"(port));
}
[[nodiscard]] inline std::uint8_t in8(std::uint16_t port) noexcept {
    std::uint8_t value = 0;
    asm volatile("inb %1, %0" : "=a"(value) : "Nd"(port));
    return value;
}
[[nodiscard]] inline std::uint16_t in16(std::uint16_t port) noexcept {
    std::uint16_t value = 0;
    asm volatile("inw %1, %0" : "=a"(value) : "Nd"(port));
    return value;
}

/// Accesses device memory by single plain moves, because a hypervisor must emulate them.
template <typename T>
inline void mmio_write(std::uint64_t address, T value) noexcept {
    asm volatile("mov %0, (%1)" : : "r"(value), "r"(address) : "memory");
}
template <typename T>
[[nodiscard]] inline T mmio_read(std::uint64_t address) noexcept {
    T value;
    asm volatile("mov (%1), %0" : "=r"(value) : "r"(address) : "memory");
    return value;
}

/// The time-stamp counter, read when all instructions before it are done.
[[nodiscard]] inline std::uint64_t cycles() noexcept {
    std::uint32_t low = 0;
    std::uint32_t high = 0;
    asm volatile("lfence\n\trdtsc" : "=a"(low), "=d"(high) : : "memory");
    return std::uint64_t{high} << 32 | low;
}

inline void pause() noexcept {
    asm volatile("pause" : : : "memory");
}

/// Waits until `done()` holds, for `limit` cycles at most; returns whether it did. Cycles are those of the time-stamp
/// counter. The guest does not know their rate: assume 1 to 5 for a nanosecond.
template <typename Done>
bool wait_for_cycles(std::uint64_t limit, Done done) noexcept {
    const std::uint64_t start = cycles();
    while (!done()) {
        if (cycles() - start > limit) {
            return false;
        }
        pause();
    }
    return true;
}

/// Physical memory below `limit`, through the identity map.
class PhysicalMemory {
  public:
    constexpr explicit PhysicalMemory(std::uint64_t limit) noexcept : limit_(limit) {}

    /// The bytes [address, address + size), or an empty span unless all of them are mapped. Address 0 is never valid.
    [[nodiscard]] std::span<const std::byte> view(std::uint64_t address, std::uint64_t size) const noexcept {
        if (address == 0 || address > limit_ || size > limit_ - address) {
            return {};
        }
        // In bounds: the identity map covers everything below the limit.
        return {reinterpret_cast<const std::byte*>(address), size};
    }

  private:
    std::uint64_t limit_;
};

/// The end of the memory that the page tables in the image map.
inline constexpr std::uint64_t kStaticMapEnd = std::uint64_t{GUEST_STATIC_GIB} << 30;

} // namespace vmm::guest
