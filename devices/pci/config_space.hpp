// The configuration space of a PCI function (PCI Local Bus 3.0, 6.1 and 6.7).
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string_view>

#include "kvm/host/guest_address.hpp"

namespace vmm::devices::pci {

/// The identity of a function: the part of its header (type 0) that never changes.
struct Identity {
    std::uint16_t vendor = 0;
    std::uint16_t device = 0;
    std::uint8_t revision = 0;
    std::uint32_t class_code = 0; ///< base class, subclass and interface, 8 bits each
    std::uint16_t subsystem_vendor = 0;
    std::uint16_t subsystem = 0;
    std::uint8_t interrupt_pin = 0; ///< 1 is INTA; 0: it has no pin
};

// Bits of the command register (6.2.2).
inline constexpr std::uint16_t kCommandMemory = 1U << 1U;
inline constexpr std::uint16_t kCommandBusMaster = 1U << 2U;
inline constexpr std::uint16_t kCommandNoPin = 1U << 10U; ///< Interrupt Disable

/// The 256 bytes, and the bits of them that a driver may write. They are a header of type 0 with at most one base
/// address register, which is for memory below 4 GiB, and a list of capabilities.
///
/// Threads: one at a time; the owner must lock.
class ConfigSpace {
  public:
    static constexpr std::size_t kBytes = 256;

    /// The state contains all bytes, including those that a driver has written.
    using State = std::array<std::byte, kBytes>;

    explicit ConfigSpace(const Identity& identity);

    // ---- Setting it up

    /// Adds base address register 0 for `size` bytes (a power of two, at least 16) at `base`, which is a multiple of
    /// `size` and below 4 GiB. It decodes from the start, as if firmware had set it up.
    void add_memory(std::uint32_t size, GuestAddress base);
    /// Appends a capability, for which there must be room. `body` is what follows its id and the pointer to the next
    /// one; `writable` has the bits of `body` that a driver may write (it may be shorter). Returns the offset of the
    /// id, a multiple of 4.
    std::uint8_t add_capability(std::uint8_t id, std::span<const std::byte> body, std::span<const std::byte> writable);
    /// Continues from `state`. Throws Error if it belongs to another function; `name` is the name of this one.
    void restore(const State& state, std::string_view name);

    // ---- Using it

    /// Any offset and length is possible. Bytes beyond the end read as ones.
    void read(std::size_t offset, std::span<std::byte> data) const noexcept;
    /// Bits that a driver may not write keep their values.
    void write(std::size_t offset, std::span<const std::byte> data) noexcept;
    [[nodiscard]] std::uint16_t command() const noexcept { return word(kCommandOffset); }
    /// The range of the base address register; nothing if memory is not decoded, or if there is no such register.
    [[nodiscard]] std::optional<GuestRange> decoded() const noexcept;
    /// Sets bit 3 of the status register (6.2.3): the function requests an interrupt by its pin.
    void show_interrupt(bool pending) noexcept;
    [[nodiscard]] std::uint16_t word(std::size_t offset) const noexcept;
    [[nodiscard]] std::uint32_t double_word(std::size_t offset) const noexcept;
    [[nodiscard]] const State& state() const noexcept { return bytes_; }

    static constexpr std::size_t kCommandOffset = 0x04;

  private:
    void put(std::size_t offset, std::uint32_t value, std::size_t bytes) noexcept;
    void allow(std::size_t offset, std::uint32_t mask, std::size_t bytes) noexcept;

    State bytes_{};
    State writable_{};
    std::uint32_t memory_bytes_ = 0;
    std::uint8_t last_capability_ = 0;
    std::size_t next_free_ = 0x40;
};

} // namespace vmm::devices::pci
