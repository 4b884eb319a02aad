#include "devices/pci/msix.hpp"

#include <algorithm>
#include <cassert>
#include <cstring>
#include <string>

#include "kvm/host/error.hpp"

namespace vmm::devices::pci {
namespace {

// The registers of an entry (6.8.2.6 to 6.8.2.9).
constexpr std::uint64_t kAddressLow = 0;
constexpr std::uint64_t kAddressHigh = 4;
constexpr std::uint64_t kData = 8;
constexpr std::uint64_t kVectorControl = 12;

constexpr std::uint32_t kMasked = 1;
constexpr std::uint32_t kAddressBits = ~3U; // A message is a double word (6.8.2.7).

constexpr std::uint16_t kEnable = 1U << 15U;
constexpr std::uint16_t kFunctionMask = 1U << 14U;

constexpr std::byte kNoRegister{0xff};
constexpr std::uint32_t kLowHalf = UINT32_MAX;

constexpr bool is_access(std::uint64_t offset, std::size_t bytes) noexcept {
    return (bytes == 4 || bytes == 8) && offset % bytes == 0;
}

} // namespace

Msix::Msix(std::span<MessageLine* const> lines) {
    assert(!lines.empty() && lines.size() <= kMostVectors);
    for (MessageLine* const line : lines) {
        vectors_.emplace_back().line = line;
    }
}

Msix::Msix(std::span<MessageLine* const> lines, const State& state, std::uint16_t control, bool is_master,
           std::string_view name)
    : Msix(lines) {
    if (state.entries.size() != vectors_.size() || state.pending.size() != vectors_.size()) {
        throw Error("cannot go on from the saved state of the PCI function " + std::string(name) + ": it has " +
                    std::to_string(state.entries.size()) + " vectors of MSI-X, and this one has " +
                    std::to_string(vectors_.size()) + " (configure the machine as the one whose state was saved)");
    }
    enabled_ = (control & kEnable) != 0;
    function_masked_ = (control & kFunctionMask) != 0;
    is_master_ = is_master;
    for (std::size_t i = 0; i < vectors_.size(); ++i) {
        Vector& vector = vectors_[i];
        vector.entry = state.entries[i];
        vector.entry.message.address &= ~std::uint64_t{3};
        vector.entry.control &= kMasked;
        vector.is_pending = state.pending[i] != 0;
        vector.line->prepare(vector.entry.message);
        vector.is_open = may_send(vector);
    }
}

std::uint8_t Msix::add_capability(ConfigSpace& config, std::size_t vectors, std::uint32_t table,
                                  std::uint32_t pending) {
    constexpr std::uint8_t kId = 0x11;
    const auto control = static_cast<std::uint16_t>(vectors - 1);
    constexpr std::uint16_t kWritable = kEnable | kFunctionMask;
    std::array<std::byte, 10> body{};
    std::memcpy(body.data(), &control, sizeof control);
    std::memcpy(body.data() + 2, &table, sizeof table); // Bits 0 to 2 select base address register 0.
    std::memcpy(body.data() + 6, &pending, sizeof pending);
    std::array<std::byte, 2> writable{};
    std::memcpy(writable.data(), &kWritable, sizeof kWritable);
    return config.add_capability(kId, body, writable);
}

void Msix::set_control(std::uint16_t control, bool is_master) noexcept {
    const std::lock_guard hold(mutex_);
    const bool masked = (control & kFunctionMask) != 0;
    const bool enabled = (control & kEnable) != 0;
    if (masked == function_masked_ && enabled == enabled_.load() && is_master == is_master_) {
        return;
    }
    function_masked_ = masked;
    is_master_ = is_master;
    enabled_ = enabled;
    for (Vector& vector : vectors_) {
        if (!enabled) {
            vector.is_pending = false;
        }
        update(vector);
    }
}

bool Msix::may_send(const Vector& vector) const noexcept {
    return enabled_.load() && !function_masked_ && is_master_ && (vector.entry.control & kMasked) == 0;
}

void Msix::update(Vector& vector) noexcept {
    if (!may_send(vector)) {
        vector.is_open = false;
        return;
    }
    vector.line->prepare(vector.entry.message);
    vector.is_open = true;
    send_if_pending(vector);
}

void Msix::send_if_pending(Vector& vector) noexcept {
    if (vector.is_pending.exchange(false)) {
        vector.line->raise();
    }
}

void Msix::raise(std::uint16_t vector) noexcept {
    if (vector >= vectors_.size() || !enabled_.load()) {
        return;
    }
    Vector& raised = vectors_[vector];
    if (raised.is_open.load()) {
        raised.line->raise();
        return;
    }
    // A thread that opens the vector reads the pending bit afterwards, and this thread reads is_open. So one of the two
    // sees the change of the other.
    raised.is_pending = true;
    if (raised.is_open.load()) {
        send_if_pending(raised);
    }
}

std::uint32_t Msix::read_register(std::uint64_t offset) const noexcept {
    const std::uint64_t index = offset / kEntryBytes;
    if (index >= vectors_.size()) {
        return UINT32_MAX;
    }
    const Entry& entry = vectors_[index].entry;
    switch (offset % kEntryBytes) {
    case kAddressLow:
        return static_cast<std::uint32_t>(entry.message.address & kLowHalf);
    case kAddressHigh:
        return static_cast<std::uint32_t>(entry.message.address >> 32U);
    case kData:
        return entry.message.data;
    default:
        return entry.control;
    }
}

void Msix::write_register(std::uint64_t offset, std::uint32_t value) noexcept {
    const std::uint64_t index = offset / kEntryBytes;
    if (index >= vectors_.size()) {
        return;
    }
    Vector& vector = vectors_[index];
    Entry& entry = vector.entry;
    const Entry before = entry;
    switch (offset % kEntryBytes) {
    case kAddressLow:
        entry.message.address = (entry.message.address & ~std::uint64_t{kLowHalf}) | (value & kAddressBits);
        break;
    case kAddressHigh:
        entry.message.address = (entry.message.address & kLowHalf) | std::uint64_t{value} << 32U;
        break;
    case kData:
        entry.message.data = value;
        break;
    case kVectorControl:
        entry.control = value & kMasked;
        break;
    default:
        break;
    }
    if (entry != before) {
        update(vector);
    }
}

void Msix::read_table(std::uint64_t offset, std::span<std::byte> data) const noexcept {
    if (!is_access(offset, data.size())) {
        std::ranges::fill(data, kNoRegister);
        return;
    }
    const std::lock_guard hold(mutex_);
    for (std::size_t i = 0; i < data.size(); i += sizeof(std::uint32_t)) {
        const std::uint32_t value = read_register(offset + i);
        std::memcpy(data.data() + i, &value, sizeof value);
    }
}

void Msix::write_table(std::uint64_t offset, std::span<const std::byte> data) noexcept {
    if (!is_access(offset, data.size())) {
        return;
    }
    const std::lock_guard hold(mutex_);
    for (std::size_t i = 0; i < data.size(); i += sizeof(std::uint32_t)) {
        std::uint32_t value = 0;
        std::memcpy(&value, data.data() + i, sizeof value);
        write_register(offset + i, value);
    }
}

void Msix::read_pending(std::uint64_t offset, std::span<std::byte> data) const noexcept {
    constexpr std::size_t kBits = 8;
    const std::size_t bytes = (vectors_.size() + 63) / 64 * sizeof(std::uint64_t);
    if (!is_access(offset, data.size()) || offset > bytes - data.size()) {
        std::ranges::fill(data, kNoRegister);
        return;
    }
    std::ranges::fill(data, std::byte{0});
    for (std::size_t bit = 0; bit < data.size() * kBits; ++bit) {
        const std::size_t index = offset * kBits + bit;
        if (index < vectors_.size() && vectors_[index].is_pending.load()) {
            data[bit / kBits] |= std::byte{1} << (bit % kBits);
        }
    }
}

Msix::State Msix::state() const {
    const std::lock_guard hold(mutex_);
    State state;
    for (const Vector& vector : vectors_) {
        state.entries.push_back(vector.entry);
        state.pending.push_back(vector.is_pending.load() ? 1 : 0);
    }
    return state;
}

void Msix::repeat_pending() noexcept {
    const std::lock_guard hold(mutex_);
    for (Vector& vector : vectors_) {
        if (vector.is_open.load()) {
            send_if_pending(vector);
        }
    }
}

} // namespace vmm::devices::pci
