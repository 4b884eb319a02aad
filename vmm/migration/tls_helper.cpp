#include "vmm/migration/tls_helper.hpp"

#include <fcntl.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <system_error>
#include <utility>

#include "kvm/host/stoppable_read.hpp"
#include "vmm/migration/install_paths.hpp"

namespace vmm {

namespace {

/// How long the program may take to send what is left, and to end.
constexpr std::chrono::seconds kLastBytesPatience{5};
constexpr std::size_t kLongestStatus = 4096;

/// One end, and the other for the program.
struct HelperEnds {
    UniqueFd ours;
    UniqueFd theirs;
};

HelperEnds make_plain_ends(const std::string& trying) {
    std::array<int, 2> ends{-1, -1};
    if (::socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, ends.data()) != 0) {
        throw_errno(errno, trying);
    }
    return {UniqueFd(ends[0]), UniqueFd(ends[1])};
}

HelperEnds make_status_pipe(const std::string& trying) {
    std::array<int, 2> ends{-1, -1};
    if (::pipe2(ends.data(), O_CLOEXEC | O_NONBLOCK) != 0) {
        throw_errno(errno, trying);
    }
    return {UniqueFd(ends[0]), UniqueFd(ends[1])};
}

/// The first line that the program says; without an end if it ended before.
std::string status_line(int status, int stop_fd, GiveUpTime give_up, const std::string& trying) {
    std::string line;
    while (!line.ends_with('\n') && line.size() < kLongestStatus) {
        std::array<pollfd, 2> ready{{{status, POLLIN, 0}, {stop_fd, POLLIN, 0}}};
        const int count = ::poll(ready.data(), ready.size(), poll_milliseconds(give_up));
        if (count < 0 && errno != EINTR) {
            throw_errno(errno, trying);
        }
        if (count > 0 && ready[1].revents != 0) {
            throw StoppedError("cannot " + trying + ": a stop was requested");
        }
        if (count == 0) {
            throw Error("cannot " + trying +
                        ": the other end did not answer in time (see that it runs, that it uses TLS, too, and that "
                        "no firewall holds it off)");
        }
        if (count < 0 || ready[0].revents == 0) {
            continue;
        }
        char c = '\0';
        const ssize_t size = ::read(status, &c, 1);
        if (size == 0) {
            break;
        }
        if (size > 0) {
            // Some of the text may be the other end's.
            line += c == '\n' || (c >= ' ' && c <= '~') ? c : '?';
        }
    }
    return line;
}

} // namespace

std::filesystem::path tls_program() {
    constexpr const char* kName = "vmm-tls";
    std::error_code error;
    const std::filesystem::path self = std::filesystem::read_symlink("/proc/self/exe", error).parent_path();
    std::vector<std::filesystem::path> places{std::filesystem::path(kProgramDirectory) / kName};
    if (!error) {
        places.insert(places.begin(), {self / kName, self.parent_path() / "libexec" / "vmm" / kName});
    }
    std::string looked_for;
    for (const std::filesystem::path& place : places) {
        if (::access(place.c_str(), X_OK) == 0) {
            return place;
        }
        looked_for += (looked_for.empty() ? "" : ", ") + place.string();
    }
    throw Error("cannot use TLS: the program vmm-tls is missing (install it; these were looked for: " + looked_for +
                ")");
}

TlsHelper::TlsHelper(const std::string& directory, const Request& request, UniqueFd socket, int stop_fd,
                     GiveUpTime give_up) {
    const std::string trying = "use TLS with " + request.peer;
    HelperEnds plain = make_plain_ends(trying);
    HelperEnds status = make_status_pipe(trying);
    set_tcp_options(socket.get());
    // Where a name has a scope (fe80::1%eth0), that is this host's, and no certificate has it.
    const std::string name = request.expected_name.substr(0, request.expected_name.find('%'));
    // It does not end with the thread that starts it, because that one may be short-lived: it ends with the plain end.
    process_.emplace(ProgramSpec{.program = tls_program(),
                                 .arguments = {"vmm-tls", request.listens ? "listen" : "connect", directory, name},
                                 .in = plain.theirs.get(),
                                 .out = status.theirs.get(),
                                 .kept = socket.get()},
                     trying);
    plain.theirs.reset();
    status.theirs.reset();
    socket.reset();
    std::string said = status_line(status.ours.get(), stop_fd, give_up, trying);
    if (said != "ok\n") {
        if (said.ends_with('\n')) {
            said.pop_back();
        }
        throw Error("cannot " + trying + ": " +
                    (said.empty() ? "the program vmm-tls ended without a word (see `dmesg`)" : said));
    }
    plain_ = std::move(plain.ours);
    status_ = std::move(status.ours);
}

TlsHelper::~TlsHelper() {
    plain_.reset();
    const GiveUpTime give_up = give_up_after(kLastBytesPatience);
    int left = poll_milliseconds(give_up);
    while (!abandoned_ && left > 0) {
        // Nothing is written there any more: what comes is the end.
        pollfd ended{status_.get(), POLLIN, 0};
        if (::poll(&ended, 1, left) > 0) {
            break;
        }
        left = poll_milliseconds(give_up);
    }
}

std::unique_ptr<Channel> make_tcp_channel(UniqueFd socket, const MigrationSecurity& security,
                                          TlsHelper::Request request, int stop_fd, GiveUpTime give_up) {
    if (security.tls_directory.empty()) {
        return std::make_unique<Channel>(std::move(socket), std::move(request.peer), stop_fd);
    }
    auto tls = std::make_unique<TlsHelper>(security.tls_directory, request, std::move(socket), stop_fd, give_up);
    UniqueFd plain = tls->take_plain_end();
    return std::make_unique<Channel>(std::move(plain), std::move(request.peer), stop_fd, std::move(tls));
}

} // namespace vmm
