#include "devices/reset_register.hpp"

#include <algorithm>
#include <cassert>
#include <string>
#include <utility>

#include "kvm/host/error.hpp"

namespace vmm::devices {
namespace {

constexpr std::byte kNoRegister{0xff};

} // namespace

ResetRegister::ResetRegister(const Layout& layout, std::function<void()> reset)
    : ResetRegister(layout, std::move(reset), State{layout.at_power_on}) {}

ResetRegister::ResetRegister(const Layout& layout, std::function<void()> reset, const State& state)
    : layout_(layout), reset_(std::move(reset)), value_(state.value) {
    assert(reset_ != nullptr);
    if ((state.value & ~layout_.bits) != 0) {
        throw Error("cannot restore " + std::string(layout_.name) + ": bits are set that do not exist, in " +
                    std::to_string(state.value) + " (the snapshot is damaged)");
    }
}

void ResetRegister::read(std::uint64_t offset, std::span<std::byte> data) noexcept {
    if (is_register(offset, data.size())) {
        data[0] = std::byte{value_.load(std::memory_order_relaxed)};
    } else {
        std::ranges::fill(data, kNoRegister);
    }
}

void ResetRegister::write(std::uint64_t offset, std::span<const std::byte> data) noexcept {
    if (!is_register(offset, data.size())) {
        return;
    }
    const auto value = static_cast<std::uint8_t>(std::to_integer<unsigned>(data[0]) & layout_.bits);
    const std::uint8_t before = value_.exchange(value, std::memory_order_relaxed);
    if ((value & ~before & layout_.reset_bit) != 0) {
        reset_();
    }
}

ResetRegister::State ResetRegister::state() const noexcept {
    return {value_.load(std::memory_order_relaxed)};
}

bool ResetRegister::is_register(std::uint64_t offset, std::size_t bytes) const noexcept {
    return offset == layout_.offset && bytes == 1;
}

} // namespace vmm::devices
