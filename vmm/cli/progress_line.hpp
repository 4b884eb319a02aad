// How a prefault in progress is shown: a bar on a terminal, lines in a log.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <utility>

#include "prefault/progress.hpp"
#include "vmm/log.hpp"

namespace vmm {

/// "host memory 12.3 of 64.0 GiB, 4.5 GiB/s, 12 s left", in units that fit. Values that are not known yet are left out.
[[nodiscard]] std::string describe_progress(const prefault::Progress& progress);

/// Returns the same with a bar, in at most `columns` characters.
[[nodiscard]] std::string draw_progress(const prefault::Progress& progress, unsigned columns);

/// Draws a bar on a terminal if something takes longer than a second, and removes it at the end. Threads: one.
class ProgressBar {
  public:
    /// Nothing is drawn during this time.
    static constexpr std::chrono::milliseconds kQuiet{1000};

    /// `fd` is a terminal, on loan. If the terminal takes no text, a frame is left out; drawing never waits.
    explicit ProgressBar(int fd, std::chrono::milliseconds quiet = kQuiet);
    /// Draws by calling `write`, which puts text on that terminal.
    ProgressBar(int fd, std::function<void(std::string_view)> write, std::chrono::milliseconds quiet = kQuiet)
        : fd_(fd), write_(std::move(write)), begin_(std::chrono::steady_clock::now() + quiet) {}
    ~ProgressBar();
    ProgressBar(const ProgressBar&) = delete;
    ProgressBar& operator=(const ProgressBar&) = delete;

    void show(const prefault::Progress& progress);

  private:
    int fd_;
    std::function<void(std::string_view)> write_;
    std::chrono::steady_clock::time_point begin_; ///< of drawing
    bool drawn_ = false;
};

/// Writes a line for each stage that ends, and one every few seconds within a long one. Threads: one.
class ProgressLog {
  public:
    explicit ProgressLog(LogSink log) : log_(std::move(log)) {}

    void show(const prefault::Progress& progress);

  private:
    /// The content of the last line.
    struct Told {
        double seconds = 0;
        std::uint64_t done_bytes = 0;
        bool end = false;
    };
    LogSink log_;
    prefault::Stage stage_ = prefault::Stage::kHost;
    Told told_;
};

} // namespace vmm
