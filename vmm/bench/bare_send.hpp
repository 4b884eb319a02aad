// The base for comparisons of a migration: a program that sends as much memory and does nothing else.
#pragma once

#include <cstdint>
#include <optional>

#include "kvm/host/guest_memory.hpp"
#include "vmm/bench/migrate_case.hpp"
#include "vmm/stop_request.hpp"

namespace vmm::bench {

/// Makes two memories, each of `bytes` in such pages, and sends one to the other by send(2) and recv(2) over `streams`
/// connections, each with a thread at either end. `bytes` must be a multiple of 2 MiB. Returns how long that took
/// without the making of memory, in seconds; nothing if `stop` was requested. Throws Error if memory is missing, or if
/// there is no connection.
[[nodiscard]] std::optional<double> send_bare(std::uint64_t bytes, PageSize page_size, MigrateLink link,
                                              unsigned streams, const StopRequest& stop);

} // namespace vmm::bench
