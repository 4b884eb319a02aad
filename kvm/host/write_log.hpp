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
/// is given back. KVM's dirty log has only the pages that vCPUs write (api.rst, 4.8), so a reader joins the two.
///
/// Threads: any.
class WriteLog {
  public:
    static constexpr std::uint64_t kPageBytes = kSmallPageBytes;

    /// A log of `regions`, whose host memory must stay where it is. No page is marked at first.
    explicit WriteLog(std::span<const MemoryRegion> regions);

    /// Marks each page of `bytes`, which must be part of a region. Bytes outside of all regions are ignored.
    void mark(std::span<const std::byte> bytes) noexcept;
    void mark(GuestRange range) noexcept;

    /// Returns the marks of region `index` and clears them. There is one bit for each page; the first page is bit 0.
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
