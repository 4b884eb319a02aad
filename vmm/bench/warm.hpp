// Makes the hypervisor below this host back memory before it is measured.
#pragma once

#include <cstdint>

#include "vmm/bench/cell.hpp"
#include "vmm/stop_request.hpp"

namespace vmm::bench {

/// Allocates `bytes` of memory in such pages with all CPUs, and frees them; the kernel next gives out the memory that
/// was freed last. `bytes` is a multiple of 2 MiB. Memory that is not available is not warmed, and the run then reports
/// that. It returns early if `stop` is requested.
///
/// On a virtual machine, the first touch of a page that the hypervisor does not back takes a fault there, too, which
/// may cost more than everything that is measured. With free page reporting (drivers/virtio/virtio_balloon.c), every
/// page that has been free for two seconds is such a page again. Therefore this is called before each run.
void warm_memory(std::uint64_t bytes, PageSize page_size, const StopRequest& stop) noexcept;

} // namespace vmm::bench
