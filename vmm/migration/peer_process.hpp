// Whether the process at the other end of a connection still lives.
#pragma once

#include <poll.h>

#include <cstddef>
#include <string>
#include <string_view>

#include "kvm/host/unique_fd.hpp"
#include "vmm/migration/channel.hpp"

namespace vmm {

inline constexpr std::size_t kMostProcessNameBytes = 128;

/// What tells this process from all others, of this host and of others: the host's boot, its namespace of processes,
/// and its number there.
[[nodiscard]] std::string own_process_name();

/// The process at the other end of `channel`, as a pidfd, if it is the one that calls itself `name`
/// (own_process_name()). Empty if it is not known, or is another one: what forwards a connection may end while those
/// at its ends live.
[[nodiscard]] UniqueFd process_at_other_end(const Channel& channel, std::string_view name);

/// Whether `process`, a pidfd, has ended. False if it is empty: then nothing is known.
[[nodiscard]] inline bool has_ended(const UniqueFd& process) noexcept {
    pollfd ended{process.get(), POLLIN, 0};
    return process && ::poll(&ended, 1, 0) > 0;
}

} // namespace vmm
