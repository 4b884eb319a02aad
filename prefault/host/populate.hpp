// The host side: every page of guest memory exists, is ours alone, and is writable in the host's page table.
#pragma once

#include <cstdint>
#include <span>
#include <stop_token>

#include "kvm/host/guest_memory.hpp"
#include "prefault/host/crew.hpp"
#include "prefault/host/numa.hpp"

namespace vmm::prefault {

/// Populates `chunk` (a part of one region of `memory`, whole pages of its backing) from the calling thread, by
/// MADV_POPULATE_WRITE: a read would map the shared zero page, and the first write of the guest would fault all the
/// same. Content is preserved. Throws Error that says what is missing: memory, huge pages, Linux 5.14.
void populate_chunk(const GuestMemory& memory, GuestRange chunk, const std::stop_token& stop = {});

/// How large a chunk is to be for populate_chunk(): one system call, which is how long a stop may wait. At most 16 MiB
/// (some 5 ms with 4 KiB pages), unless one page is larger.
[[nodiscard]] std::uint64_t host_chunk_bytes(PageSize page_size, std::uint64_t total_bytes, unsigned workers);

/// Populates `ranges` (parts of `memory`) on disjoint chunks. Returns false if `stop` was requested first. Throws as
/// populate_chunk() and for_each_chunk() do.
bool populate_host(const GuestMemory& memory, std::span<const PlacedRange> ranges, const Workforce& workforce,
                   const std::stop_token& stop);

/// Gives the pages of all regions back to the host, with `workers` threads: one munmap() alone frees 4 KiB pages on one
/// processor. The content is lost; for the end, when no VM refers to the memory any more. What the kernel does not give
/// back this way (locked pages before Linux 5.18) is left to the destructor of `memory`.
void release_host(const GuestMemory& memory, unsigned workers) noexcept;

} // namespace vmm::prefault
