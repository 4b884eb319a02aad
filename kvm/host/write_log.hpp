// Which pages of guest memory this process has written.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "kvm/host/guest_address.hpp"

namespace vmm {

struct MemoryRegion;

/// The pages of guest memory that this process writes or is about to write: used rings, buffers of devices, memory that
/// is given back. KVM's dirty log knows only what vCPUs write (api.rst, 4.8), so that the two are joined.
///
/// Threads: any.
class WriteLog {
  public:
    static constexpr std::uint64_t kPageBytes = 4096;

    /// Of these regions, whose host memory stays where it is. Nothing is marked.
    explicit WriteLog(std::span<const MemoryRegion> regions);

    /// Marks each page of `bytes`, which is a part of a region. What is part of none is ignored.
    void mark(std::span<const std::byte> bytes) noexcept;
    void mark(GuestRange range) noexcept;

    /// The marks of region `index`, a bit for each page, the first in bit 0. They are cleared.
    [[nodiscard]] std::vector<std::uint64_t> take(std::size_t index);

  private:
    struct Region {
        GuestRange range;
        const std::byte* host;
        std::vector<std::atomic<std::uint64_t>> words;
    };
    static void mark(Region& region, std::uint64_t offset, std::uint64_t bytes) noexcept;

    std::vector<Region> regions_;
};

} // namespace vmm
