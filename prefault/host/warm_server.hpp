// The server of a pool of warm memory, which hands the memory out.
#pragma once

#include <sys/types.h>

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <list>
#include <string>

#include "kvm/host/unique_fd.hpp"
#include "prefault/host/warm_stock.hpp"

namespace vmm::prefault {

/// Serves the clients of a pool. A client that lies, hangs, or disconnects during a hand-over costs the pool one
/// descriptor for a while, and the pieces that were already sent, which are never taken back.
///
/// Threads: one.
class WarmServer {
  public:
    using Clock = std::chrono::steady_clock;

    /// The most clients at a time. If one more comes, the oldest connection is closed.
    static constexpr std::size_t kMostConnections = 64;
    /// The time limit from a client's connection to the end of the hand-over.
    static constexpr std::chrono::seconds kPatience{10};

    /// The result of serving one client.
    struct Served {
        pid_t process = 0;
        uid_t user = 0;
        std::uint64_t bytes = 0;      ///< of the pieces that were sent
        std::uint64_t free_bytes = 0; ///< what the pool has afterwards
        std::string problem{};        ///< why the client did not get all that it asked for; empty if it did
    };

    struct Setup {
        uid_t own_user = 0;
        std::function<void(const Served&)> served{}; ///< may be empty
        std::function<Clock::time_point()> now = &Clock::now;
    };

    /// `stock` must outlive this object.
    WarmServer(WarmStock& stock, Setup setup) : stock_(stock), setup_(std::move(setup)) {}
    WarmServer(const WarmServer&) = delete;
    WarmServer& operator=(const WarmServer&) = delete;
    /// Puts pieces that were not sent back into the stock.
    ~WarmServer();

    /// Takes over an accepted connection. It is served from the next turn on.
    void add(UniqueFd connection);

    /// Waits until there is something to do, for at most `wait_ms` (-1: without limit), and does it. New connections
    /// come from `listener_fd`, unless that is negative. Returns at once if `stop_fd` is readable. Throws Error if the
    /// host fails.
    void turn(int listener_fd, int stop_fd, int wait_ms);

    [[nodiscard]] std::size_t connections() const noexcept { return connections_.size(); }

  private:
    struct Connection {
        UniqueFd socket;
        Clock::time_point deadline;
        warm::Peer peer{};
        bool answered = false;
        std::deque<WarmStock::Portion> to_send{};
        Served served{};
    };
    using Place = std::list<Connection>::iterator;

    void accept_from(int listener_fd);
    /// Reads the request and answers it. Returns false if the connection must end.
    [[nodiscard]] bool read_request(Connection& connection);
    [[nodiscard]] bool answer(Connection& connection, const warm::Request& request);
    [[nodiscard]] bool refuse(Connection& connection, warm::Status status, std::string problem);
    /// Sends pieces as long as there is room. Returns false if the connection must end.
    [[nodiscard]] static bool send_pieces(Connection& connection);
    void end(Place place);
    [[nodiscard]] int next_deadline_ms(int wait_ms) const;

    WarmStock& stock_;
    Setup setup_;
    std::list<Connection> connections_; ///< the oldest first
    Clock::time_point no_accept_before_{};
};

} // namespace vmm::prefault
