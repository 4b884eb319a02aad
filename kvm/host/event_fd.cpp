#include "kvm/host/event_fd.hpp"

#include <sys/eventfd.h>
#include <unistd.h>

#include <cerrno>
#include <cstdint>

#include "kvm/host/error.hpp"

namespace vmm {

EventFd::EventFd() : fd_(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) {
    if (!fd_) {
        throw_errno(errno, "create an event descriptor");
    }
}

void EventFd::signal() const noexcept {
    // If the counter is full, the answer is EAGAIN, and the descriptor is readable already. Linux does not interrupt
    // this call, but a program that emulates or filters system calls may. Without another try a thread could sleep for
    // ever. kvm/host/retry.hpp is not used because it waits, and a signal handler must not wait.
    constexpr int kMostTries = 100;
    const std::uint64_t one = 1;
    for (int tries = 0; tries < kMostTries; ++tries) {
        if (::write(fd_.get(), &one, sizeof one) >= 0 || errno != EINTR) {
            return;
        }
    }
}

void EventFd::clear() const noexcept {
    std::uint64_t count = 0;
    [[maybe_unused]] const auto read = ::read(fd_.get(), &count, sizeof count);
}

} // namespace vmm
