#include "vmm/cli/progress_line.hpp"

#include <poll.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>

#include "kvm/format.hpp"
#include "kvm/guest_address.hpp"

namespace vmm {

namespace {

double gib(std::uint64_t bytes) {
    return static_cast<double>(bytes) / static_cast<double>(kGiB);
}

unsigned terminal_columns(int fd) {
    constexpr unsigned kUsual = 80;
    winsize size{};
    return ::ioctl(fd, TIOCGWINSZ, &size) == 0 && size.ws_col > 0 ? size.ws_col : kUsual;
}

} // namespace

std::string describe_progress(const prefault::Progress& progress) {
    std::string text = vmm::format("{} {:.1f} of {:.1f} GiB", to_string(progress.stage), gib(progress.done_bytes),
                                   gib(progress.total_bytes));
    if (progress.done_bytes != 0 && progress.seconds > 0) {
        const double per_second = gib(progress.done_bytes) / progress.seconds;
        text += vmm::format(", {:.1f} GiB/s", per_second);
        if (progress.done_bytes < progress.total_bytes) {
            text += vmm::format(", {:.0f} s left", gib(progress.total_bytes - progress.done_bytes) / per_second);
        }
    }
    return text;
}

std::string draw_progress(const prefault::Progress& progress, unsigned columns) {
    constexpr unsigned kWidestBar = 40;
    constexpr unsigned kNarrowestBar = 5;
    std::string text = "prefault: " + describe_progress(progress);
    const std::size_t frame = 3; // a space and two brackets
    if (text.size() + frame + kNarrowestBar <= columns) {
        const std::size_t width = std::min<std::size_t>(kWidestBar, columns - text.size() - frame);
        const double share = progress.total_bytes == 0
                                 ? 1
                                 : static_cast<double>(progress.done_bytes) / static_cast<double>(progress.total_bytes);
        const auto full = static_cast<std::size_t>(std::min(1.0, share) * static_cast<double>(width));
        text += " [" + std::string(full, '#') + std::string(width - full, '.') + "]";
    }
    return text.substr(0, columns);
}

void ProgressBar::write(const std::string& text) const {
    // A terminal that is stopped (Ctrl-S) would stop us: it misses a frame instead.
    pollfd terminal{fd_, POLLOUT, 0};
    if (::poll(&terminal, 1, 0) == 1 && (terminal.revents & POLLOUT) != 0) {
        [[maybe_unused]] const ssize_t ignored = ::write(fd_, text.data(), text.size());
    }
}

void ProgressBar::show(const prefault::Progress& progress) {
    if (std::chrono::steady_clock::now() - started_ < std::chrono::seconds(1)) {
        return;
    }
    // Back to the first column, the line, and nothing behind it; the last column stays free, or some terminals wrap.
    write("\r" + draw_progress(progress, terminal_columns(fd_) - 1) + "\x1b[K");
    drawn_ = true;
}

ProgressBar::~ProgressBar() {
    if (drawn_) {
        write("\r\x1b[K");
    }
}

void ProgressLog::show(const prefault::Progress& progress) {
    constexpr double kEverySeconds = 5;
    const bool begins =
        progress.stage != stage_ || progress.seconds < told_.seconds || progress.done_bytes < told_.done_bytes;
    const bool done = progress.done_bytes >= progress.total_bytes;
    if (begins) {
        stage_ = progress.stage;
        told_ = {};
    } else if (told_.end) {
        return;
    }
    if (!done && progress.seconds < told_.seconds + kEverySeconds) {
        return;
    }
    told_ = {progress.seconds, progress.done_bytes, done};
    log_(LogLevel::kInfo, "prefault: " + describe_progress(progress));
}

} // namespace vmm
