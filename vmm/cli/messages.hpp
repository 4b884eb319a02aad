// What the program says to people: on standard error and in the log file.
#pragma once

#include <atomic>
#include <memory>
#include <optional>
#include <string_view>

#include "vmm/cli/commands.hpp"
#include "vmm/cli/queued_output.hpp"
#include "vmm/log.hpp"
#include "vmm/output/patient_write.hpp"

namespace spdlog {
class logger; // NOLINT(readability-identifier-naming): the library's name
} // namespace spdlog

namespace vmm {

/// Messages for people. Saying something never waits: what nobody reads is dropped and counted, and the count is told
/// once somebody reads again. Threads: any, but for construction, open_log() and end().
class Messages {
  public:
    Messages();

    /// Begins the log: at the terminal, and in the log file of `command` if it names one. Throws Error: the file cannot
    /// be written.
    void open_log(const RunCommand& command);

    /// From now on a message costs the thread that says it no system call but a write to an event: threads that are
    /// confined say some. After open_log(). Throws Error.
    void prepare_for_sandbox();

    /// Writes a line to the log. Does nothing before open_log().
    void log(LogLevel level, std::string_view line);
    /// How important a line of the log has to be to be shown on standard error. Another level holds from then on.
    [[nodiscard]] LogLevel log_level() const noexcept { return level_.load(); }
    void set_log_level(LogLevel level);
    /// Writes `text` as it is, on standard error only.
    void say(std::string_view text) { terminal_.write(text); }
    /// Does the same unless older text still waits: for a picture that only counts now.
    void show(std::string_view text) { terminal_.write_if_idle(text); }
    /// Says an error on standard error and in the log file.
    void say_error(std::string_view what);

    /// Waits for slow readers as `patience` says. Called once, when all has been said.
    void end(const WritePatience& patience) noexcept;

  private:
    QueuedOutput terminal_;
    std::optional<QueuedOutput> file_;
    std::atomic<LogLevel> level_{LogLevel::kWarning};
    std::shared_ptr<spdlog::logger> logger_; ///< its first sink is the terminal
};

} // namespace vmm
