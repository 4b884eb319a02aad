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
/// capability in its configuration space, and reports what a driver wrote to it by set_control().
///
/// If a vector or its function is masked, an interrupt stays pending until neither is masked. At first the function is
/// no bus master. According to the specification, interrupts are lost while MSI-X is off, so check is_enabled() before
/// raise().
///
/// Threads: any number at once. raise() takes no lock.
class Msix {
  public:
    static constexpr std::size_t kMostVectors = 128;
    static constexpr std::size_t kEntryBytes = 16;

    /// An entry of one vector, as the driver wrote it.
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

    /// Makes one vector for each of `lines`, 1 to kMostVectors; the lines must outlive it.
    explicit Msix(std::span<MessageLine* const> lines);
    /// Continues from `state`, with the last arguments of set_control(). Pending interrupts stay pending until
    /// repeat_pending().
    /// Throws Error, with `name` in its text, if the state belongs to another function.
    Msix(std::span<MessageLine* const> lines, const State& state, std::uint16_t control, bool is_master,
         std::string_view name);

    [[nodiscard]] std::size_t vectors() const noexcept { return vectors_.size(); }

    /// Adds the capability (6.8.2.3) of a function with this number of vectors to `config`, and returns its offset
    /// there. `table` and `pending` are the offsets of the table and of the pending bits behind base address register
    /// 0.
    [[nodiscard]] static std::uint8_t add_capability(ConfigSpace& config, std::size_t vectors, std::uint32_t table,
                                                     std::uint32_t pending);
    /// The distance of the message control from that offset, in bytes.
    static constexpr std::size_t kControlOffset = 2;
    /// Sets the present message control of the capability, and whether the function is a bus master. A message is a
    /// write to memory, so while the function is no bus master, messages wait as those of a masked vector do.
    void set_control(std::uint16_t control, bool is_master) noexcept;
    [[nodiscard]] bool is_enabled() const noexcept { return enabled_.load(); }

    // Accesses of a driver. Aligned accesses of 4 and 8 bytes reach a register (6.8.2). Other reads return ones, and
    // other writes do nothing; the same holds beyond the end.
    void read_table(std::uint64_t offset, std::span<std::byte> data) const noexcept;
    void write_table(std::uint64_t offset, std::span<const std::byte> data) noexcept;
    void read_pending(std::uint64_t offset, std::span<std::byte> data) const noexcept;

    /// Sends the interrupt of `vector`, or makes it pending. Does nothing if there is no such vector, or if MSI-X is
    /// off.
    void raise(std::uint16_t vector) noexcept;

    [[nodiscard]] State state() const;
    /// Sends the pending interrupts that are not masked. Call it after a restore, when the guest's interrupt
    /// controllers have their state.
    void repeat_pending() noexcept;

  private:
    struct Vector {
        MessageLine* line = nullptr;
        Entry entry; ///< guarded by the lock
        std::atomic<bool> is_open = false;
        std::atomic<bool> is_pending = false;
    };

    // The members below must be called with the lock held.
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
