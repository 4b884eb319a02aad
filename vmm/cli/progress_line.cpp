#include "vmm/cli/progress_line.hpp"

#include <sys/ioctl.h>

#include <algorithm>
#include <array>
#include <memory>
#include <span>

#include "kvm/host/format.hpp"
#include "kvm/host/guest_address.hpp"
#include "vmm/output/nonblocking_output.hpp"

namespace vmm {

namespace {

/// The unit for amounts of about `bytes`.
struct Unit {
    std::uint64_t bytes;
    const char* name;
};
constexpr Unit unit_for(double bytes) {
    constexpr std::array kUnits{Unit{kGiB, "GiB"}, Unit{kMiB, "MiB"}};
    for (const Unit& unit : kUnits) {
        if (bytes >= static_cast<double>(unit.bytes)) {
            return unit;
        }
    }
    return {kKiB, "KiB"};
}

double in_unit(double bytes, const Unit& unit) {
    return bytes / static_cast<double>(unit.bytes);
}

unsigned terminal_columns(int fd) {
    constexpr unsigned kUsual = 80;
    winsize size{};
    return ::ioctl(fd, TIOCGWINSZ, &size) == 0 && size.ws_col > 0 ? size.ws_col : kUsual;
}

} // namespace

std::string describe_progress(const prefault::Progress& progress) {
    const auto done = static_cast<double>(progress.done_bytes);
    const auto total = static_cast<double>(progress.total_bytes);
    const Unit unit = unit_for(progress.total_bytes == 0 ? static_cast<double>(kGiB) : total);
    std::string text = vmm::format("{} {:.1f} of {:.1f} {}", to_string(progress.stage), in_unit(done, unit),
                                   in_unit(total, unit), unit.name);
    if (progress.done_bytes != 0 && progress.seconds > 0) {
        const double per_second = done / progress.seconds;
        const Unit rate = unit_for(per_second);
        text += vmm::format(", {:.1f} {}/s", in_unit(per_second, rate), rate.name);
        if (progress.done_bytes < progress.total_bytes) {
            text += vmm::format(", {:.0f} s left", (total - done) / per_second);
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

ProgressBar::ProgressBar(int fd, std::chrono::milliseconds quiet)
    : ProgressBar(
          fd,
          [output = std::make_shared<NonblockingOutput>(fd)](std::string_view text) {
              static_cast<void>(output->write(std::as_bytes(std::span(text))));
          },
          quiet) {}

void ProgressBar::show(const prefault::Progress& progress) {
    if (std::chrono::steady_clock::now() < begin_) {
        return;
    }
    // The line begins in the first column, and the rest is erased. Some terminals wrap if the last column is used.
    write_("\r" + draw_progress(progress, terminal_columns(fd_) - 1) + "\x1b[K");
    drawn_ = true;
}

ProgressBar::~ProgressBar() {
    if (drawn_) {
        write_("\r\x1b[K");
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
