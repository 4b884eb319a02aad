// Finds out the kind of a descriptor that another process has opened.
#pragma once

#include <sys/socket.h>

#include "kvm/host/unique_fd.hpp"

namespace vmm {

/// Returns the value of that option of SOL_SOCKET (socket(7)), or -1 if `fd` is no socket.
[[nodiscard]] inline int socket_option(const UniqueFd& fd, int option) noexcept {
    int value = -1;
    socklen_t bytes = sizeof(value);
    return ::getsockopt(fd.get(), SOL_SOCKET, option, &value, &bytes) == 0 ? value : -1;
}

} // namespace vmm
