// Pools of huge pages that are raised for the time of a benchmark.
#pragma once

#include <stop_token>
#include <vector>

#include "prefault/host/huge_page_pool.hpp"
#include "vmm/bench/cell.hpp"
#include "vmm/bench/matrix.hpp"

namespace vmm::bench {

/// Raises the pools of huge pages for all runs at once. Pages that stay in the pool stay backed by the hypervisor below
/// us, so no run waits for them. Destruction gives them back. Threads: one.
class RaisedPools {
  public:
    /// If `stop` is requested meanwhile, the pools may be smaller. Throws Error: there is too little memory.
    RaisedPools(const std::vector<Cell>& cells, const HostRoom& room, const std::stop_token& stop);

  private:
    std::vector<prefault::HugePageReservation> reservations_;
};

} // namespace vmm::bench
