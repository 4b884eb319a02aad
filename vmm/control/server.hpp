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

/// The way to answer the client that made a request. Copies answer the same request. Threads: any.
class Reply {
  public:
    Reply(std::shared_ptr<Mailbox> mailbox, std::uint64_t connection);

    /// Sends the answer. Only the first answer of a request is sent; if the client has gone, nothing is sent.
    void send(HttpAnswer answer) const;
    /// Answers with the events from number `first` on, as lines, until the client goes or the server ends.
    void send_events(std::uint64_t first) const;

  private:
    std::shared_ptr<Mailbox> mailbox_;
    std::uint64_t connection_;
};

/// The most descriptors that a request may hand over; a request with more is refused. A disk has two at most
/// (devices::DiskImage::Opened), and a network has those of OpenedNet.
inline constexpr std::size_t kMostDescriptors = OpenedNet::kMostDescriptors;

struct ServerLimits {
    HttpLimits http{};
    /// The most connections. If one more comes, the oldest connection that has not sent a whole request is closed. If
    /// all have sent one, the new connection waits.
    std::size_t connections = 64;
    std::size_t streams = 16; ///< of events
    /// How long a request may take from its first byte to its last, and how long a client may take no byte of an
    /// answer.
    std::chrono::milliseconds patience{10'000};
    /// How long a connection may be without a request.
    std::chrono::milliseconds idle_patience{60'000};
    /// How long destruction waits for clients that have not read their answers.
    std::chrono::milliseconds end_patience{500};
};

/// Serves the clients of this user and of root; others are sent away. A client that sends garbage, hangs or goes away
/// costs the server only a descriptor and a bounded buffer for a while.
///
/// Threads: the one that made it.
class Server {
  public:
    /// It is called on the server's thread for each whole request, and must not wait. It answers now or later, and must
    /// not throw.
    using Handler = std::function<void(const HttpRequest&, const Reply&)>;

    /// `listener_fd`, a loan, is a unix socket that listens and does not block. `events` must outlive the server, and
    /// calls it from now on. Throws Error if the host gives no thread or no descriptor.
    Server(int listener_fd, Events& events, Handler handler, ServerLimits limits = {});
    /// Sends the answers that are left, as long as clients read them, and closes all connections.
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
