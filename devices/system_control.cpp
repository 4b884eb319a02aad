#include "devices/system_control.hpp"

#include <cassert>
#include <string>
#include <utility>

#include "kvm/host/error.hpp"

namespace vmm::devices {
namespace {

constexpr std::uint8_t kBits = SystemControl::kFastReset | SystemControl::kA20;
constexpr std::byte kNoRegister{0xff};

} // namespace

SystemControl::SystemControl(std::function<void()> reset) : SystemControl(std::move(reset), State{}) {}

SystemControl::SystemControl(std::function<void()> reset, const State& state)
    : reset_(std::move(reset)), value_(state.value) {
    assert(reset_ != nullptr);
    if ((state.value & ~kBits) != 0) {
        throw Error("cannot restore system-control: bits of port 0x92 are set that do not exist, in " +
                    std::to_string(state.value) + " (the snapshot is damaged)");
    }
}

void SystemControl::read(std::uint64_t offset, std::span<std::byte> data) noexcept {
    for (std::byte& byte : data) {
        byte = offset == 0 ? std::byte{value_.load(std::memory_order_relaxed)} : kNoRegister;
        ++offset;
    }
}

void SystemControl::write(std::uint64_t offset, std::span<const std::byte> data) noexcept {
    for (const std::byte byte : data) {
        if (offset == 0) {
            const auto value = static_cast<std::uint8_t>(std::to_integer<unsigned>(byte) & kBits);
            const std::uint8_t before = value_.exchange(value, std::memory_order_relaxed);
            if ((value & kFastReset) != 0 && (before & kFastReset) == 0) {
                reset_();
            }
        }
        ++offset;
    }
}

SystemControl::State SystemControl::state() const noexcept {
    return {value_.load(std::memory_order_relaxed)};
}

} // namespace vmm::devices
