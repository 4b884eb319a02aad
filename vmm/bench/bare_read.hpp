// The base for comparisons of a restore: a program that reads the same file into memory and does nothing else.
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

/// Makes memory of such pages, as large as the file at `path`, and reads the file into it by pread(2). Both use
/// `workers` threads. The size of the file must be a multiple of 2 MiB. Returns nothing if `stop` was requested. Throws
/// Error if memory is missing, or if the file cannot be read.
[[nodiscard]] std::optional<BareRead> read_bare(const std::string& path, PageSize page_size, unsigned workers,
                                                const StopRequest& stop);

} // namespace vmm::bench
