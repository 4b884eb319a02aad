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

/// "host memory 12.3 of 64.0 GiB, 4.5 GiB/s, 12 s left", in units that fit. What is not known yet is left out.
[[nodiscard]] std::string describe_progress(const prefault::Progress& progress);

/// The same with a bar, in at most `columns` characters.
[[nodiscard]] std::string draw_progress(const prefault::Progress& progress, unsigned columns);

/// Draws a bar on a terminal while something takes longer than a second, and leaves nothing behind. Threads: one.
class ProgressBar {
  public:
    /// Nothing is drawn for so long.
    static constexpr std::chrono::milliseconds kQuiet{1000};

    /// `fd` is a terminal, on loan. A terminal that takes nothing misses a frame, and we never wait.
    explicit ProgressBar(int fd, std::chrono::milliseconds quiet = kQuiet);
    /// Draws by `write`, which puts text on that terminal.
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
    /// What the last line said.
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
