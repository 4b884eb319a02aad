// A program that is run to its end, and watched without being disturbed.
#pragma once

#include <sys/types.h>

#include <functional>
#include <string>
#include <string_view>
#include <vector>

namespace vmm::bench {

struct ChildSpec {
    std::vector<std::string> words; ///< the program and its arguments; the program is looked for by PATH
    /// Whether the kernel is told to give it no transparent huge pages (prctl(2), PR_SET_THP_DISABLE).
    bool without_huge_pages = false;
    double timeout_seconds = 600;
    int stop_fd = -1; ///< becomes readable when the program is to end at once
    /// What its standard input begins with, a few bytes. Empty, and no `on_output`: the input is empty.
    std::string input{};
    /// Called with all output so far, whenever there is more. What it returns goes to the program's standard input.
    std::function<std::string(pid_t child, std::string_view output)> on_output;
};

struct ChildEnd {
    int status = 0;       ///< as waitpid() gives it
    bool stopped = false; ///< by stop_fd
    bool timed_out = false;
    double seconds = 0;         ///< from before it was started until it was reaped
    double own_cpu_seconds = 0; ///< what this process used meanwhile
    std::string output;         ///< standard output, at most kMaxOutputBytes
    std::string errors;         ///< standard error, at most kMaxOutputBytes

    static constexpr std::size_t kMaxOutputBytes = 8 << 20;

    [[nodiscard]] bool succeeded() const noexcept { return status == 0 && !stopped && !timed_out; }
    /// Says why the program failed: its last words, or how it ended.
    [[nodiscard]] std::string problem() const;
};

/// Runs the program in a process group of its own. The whole group is killed if the program has to end early, and the
/// kernel ends it when this process ends. Throws Error: no process can be made.
[[nodiscard]] ChildEnd run_child(const ChildSpec& spec);

/// Whether `program` can be run. A name without a slash is looked for in PATH.
[[nodiscard]] bool is_executable(const std::string& program);

} // namespace vmm::bench
