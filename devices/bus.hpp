// One address space of the guest, and which device answers where.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "devices/device.hpp"

namespace vmm::devices {

enum class AddressSpace {
    kPortIo, ///< x86 I/O ports: 0 to 0xffff
    kMmio,   ///< guest-physical addresses that are not RAM
};

/// Routes accesses to devices. It owns none of them: they must outlive it.
///
/// Threads: `attach` and `freeze` are for the thread that builds the machine, before any vCPU runs. After `freeze`
/// everything else may be called from any thread, and takes no lock.
class Bus {
  public:
    explicit Bus(AddressSpace space) noexcept : space_(space) {}

    /// Lets `device` answer for the `size` addresses from `base` on. Throws Error if the range is empty, leaves the
    /// address space, or overlaps that of another device. Not after `freeze`.
    void attach(std::uint64_t base, std::uint64_t size, Device& device);

    /// From now on the map does not change, so that vCPU threads may use it without a lock.
    void freeze() noexcept { frozen_ = true; }
    [[nodiscard]] bool is_frozen() const noexcept { return frozen_; }

    /// Carries out one access of `data.size()` bytes. The guest chooses every value, so every value is defined.
    ///
    /// Bytes that no device claims read as ones, and writes to them are ignored. An access over the edge of a device is
    /// cut there, as the chipset cuts a wide access into cycles that each decode by themselves: every device gets the
    /// part that is its own, lowest address first.
    void read(std::uint64_t address, std::span<std::byte> data) noexcept;
    void write(std::uint64_t address, std::span<const std::byte> data) noexcept;

    /// How many accesses had at least one byte that no device claimed.
    [[nodiscard]] std::uint64_t unclaimed_reads() const noexcept { return unclaimed_reads_.load(kRelaxed); }
    [[nodiscard]] std::uint64_t unclaimed_writes() const noexcept { return unclaimed_writes_.load(kRelaxed); }

  private:
    static constexpr auto kRelaxed = std::memory_order_relaxed;

    struct Claim {
        std::uint64_t base;
        std::uint64_t last; ///< inclusive, so that a claim may reach the end of the address space
        Device* device;
    };
    /// The first bytes of an access, as far as one device, or none, answers for all of them.
    struct Part {
        const Claim* claim; ///< null: nobody's
        std::size_t length;
    };

    [[nodiscard]] std::uint64_t last_address() const noexcept;
    /// `length` is at least 1, and so is that of the part.
    [[nodiscard]] Part first_part(std::uint64_t address, std::size_t length) const noexcept;
    /// Calls `on_device(device, offset, bytes)` or `on_nobody(bytes)` for each part of an access.
    template <typename Byte, typename OnDevice, typename OnNobody>
    void split(std::uint64_t address, std::span<Byte> data, OnDevice on_device, OnNobody on_nobody) const noexcept;

    AddressSpace space_;
    bool frozen_ = false;
    std::vector<Claim> claims_; ///< ascending, disjoint
    std::atomic<std::uint64_t> unclaimed_reads_ = 0;
    std::atomic<std::uint64_t> unclaimed_writes_ = 0;
};

} // namespace vmm::devices
