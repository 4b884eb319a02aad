// A program that is run to its end, and is watched without disturbing it.
#pragma once

#include <sys/types.h>

#include <functional>
#include <string>
#include <string_view>
#include <vector>

namespace vmm::bench {

struct ChildSpec {
    std::vector<std::string> words; ///< the program and its arguments; the program is looked for in PATH
    /// Whether the kernel gives it no transparent huge pages (prctl(2), PR_SET_THP_DISABLE).
    bool without_huge_pages = false;
    double timeout_seconds = 600;
    int stop_fd = -1; ///< becomes readable when the program must end at once
    /// The first few bytes of its standard input. If this and `on_output` are empty, the input is empty.
    std::string input{};
    /// It is called with all output until now, whenever there is more. What it returns is sent to the program's
    /// standard input.
    std::function<std::string(pid_t child, std::string_view output)> on_output;
};

struct ChildEnd {
    int status = 0;       ///< as waitpid() gives it
    bool stopped = false; ///< by stop_fd
    bool timed_out = false;
    double seconds = 0;         ///< from before it was started until it was reaped
    double own_cpu_seconds = 0; ///< processor time of this process meanwhile
    std::string output;         ///< standard output, at most kMaxOutputBytes
    std::string errors;         ///< standard error, at most kMaxOutputBytes

    static constexpr std::size_t kMaxOutputBytes = 8 << 20;

    [[nodiscard]] bool succeeded() const noexcept { return status == 0 && !stopped && !timed_out; }
    /// Says why the program failed: its last words, or how it ended.
    [[nodiscard]] std::string problem() const;
};

/// Runs the program in a process group of its own. The whole group is killed if the program must end early, and the
/// kernel ends it when this process ends. Throws Error if no process can be made.
[[nodiscard]] ChildEnd run_child(const ChildSpec& spec);

/// Whether `program` can be run. A name without a slash is looked for in PATH.
[[nodiscard]] bool is_executable(const std::string& program);

} // namespace vmm::bench
