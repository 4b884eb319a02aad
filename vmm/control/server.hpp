// Serves HTTP on a unix socket, on a thread of its own.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <list>
#include <memory>
#include <optional>
#include <string>
#include <thread>

#include "kvm/host/event_fd.hpp"
#include "kvm/host/unique_fd.hpp"
#include "vmm/control/events.hpp"
#include "vmm/control/http.hpp"
#include "vmm/network/opened_net.hpp"

namespace vmm::control {

class Mailbox;

/// The way back to the client that made a request. A copy is as good as the first. Threads: any.
class Reply {
  public:
    Reply(std::shared_ptr<Mailbox> mailbox, std::uint64_t connection);

    /// Answers. The first answer counts, and a client that has gone gets none.
    void send(HttpAnswer answer) const;
    /// Answers with the events from number `first` on, as lines, until the client goes or the server ends.
    void send_events(std::uint64_t first) const;

  private:
    std::shared_ptr<Mailbox> mailbox_;
    std::uint64_t connection_;
};

/// How many descriptors a request may bring along; if it brings more, it is refused. A disk has two at most
/// (devices::DiskImage::Opened), and a network has those of OpenedNet.
inline constexpr std::size_t kMostDescriptors = OpenedNet::kMostDescriptors;

struct ServerLimits {
    HttpLimits http{};
    /// If one more comes, the oldest of those is closed that have not sent a whole request. If all of them have, the
    /// new one waits.
    std::size_t connections = 64;
    std::size_t streams = 16; ///< of events
    /// How long a request may take from its first byte to its last, and an answer between two bytes that are taken.
    std::chrono::milliseconds patience{10'000};
    /// How long a connection may be without a request.
    std::chrono::milliseconds idle_patience{60'000};
    /// How long the end waits for clients that have not read their answers.
    std::chrono::milliseconds end_patience{500};
};

/// Serves this user's clients, and root's; others are sent away. A client that sends garbage, hangs or goes away costs
/// it a descriptor and a bounded buffer for a while.
///
/// Threads: the one that made it.
class Server {
  public:
    /// Is called on the server's thread for each whole request, and must not wait. It answers now or later, and does
    /// not throw.
    using Handler = std::function<void(const HttpRequest&, const Reply&)>;

    /// `listener_fd`, a loan, is a unix socket that listens and does not block. `events` outlives the server, and calls
    /// it from then on. Throws Error if the host gives no thread or no descriptor.
    Server(int listener_fd, Events& events, Handler handler, ServerLimits limits = {});
    /// Sends what is there to be sent, as long as clients read it, and closes all connections.
    ~Server();
    Server(const Server&) = delete;
    Server& operator=(const Server&) = delete;

  private:
    class Loop;
    Events& events_;
    std::shared_ptr<Mailbox> mailbox_;
    std::unique_ptr<Loop> loop_;
    std::thread thread_; // last: it uses all of the above
};

} // namespace vmm::control
