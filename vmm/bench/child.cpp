#include "vmm/bench/child.hpp"

#include <fcntl.h>
#include <poll.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <chrono>
#include <csignal>
#include <cstdlib>
#include <sstream>

#include "kvm/host/error.hpp"
#include "kvm/host/format.hpp"
#include "kvm/host/stopwatch.hpp"
#include "kvm/host/unique_fd.hpp"
#include "vmm/host/child_process.hpp"

namespace vmm::bench {

namespace {

using Clock = std::chrono::steady_clock;

struct Pipe {
    UniqueFd read;
    UniqueFd write;

    Pipe() {
        std::array<int, 2> fds{};
        if (::pipe2(fds.data(), O_CLOEXEC) != 0) {
            throw_errno(errno, "make a pipe for a measured program");
        }
        read.reset(fds[0]);
        write.reset(fds[1]);
    }
};

double cpu_seconds() {
    rusage usage{};
    ::getrusage(RUSAGE_SELF, &usage);
    const auto seconds = [](const timeval& time) {
        return static_cast<double>(time.tv_sec) + static_cast<double>(time.tv_usec) / 1e6;
    };
    return seconds(usage.ru_utime) + seconds(usage.ru_stime);
}

/// Appends the output that can be read now. Returns false at the end.
bool read_more(UniqueFd& fd, std::string& text) {
    std::array<char, 16384> buffer{};
    const ssize_t count = ::read(fd.get(), buffer.data(), buffer.size());
    if (count < 0) {
        return errno == EINTR || errno == EAGAIN;
    }
    const std::size_t room = ChildEnd::kMaxOutputBytes - std::min(text.size(), ChildEnd::kMaxOutputBytes);
    text.append(buffer.data(), std::min(static_cast<std::size_t>(count), room));
    return count > 0;
}

/// Everything that is watched while the program runs.
class Watcher {
  public:
    Watcher(const ChildSpec& spec, const ChildProcess& process, Pipe& in, Pipe& out, Pipe& err, ChildEnd& end)
        : spec_(spec), process_(process), in_(in), out_(out), err_(err), end_(end),
          deadline_(Clock::now() +
                    std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(spec.timeout_seconds))) {}

    void run() {
        while (out_.read || err_.read) {
            std::array<pollfd, 3> fds{pollfd{out_.read.get(), POLLIN, 0}, pollfd{err_.read.get(), POLLIN, 0},
                                      pollfd{ending_ ? -1 : spec_.stop_fd, POLLIN, 0}};
            const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(deadline_ - Clock::now()).count();
            const int ready = ::poll(fds.data(), fds.size(), static_cast<int>(std::clamp<long>(left + 1, 0, 60'000)));
            if (ready < 0) {
                continue; // A signal came; its handler makes stop_fd readable.
            }
            take(fds[0], out_.read, end_.output, true);
            take(fds[1], err_.read, end_.errors, false);
            if (fds[2].revents != 0) {
                end_.stopped = true;
                end_early();
            }
            if (Clock::now() >= deadline_) {
                if (ending_) {
                    process_.signal_group(SIGKILL);
                    return;
                }
                end_.timed_out = true;
                end_early();
            }
        }
    }

  private:
    void take(const pollfd& ready, UniqueFd& fd, std::string& text, bool is_output) {
        if (ready.revents == 0) {
            return;
        }
        const std::size_t before = text.size();
        if (!read_more(fd, text)) {
            fd.reset();
        }
        if (is_output && text.size() > before && spec_.on_output) {
            answer(spec_.on_output(process_.pid(), text));
        }
    }
    void answer(std::string_view words) const {
        // A few bytes fit into an empty pipe. The write fails only if the program has gone.
        if (!words.empty() && in_.write) {
            [[maybe_unused]] const ssize_t written = ::write(in_.write.get(), words.data(), words.size());
        }
    }
    /// Asks the program to end, and gives it some seconds.
    void end_early() {
        ending_ = true;
        process_.signal_group(SIGTERM);
        deadline_ = Clock::now() + std::chrono::seconds(10);
    }

    const ChildSpec& spec_;
    const ChildProcess& process_;
    Pipe& in_;
    Pipe& out_;
    Pipe& err_;
    ChildEnd& end_;
    Clock::time_point deadline_;
    bool ending_ = false;
};

} // namespace

std::string ChildEnd::problem() const {
    if (timed_out) {
        return vmm::format("it did not end within {:.0f} s", seconds);
    }
    std::string last;
    std::istringstream lines(errors);
    for (std::string line; std::getline(lines, line);) {
        last = line.empty() ? last : line;
    }
    for (const std::string_view prefix : {"vmm: error: ", "vmm: "}) {
        if (last.starts_with(prefix)) {
            last.erase(0, prefix.size());
        }
    }
    if (!last.empty()) {
        return last.substr(0, 500);
    }
    return WIFSIGNALED(status) ? vmm::format("it was killed by signal {}", WTERMSIG(status))
                               : vmm::format("its exit status was {}", WEXITSTATUS(status));
}

ChildEnd run_child(const ChildSpec& spec) {
    Pipe in;
    Pipe out;
    Pipe err;
    ProgramSpec start;
    start.program = spec.words.front();
    start.arguments = spec.words;
    start.in = spec.on_output || !spec.input.empty() ? in.read.get() : -1;
    start.out = out.write.get();
    start.errors = err.write.get();
    start.without_huge_pages = spec.without_huge_pages;
    start.ends_with_us = true;
    if (!spec.input.empty() && ::write(in.write.get(), spec.input.data(), spec.input.size()) < 0) {
        throw_errno(errno, "write to the pipe of a measured program");
    }
    ChildEnd end;
    const double cpu_before = cpu_seconds();
    const auto started = Clock::now();
    try {
        ChildProcess process(start, "run it");
        in.read.reset();
        out.write.reset();
        err.write.reset();
        Watcher(spec, process, in, out, err, end).run();
        end.status = process.wait();
    } catch (
        const ProgramError& error) { // The benchmark goes on with the next one, so this is said as a shell says it.
        end.errors = error.what();
        end.status = 127 << 8;
    }
    end.seconds = seconds_since(started);
    end.own_cpu_seconds = cpu_seconds() - cpu_before;
    return end;
}

bool is_executable(const std::string& program) {
    if (program.find('/') != std::string::npos) {
        return ::access(program.c_str(), X_OK) == 0;
    }
    const char* const path = std::getenv("PATH");
    std::istringstream folders(path != nullptr ? path : "/usr/bin:/bin");
    for (std::string folder; std::getline(folders, folder, ':');) {
        if (::access((folder + "/" + program).c_str(), X_OK) == 0) {
            return true;
        }
    }
    return false;
}

} // namespace vmm::bench
