#include "devices/pci/config_space.hpp"

#include <algorithm>
#include <bit>
#include <cassert>
#include <cstring>
#include <string>

#include "kvm/host/error.hpp"

namespace vmm::devices::pci {
namespace {

static_assert(std::endian::native == std::endian::little, "the registers are little endian");

// The header of type 0 (6.1).
constexpr std::size_t kVendor = 0x00;
constexpr std::size_t kDevice = 0x02;
constexpr std::size_t kStatus = 0x06;
constexpr std::size_t kRevision = 0x08;
constexpr std::size_t kClassCode = 0x09;
constexpr std::size_t kCacheLine = 0x0c;
constexpr std::size_t kBaseAddress = 0x10;
constexpr std::size_t kSubsystemVendor = 0x2c;
constexpr std::size_t kSubsystem = 0x2e;
constexpr std::size_t kCapabilities = 0x34;
constexpr std::size_t kInterruptLine = 0x3c;
constexpr std::size_t kInterruptPin = 0x3d;

// Bits of the status register (6.2.3).
constexpr std::uint16_t kInterruptStatus = 1U << 3U;
constexpr std::uint16_t kHasCapabilities = 1U << 4U;

constexpr std::byte kNoByte{0xff};

} // namespace

ConfigSpace::ConfigSpace(const Identity& identity) {
    put(kVendor, identity.vendor, 2);
    put(kDevice, identity.device, 2);
    put(kRevision, identity.revision, 1);
    put(kClassCode, identity.class_code, 3);
    put(kSubsystemVendor, identity.subsystem_vendor, 2);
    put(kSubsystem, identity.subsystem, 2);
    put(kInterruptPin, identity.interrupt_pin, 1);
    allow(kCommandOffset, kCommandBusMaster | kCommandNoPin, 2);
    allow(kCacheLine, 0xff, 1);
    allow(kInterruptLine, 0xff, 1);
}

void ConfigSpace::add_memory(std::uint32_t size, GuestAddress base) {
    assert(memory_bytes_ == 0 && std::has_single_bit(size) && size >= 16);
    assert(is_aligned(to_integer(base), size) && to_integer(base) + size <= 4 * kGiB);
    memory_bytes_ = size;
    put(kBaseAddress, static_cast<std::uint32_t>(to_integer(base)), 4); // The low bits mean memory, 32 bits wide.
    allow(kBaseAddress, ~(size - 1), 4);
    allow(kCommandOffset, kCommandMemory | kCommandBusMaster | kCommandNoPin, 2);
    put(kCommandOffset, kCommandMemory, 2);
}

std::uint8_t ConfigSpace::add_capability(std::uint8_t id, std::span<const std::byte> body,
                                         std::span<const std::byte> writable) {
    constexpr std::size_t kHead = 2;
    const auto at = static_cast<std::uint8_t>(next_free_);
    assert(next_free_ + kHead + body.size() <= kBytes && writable.size() <= body.size());
    put(last_capability_ == 0 ? kCapabilities : last_capability_ + std::size_t{1}, at, 1);
    put(kStatus, word(kStatus) | kHasCapabilities, 2);
    put(at, id, 1);
    std::ranges::copy(body, bytes_.begin() + at + kHead);
    std::ranges::copy(writable, writable_.begin() + at + kHead);
    last_capability_ = at;
    constexpr std::uint64_t kAlignment = 4;
    next_free_ = *align_up(next_free_ + kHead + body.size(), kAlignment);
    return at;
}

void ConfigSpace::restore(const State& state, std::string_view name) {
    for (std::size_t i = 0; i < kBytes; ++i) {
        // Bits that only the function itself changes are set again when it has its state.
        const std::byte ours = i == kStatus ? std::byte{kInterruptStatus} : writable_[i];
        if (((state[i] ^ bytes_[i]) & ~ours) != std::byte{0}) {
            throw Error("cannot go on from the saved state of the PCI function " + std::string(name) + ": byte " +
                        std::to_string(i) +
                        " of its configuration space is none of this function's (the snapshot is damaged, or it was "
                        "taken with other devices)");
        }
    }
    write(0, state);
}

void ConfigSpace::read(std::size_t offset, std::span<std::byte> data) const noexcept {
    const std::size_t there = offset < kBytes ? std::min(kBytes - offset, data.size()) : 0;
    if (there > 0) {
        std::memcpy(data.data(), bytes_.data() + offset, there);
    }
    std::ranges::fill(data.subspan(there), kNoByte);
}

void ConfigSpace::write(std::size_t offset, std::span<const std::byte> data) noexcept {
    for (std::size_t i = 0; i < data.size() && offset + i < kBytes; ++i) {
        std::byte& byte = bytes_[offset + i];
        const std::byte mask = writable_[offset + i];
        byte = (byte & ~mask) | (data[i] & mask);
    }
}

std::optional<GuestRange> ConfigSpace::decoded() const noexcept {
    if (memory_bytes_ == 0 || (command() & kCommandMemory) == 0) {
        return std::nullopt;
    }
    return GuestRange{GuestAddress{double_word(kBaseAddress)}, memory_bytes_};
}

void ConfigSpace::show_interrupt(bool pending) noexcept {
    const auto others = static_cast<std::uint16_t>(word(kStatus) & ~kInterruptStatus);
    put(kStatus, pending ? others | kInterruptStatus : others, 2);
}

std::uint16_t ConfigSpace::word(std::size_t offset) const noexcept {
    std::uint16_t value = 0;
    std::memcpy(&value, bytes_.data() + offset, sizeof value);
    return value;
}

std::uint32_t ConfigSpace::double_word(std::size_t offset) const noexcept {
    std::uint32_t value = 0;
    std::memcpy(&value, bytes_.data() + offset, sizeof value);
    return value;
}

void ConfigSpace::put(std::size_t offset, std::uint32_t value, std::size_t bytes) noexcept {
    std::memcpy(bytes_.data() + offset, &value, bytes);
}

void ConfigSpace::allow(std::size_t offset, std::uint32_t mask, std::size_t bytes) noexcept {
    std::memcpy(writable_.data() + offset, &mask, bytes);
}

} // namespace vmm::devices::pci
