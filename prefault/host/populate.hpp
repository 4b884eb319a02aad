// The host side: makes every page of guest memory exist, ours alone, and writable in the host's page table.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <stop_token>

#include "kvm/host/guest_memory.hpp"
#include "prefault/host/placement.hpp"
#include "prefault/host/workforce.hpp"

namespace vmm::prefault {

/// Makes the pages of `bytes` (whole pages of this process's memory) exist, by MADV_POPULATE_WRITE. Their content
/// stays. Returns 0, or the errno of the kernel; it is EINTR or EAGAIN if `stop` was requested meanwhile.
[[nodiscard]] int populate_bytes(std::span<std::byte> bytes, const std::stop_token& stop) noexcept;

/// Populates `chunk` (a part of one region of `memory`, whole pages of its backing) from the calling thread, by
/// MADV_POPULATE_WRITE. It must be a write: a read would map the shared zero page, and the first write of the guest
/// would still fault. Content is preserved. Throws Error if memory, huge pages or Linux 5.14 are missing.
void populate_chunk(const GuestMemory& memory, GuestRange chunk, const std::stop_token& stop = {});

/// The chunk size for populate_chunk(), in bytes: at most 16 MiB, unless one page is larger. A chunk is one system call
/// (some 5 ms with 4 KiB pages), and a stop must wait for that call.
[[nodiscard]] std::uint64_t host_chunk_bytes(PageSize page_size, std::uint64_t total_bytes, unsigned workers);

/// Populates `ranges` (parts of `memory`) in disjoint chunks. Returns false if `stop` was requested first. Throws as
/// populate_chunk() and for_each_chunk() do.
bool populate_host(const GuestMemory& memory, std::span<const PlacedRange> ranges, const Workforce& workforce,
                   const std::stop_token& stop);

/// Gives the pages of all regions back to the host, with `workers` threads, because one munmap() frees 4 KiB pages on
/// one processor only. The content is lost, so call it only when no VM refers to the memory any more. Pages that the
/// kernel does not give back this way (locked pages before Linux 5.18) are left to the destructor of `memory`.
void release_host(const GuestMemory& memory, unsigned workers) noexcept;

} // namespace vmm::prefault
