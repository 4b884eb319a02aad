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

/// The threads that move memory, and the functions that are called meanwhile.
struct MemoryMovers {
    unsigned workers = 1;
    /// It is called with each part of memory before write_all() reads it, on the thread that reads it. It may be empty.
    std::function<void(GuestRange)> before{};
    /// It is called some ten times a second with the bytes of guest memory that are done, and with the total. It may be
    /// empty.
    std::function<void(std::uint64_t done, std::uint64_t total)> progress{};
};

/// Writes guest memory to a file that is empty and as long as the layout says. Zero pages are left out, as holes.
/// Chunks whose content is the same in the base are left out, too.
///
/// Threads: one at a time.
class MemoryWriter {
  public:
    /// All arguments must outlive it. `base` is the memory of the snapshot on which this one builds; null: there is
    /// none.
    MemoryWriter(const GuestMemory& memory, const prefault::Placement& placement, const MemoryLayout& layout,
                 const MemoryFile& file, const MemoryMovers& movers, const MemorySource* base = nullptr);

    /// Writes every page that is not zero. The guest may run; pages that it writes meanwhile must be written again
    /// later. Returns false if `stop` was requested. Throws Error.
    [[nodiscard]] bool write_all(const std::stop_token& stop);
    /// Writes the pages whose bit is set, whatever they contain, and the whole chunk if the file does not have it yet.
    /// `pages` has a bit for each page of 4 KiB of each region, in the order of GuestMemory::regions(). Returns false
    /// if `stop` was requested. Throws Error.
    [[nodiscard]] bool write_pages(std::span<const std::vector<std::uint64_t>> pages, const std::stop_token& stop);

    /// The index of the file's chunks. It is right if no page was written after its chunk was.
    [[nodiscard]] const MemoryIndex& index() const noexcept { return index_; }
    /// The bytes of memory that are in the base.
    [[nodiscard]] std::uint64_t based_bytes() const noexcept;
    /// The bytes that were written to the file. Pages that were written twice count twice.
    [[nodiscard]] std::uint64_t written_bytes() const noexcept { return written_bytes_.load(); }

  private:
    class Worker;
    /// Whether the base has chunk `chunk`, at the same address.
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

/// Reads guest memory back. It leaves out chunks that are holes, because memory is zero there already. It compares each
/// chunk with its checksum. Returns false if `stop` was requested. Throws Error if a file cannot be read, or is
/// damaged.
[[nodiscard]] bool read_memory(const GuestMemory& memory, const prefault::Placement& placement,
                               const MemorySource& source, const MemoryMovers& movers, const std::stop_token& stop);

} // namespace vmm
