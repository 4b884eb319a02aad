#include "devices/pci/root_bus.hpp"

#include <algorithm>
#include <cassert>
#include <utility>

#include "devices/pci/double_words.hpp"

namespace vmm::devices::pci {
namespace {

constexpr std::byte kNobody{0xff};

// The offset of an access to configuration space in the layout of ECAM.
constexpr unsigned kFunctionShift = 12;
constexpr unsigned kDeviceShift = 15;
constexpr std::uint32_t kRegisterBits = 0xfff;
constexpr std::uint32_t kFunctionBits = 7;

} // namespace

RootBus::RootBus(GuestRange window, Moved moved) : window_(window), moved_(std::move(moved)) {}

void RootBus::insert(unsigned slot, std::shared_ptr<Function> function) {
    assert(slot < kSlots && function);
    const std::lock_guard hold(mutex_);
    assert(!slots_[slot].function);
    slots_[slot].function = std::move(function);
    follow(slot);
}

std::shared_ptr<Function> RootBus::remove(unsigned slot) {
    assert(slot < kSlots);
    const std::lock_guard hold(mutex_);
    std::shared_ptr<Function> removed = std::exchange(slots_[slot].function, nullptr);
    follow(slot);
    return removed;
}

std::shared_ptr<Function> RootBus::function(unsigned slot) const {
    const std::lock_guard hold(mutex_);
    return slot < kSlots ? slots_[slot].function : nullptr;
}

void RootBus::follow(unsigned index) {
    Slot& slot = slots_[index];
    std::optional<GuestRange> now = slot.function ? slot.function->decoded() : std::nullopt;
    if (now && !window_.contains(*now)) {
        now.reset();
    }
    if (now != slot.registers) {
        slot.registers = now;
        follow_all();
    }
}

/// Finds the functions that have their range alone, and reports the changes.
void RootBus::follow_all() {
    std::array<std::optional<GuestRange>, kSlots> now;
    for (unsigned index = 0; index < kSlots; ++index) {
        const std::optional<GuestRange>& mine = slots_[index].registers;
        const auto lies_there = [&mine](const std::optional<GuestRange>& other) {
            return other && other->base < mine->end() && mine->base < other->end();
        };
        if (mine && std::none_of(slots_.begin(), slots_.begin() + index,
                                 [&](const Slot& lower) { return lies_there(lower.registers); })) {
            now[index] = mine;
        }
    }
    for (const bool has_place : {false, true}) {
        for (unsigned index = 0; index < kSlots; ++index) {
            Slot& slot = slots_[index];
            if (now[index] != slot.alone && now[index].has_value() == has_place) {
                slot.alone = now[index];
                if (moved_) {
                    moved_(index, now[index]);
                }
            }
        }
    }
}

void RootBus::read_config(std::uint32_t at, std::span<std::byte> data) const noexcept {
    const std::shared_ptr<Function> to =
        (at >> kFunctionShift & kFunctionBits) == 0 ? function(at >> kDeviceShift) : nullptr;
    if (to) {
        to->read_config(static_cast<std::uint16_t>(at & kRegisterBits), data);
    } else {
        std::ranges::fill(data, kNobody);
    }
}

void RootBus::write_config(std::uint32_t at, std::span<const std::byte> data) noexcept {
    const unsigned slot = at >> kDeviceShift;
    const std::shared_ptr<Function> to = (at >> kFunctionShift & kFunctionBits) == 0 ? function(slot) : nullptr;
    if (!to) {
        return;
    }
    to->write_config(static_cast<std::uint16_t>(at & kRegisterBits), data);
    // The last thread that comes here sees the writes of all threads before it.
    const std::lock_guard hold(mutex_);
    follow(slot);
}

RootBus::Target RootBus::target(GuestAddress address, std::size_t length) const noexcept {
    const std::lock_guard hold(mutex_);
    std::size_t until = length; // The next beginning of a function after `address`.
    for (const Slot& slot : slots_) {
        if (!slot.registers) {
            continue;
        }
        const GuestRange range = *slot.registers;
        if (address >= range.base && address < range.end()) {
            const std::uint64_t offset = to_integer(address) - to_integer(range.base);
            // A function with a lower number may begin before this one ends.
            return {slot.function, offset, std::min<std::uint64_t>(until, range.size - offset)};
        }
        if (range.base > address) {
            until = std::min<std::uint64_t>(until, to_integer(range.base) - to_integer(address));
        }
    }
    return {nullptr, 0, until};
}

// ---- By memory

void RootBus::Ecam::read(std::uint64_t offset, std::span<std::byte> data) noexcept {
    by_double_words(offset, data, [this](std::uint64_t at, std::span<std::byte> part) {
        if (at < kEcamBytes) {
            bus_.read_config(static_cast<std::uint32_t>(at), part);
        } else {
            std::ranges::fill(part, kNobody);
        }
    });
}

void RootBus::Ecam::write(std::uint64_t offset, std::span<const std::byte> data) noexcept {
    by_double_words(offset, data, [this](std::uint64_t at, std::span<const std::byte> part) {
        if (at < kEcamBytes) {
            bus_.write_config(static_cast<std::uint32_t>(at), part);
        }
    });
}

// ---- In the window

void RootBus::Window::read(std::uint64_t offset, std::span<std::byte> data) noexcept {
    std::uint64_t address = to_integer(bus_.window_.base) + offset;
    while (!data.empty()) {
        const Target to = bus_.target(GuestAddress{address}, data.size());
        if (to.function) {
            to.function->read(to.offset, data.first(to.length));
        } else {
            std::ranges::fill(data.first(to.length), kNobody);
        }
        address += to.length;
        data = data.subspan(to.length);
    }
}

void RootBus::Window::write(std::uint64_t offset, std::span<const std::byte> data) noexcept {
    std::uint64_t address = to_integer(bus_.window_.base) + offset;
    while (!data.empty()) {
        const Target to = bus_.target(GuestAddress{address}, data.size());
        if (to.function) {
            to.function->write(to.offset, data.first(to.length));
        }
        address += to.length;
        data = data.subspan(to.length);
    }
}

} // namespace vmm::devices::pci
