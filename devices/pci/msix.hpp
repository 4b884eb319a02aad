// MSI-X (PCI Local Bus 3.0, 6.8.2): the vectors of a function, and which of them may interrupt.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <deque>
#include <mutex>
#include <span>
#include <vector>

#include "devices/pci/config_space.hpp"
#include "devices/pci/interrupts.hpp"

namespace vmm::devices::pci {

/// The table of vectors, the pending bits, and what the capability's message control enables. The owner keeps the
/// capability in its configuration space, and says what a driver wrote there: set_control().
///
/// An interrupt of a vector that is masked, or whose function is, stays pending until it is not masked any more. At
/// first the function is no bus master. Interrupts while MSI-X is off are lost, as the specification has it: whoever
/// raises asks is_enabled() first.
///
/// Threads: any, at once. raise() takes no lock.
class Msix {
  public:
    static constexpr std::size_t kMostVectors = 128;
    static constexpr std::size_t kEntryBytes = 16;

    /// Of one vector, as the driver wrote it.
    struct Entry {
        Message message;
        std::uint32_t control = 1; ///< bit 0: masked; the rest reads as zeros

        friend bool operator==(const Entry&, const Entry&) = default;
    };
    struct State {
        std::vector<Entry> entries;
        std::vector<std::uint8_t> pending; ///< a byte for each vector, 0 or 1

        friend bool operator==(const State&, const State&) = default;
    };

    /// One vector for each of `lines`, 1 to kMostVectors; they outlive it.
    explicit Msix(std::span<MessageLine* const> lines);
    /// Goes on from `state`, with what set_control() was told last. What is pending stays so until repeat_pending().
    /// Throws Error, which names `name`: it is that of another function.
    Msix(std::span<MessageLine* const> lines, const State& state, std::uint16_t control, bool is_master,
         std::string_view name);

    [[nodiscard]] std::size_t vectors() const noexcept { return vectors_.size(); }

    /// The capability (6.8.2.3) of a function with so many vectors, whose table and pending bits lie at these offsets
    /// behind base address register 0. Returns its offset in `config`.
    [[nodiscard]] static std::uint8_t add_capability(ConfigSpace& config, std::size_t vectors, std::uint32_t table,
                                                     std::uint32_t pending);
    /// The message control is so many bytes behind that offset.
    static constexpr std::size_t kControlOffset = 2;
    /// What the message control of the capability says now, and whether the function is a bus master: a message is a
    /// write to memory, so that it waits, as that of a masked vector does, until the function may write there.
    void set_control(std::uint16_t control, bool is_master) noexcept;
    [[nodiscard]] bool is_enabled() const noexcept { return enabled_.load(); }

    // Accesses of a driver. Aligned ones of 4 and 8 bytes reach a register (6.8.2); other reads give ones, and other
    // writes do nothing, as does everything beyond the end.
    void read_table(std::uint64_t offset, std::span<std::byte> data) const noexcept;
    void write_table(std::uint64_t offset, std::span<const std::byte> data) noexcept;
    void read_pending(std::uint64_t offset, std::span<std::byte> data) const noexcept;

    /// Interrupts by `vector`, or makes it pending. Nothing happens if there is no such vector, or if MSI-X is off.
    void raise(std::uint16_t vector) noexcept;

    [[nodiscard]] State state() const;
    /// Sends what is pending and not masked. It is called for one that was made from a state, once the guest's
    /// interrupt controllers have theirs.
    void repeat_pending() noexcept;

  private:
    struct Vector {
        MessageLine* line = nullptr;
        Entry entry; ///< with the lock held
        std::atomic<bool> is_open = false;
        std::atomic<bool> is_pending = false;
    };

    // With the lock held.
    [[nodiscard]] bool may_send(const Vector& vector) const noexcept;
    void update(Vector& vector) noexcept;
    [[nodiscard]] std::uint32_t read_register(std::uint64_t offset) const noexcept;
    void write_register(std::uint64_t offset, std::uint32_t value) noexcept;

    static void send_if_pending(Vector& vector) noexcept;

    mutable std::mutex mutex_;
    std::deque<Vector> vectors_; // Their number never changes.
    std::atomic<bool> enabled_ = false;
    bool function_masked_ = false;
    bool is_master_ = false;
};

} // namespace vmm::devices::pci
