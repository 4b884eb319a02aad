#include "devices/reset_control.hpp"

#include <algorithm>
#include <cassert>
#include <string>
#include <utility>

#include "kvm/host/error.hpp"

namespace vmm::devices {
namespace {

constexpr std::uint8_t kBits = ResetControl::kSystemReset | ResetControl::kResetCpu | ResetControl::kFullReset;
constexpr std::byte kNoRegister{0xff};

bool is_register(std::uint64_t offset, std::size_t bytes) noexcept {
    return offset == ResetControl::kRegisterOffset && bytes == 1;
}

} // namespace

ResetControl::ResetControl(std::function<void()> reset) : ResetControl(std::move(reset), State{}) {}

ResetControl::ResetControl(std::function<void()> reset, const State& state)
    : reset_(std::move(reset)), value_(state.value) {
    assert(reset_ != nullptr);
    if ((state.value & ~kBits) != 0) {
        throw Error("cannot restore reset-control: bits of port 0xcf9 are set that do not exist, in " +
                    std::to_string(state.value) + " (the snapshot is damaged)");
    }
}

void ResetControl::read(std::uint64_t offset, std::span<std::byte> data) noexcept {
    if (is_register(offset, data.size())) {
        data[0] = std::byte{value_.load(std::memory_order_relaxed)};
    } else {
        std::ranges::fill(data, kNoRegister);
    }
}

void ResetControl::write(std::uint64_t offset, std::span<const std::byte> data) noexcept {
    if (!is_register(offset, data.size())) {
        return;
    }
    const auto value = static_cast<std::uint8_t>(std::to_integer<unsigned>(data[0]) & kBits);
    const std::uint8_t before = value_.exchange(value, std::memory_order_relaxed);
    if ((value & kResetCpu) != 0 && (before & kResetCpu) == 0) {
        reset_();
    }
}

ResetControl::State ResetControl::state() const noexcept {
    return {value_.load(std::memory_order_relaxed)};
}

} // namespace vmm::devices
