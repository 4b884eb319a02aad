// Guest memory in the file `memory` of a snapshot: written while the guest runs, and read back.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <stop_token>
#include <string>
#include <vector>

#include "kvm/host/guest_address.hpp"
#include "kvm/host/guest_memory.hpp"
#include "prefault/host/placement.hpp"
#include "vmm/state/memory_index.hpp"
#include "vmm/state/memory_layout.hpp"
#include "vmm/state/memory_source.hpp"

namespace vmm {

/// Who moves memory, and who is told.
struct MemoryMovers {
    unsigned workers = 1;
    /// Is told of each part of memory before write_all() reads it, on the thread that reads it. It may be empty.
    std::function<void(GuestRange)> before{};
    /// Is told some ten times a second how many bytes of guest memory are done, of how many. It may be empty.
    std::function<void(std::uint64_t done, std::uint64_t total)> progress{};
};

/// Writes guest memory to a file that is empty and as long as the layout says. Zero pages are left out, as holes. So
/// are chunks whose content is the same in a snapshot that this one builds on.
///
/// Threads: one at a time.
class MemoryWriter {
  public:
    /// All of these outlive it. `base` is what the snapshot builds on; null: nothing.
    MemoryWriter(const GuestMemory& memory, const prefault::Placement& placement, const MemoryLayout& layout,
                 const MemoryFile& file, const MemoryMovers& movers, const MemorySource* base = nullptr);

    /// Writes every page that is not zero. The guest may run: pages that it writes meanwhile are to be written again.
    /// Returns false if `stop` was requested. Throws Error.
    [[nodiscard]] bool write_all(const std::stop_token& stop);
    /// Writes the pages whose bit is set, whatever is in them, and all of a chunk that the file does not have yet:
    /// `pages` has a bit for each page of 4 KiB of each region, in the order of GuestMemory::regions(). Likewise.
    [[nodiscard]] bool write_pages(std::span<const std::vector<std::uint64_t>> pages, const std::stop_token& stop);

    /// What is in the file. It holds if no page was written since its chunk was.
    [[nodiscard]] const MemoryIndex& index() const noexcept { return index_; }
    /// How many bytes of memory the base has.
    [[nodiscard]] std::uint64_t based_bytes() const noexcept;
    /// How many bytes went to the file, pages that went twice included.
    [[nodiscard]] std::uint64_t written_bytes() const noexcept { return written_bytes_.load(); }

  private:
    class Worker;
    /// Whether the base has a chunk `chunk`, at the same address.
    [[nodiscard]] bool is_in_base(std::size_t chunk) const;
    [[nodiscard]] bool for_each_chunk(const std::stop_token& stop,
                                      const std::function<void(Worker&, GuestRange chunk)>& work);

    const GuestMemory& memory_;
    const prefault::Placement& placement_;
    const MemoryLayout& layout_;
    const MemoryFile& file_;
    const MemoryMovers& movers_;
    const MemorySource* base_;
    MemoryIndex index_;
    std::atomic<std::uint64_t> written_bytes_{0};
};

/// Reads guest memory back. Chunks that are holes are left alone: memory is zero there already. Each chunk is compared
/// with its checksum. Returns false if `stop` was requested. Throws Error: a file cannot be read, or is damaged.
[[nodiscard]] bool read_memory(const GuestMemory& memory, const prefault::Placement& placement,
                               const MemorySource& source, const MemoryMovers& movers, const std::stop_token& stop);

} // namespace vmm
