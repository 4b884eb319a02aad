#include "vmm/control/server.hpp"

#include <poll.h>
#include <pthread.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <cstring>
#include <exception>
#include <iterator>
#include <limits>
#include <mutex>
#include <span>
#include <utility>
#include <vector>

#include "kvm/host/format.hpp"
#include "kvm/host/retry.hpp"
#include "kvm/host/thread.hpp"
#include "kvm/host/unix_listener.hpp"

namespace vmm::control {

namespace {

using Clock = std::chrono::steady_clock;

/// How long no connection is accepted after the host had no descriptor or no memory left.
constexpr std::chrono::seconds kAcceptPause{1};
/// The most connections that are accepted before other connections have their turn.
constexpr int kMostAcceptsATurn = 16;
constexpr std::size_t kReadBytes = 4096;
/// The most events that go into a buffer at once.
constexpr std::size_t kMostEventsATurn = 32;

/// The answer to a request.
struct Letter {
    std::uint64_t connection = 0;
    HttpAnswer answer;
    std::optional<std::uint64_t> events_from; ///< instead of the answer
};

} // namespace

/// Carries answers from any thread to the server's thread.
class Mailbox {
  public:
    void post(Letter letter) {
        {
            const std::lock_guard hold(lock_);
            letters_.push_back(std::move(letter));
        }
        wake.signal();
    }
    [[nodiscard]] std::vector<Letter> take() {
        const std::lock_guard hold(lock_);
        return std::exchange(letters_, {});
    }

    EventFd wake;
    std::atomic<bool> ending{false};

  private:
    std::mutex lock_;
    std::vector<Letter> letters_; ///< for each connection, only the first letter counts
};

Reply::Reply(std::shared_ptr<Mailbox> mailbox, std::uint64_t connection)
    : mailbox_(std::move(mailbox)), connection_(connection) {}

void Reply::send(HttpAnswer answer) const {
    mailbox_->post({connection_, std::move(answer), std::nullopt});
}

void Reply::send_events(std::uint64_t first) const {
    mailbox_->post({connection_, {}, first});
}

/// Everything in it runs on the server's thread.
class Server::Loop {
  public:
    Loop(int listener_fd, Events& events, Handler handler, ServerLimits limits, std::shared_ptr<Mailbox> mailbox)
        : listener_fd_(listener_fd), events_(events), handler_(std::move(handler)), limits_(limits),
          mailbox_(std::move(mailbox)) {}

    void run() {
        while (!mailbox_->ending.load()) {
            try {
                turn(std::nullopt);
            } catch (const std::exception&) { // There is no memory, so the connections are closed to free some.
                connections_.clear();
                no_accept_before_ = Clock::now() + kAcceptPause;
            }
        }
        try {
            end();
        } catch (const std::exception&) {
            connections_.clear();
        }
    }

  private:
    enum class Phase {
        kReading,   ///< waits for the next request
        kWaiting,   ///< waits for the answer to a request
        kStreaming, ///< sends events
        kLingering, ///< everything is sent; what the client still sends is dropped, so that it can read the answer
        kDead,      ///< to be removed
    };
    struct Connection {
        std::uint64_t id = 0;
        UniqueFd socket;
        RequestReader reader;
        std::shared_ptr<std::vector<UniqueFd>> descriptors{}; ///< that came with the next request; null: none
        Phase phase = Phase::kReading;
        Clock::time_point since{}; ///< when the phase began, or something moved in it
        std::string output{};
        bool keep_alive = true;
        bool is_head = false; ///< the request wants no body
        std::uint64_t next_event = 1;
        short happened = 0; ///< what poll() reported

        [[nodiscard]] bool has_more_to_say() const { return !output.empty() || phase == Phase::kStreaming; }
    };

    void end() {
        const Clock::time_point deadline = Clock::now() + limits_.end_patience;
        accept_some(); // A client that connected before the end is served, even if this thread was delayed.
        for (Connection& connection : connections_) {
            if (connection.phase == Phase::kReading) {
                read(connection);
            }
        }
        ending_ = true;
        deliver();
        for (Connection& connection : connections_) {
            refill(connection);
        }
        while (std::ranges::any_of(connections_, &Connection::has_more_to_say) && Clock::now() < deadline) {
            turn(deadline);
        }
        connections_.clear();
    }

    void turn(std::optional<Clock::time_point> until) {
        std::vector<pollfd> fds;
        fds.reserve(connections_.size() + 2);
        fds.push_back({mailbox_->wake.fd(), POLLIN, 0});
        fds.push_back({may_accept() ? listener_fd_ : -1, POLLIN, 0});
        for (const Connection& connection : connections_) {
            fds.push_back({connection.socket.get(), wanted(connection), 0});
        }
        if (::poll(fds.data(), fds.size(), wait_ms(until)) > 0) {
            std::size_t at = 2;
            for (Connection& connection : connections_) {
                connection.happened = fds[at++].revents;
            }
            mailbox_->wake.clear();
            for (Connection& connection : connections_) {
                serve(connection);
            }
            if ((fds[1].revents & POLLIN) != 0) {
                accept_some();
            }
        }
        deliver();
        for (Connection& connection : connections_) {
            refill(connection);
            write(connection);
            check_patience(connection);
        }
        connections_.remove_if([](const Connection& one) { return one.phase == Phase::kDead; });
    }

    [[nodiscard]] bool may_accept() const {
        return !ending_ && Clock::now() >= no_accept_before_ &&
               (connections_.size() < limits_.connections || std::ranges::any_of(connections_, is_evictable));
    }
    [[nodiscard]] static bool is_evictable(const Connection& connection) {
        return (connection.phase == Phase::kReading && connection.output.empty()) ||
               connection.phase == Phase::kLingering;
    }

    [[nodiscard]] static short wanted(const Connection& connection) {
        unsigned events = 0;
        if (!connection.output.empty()) {
            events |= POLLOUT;
        } else if (connection.phase == Phase::kReading || connection.phase == Phase::kLingering) {
            events |= POLLIN;
        }
        return static_cast<short>(events);
    }

    [[nodiscard]] std::optional<Clock::time_point> deadline_of(const Connection& connection) const {
        if (!connection.output.empty() || connection.phase == Phase::kLingering) {
            return connection.since + limits_.patience;
        }
        if (connection.phase == Phase::kReading) {
            const bool idle = connection.reader.state() == RequestReader::State::kIdle;
            return connection.since + (idle ? limits_.idle_patience : limits_.patience);
        }
        return std::nullopt;
    }

    [[nodiscard]] int wait_ms(std::optional<Clock::time_point> until) const {
        std::optional<Clock::time_point> first = until;
        const auto consider = [&first](Clock::time_point time) { first = first ? std::min(*first, time) : time; };
        for (const Connection& connection : connections_) {
            if (const auto deadline = deadline_of(connection)) {
                consider(*deadline);
            }
        }
        if (!ending_ && no_accept_before_ > Clock::now()) {
            consider(no_accept_before_);
        }
        if (!first) {
            return -1;
        }
        const auto wait = std::chrono::ceil<std::chrono::milliseconds>(*first - Clock::now()).count();
        return static_cast<int>(std::clamp<std::int64_t>(wait, 0, std::numeric_limits<int>::max()));
    }

    void accept_some() {
        for (int i = 0; i < kMostAcceptsATurn && may_accept(); ++i) {
            UniqueFd socket(::accept4(listener_fd_, nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC));
            if (!socket) {
                if (!would_block(errno) && errno != ECONNABORTED) {
                    no_accept_before_ = Clock::now() + kAcceptPause;
                }
                return;
            }
            const auto peer = peer_of(socket.get());
            if (!peer || !is_trusted(peer->user, ::geteuid())) {
                continue; // It is another user's. It gets no answer.
            }
            if (connections_.size() >= limits_.connections) {
                const auto oldest = std::ranges::find_if(connections_, is_evictable);
                connections_.erase(oldest); // may_accept() has made sure that there is one.
            }
            Connection& added = connections_.emplace_back();
            added.id = next_id_++;
            added.socket = std::move(socket);
            added.since = Clock::now();
        }
    }

    void serve(Connection& connection) {
        const auto happened = static_cast<unsigned>(std::exchange(connection.happened, 0));
        if ((happened & POLLIN) != 0) {
            read(connection);
        } else if ((happened & (POLLHUP | POLLERR | POLLNVAL)) != 0) {
            connection.phase = Phase::kDead;
        }
        if ((happened & POLLOUT) != 0 && connection.phase != Phase::kDead) {
            write(connection);
        }
    }

    void read(Connection& connection) {
        std::array<char, kReadBytes> bytes;
        std::vector<UniqueFd> came;
        bool too_many = false;
        const ssize_t count = receive(connection.socket.get(), bytes, came, too_many);
        if (count < 0) {
            if (!would_block(errno)) {
                connection.phase = Phase::kDead;
            }
            return;
        }
        if (count == 0) {
            connection.phase = Phase::kDead; // Its earlier requests have been answered.
            return;
        }
        if (connection.phase == Phase::kLingering) {
            return;
        }
        if (connection.reader.state() == RequestReader::State::kIdle) {
            connection.since = Clock::now(); // The time for the whole request begins now.
        }
        connection.reader.add({bytes.data(), static_cast<std::size_t>(count)});
        if (!came.empty()) {
            if (!connection.descriptors) {
                connection.descriptors = std::make_shared<std::vector<UniqueFd>>();
            }
            std::ranges::move(came, std::back_inserter(*connection.descriptors));
            too_many = too_many || connection.descriptors->size() > kMostDescriptors;
        }
        if (too_many) {
            connection.descriptors.reset();
            connection.keep_alive = false;
            answer(
                connection,
                error_answer(400, vmm::format("the descriptors that came with the request cannot be taken: there are "
                                              "more than {}, or this process has as many open files as it may",
                                              kMostDescriptors)));
            return;
        }
        look_at_request(connection);
    }

    /// Receives as recv(2), together with descriptors. If there is no room for some, the kernel closes them, and
    /// `too_many` is set.
    static ssize_t receive(int socket, std::span<char> bytes, std::vector<UniqueFd>& came, bool& too_many) {
        iovec piece{bytes.data(), bytes.size()};
        alignas(cmsghdr) std::array<char, CMSG_SPACE(sizeof(int) * kMostDescriptors)> control{};
        msghdr message{};
        message.msg_iov = &piece;
        message.msg_iovlen = 1;
        message.msg_control = control.data();
        message.msg_controllen = control.size();
        const ssize_t count = ::recvmsg(socket, &message, MSG_CMSG_CLOEXEC);
        if (count < 0) {
            return count;
        }
        for (cmsghdr* header = CMSG_FIRSTHDR(&message); header != nullptr; header = CMSG_NXTHDR(&message, header)) {
            if (header->cmsg_level != SOL_SOCKET || header->cmsg_type != SCM_RIGHTS) {
                continue;
            }
            const std::size_t fds = (header->cmsg_len - CMSG_LEN(0)) / sizeof(int);
            for (std::size_t i = 0; i < fds; ++i) {
                int fd = -1;
                std::memcpy(&fd, CMSG_DATA(header) + i * sizeof fd, sizeof fd);
                came.emplace_back(fd);
            }
        }
        too_many = (message.msg_flags & MSG_CTRUNC) != 0;
        return count;
    }

    void look_at_request(Connection& connection) {
        switch (connection.reader.state()) {
        case RequestReader::State::kIdle:
            return;
        case RequestReader::State::kPartial:
            if (connection.reader.wants_continue()) {
                connection.output += "HTTP/1.1 100 Continue\r\n\r\n";
            }
            return;
        case RequestReader::State::kRefused:
            connection.keep_alive = false;
            answer(connection, connection.reader.refusal());
            return;
        case RequestReader::State::kWhole: {
            HttpRequest request = connection.reader.take();
            request.descriptors = std::exchange(connection.descriptors, nullptr);
            connection.keep_alive = request.keep_alive;
            connection.is_head = request.method == "HEAD";
            connection.phase = Phase::kWaiting;
            handler_(request, Reply(mailbox_, connection.id));
            return;
        }
        }
    }

    /// Takes the answers that have come. An answer may be followed by a request that is there already; its answer is
    /// taken in the next round.
    void deliver() {
        for (std::vector<Letter> letters = mailbox_->take(); !letters.empty(); letters = mailbox_->take()) {
            for (const Letter& letter : letters) {
                const auto found = std::ranges::find(connections_, letter.connection, &Connection::id);
                if (found != connections_.end() && found->phase == Phase::kWaiting) {
                    answer(*found, letter);
                }
            }
        }
    }

    void answer(Connection& connection, const Letter& letter) {
        if (!letter.events_from) {
            answer(connection, letter.answer);
            return;
        }
        const auto streams = std::ranges::count(connections_, Phase::kStreaming, &Connection::phase);
        if (static_cast<std::size_t>(streams) >= limits_.streams) {
            answer(connection, error_answer(429, vmm::format("{} clients follow the events already (close one of "
                                                             "them, or ask with follow=false)",
                                                             streams)));
            return;
        }
        HttpAnswer head;
        head.content_type = "application/x-ndjson";
        connection.output += head_of(head, false, Framing::kChunks);
        connection.phase = Phase::kStreaming;
        connection.next_event = *letter.events_from;
        connection.since = Clock::now();
    }

    void answer(Connection& connection, const HttpAnswer& answer) const {
        const bool keep_alive = connection.keep_alive && !ending_;
        connection.output += head_of(answer, keep_alive, Framing::kWhole);
        if (!connection.is_head) {
            connection.output += answer.body;
        }
        connection.phase = keep_alive ? Phase::kReading : Phase::kLingering;
        connection.since = Clock::now();
    }

    /// Gives a client the next events, if it has taken the earlier ones.
    void refill(Connection& connection) {
        if (connection.phase != Phase::kStreaming || !connection.output.empty()) {
            return;
        }
        const Events::Batch batch = events_.from(connection.next_event, kMostEventsATurn);
        connection.next_event = batch.next;
        for (const std::string& line : batch.lines) {
            connection.output += chunk_of(line + "\n");
        }
        if (!batch.lines.empty()) {
            connection.since = Clock::now();
        } else if (ending_) {
            connection.output += last_chunk();
            connection.phase = Phase::kLingering;
        }
    }

    void write(Connection& connection) {
        if (connection.output.empty() || connection.phase == Phase::kDead) {
            return;
        }
        const ssize_t count = ::send(connection.socket.get(), connection.output.data(), connection.output.size(),
                                     MSG_NOSIGNAL | MSG_DONTWAIT);
        if (count < 0) {
            if (!would_block(errno)) {
                connection.phase = Phase::kDead;
            }
            return;
        }
        connection.output.erase(0, static_cast<std::size_t>(count));
        connection.since = Clock::now();
        if (!connection.output.empty()) {
            return;
        }
        if (connection.phase == Phase::kStreaming) {
            if (connection.next_event <= events_.count()) {
                mailbox_->wake.signal(); // the next events may be there already
            }
        } else if (connection.phase == Phase::kLingering) {
            ::shutdown(connection.socket.get(), SHUT_WR);
        } else if (connection.phase == Phase::kReading && !ending_) {
            look_at_request(connection); // the next request may be there already
            if (connection.phase == Phase::kWaiting) {
                mailbox_->wake.signal(); // its answer may be there, too
            }
        }
    }

    void check_patience(Connection& connection) {
        if (const auto deadline = deadline_of(connection); deadline && *deadline <= Clock::now()) {
            connection.phase = Phase::kDead;
        }
    }

    int listener_fd_;
    Events& events_;
    Handler handler_;
    ServerLimits limits_;
    std::shared_ptr<Mailbox> mailbox_;
    std::list<Connection> connections_; ///< the oldest is first
    std::uint64_t next_id_ = 1;
    Clock::time_point no_accept_before_{};
    bool ending_ = false;
};

Server::Server(int listener_fd, Events& events, Handler handler, ServerLimits limits)
    : events_(events), mailbox_(std::make_shared<Mailbox>()),
      loop_(std::make_unique<Loop>(listener_fd, events, std::move(handler), limits, mailbox_)),
      thread_(start_thread("the control socket", [this] {
          ::pthread_setname_np(::pthread_self(), "control");
          loop_->run();
      })) {
    events_.call([mailbox = mailbox_] { mailbox->wake.signal(); });
}

Server::~Server() {
    events_.call({});
    mailbox_->ending.store(true);
    mailbox_->wake.signal();
    thread_.join();
}

} // namespace vmm::control
