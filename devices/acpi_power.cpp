#include "devices/acpi_power.hpp"

#include <cassert>
#include <string>
#include <utility>

#include "kvm/host/error.hpp"

namespace vmm::devices {
namespace {

// Sleep control register (ACPI 6.4, 4.8.3.7).
constexpr unsigned kSleepTypeShift = 2;
constexpr unsigned kSleepTypeMask = 0x07;
constexpr unsigned kSleepEnable = 0x20; // write only

// Sleep status register: WAK_STS would be bit 7, but nothing ever wakes.
constexpr std::byte kSleepStatus{0};
constexpr std::byte kNoRegister{0xff};

} // namespace

AcpiPower::AcpiPower(Callbacks callbacks) : AcpiPower(std::move(callbacks), State{}) {}

AcpiPower::AcpiPower(Callbacks callbacks, const State& state)
    : callbacks_(std::move(callbacks)), sleep_type_(state.sleep_type) {
    assert(callbacks_.power_off != nullptr && callbacks_.reset != nullptr);
    if (state.sleep_type > kSleepTypeMask) {
        throw Error("cannot restore acpi-power: sleep type " + std::to_string(state.sleep_type) +
                    " does not exist (the snapshot is damaged)");
    }
}

void AcpiPower::read(std::uint64_t offset, std::span<std::byte> data) noexcept {
    for (std::byte& byte : data) {
        switch (offset) {
        case kSleepControlOffset:
            byte = static_cast<std::byte>(sleep_type_.load(std::memory_order_relaxed) << kSleepTypeShift);
            break;
        case kSleepStatusOffset:
            byte = kSleepStatus;
            break;
        default:
            byte = kNoRegister;
            break;
        }
        ++offset;
    }
}

void AcpiPower::write(std::uint64_t offset, std::span<const std::byte> data) noexcept {
    for (const std::byte byte : data) {
        const auto value = std::to_integer<unsigned>(byte);
        if (offset == kSleepControlOffset) {
            const unsigned sleep_type = (value >> kSleepTypeShift) & kSleepTypeMask;
            sleep_type_.store(static_cast<std::uint8_t>(sleep_type), std::memory_order_relaxed);
            if ((value & kSleepEnable) != 0 && sleep_type == kS5SleepType) {
                callbacks_.power_off();
            }
        } else if (offset == kResetOffset && value == kResetValue) {
            callbacks_.reset();
        }
        ++offset;
    }
}

AcpiPower::State AcpiPower::state() const noexcept {
    return {sleep_type_.load(std::memory_order_relaxed)};
}

} // namespace vmm::devices
