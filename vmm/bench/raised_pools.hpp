// Pools of huge pages that are raised during a benchmark.
#pragma once

#include <stop_token>
#include <vector>

#include "prefault/host/huge_page_pool.hpp"
#include "vmm/bench/cell.hpp"
#include "vmm/bench/matrix.hpp"

namespace vmm::bench {

/// Raises the pools of huge pages once for all runs. A hypervisor below this host keeps the pages of a pool backed, so
/// no run waits for them. Destruction gives the pages back. Threads: one.
class RaisedPools {
  public:
    /// If `stop` is requested meanwhile, the pools may be smaller. Throws Error if there is too little memory.
    RaisedPools(const std::vector<Cell>& cells, const HostRoom& room, const std::stop_token& stop);

  private:
    std::vector<prefault::HugePageReservation> reservations_;
};

} // namespace vmm::bench
