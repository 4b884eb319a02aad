// A command whose system calls fail when a test says so. The command may be linked statically, because the kernel asks
// us before each call (seccomp_unotify(2)).
#pragma once

#include <fcntl.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <chrono>
#include <csignal>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <functional>
#include <optional>
#include <span>
#include <stdexcept>
#include <string>
#include <system_error>
#include <vector>

#include "kvm/host/error.hpp"
#include "kvm/host/unique_fd.hpp"
#include "support/host_pipe.hpp"
#include "support/host_temporary_directory.hpp"
#include "support/host_waiting.hpp"

#ifndef SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV
#define SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV (1UL << 5) // Linux 5.19
#endif

namespace vmm::testing {

/// A system call that is about to be made.
struct SystemCall {
    int number = 0;
    std::array<std::uint64_t, 6> arguments{};
    pid_t thread = 0; ///< whose call it is
};

/// Decides on one call while its thread waits: 0 lets it go ahead, a value of errno refuses it.
using CallDecision = std::function<int(const SystemCall&)>;

struct InjectedRun {
    int exit_status = -1; ///< -1: killed by `signal`
    int signal = 0;
    bool timed_out = false;      ///< and was killed for it
    std::string stuck;           ///< where its threads were then, a line each
    bool left_processes = false; ///< of its own
    std::string output;
    std::string errors;
};

/// Runs a command. We decide on each of its calls with one of `numbers`. execve, sendmsg and exit_group must not be
/// among them: the new process makes these before anybody answers.
///
/// Threads: one at a time. The decisions are made in the thread that calls run().
class SyscallInjector {
  public:
    explicit SyscallInjector(std::vector<int> numbers) : numbers_(std::move(numbers)) {}

    /// Why calls cannot be intercepted here; empty if they can.
    [[nodiscard]] static std::string why_not() {
        const SyscallInjector nothing_but_true({SYS_reboot});
        try {
            static_cast<void>(nothing_but_true.run({"true"}, [](const SystemCall&) { return 0; }));
        } catch (const std::runtime_error& error) {
            return error.what();
        }
        return {};
    }

    /// Runs `words` without input and for at most `patience`. The first word is a program (looked up in PATH). Throws
    /// std::runtime_error if calls cannot be intercepted.
    [[nodiscard]] InjectedRun run(std::vector<std::string> words, const CallDecision& decide,
                                  std::chrono::milliseconds patience = kPatience) const {
        const TemporaryDirectory directory;
        const std::string output = directory / "out";
        const std::string errors = directory / "err";
        std::vector<char*> arguments; // made before the fork: the watched process must not allocate memory
        for (std::string& word : words) {
            arguments.push_back(word.data());
        }
        arguments.push_back(nullptr);
        SocketPair sockets;
        const pid_t child = ::fork();
        if (child < 0) {
            throw std::runtime_error("cannot fork: " + errno_reason(errno));
        }
        if (child == 0) {
            become(arguments.data(), output.c_str(), errors.c_str(), sockets.theirs.get());
        }
        sockets.theirs.reset();
        Child owner(child);
        InjectedRun result;
        supervise(owner, receive_listener(sockets.ours.get()), decide, std::chrono::steady_clock::now() + patience,
                  result);
        result.output = content_of(output);
        result.errors = content_of(errors);
        return result;
    }

  private:
    using Clock = std::chrono::steady_clock;

    /// The process itself. It is killed and reaped, whatever happens here.
    class Child {
      public:
        explicit Child(pid_t pid) : pid_(pid), ended_(static_cast<int>(::syscall(SYS_pidfd_open, pid, 0))) {}
        ~Child() {
            if (pid_ > 0) {
                kill();
                reap();
            }
        }
        Child(const Child&) = delete;
        Child& operator=(const Child&) = delete;

        /// Readable when the process has ended.
        [[nodiscard]] int fd() const noexcept { return ended_.get(); }
        [[nodiscard]] bool is_there() const noexcept { return pid_ > 0; }
        [[nodiscard]] pid_t pid() const noexcept { return pid_; }
        void kill() const noexcept { ::kill(pid_, SIGKILL); }
        int reap() noexcept {
            int status = 0;
            while (::waitpid(pid_, &status, 0) < 0 && errno == EINTR) {
            }
            pid_ = -1;
            return status;
        }

      private:
        pid_t pid_;
        UniqueFd ended_;
    };

    /// The name of each thread, the system call it is in, and the kernel's function it waits in.
    [[nodiscard]] static std::string threads_of(pid_t process) {
        std::string lines;
        std::error_code gone;
        for (std::filesystem::directory_iterator task("/proc/" + std::to_string(process) + "/task", gone), end;
             !gone && task != end; task.increment(gone)) {
            for (const char* what : {"comm", "syscall", "wchan", "stack"}) {
                std::ifstream file(task->path() / what);
                for (std::string line; std::getline(file, line);) {
                    lines += line + "  ";
                }
            }
            lines += "\n";
        }
        return lines;
    }

    [[nodiscard]] std::vector<sock_filter> filter() const {
        std::vector<sock_filter> program;
        const auto load = [&program](std::size_t offset) {
            program.push_back(BPF_STMT(BPF_LD | BPF_W | BPF_ABS, static_cast<std::uint32_t>(offset)));
        };
        const auto unless_equal_skip = [&program](std::uint32_t value, std::uint8_t skip) {
            program.push_back(BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, value, 0, skip));
        };
        const auto answer = [&program](std::uint32_t action) { program.push_back(BPF_STMT(BPF_RET | BPF_K, action)); };
        load(offsetof(seccomp_data, arch));
        unless_equal_skip(AUDIT_ARCH_X86_64, static_cast<std::uint8_t>(2 * numbers_.size() + 1));
        load(offsetof(seccomp_data, nr));
        for (const int number : numbers_) {
            unless_equal_skip(static_cast<std::uint32_t>(number), 1);
            answer(SECCOMP_RET_USER_NOTIF);
        }
        answer(SECCOMP_RET_ALLOW);
        return program;
    }

    /// Runs in the new process: everything up to the command.
    [[noreturn]] void become(char** arguments, const char* output, const char* errors, int socket) const {
        ::prctl(PR_SET_PDEATHSIG, SIGKILL);
        redirect_to(STDIN_FILENO, "/dev/null", O_RDONLY);
        redirect_to(STDOUT_FILENO, output, O_WRONLY | O_CREAT);
        redirect_to(STDERR_FILENO, errors, O_WRONLY | O_CREAT);
        std::vector<sock_filter> instructions = filter();
        const sock_fprog program{static_cast<unsigned short>(instructions.size()), instructions.data()};
        int listener = -1;
        if (::prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0) {
            // Killable: otherwise a signal that comes while we decide would make the kernel ask for the call a second
            // time.
            listener = install(program, SECCOMP_FILTER_FLAG_NEW_LISTENER | SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV);
            if (listener < 0 && errno == EINVAL) {
                listener = install(program, SECCOMP_FILTER_FLAG_NEW_LISTENER);
            }
        }
        send_listener(socket, listener, listener < 0 ? errno : 0);
        if (listener >= 0) {
            ::execvp(arguments[0], arguments);
        }
        ::_exit(127);
    }

    static void redirect_to(int fd, const char* path, int flags) {
        if (const int opened = ::open(path, flags | O_CLOEXEC, 0600); opened < 0 || ::dup2(opened, fd) < 0) {
            ::_exit(126);
        }
    }

    static int install(const sock_fprog& program, unsigned long flags) {
        return static_cast<int>(::syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, flags, &program));
    }

    /// The message over the socket: a value of errno, and the listener if there is one.
    struct Letter {
        explicit Letter(int* error_number) : content{error_number, sizeof *error_number} {
            header.msg_iov = &content;
            header.msg_iovlen = 1;
            header.msg_control = control.data();
            header.msg_controllen = control.size();
        }
        iovec content;
        alignas(cmsghdr) std::array<char, CMSG_SPACE(sizeof(int))> control{};
        msghdr header{};
    };

    static void send_listener(int socket, int listener, int error_number) {
        Letter letter(&error_number);
        if (listener < 0) {
            letter.header.msg_controllen = 0;
        } else {
            cmsghdr* const rights = CMSG_FIRSTHDR(&letter.header);
            rights->cmsg_level = SOL_SOCKET;
            rights->cmsg_type = SCM_RIGHTS;
            rights->cmsg_len = CMSG_LEN(sizeof listener);
            std::memcpy(CMSG_DATA(rights), &listener, sizeof listener);
        }
        if (::sendmsg(socket, &letter.header, MSG_NOSIGNAL) < 0) {
            ::_exit(125);
        }
    }

    static UniqueFd receive_listener(int socket) {
        int error_number = EPIPE;
        Letter letter(&error_number);
        ssize_t count = 0;
        do {
            count = ::recvmsg(socket, &letter.header, MSG_CMSG_CLOEXEC);
        } while (count < 0 && errno == EINTR);
        const cmsghdr* const rights = count > 0 ? CMSG_FIRSTHDR(&letter.header) : nullptr;
        if (rights == nullptr) {
            throw std::runtime_error("cannot intercept system calls by seccomp: " + errno_reason(error_number));
        }
        int listener = -1;
        std::memcpy(&listener, CMSG_DATA(rights), sizeof listener);
        return UniqueFd(listener);
    }

    static void supervise(Child& child, UniqueFd listener, const CallDecision& decide, Clock::time_point deadline,
                          InjectedRun& result) {
        // When all processes with the filter have ended, the listener says so (Linux 5.9). This also covers children.
        Mailbox mailbox(listener.get());
        for (;;) {
            std::array<pollfd, 2> events{
                {{listener.get(), POLLIN, 0}, {child.is_there() ? child.fd() : -1, POLLIN, 0}}};
            const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(deadline - Clock::now()).count();
            const int ready = ::poll(events.data(), events.size(), static_cast<int>(std::clamp<long>(left, 0, 60'000)));
            if (ready < 0) {
                continue; // EINTR
            }
            if (ready == 0) {
                if (!child.is_there()) {
                    result.left_processes = true;
                    return;
                }
                result.timed_out = true;
                result.stuck = threads_of(child.pid());
                child.kill();
                deadline = Clock::now() + kPatience;
                continue;
            }
            if ((events[0].revents & POLLIN) != 0) {
                mailbox.answer_one(decide);
            }
            if ((events[1].revents & POLLIN) != 0) {
                const int status = child.reap();
                result.exit_status = WIFEXITED(status) ? WEXITSTATUS(status) : -1;
                result.signal = WIFSIGNALED(status) ? WTERMSIG(status) : 0;
                deadline = Clock::now() + kPatience;
            } else if ((events[0].revents & POLLHUP) != 0 && !child.is_there()) {
                return;
            } else if (events[0].revents == POLLHUP) {
                // No process has the filter any more, but the process must still be reaped.
                pollfd ended{child.fd(), POLLIN, 0};
                ::poll(&ended, 1, 1000);
            }
        }
    }

    /// One question at a time, and its answer. The kernel says how large both are.
    class Mailbox {
      public:
        explicit Mailbox(int listener) : listener_(listener) {
            seccomp_notif_sizes sizes{};
            if (::syscall(SYS_seccomp, SECCOMP_GET_NOTIF_SIZES, 0, &sizes) != 0) {
                throw std::runtime_error("cannot ask for the size of seccomp's notifications: " + errno_reason(errno));
            }
            question_.resize(std::max<std::size_t>(sizes.seccomp_notif, sizeof(seccomp_notif)));
            answer_.resize(std::max<std::size_t>(sizes.seccomp_notif_resp, sizeof(seccomp_notif_resp)));
        }

        void answer_one(const CallDecision& decide) {
            std::fill(question_.begin(), question_.end(), std::byte{}); // the kernel requires zeros
            if (::ioctl(listener_, SECCOMP_IOCTL_NOTIF_RECV, question_.data()) != 0) {
                return; // EINTR; or ENOENT: the thread was killed meanwhile. poll() asks again.
            }
            seccomp_notif asked{};
            std::memcpy(&asked, question_.data(), sizeof asked);
            SystemCall call{asked.data.nr, {}, static_cast<pid_t>(asked.pid)};
            std::copy(std::begin(asked.data.args), std::end(asked.data.args), call.arguments.begin());
            const int error_number = decide(call);
            seccomp_notif_resp response{};
            response.id = asked.id;
            if (error_number == 0) {
                response.flags = SECCOMP_USER_NOTIF_FLAG_CONTINUE;
            } else if (call.number != SYS_brk) {
                response.error = -error_number;
            } // brk() has no errors: a failed call returns the old end of the heap, here 0
            std::fill(answer_.begin(), answer_.end(), std::byte{});
            std::memcpy(answer_.data(), &response, sizeof response);
            ::ioctl(listener_, SECCOMP_IOCTL_NOTIF_SEND, answer_.data()); // ENOENT: killed meanwhile.
        }

      private:
        int listener_;
        std::vector<std::byte> question_;
        std::vector<std::byte> answer_;
    };

    std::vector<int> numbers_;
};

} // namespace vmm::testing
