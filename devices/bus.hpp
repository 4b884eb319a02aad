// One address space of the guest, and the device that answers at each address.
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

/// Routes accesses to devices. The bus owns none of them, and they must outlive it.
///
/// Threads: the thread that builds the machine calls `attach` and `freeze`, before any vCPU runs. After `freeze` any
/// thread may call everything else, which takes no lock.
class Bus {
  public:
    explicit Bus(AddressSpace space) noexcept : space_(space) {}

    /// Lets `device` answer for the `size` addresses from `base` on. Must not be called after `freeze`.
    /// Throws Error if the range is empty, leaves the address space, or overlaps that of another device.
    void attach(std::uint64_t base, std::uint64_t size, Device& device);

    /// From now on the map does not change, so that vCPU threads may use it without a lock.
    void freeze() noexcept { frozen_ = true; }
    [[nodiscard]] bool is_frozen() const noexcept { return frozen_; }

    /// Carries out one access of `data.size()` bytes. The guest chooses every value, so every value has a defined
    /// result.
    ///
    /// Bytes that no device claims read as ones, and writes to them are ignored. An access that crosses the edge of a
    /// device is cut there: each device gets its own part, the lowest address first. A chipset does the same when it
    /// splits a wide access into cycles and decodes each of them separately.
    void read(std::uint64_t address, std::span<std::byte> data) noexcept;
    void write(std::uint64_t address, std::span<const std::byte> data) noexcept;

    /// The number of accesses in which no device claimed at least one of the bytes.
    [[nodiscard]] std::uint64_t unclaimed_reads() const noexcept { return unclaimed_reads_.load(kRelaxed); }
    [[nodiscard]] std::uint64_t unclaimed_writes() const noexcept { return unclaimed_writes_.load(kRelaxed); }

  private:
    static constexpr auto kRelaxed = std::memory_order_relaxed;

    struct Claim {
        std::uint64_t base;
        std::uint64_t last; ///< inclusive, so that a claim may reach the end of the address space
        Device* device;
    };
    /// The first bytes of an access, as far as one device answers for all of them, or none does.
    struct Part {
        const Claim* claim; ///< null: no device claims these bytes
        std::size_t length;
    };

    [[nodiscard]] std::uint64_t last_address() const noexcept;
    /// `length` must be at least 1. The part returned has a length of at least 1, too.
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
