// What a migration's way is held against: as much memory, sent by a program that does nothing else.
#pragma once

#include <cstdint>
#include <optional>

#include "kvm/host/guest_memory.hpp"
#include "vmm/bench/migrate_case.hpp"
#include "vmm/stop_request.hpp"

namespace vmm::bench {

/// Makes memory twice, `bytes` of such pages, and sends the one to the other by send(2) and recv(2) through
/// `streams` connections, each with a thread at either end. Returns how long that took, in seconds, without making
/// memory; nothing if `stop` was requested. `bytes` are a multiple of 2 MiB. Throws Error: memory is missing, or there
/// is no connection.
[[nodiscard]] std::optional<double> send_bare(std::uint64_t bytes, PageSize page_size, MigrateLink link,
                                              unsigned streams, const StopRequest& stop);

} // namespace vmm::bench
