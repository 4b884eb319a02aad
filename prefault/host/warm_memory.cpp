#include "prefault/host/warm_memory.hpp"

#include <poll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <utility>

#include "kvm/host/error.hpp"
#include "kvm/host/event_fd.hpp"
#include "kvm/host/unix_listener.hpp"
#include "prefault/host/warm_protocol.hpp"

namespace vmm::prefault {

namespace {

constexpr const char* kStartOne = "start one: `vmm pool --socket PATH`";

/// The pool does not exist, has ended, or has too little. A guest with a fallback can do without it.
class Shortage : public Error {
  public:
    using Error::Error;
};

std::uint64_t total_bytes(const WarmRequest& request) {
    std::uint64_t total = 0;
    for (const WarmShare& share : request.shares) {
        total += share.bytes;
    }
    return total;
}

/// "cannot take 4 GiB of 2M pages from the pool at PATH: "
std::string tried(const WarmRequest& request) {
    return "cannot take " + format_bytes(total_bytes(request)) + " of " + std::string(to_string(request.page_size)) +
           " pages from the pool at " + request.path + ": ";
}

warm::Request message_of(const WarmRequest& request) {
    if (request.shares.empty() || request.shares.size() > warm::Request::kMostShares) {
        throw Error("1 to " + std::to_string(warm::Request::kMostShares) + " shares are possible");
    }
    warm::Request message;
    message.page_size = warm::number_of(request.page_size);
    message.may_be_less = request.may_be_less ? 1 : 0;
    message.share_count = static_cast<std::uint32_t>(request.shares.size());
    for (std::size_t i = 0; i < request.shares.size(); ++i) {
        message.shares[i].node = request.shares[i].node.value_or(warm::kAnyNode);
        message.shares[i].bytes = request.shares[i].bytes;
    }
    if (std::holds_alternative<warm::Status>(warm::parse_request(warm::bytes_of(message)))) {
        throw Error("its shares must be whole pages, and at most " + format_bytes(warm::Request::kMostBytes) +
                    " together");
    }
    return message;
}

/// The client's end of one hand-over.
class HandOver {
  public:
    HandOver(int connection, const WarmRequest& request, const std::stop_token& stop)
        : connection_(connection), request_(request), stop_(stop), wake_(stop, Wake{&stopped_}) {}

    /// Fills `memory`. If a Shortage is thrown, `memory` keeps what came before. Throws Error.
    void run(WarmMemory& memory) {
        check_peer();
        const warm::Request message = message_of(request_);
        if (const int error_number = warm::send_packet(connection_, warm::bytes_of(message)); error_number != 0) {
            throw Shortage("it has ended (" + errno_reason(error_number) + ")");
        }
        const auto answer = receive<warm::Answer>("it went away without an answer").first;
        check(answer);
        for (std::uint32_t i = 0; i < answer.pieces; ++i) {
            auto [piece, fd] =
                receive<warm::Piece>("it went away in the middle of the hand-over: " + std::to_string(i) + " of " +
                                     std::to_string(answer.pieces) + " pieces came");
            take(memory, piece, std::move(fd));
        }
        if (memory.bytes != answer.bytes) {
            throw Error("it sent " + format_bytes(memory.bytes) + " instead of " + format_bytes(answer.bytes));
        }
        if (memory.bytes < total_bytes(request_)) {
            throw Shortage("it has " + format_bytes(memory.bytes) + " ready");
        }
    }

  private:
    void check_peer() const {
        const auto peer = warm::peer_of(connection_);
        if (!peer || !warm::is_trusted(peer->user, ::geteuid())) {
            throw Error("it is of user " + (peer ? std::to_string(peer->user) : "unknown") +
                        ", who could look into the guest's memory (take a pool of this user's or of root's)");
        }
    }

    template <typename Message>
    std::pair<Message, UniqueFd> receive(const std::string& if_gone) {
        std::array<std::byte, sizeof(Message) + 1> bytes;
        warm::Packet packet;
        wait();
        const int error_number = warm::receive_packet(connection_, bytes, packet);
        if (error_number != 0 || packet.bytes == 0) {
            throw Shortage(if_gone);
        }
        Message message;
        std::memcpy(&message, bytes.data(), sizeof(message));
        if (packet.bytes < sizeof(message.header) || message.header.magic != warm::Header::kMagic) {
            throw Error("what answers there is no pool");
        }
        if (message.header.version != warm::Header::kVersion || packet.bytes != sizeof(message) || !packet.whole) {
            throw Error("it is of another version of vmm");
        }
        return {message, std::move(packet.fd)};
    }

    void wait() {
        std::array<pollfd, 2> watched{{{connection_, POLLIN, 0}, {stopped_.fd(), POLLIN, 0}}};
        const auto deadline = std::chrono::steady_clock::now() + request_.patience;
        for (;;) {
            const auto left = std::chrono::ceil<std::chrono::milliseconds>(deadline - std::chrono::steady_clock::now());
            const int ready = ::poll(watched.data(), watched.size(), static_cast<int>(std::max<long>(left.count(), 0)));
            if (stop_.stop_requested()) {
                throw Error("a stop was requested");
            }
            if (ready > 0) {
                return;
            }
            if (left.count() <= 0) {
                throw Shortage("it says nothing");
            }
        }
    }

    void check(const warm::Answer& answer) const {
        const std::string free = format_bytes(answer.free_bytes) + " ready";
        switch (answer.status) {
        case warm::Status::kGranted:
            check_grant(answer);
            return;
        case warm::Status::kShort:
            throw Shortage("it has " + free);
        case warm::Status::kOtherPageSize: {
            const auto page_size = warm::page_size_of(answer.page_size);
            const std::string name(page_size ? to_string(*page_size) : "other");
            throw Error("it has " + name + " pages" + (page_size ? " (take Config::page_size=" + name + ")" : ""));
        }
        case warm::Status::kNoNode:
            throw Error("its memory does not lie on the nodes that are wanted (start it with "
                        "MemoryPoolConfig::split_over_nodes=true, or take "
                        "another Config::numa)");
        case warm::Status::kOtherVersion:
            throw Error("it is of another version of vmm");
        case warm::Status::kNotForYou:
            throw Error("it serves its own user and root alone");
        case warm::Status::kNotUnderstood:
            break;
        }
        throw Error("it did not understand what was asked for");
    }

    void check_grant(const warm::Answer& answer) const {
        const std::uint64_t wanted = total_bytes(request_);
        const bool is_less = answer.bytes < wanted;
        const std::uint64_t most_pieces = wanted / certain_page_bytes(request_.page_size);
        if (answer.bytes > wanted || (is_less && !request_.may_be_less) || answer.pieces > most_pieces ||
            (answer.pieces == 0) != (answer.bytes == 0)) {
            throw Error("its answer makes no sense");
        }
    }

    void take(WarmMemory& memory, const warm::Piece& message, UniqueFd fd) {
        const std::size_t last = memory.parts.empty() ? 0 : memory.parts.back().share;
        if (!fd || message.share >= request_.shares.size() || message.share < last) {
            throw Error("it sent a message that is no piece of what is wanted");
        }
        const WarmShare& share = request_.shares[message.share];
        taken_of_share_ = message.share == last ? taken_of_share_ : 0;
        const std::uint64_t left = share.bytes - taken_of_share_;
        if (left == 0 || message.bytes > *align_up(left, largest_page_bytes(request_.page_size)) ||
            (share.node && message.node != *share.node)) {
            throw Error("it sent a piece that nobody wants");
        }
        const auto node = message.node != warm::kAnyNode ? std::optional(message.node) : std::nullopt;
        try {
            WarmPiece piece(std::move(fd), message.bytes, request_.page_size, node);
            const std::uint64_t bytes = std::min(left, message.bytes);
            memory.parts.push_back({std::move(piece), message.share, bytes});
            memory.bytes += bytes;
            taken_of_share_ += bytes;
        } catch (const Error& error) {
            throw Error("it sent a piece that cannot be used: " + std::string(error.what()));
        }
    }

    int connection_;
    const WarmRequest& request_;
    std::stop_token stop_;
    EventFd stopped_;
    struct Wake {
        const EventFd* event;
        void operator()() const noexcept { event->signal(); }
    };
    std::uint64_t taken_of_share_ = 0; ///< of the share of the last part
    std::stop_callback<Wake> wake_;
};

/// Connects to the pool. Throws Shortage if there is no pool, and Error.
UniqueFd connect_to(const WarmRequest& request, const std::stop_token& stop) {
    UniqueFd connection = make_unix_socket(SOCK_SEQPACKET);
    if (!connection) {
        throw Error("no socket can be made: " + errno_reason(errno));
    }
    const auto deadline = std::chrono::steady_clock::now() + request.patience;
    int error_number = connect_unix_socket(connection.get(), request.path);
    while (error_number == EAGAIN && std::chrono::steady_clock::now() < deadline && !stop.stop_requested()) {
        constexpr int kPauseMs = 10; // Other clients wait there, too, and a socket does not signal when there is room.
        ::poll(nullptr, 0, kPauseMs);
        error_number = connect_unix_socket(connection.get(), request.path);
    }
    switch (error_number) {
    case 0:
        return connection;
    case ENOENT:
        throw Shortage(std::string("there is none (") + kStartOne + ")");
    case ECONNREFUSED:
        if (struct stat file{}; ::stat(request.path.c_str(), &file) == 0 && !S_ISSOCK(file.st_mode)) {
            throw Error("the file there is no socket (give the PATH of MemoryPoolConfig::path)");
        }
        throw Shortage(std::string("it has ended (") + kStartOne + ")");
    case EAGAIN:
        throw Shortage("too many others wait for it");
    case EPROTOTYPE:
        throw Error("the socket there is no pool's (give the PATH of MemoryPoolConfig::path)");
    default:
        break;
    }
    const auto advice =
        errno_advice(error_number, std::array{ErrnoAdvice{EACCES, "it is another user's: take a pool of this user's"},
                                              ErrnoAdvice{ENOTDIR, "give the PATH of MemoryPoolConfig::path"}});
    throw Error(errno_reason(error_number) + (advice.empty() ? "" : " (" + std::string(advice) + ")"));
}

/// Runs `work` and handles its failures as the request says.
template <typename Work>
WarmMemory heeding(const WarmRequest& request, Work work) {
    WarmMemory memory;
    try {
        work(memory);
    } catch (const Shortage& shortage) {
        if (!request.may_be_less) {
            throw Error(tried(request) + shortage.what() +
                        (std::string_view(shortage.what()).ends_with(')')
                             ? ""
                             : " (wait until it has made more, or let the rest be ordinary memory: "
                               "Config::memory_from.fallback)"));
        }
        memory.short_because = tried(request) + shortage.what();
    } catch (const Error& error) {
        throw Error(tried(request) + error.what());
    }
    return memory;
}

} // namespace

WarmMemory take_warm_memory(const WarmRequest& request, const std::stop_token& stop) {
    check_pool_path(request.path);
    return heeding(request, [&](WarmMemory& memory) {
        static_cast<void>(message_of(request));
        const UniqueFd connection = connect_to(request, stop);
        HandOver(connection.get(), request, stop).run(memory);
    });
}

WarmMemory take_warm_memory_from(int connection, const WarmRequest& request, const std::stop_token& stop) {
    return heeding(request, [&](WarmMemory& memory) { HandOver(connection, request, stop).run(memory); });
}

void check_pool_path(const std::string& path) {
    if (path.find('\0') != std::string::npos) {
        throw Error("cannot use the path of a pool: it has a NUL character in it (remove that)");
    }
    if (path.empty() || path.size() > UnixListener::kLongestPath) {
        throw Error("cannot use the path of a pool '" + path.substr(0, UnixListener::kLongestPath) +
                    "': it must have 1 to " + std::to_string(UnixListener::kLongestPath) + " bytes");
    }
}

} // namespace vmm::prefault
