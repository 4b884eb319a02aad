#include "vmm/guest/power.hpp"

#include <cstddef>

#include "vmm/guest/machine.hpp"

namespace vmm::guest {
namespace {

// This is about a second, because a VMM may stop the machine some time after the write.
constexpr std::uint64_t kPatienceCycles = std::uint64_t{1} << 32;
constexpr std::uint16_t kDebugExitPort = 0xf4;

void write_byte(PowerRegister where, std::uint8_t value) noexcept {
    if (where.space == PowerRegister::Space::kPort) {
        out8(static_cast<std::uint16_t>(where.address), value);
    } else {
        mmio_write(where.address, value);
    }
}

// Sleep control register (ACPI 6.5, 4.8.3.7): SLP_TYP in bits 2-4, SLP_EN in bit 5.
void write_sleep_control(PowerRegister where, std::uint8_t sleep_type) noexcept {
    write_byte(where, static_cast<std::uint8_t>(unsigned{sleep_type} << 2 | 1U << 5));
}

// PM1 control register (4.8.3.2.1): SLP_TYP in bits 10-12, SLP_EN in bit 13. The other bits must stay as they are.
void write_pm1_control(PowerRegister where, std::uint8_t sleep_type) noexcept {
    constexpr unsigned kSleepTypeMask = 7U << 10;
    const auto with_sleep = [sleep_type](std::uint16_t old) {
        return static_cast<std::uint16_t>((old & ~kSleepTypeMask) | unsigned{sleep_type} << 10 | 1U << 13);
    };
    if (where.space == PowerRegister::Space::kPort) {
        const auto port = static_cast<std::uint16_t>(where.address);
        out16(port, with_sleep(in16(port)));
    } else {
        mmio_write(where.address, with_sleep(mmio_read<std::uint16_t>(where.address)));
    }
}

void wait_a_moment() noexcept {
    wait_for_cycles(kPatienceCycles, [] { return false; });
}

} // namespace

void power_off(const PowerOff& how) noexcept {
    bool written = false;
    for (std::size_t i = 0; i < 2; ++i) {
        const PowerRegister where = how.registers[i];
        const bool out_of_reach =
            where.space == PowerRegister::Space::kMemory && where.address > kStaticMapEnd - sizeof(std::uint16_t);
        if (where.space == PowerRegister::Space::kNone || out_of_reach) {
            continue;
        }
        if (how.plain_value) {
            write_byte(where, *how.plain_value);
        } else if (how.hardware_reduced) {
            write_sleep_control(where, how.sleep_types[i]);
        } else {
            write_pm1_control(where, how.sleep_types[i]);
        }
        written = true;
    }
    if (written) {
        wait_a_moment();
    }
    out8(kDebugExitPort, 0);
    wait_a_moment();
    // The interrupt table is empty, so any exception ends in a triple fault.
    __builtin_trap();
}

} // namespace vmm::guest
