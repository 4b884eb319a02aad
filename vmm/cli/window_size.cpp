#include "vmm/cli/window_size.hpp"

#include <sys/ioctl.h>

#include <atomic>
#include <cassert>
#include <cerrno>
#include <csignal>

namespace vmm {

namespace {

std::atomic<const EventFd*> g_changed{nullptr};
struct sigaction g_before {};

void on_window_change(int /*signal*/) {
    const int error_number = errno;
    if (const EventFd* const changed = g_changed.load()) {
        changed->signal();
    }
    errno = error_number;
}

} // namespace

std::optional<devices::virtio::ConsoleSize> window_size(int fd) noexcept {
    winsize size{};
    if (::ioctl(fd, TIOCGWINSZ, &size) != 0 || size.ws_col == 0 || size.ws_row == 0) {
        return std::nullopt;
    }
    return devices::virtio::ConsoleSize{size.ws_col, size.ws_row};
}

WindowSizeSignal::WindowSizeSignal() {
    [[maybe_unused]] const EventFd* const other = g_changed.exchange(&changed_);
    assert(other == nullptr);
    struct sigaction action {};
    action.sa_handler = on_window_change;
    action.sa_flags = SA_RESTART;
    ::sigaction(SIGWINCH, &action, &g_before);
}

WindowSizeSignal::~WindowSizeSignal() {
    ::sigaction(SIGWINCH, &g_before, nullptr);
    g_changed = nullptr;
}

} // namespace vmm
