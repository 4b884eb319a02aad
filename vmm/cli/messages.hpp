// The messages of the program to people: on standard error and in the log file.
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

/// Messages for people. Writing one never waits: text that nobody reads is dropped and counted, and the count is
/// reported once somebody reads again. Threads: any, except for construction, open_log() and end().
class Messages {
  public:
    Messages();

    /// Begins the log: at the terminal, and in the log file of `command` if it names one. Throws Error if the file
    /// cannot be written.
    void open_log(const RunCommand& command);

    /// From now on a message costs its thread no system call except a write to an event, because confined threads write
    /// messages, too. It must be called after open_log(). Throws Error.
    void prepare_for_sandbox();

    /// Writes a line to the log. Does nothing before open_log().
    void log(LogLevel level, std::string_view line);
    /// The least level of a log line that is shown on standard error. The second function changes it.
    [[nodiscard]] LogLevel log_level() const noexcept { return level_.load(); }
    void set_log_level(LogLevel level);
    /// Writes `text` as it is, on standard error only.
    void say(std::string_view text) { terminal_.write(text); }
    /// Does the same unless older text still waits. It is for a picture that is soon out of date.
    void show(std::string_view text) { terminal_.write_if_idle(text); }
    /// Writes an error to standard error and to the log file.
    void say_error(std::string_view what);

    /// Waits for slow readers as `patience` says. It is called once, after the last message.
    void end(const WritePatience& patience) noexcept;

  private:
    QueuedOutput terminal_;
    std::optional<QueuedOutput> file_;
    std::atomic<LogLevel> level_{LogLevel::kWarning};
    std::shared_ptr<spdlog::logger> logger_; ///< its first sink is the terminal
};

} // namespace vmm
