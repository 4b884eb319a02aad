#include "devices/pci/hotplug.hpp"

#include <algorithm>
#include <bit>
#include <cstring>
#include <utility>

namespace vmm::devices::pci {
namespace {

constexpr std::uint64_t kCome = 0;
constexpr std::uint64_t kGone = 4;
constexpr std::uint64_t kLetGo = 8;

constexpr std::byte kNothing{0xff};

constexpr bool is_hotplug_access(std::uint64_t offset, std::size_t bytes) noexcept {
    return bytes == sizeof(std::uint32_t) && offset % sizeof(std::uint32_t) == 0 && offset < Hotplug::kSize;
}

} // namespace

Hotplug::Hotplug(IrqLine& line, std::function<void(unsigned)> let_go, const State& state)
    : line_(line), let_go_(std::move(let_go)), come_(state.come), gone_(state.gone) {}

void Hotplug::announce(unsigned slot) noexcept {
    come_.fetch_or(1U << slot);
    line_.raise();
}

void Hotplug::ask_back(unsigned slot) noexcept {
    gone_.fetch_or(1U << slot);
    line_.raise();
}

void Hotplug::read(std::uint64_t offset, std::span<std::byte> data) noexcept {
    if (!is_hotplug_access(offset, data.size())) {
        std::ranges::fill(data, kNothing);
        return;
    }
    const std::uint32_t value = offset == kCome ? come_.exchange(0) : offset == kGone ? gone_.exchange(0) : 0;
    std::memcpy(data.data(), &value, sizeof value);
}

void Hotplug::write(std::uint64_t offset, std::span<const std::byte> data) noexcept {
    if (!is_hotplug_access(offset, data.size()) || offset != kLetGo) {
        return;
    }
    std::uint32_t slots = 0;
    std::memcpy(&slots, data.data(), sizeof slots);
    for (; slots != 0; slots &= slots - 1) {
        let_go_(static_cast<unsigned>(std::countr_zero(slots)));
    }
}

void Hotplug::repeat_interrupt() noexcept {
    if (come_.load() != 0 || gone_.load() != 0) {
        line_.raise();
    }
}

} // namespace vmm::devices::pci
