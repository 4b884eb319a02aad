// Whether the process at the other end of a connection still lives.
#pragma once

#include <poll.h>

#include "kvm/host/unique_fd.hpp"

namespace vmm {

/// Whether `process`, a pidfd, has ended. False if it is empty: then nothing is known.
[[nodiscard]] inline bool has_ended(const UniqueFd& process) noexcept {
    pollfd ended{process.get(), POLLIN, 0};
    return process && ::poll(&ended, 1, 0) > 0;
}

} // namespace vmm
