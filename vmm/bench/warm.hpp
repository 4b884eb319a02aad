// Makes the hypervisor below us back memory before it is measured.
#pragma once

#include <cstdint>

#include "vmm/bench/cell.hpp"
#include "vmm/stop_request.hpp"

namespace vmm::bench {

/// Allocates `bytes` of memory in such pages with all CPUs, and frees them. The kernel gives out next what was freed
/// last. `bytes` is a multiple of 2 MiB. Memory that cannot be had is not warmed, and the run will say so. Ends early
/// if `stop` is requested.
///
/// On a virtual machine, the first touch of a page that the hypervisor does not back takes a fault there as well, which
/// may cost more than all that is measured. With free page reporting (drivers/virtio/virtio_balloon.c), every page that
/// has been free for two seconds is such a page again. So this belongs before each run.
void warm_memory(std::uint64_t bytes, PageSize page_size, const StopRequest& stop) noexcept;

} // namespace vmm::bench
