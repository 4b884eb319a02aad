// What the program says where the host cannot give it a page of its guest's memory.
#pragma once

#include <csignal>

#include "kvm/host/guest_memory.hpp"

namespace vmm {

/// While it lives, a SIGBUS about an address in `memory` ends the process with one line that names the guest's address,
/// and status 1: the page is broken (BUS_MCEERR_AR), or there is none to be had. A page that is only said to be broken,
/// and that nobody has touched (BUS_MCEERR_AO), is no reason to end. Any other SIGBUS does what it did before. For
/// programs, not for the library: dispositions belong to the process. At most one exists at a time.
///
/// Threads: the main one; the signal may reach any.
class BrokenMemoryReport {
  public:
    /// `memory` outlives it.
    explicit BrokenMemoryReport(const GuestMemory& memory);
    ~BrokenMemoryReport();
    BrokenMemoryReport(const BrokenMemoryReport&) = delete;
    BrokenMemoryReport& operator=(const BrokenMemoryReport&) = delete;
};

} // namespace vmm
