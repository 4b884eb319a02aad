// Names the page of guest memory that the host could not give.
#pragma once

#include <csignal>

#include "kvm/host/guest_memory.hpp"

namespace vmm {

/// While it lives, a SIGBUS about an address in `memory` ends the process with status 1 and one line that names the
/// guest's address. Either the page is broken (BUS_MCEERR_AR), or the host has no page to give. If a broken page is
/// only reported and nobody has touched it (BUS_MCEERR_AO), the process goes on.
///
/// Any other SIGBUS does what it did before. This is for programs, not for the library, because signal dispositions
/// belong to the process. At most one exists at a time.
/// Threads: the main one. The signal may reach any thread.
class BrokenMemoryReport {
  public:
    /// `memory` must outlive it.
    explicit BrokenMemoryReport(const GuestMemory& memory);
    ~BrokenMemoryReport();
    BrokenMemoryReport(const BrokenMemoryReport&) = delete;
    BrokenMemoryReport& operator=(const BrokenMemoryReport&) = delete;
};

} // namespace vmm
