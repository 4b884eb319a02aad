// Functions that checks of devices need and busybox lacks: vsock in the guest, its unix sockets and a terminal outside
// of it.
// One program for both sides. It is linked statically, because it also goes into the guest's initramfs.
//
//   device_tool vsock-echo PORT              in the guest: echoes every connection until its other end is closed
// device_tool vsock-say PORT TEXT          in the guest: connects to the host, sends TEXT, prints the answer
//   device_tool vsock-hold PORT              in the guest: connects to the host, says HELD, and RESET when that
//                                            connection is gone; then again
//   device_tool unix-ask PATH PORT BYTES N   outside: N connections at once to the guest's port, which echo BYTES each
//   device_tool unix-answer PATH N           outside: answers N connections of the guest's with what they say
//   device_tool clock                        in the guest: looks at CLOCK_MONOTONIC every 10 ms, and says CLOCK
//                                            and its nanoseconds every second; CLOCK-BACK, if it is less than it was
//   device_tool channels INTERFACE N         in the guest: has the interface use N pairs of queues (`ethtool -L`)
//   device_tool terminal COLUMNSxROWS TEXT COMMAND...
//                                            outside: runs COMMAND at a terminal of 80x24, which it prints; makes it
//                                            COLUMNSxROWS when TEXT is on it
#include <fcntl.h>
#include <linux/ethtool.h>
#include <linux/sockios.h>
#include <linux/vm_sockets.h>
#include <net/if.h>
#include <poll.h>
#include <pty.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h> // NOLINT(modernize-deprecated-headers): nanosleep() is POSIX's.
#include <unistd.h>

#include <array>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <string_view>
#include <vector>

namespace {

[[noreturn]] void fail(const char* what) {
    std::perror(what);
    std::exit(1);
}

void write_all(int fd, std::string_view text) {
    while (!text.empty()) {
        const ssize_t count = ::write(fd, text.data(), text.size());
        if (count <= 0) {
            fail("write");
        }
        text.remove_prefix(static_cast<std::size_t>(count));
    }
}

std::string read_to_end(int fd) {
    std::string text;
    std::array<char, 4096> piece{};
    for (ssize_t count = 0; (count = ::read(fd, piece.data(), piece.size())) > 0;) {
        text.append(piece.data(), static_cast<std::size_t>(count));
    }
    return text;
}

std::string read_line(int fd) {
    std::string line;
    for (char c = 0; ::read(fd, &c, 1) == 1 && c != '\n';) {
        line.push_back(c);
    }
    return line;
}

int vsock_echo(unsigned port) {
    const int listener = ::socket(AF_VSOCK, SOCK_STREAM, 0);
    sockaddr_vm address{};
    address.svm_family = AF_VSOCK;
    address.svm_cid = VMADDR_CID_ANY;
    address.svm_port = port;
    if (listener < 0 || ::bind(listener, reinterpret_cast<const sockaddr*>(&address), sizeof(address)) != 0 ||
        ::listen(listener, 128) != 0) {
        fail("listen on vsock");
    }
    std::puts("LISTENS");
    std::fflush(stdout);
    std::signal(SIGCHLD, SIG_IGN);
    for (;;) {
        const int connection = ::accept(listener, nullptr, nullptr);
        if (connection < 0) {
            fail("accept");
        }
        if (::fork() == 0) {
            std::array<char, 16384> piece{};
            for (ssize_t count = 0; (count = ::read(connection, piece.data(), piece.size())) > 0;) {
                write_all(connection, {piece.data(), static_cast<std::size_t>(count)});
            }
            ::_exit(0);
        }
        ::close(connection);
    }
}

int vsock_say(unsigned port, std::string_view text) {
    const int connection = ::socket(AF_VSOCK, SOCK_STREAM, 0);
    sockaddr_vm address{};
    address.svm_family = AF_VSOCK;
    address.svm_cid = VMADDR_CID_HOST;
    address.svm_port = port;
    if (connection < 0 || ::connect(connection, reinterpret_cast<const sockaddr*>(&address), sizeof(address)) != 0) {
        fail("connect to the host");
    }
    write_all(connection, text);
    ::shutdown(connection, SHUT_WR);
    std::printf("ANSWER %s\n", read_to_end(connection).c_str());
    return 0;
}

[[noreturn]] void vsock_hold(unsigned port) {
    constexpr timespec kBetween{.tv_sec = 0, .tv_nsec = 100'000'000};
    sockaddr_vm address{};
    address.svm_family = AF_VSOCK;
    address.svm_cid = VMADDR_CID_HOST;
    address.svm_port = port;
    for (;;) {
        const int connection = ::socket(AF_VSOCK, SOCK_STREAM, 0);
        if (connection < 0) {
            fail("vsock");
        }
        if (::connect(connection, reinterpret_cast<const sockaddr*>(&address), sizeof(address)) == 0) {
            std::puts("HELD");
            std::fflush(stdout);
            static_cast<void>(read_to_end(connection));
            std::puts("RESET");
            std::fflush(stdout);
        }
        ::close(connection);
        ::nanosleep(&kBetween, nullptr);
    }
}

[[noreturn]] void watch_clock() {
    constexpr long long kNanosecondsOfSecond = 1'000'000'000;
    constexpr timespec kBetween{.tv_sec = 0, .tv_nsec = 10'000'000};
    long long last = 0;
    long long said = 0;
    for (;;) {
        timespec time{};
        ::clock_gettime(CLOCK_MONOTONIC, &time);
        const long long now = (time.tv_sec * kNanosecondsOfSecond) + time.tv_nsec;
        if (now < last) {
            std::printf("CLOCK-BACK from %lld to %lld\n", last, now);
        }
        if (now >= said + kNanosecondsOfSecond) {
            std::printf("CLOCK %lld\n", now);
            said = now;
        }
        std::fflush(stdout);
        last = now;
        ::nanosleep(&kBetween, nullptr);
    }
}

sockaddr_un unix_address(const char* path) {
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    std::strncpy(address.sun_path, path, sizeof(address.sun_path) - 1);
    return address;
}

int unix_ask(const char* path, const std::string& port, std::size_t bytes, unsigned count) {
    const sockaddr_un address = unix_address(path);
    std::vector<int> connections;
    for (unsigned i = 0; i < count; ++i) {
        const int connection = ::socket(AF_UNIX, SOCK_STREAM, 0);
        if (connection < 0 ||
            ::connect(connection, reinterpret_cast<const sockaddr*>(&address), sizeof(address)) != 0) {
            fail("connect to the unix socket");
        }
        write_all(connection, "CONNECT " + port + "\n");
        connections.push_back(connection);
    }
    for (const int connection : connections) {
        if (const std::string line = read_line(connection); line.rfind("OK ", 0) != 0) {
            std::printf("no OK but '%s'\n", line.c_str());
            return 1;
        }
    }
    for (std::size_t i = 0; i < connections.size(); ++i) {
        const int connection = connections[i];
        const std::string text(bytes, static_cast<char>('a' + (i % 26)));
        if (const pid_t child = ::fork(); child == 0) {
            write_all(connection, text);
            ::shutdown(connection, SHUT_WR);
            ::_exit(0);
        }
        std::string answer(bytes, 0);
        std::size_t there = 0;
        for (ssize_t got = 0; there < bytes && (got = ::read(connection, answer.data() + there, bytes - there)) > 0;) {
            there += static_cast<std::size_t>(got);
        }
        ::wait(nullptr);
        if (answer != text) {
            std::printf("connection %zu: %zu of %zu bytes, or others\n", i, there, bytes);
            return 1;
        }
        if (!read_to_end(connection).empty()) { // The guest closes after us.
            std::puts("more than was said");
            return 1;
        }
        ::close(connection);
    }
    std::printf("ECHOED %u x %zu\n", count, bytes);
    return 0;
}

int unix_answer(const char* path, unsigned count) {
    const int listener = ::socket(AF_UNIX, SOCK_STREAM, 0);
    const sockaddr_un address = unix_address(path);
    if (listener < 0 || ::bind(listener, reinterpret_cast<const sockaddr*>(&address), sizeof(address)) != 0 ||
        ::listen(listener, 64) != 0) {
        fail("listen on the unix socket");
    }
    for (unsigned i = 0; i < count; ++i) {
        const int connection = ::accept(listener, nullptr, nullptr);
        write_all(connection, "you said " + read_to_end(connection));
        ::close(connection);
    }
    return 0;
}

int set_channels(const char* interface, unsigned pairs) {
    const int fd = ::socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    ethtool_channels channels{};
    channels.cmd = ETHTOOL_SCHANNELS;
    channels.combined_count = pairs;
    ifreq request{};
    std::snprintf(request.ifr_name, sizeof(request.ifr_name), "%s", interface);
    request.ifr_data = reinterpret_cast<char*>(&channels);
    if (fd < 0 || ::ioctl(fd, SIOCETHTOOL, &request) != 0) {
        fail("SIOCETHTOOL");
    }
    return 0;
}

int terminal(const char* size, const std::string& text, char** command) {
    unsigned columns = 0;
    unsigned rows = 0;
    if (std::sscanf(size, "%ux%u", &columns, &rows) != 2) {
        return 2;
    }
    int master = -1;
    winsize before{24, 80, 0, 0};
    const pid_t child = ::forkpty(&master, nullptr, nullptr, &before);
    if (child == 0) {
        ::execvp(command[0], command);
        ::_exit(127);
    }
    std::string screen;
    bool resized = false;
    std::array<char, 4096> piece{};
    for (ssize_t count = 0; (count = ::read(master, piece.data(), piece.size())) > 0;) {
        screen.append(piece.data(), static_cast<std::size_t>(count));
        write_all(STDOUT_FILENO, {piece.data(), static_cast<std::size_t>(count)});
        if (!resized && screen.find(text) != std::string::npos) {
            resized = true;
            const winsize after{static_cast<unsigned short>(rows), static_cast<unsigned short>(columns), 0, 0};
            ::ioctl(master, TIOCSWINSZ, &after);
        }
    }
    int status = 0;
    ::waitpid(child, &status, 0);
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128;
}

} // namespace

int main(int argc, char** argv) {
    const std::string verb = argc > 1 ? argv[1] : "";
    const auto number = [argv](int index) { return static_cast<unsigned>(std::strtoul(argv[index], nullptr, 10)); };
    if (verb == "clock" && argc == 2) {
        watch_clock();
    }
    if (verb == "vsock-echo" && argc == 3) {
        return vsock_echo(number(2));
    }
    if (verb == "vsock-say" && argc == 4) {
        return vsock_say(number(2), argv[3]);
    }
    if (verb == "vsock-hold" && argc == 3) {
        vsock_hold(number(2));
    }
    if (verb == "unix-ask" && argc == 6) {
        return unix_ask(argv[2], argv[3], number(4), number(5));
    }
    if (verb == "unix-answer" && argc == 4) {
        return unix_answer(argv[2], number(3));
    }
    if (verb == "channels" && argc == 4) {
        return set_channels(argv[2], number(3));
    }
    if (verb == "terminal" && argc > 4) {
        return terminal(argv[2], argv[3], argv + 4);
    }
    std::fputs("usage: see device_tool.cpp\n", stderr);
    return 2;
}
