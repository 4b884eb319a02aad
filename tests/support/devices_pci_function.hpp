// A PCI function for the tests: memory behind its base address register, and a list of all accesses.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <mutex>
#include <optional>
#include <span>
#include <string_view>
#include <utility>
#include <vector>

#include "devices/pci/config_space.hpp"
#include "devices/pci/function.hpp"
#include "kvm/host/guest_address.hpp"

namespace vmm::devices::testing {

/// Its registers hold the last written value, and `fill` at first. It counts accesses that the interface does not
/// allow: was_misused().
///
/// Threads: any, at once.
class MemoryFunction final : public pci::Function {
  public:
    struct Access {
        bool is_write = false;
        bool is_config = false;
        std::uint64_t offset = 0;
        std::size_t length = 0;

        friend bool operator==(const Access&, const Access&) = default;
    };

    MemoryFunction(std::uint16_t device, std::uint32_t bytes, GuestAddress base, std::uint8_t fill = 0)
        : config_(pci::Identity{.vendor = 0x1b36, .device = device}), registers_(bytes, std::byte{fill}) {
        config_.add_memory(bytes, base);
    }

    [[nodiscard]] std::string_view name() const noexcept override { return "memory"; }
    void read_config(std::uint16_t offset, std::span<std::byte> data) noexcept override {
        const std::lock_guard hold(mutex_);
        note({false, true, offset, data.size()}, offset < 4096 && is_within_double_word(offset, data.size()));
        config_.read(offset, data);
    }
    void write_config(std::uint16_t offset, std::span<const std::byte> data) noexcept override {
        const std::lock_guard hold(mutex_);
        note({true, true, offset, data.size()}, offset < 4096 && is_within_double_word(offset, data.size()));
        config_.write(offset, data);
    }
    [[nodiscard]] std::optional<GuestRange> decoded() const noexcept override {
        const std::lock_guard hold(mutex_);
        return config_.decoded();
    }
    void read(std::uint64_t offset, std::span<std::byte> data) noexcept override {
        const std::lock_guard hold(mutex_);
        if (note({false, false, offset, data.size()}, is_within(offset, data.size()))) {
            std::ranges::copy(std::span(registers_).subspan(offset, data.size()), data.begin());
        }
    }
    void write(std::uint64_t offset, std::span<const std::byte> data) noexcept override {
        const std::lock_guard hold(mutex_);
        if (note({true, false, offset, data.size()}, is_within(offset, data.size()))) {
            std::ranges::copy(data, registers_.begin() + static_cast<std::ptrdiff_t>(offset));
        }
    }

    /// The accesses since the last call, at most kMostNotes.
    std::vector<Access> take() {
        const std::lock_guard hold(mutex_);
        return std::exchange(accesses_, {});
    }
    [[nodiscard]] bool was_misused() const {
        const std::lock_guard hold(mutex_);
        return misuses_ != 0;
    }

  private:
    static constexpr std::size_t kMostNotes = 1000;

    static bool is_within_double_word(std::uint64_t offset, std::size_t length) {
        return length >= 1 && offset % 4 + length <= 4;
    }
    [[nodiscard]] bool is_within(std::uint64_t offset, std::size_t length) const {
        return length >= 1 && offset <= registers_.size() && length <= registers_.size() - offset;
    }
    bool note(const Access& access, bool is_allowed) {
        misuses_ += is_allowed ? 0 : 1;
        if (accesses_.size() < kMostNotes) {
            accesses_.push_back(access);
        }
        return is_allowed;
    }

    mutable std::mutex mutex_; ///< guards all below
    pci::ConfigSpace config_;
    std::vector<std::byte> registers_;
    std::vector<Access> accesses_;
    int misuses_ = 0;
};

} // namespace vmm::devices::testing
