// What a restore is held against: the same file, read into memory by a program that does nothing else.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "kvm/host/guest_memory.hpp"
#include "vmm/stop_request.hpp"

namespace vmm::bench {

struct BareRead {
    double populate_seconds = 0; ///< making the memory, both its pages and their place in the page table
    double read_seconds = 0;     ///< reading the file into it
};

/// Makes memory of such pages, as much as the file at `path` has bytes, and reads the file into it by pread(2), each
/// with `workers` threads. The file is as long as whole pages of 2 MiB. Returns nothing if `stop` was requested.
/// Throws Error: memory is missing, or the file cannot be read.
[[nodiscard]] std::optional<BareRead> read_bare(const std::string& path, PageSize page_size, unsigned workers,
                                                const StopRequest& stop);

} // namespace vmm::bench
