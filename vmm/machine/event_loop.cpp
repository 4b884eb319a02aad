#include "vmm/machine/event_loop.hpp"

#include <poll.h>
#include <sys/epoll.h>

#include <array>
#include <cerrno>
#include <utility>

#include "kvm/host/error.hpp"

namespace vmm {

EventLoop::EventLoop() : epoll_(::epoll_create1(EPOLL_CLOEXEC)) {
    if (!epoll_) {
        throw_errno(errno, "create an event loop");
    }
}

bool EventLoop::watch(int fd, std::uint32_t events, Handler handler) {
    epoll_event event{};
    event.events = events;
    event.data.fd = fd;
    if (::epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, fd, &event) != 0) {
        if (errno == EPERM) {
            return false;
        }
        throw_errno(errno, "watch a file descriptor",
                    {{ENOSPC, "this user watches as many descriptors as it may: raise fs.epoll.max_user_watches"}});
    }
    handlers_[fd] = std::make_shared<Handler>(std::move(handler));
    return true;
}

void EventLoop::unwatch(int fd) noexcept {
    if (handlers_.erase(fd) != 0) {
        ::epoll_ctl(epoll_.get(), EPOLL_CTL_DEL, fd, nullptr);
    }
}

void EventLoop::run_once(int timeout_ms) {
    std::array<epoll_event, 16> events{};
    const int count = ::epoll_wait(epoll_.get(), events.data(), static_cast<int>(events.size()), timeout_ms);
    if (count < 0 && errno != EINTR) {
        throw_errno(errno, "wait for events");
    }
    for (int i = 0; i < count; ++i) {
        const auto& event = events[static_cast<std::size_t>(i)];
        const auto found = handlers_.find(event.data.fd); // An earlier handler may have unwatched it.
        if (found != handlers_.end()) {
            // The copy keeps it alive, because the handler may unwatch itself.
            const std::shared_ptr<Handler> handler = found->second;
            (*handler)(event.events);
        }
    }
}

bool EventLoop::has_events() const {
    pollfd ready{epoll_.get(), POLLIN, 0};
    return ::poll(&ready, 1, 0) == 1;
}

} // namespace vmm
