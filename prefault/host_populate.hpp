// The host side: every page of guest memory exists, is ours alone, and is writable in the host's page table.
#pragma once

#include <cstdint>
#include <span>
#include <stop_token>
#include <vector>

#include "kvm/guest_memory.hpp"

namespace vmm::prefault {

/// Populates `ranges` (parts of `memory`) with `workers` threads on disjoint chunks, by MADV_POPULATE_WRITE: a read
/// would map the shared zero page, and the first write of the guest would fault all the same. Content is preserved.
/// Returns false if `stop` was requested first. Throws Error that says what is missing: memory, huge pages, Linux 5.14.
bool populate_host(const GuestMemory& memory, std::span<const GuestRange> ranges, unsigned workers,
                   const std::stop_token& stop);

/// For each region of `memory`, in order, the page size every byte of it is certain to have on the host now: for kThp
/// 2 MiB if the kernel says in /proc/self/smaps that nothing smaller is left in it, else 4 KiB; for the other backings
/// what they are made of.
std::vector<std::uint64_t> proven_mapping_bytes(const GuestMemory& memory);

} // namespace vmm::prefault
