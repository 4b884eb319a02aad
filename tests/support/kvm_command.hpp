// Runs the `vmm` command as its users do.
#pragma once

#include <fcntl.h>
#include <pty.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <termios.h>
#include <unistd.h>
#include <utmp.h>

#include <algorithm>
#include <csignal>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <stdexcept>
#include <string>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

#include "support/host_pipe.hpp"
#include "support/host_temporary_directory.hpp"
#include "support/host_waiting.hpp"

namespace vmm::testing {

/// The command under test: $VMM_BINARY, or else the one built beside the tests, or else `vmm` by PATH (in the lab).
inline std::string command_under_test() {
    if (const char* const named = std::getenv("VMM_BINARY"); named != nullptr) {
        return named;
    }
    return std::filesystem::exists(VMM_BUILT_BINARY) ? VMM_BUILT_BINARY : "vmm";
}

[[noreturn]] inline void exec_command(const std::vector<std::string>& arguments) {
    std::string program = command_under_test();
    std::vector<char*> words{program.data()};
    std::vector<std::string> copies = arguments;
    for (std::string& word : copies) {
        words.push_back(word.data());
    }
    words.push_back(nullptr);
    ::execvp(program.c_str(), words.data());
    ::_exit(127);
}

inline void redirect(int fd, const std::string& path, int flags) {
    if (const int opened = ::open(path.c_str(), flags, 0600); opened < 0 || ::dup2(opened, fd) < 0) {
        ::_exit(126);
    }
}

struct CommandResult {
    int exit_status = -1; ///< -1: killed by a signal
    std::string output;
    std::string errors;
};

/// Runs `vmm ARGUMENTS...` without input, to its end. `prepare` is called in the new process before.
inline CommandResult run_command(
    const std::vector<std::string>& arguments, void (*prepare)() = [] {}) {
    const TemporaryDirectory directory;
    const pid_t child = ::fork();
    if (child == 0) {
        redirect(STDIN_FILENO, "/dev/null", O_RDONLY);
        redirect(STDOUT_FILENO, directory / "out", O_WRONLY | O_CREAT);
        redirect(STDERR_FILENO, directory / "err", O_WRONLY | O_CREAT);
        prepare();
        exec_command(arguments);
    }
    int status = 0;
    ::waitpid(child, &status, 0);
    return {WIFEXITED(status) ? WEXITSTATUS(status) : -1, content_of(directory / "out"), content_of(directory / "err")};
}

/// True if process `process` has a thread called `name` now.
[[nodiscard]] inline bool has_thread(const std::string& process, const std::string& name) {
    std::error_code gone; // Threads end while they are listed.
    for (std::filesystem::directory_iterator task("/proc/" + process + "/task", gone), end; !gone && task != end;
         task.increment(gone)) {
        std::ifstream comm(task->path() / "comm");
        if (std::string line; std::getline(comm, line) && line == name) {
            return true;
        }
    }
    return false;
}

/// How many filters of system calls a thread has (proc_pid_status(5), Seccomp_filters).
[[nodiscard]] inline unsigned filters_of(pid_t process, pid_t thread) {
    std::ifstream status("/proc/" + std::to_string(process) + "/task/" + std::to_string(thread) + "/status");
    std::string word;
    while (status >> word && word != "Seccomp_filters:") {
    }
    unsigned count = 0;
    status >> count;
    return count;
}

/// `vmm ARGUMENTS...` that runs beside the test, without input.
class CommandBeside {
  public:
    /// `prepare` is called in the new process before.
    explicit CommandBeside(
        const std::vector<std::string>& arguments, void (*prepare)() = [] {}) {
        child_ = ::fork();
        if (child_ < 0) {
            throw std::runtime_error("cannot fork");
        }
        if (child_ == 0) {
            redirect(STDIN_FILENO, "/dev/null", O_RDONLY);
            redirect(STDOUT_FILENO, "/dev/null", O_WRONLY);
            redirect(STDERR_FILENO, errors_, O_WRONLY | O_CREAT);
            prepare();
            exec_command(arguments);
        }
    }
    ~CommandBeside() {
        if (child_ > 0) {
            ::kill(child_, SIGKILL);
            ::waitpid(child_, nullptr, 0);
        }
    }
    CommandBeside(const CommandBeside&) = delete;
    CommandBeside& operator=(const CommandBeside&) = delete;

    void send(int signal) const { ::kill(child_, signal); }
    [[nodiscard]] pid_t process() const noexcept { return child_; }
    [[nodiscard]] bool has_thread(const std::string& name) const {
        return testing::has_thread(std::to_string(child_), name);
    }
    /// True if `signal` would be handled (proc_pid_status(5), SigCgt).
    [[nodiscard]] bool catches(int signal) const {
        std::ifstream status("/proc/" + std::to_string(child_) + "/status");
        std::string word;
        while (status >> word && word != "SigCgt:") {
        }
        status >> word;
        return !status.fail() && (std::stoull(word, nullptr, 16) >> (signal - 1) & 1) != 0;
    }
    [[nodiscard]] std::string errors() const { return content_of(errors_); }
    /// True if it has started a program that still runs (proc_pid_stat(5): the fourth word is the parent's number).
    [[nodiscard]] bool has_child() const {
        std::error_code gone; // Processes end while they are listed.
        for (std::filesystem::directory_iterator entry("/proc", gone), end; !gone && entry != end;
             entry.increment(gone)) {
            std::ifstream stat(entry->path() / "stat");
            std::string text;
            std::getline(stat, text);
            std::istringstream words(text.substr(std::min(text.size(), text.rfind(')') + 1)));
            std::string state;
            pid_t parent = 0;
            if (words >> state >> parent && parent == child_) {
                return true;
            }
        }
        return false;
    }
    /// True if it has ended. wait() returns how.
    [[nodiscard]] bool has_ended() const {
        siginfo_t info{};
        return ::waitid(P_PID, static_cast<id_t>(child_), &info, WEXITED | WNOHANG | WNOWAIT) == 0 &&
               info.si_pid == child_;
    }
    /// Its exit status; -1: killed by a signal.
    int wait() {
        int status = 0;
        ::waitpid(std::exchange(child_, -1), &status, 0);
        return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
    }

  private:
    TemporaryDirectory directory_;
    std::string errors_ = directory_ / "err";
    pid_t child_ = -1;
};

/// `vmm ARGUMENTS...` at a terminal of its own. The test is the keyboard and the screen.
class CommandAtTerminal {
  public:
    explicit CommandAtTerminal(const std::vector<std::string>& arguments) {
        int terminal = -1;
        int terminal_side = -1;
        if (::openpty(&terminal, &terminal_side, nullptr, nullptr, nullptr) != 0) {
            throw std::runtime_error("cannot make a terminal");
        }
        terminal_.reset(terminal);
        // The terminal is kept open, so that its mode can still be read when the command has ended.
        terminal_side_.reset(terminal_side);
        ::fcntl(terminal, F_SETFD, FD_CLOEXEC);
        ::fcntl(terminal_side, F_SETFD, FD_CLOEXEC);
        before_ = mode(); // read before the command runs, because the command may change it at once
        child_ = ::fork();
        if (child_ < 0) {
            throw std::runtime_error("cannot fork");
        }
        if (child_ == 0) {
            if (::login_tty(terminal_side) != 0) {
                ::_exit(126);
            }
            exec_command(arguments);
        }
    }
    ~CommandAtTerminal() {
        if (child_ > 0) {
            ::kill(child_, SIGKILL);
            ::waitpid(child_, nullptr, 0);
        }
    }
    CommandAtTerminal(const CommandAtTerminal&) = delete;
    CommandAtTerminal& operator=(const CommandAtTerminal&) = delete;

    void type(std::string_view keys) const { write_text(terminal_.get(), keys); }
    void send(int signal) const { ::kill(child_, signal); }
    /// Sends `signal` to the thread called `name`; false if there is no such thread.
    [[nodiscard]] bool send_to_thread(int signal, const std::string& name) const {
        const std::string tasks = "/proc/" + std::to_string(child_) + "/task";
        for (const auto& task : std::filesystem::directory_iterator(tasks)) {
            if (content_of(task.path() / "comm") == name + "\n") {
                return ::syscall(SYS_tgkill, child_, std::stoi(task.path().filename()), signal) == 0;
            }
        }
        return false;
    }

    /// Reads the screen as far as possible; returns all that it has shown.
    const std::string& screen() {
        screen_ += read_available(terminal_.get());
        return screen_;
    }
    [[nodiscard]] termios mode() const {
        termios mode{};
        ::tcgetattr(terminal_side_.get(), &mode);
        return mode;
    }
    [[nodiscard]] bool is_raw() const { return (mode().c_lflag & (ICANON | ECHO | ISIG)) == 0; }
    [[nodiscard]] bool is_as_before() const {
        const termios now = mode();
        return now.c_lflag == before_.c_lflag && now.c_iflag == before_.c_iflag && now.c_oflag == before_.c_oflag;
    }
    [[nodiscard]] bool is_stopped() const {
        int status = 0;
        return ::waitpid(child_, &status, WUNTRACED | WNOHANG) == child_ && WIFSTOPPED(status);
    }

    /// True if it has ended, and its wait status. The screen is not read.
    [[nodiscard]] bool has_ended(int& status) {
        if (::waitpid(child_, &status, WNOHANG) != child_) {
            return false;
        }
        child_ = -1;
        return true;
    }

    /// The wait status, as waitpid() returns it. The screen is read meanwhile, so that the command never waits for a
    /// reader.
    int wait() {
        int status = -1;
        eventually([&] {
            screen();
            return ::waitpid(child_, &status, WNOHANG) == child_;
        });
        if (status != -1) {
            child_ = -1;
        }
        return status;
    }

  private:
    pid_t child_ = -1;
    UniqueFd terminal_;
    UniqueFd terminal_side_;
    termios before_{};
    std::string screen_;
};

} // namespace vmm::testing
