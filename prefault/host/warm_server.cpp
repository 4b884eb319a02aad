#include "prefault/host/warm_server.hpp"

#include <poll.h>
#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <utility>
#include <vector>

#include "kvm/host/error.hpp"
#include "kvm/host/retry.hpp"

namespace vmm::prefault {

namespace {

/// How long the server accepts nobody if the host has no descriptor or no memory left.
constexpr std::chrono::seconds kAcceptPause{1};

std::string page_size_text(std::uint32_t number) {
    const auto page_size = warm::page_size_of(number);
    return page_size ? std::string(to_string(*page_size)) : "unknown";
}

} // namespace

WarmServer::~WarmServer() {
    while (!connections_.empty()) {
        connections_.front().served.problem = "the pool has ended";
        end(connections_.begin());
    }
}

void WarmServer::add(UniqueFd connection) {
    if (connections_.size() == kMostConnections) {
        connections_.front().served.problem = "too many others came";
        end(connections_.begin());
    }
    const auto peer = warm::peer_of(connection.get());
    Connection& added = connections_.emplace_back(
        Connection{std::move(connection), setup_.now() + kPatience, peer.value_or(warm::Peer{static_cast<uid_t>(-1)})});
    added.served.process = added.peer.process;
    added.served.user = added.peer.user;
}

void WarmServer::accept_from(int listener_fd) {
    constexpr int kMostAtOnce = 16; // After that others have their turn.
    for (int i = 0; i < kMostAtOnce; ++i) {
        UniqueFd connection(::accept4(listener_fd, nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC));
        if (!connection) {
            if (!would_block(errno) && errno != ECONNABORTED) {
                no_accept_before_ = setup_.now() + kAcceptPause;
            }
            return;
        }
        add(std::move(connection));
    }
}

bool WarmServer::read_request(Connection& connection) {
    std::array<std::byte, sizeof(warm::Request) + 1> bytes;
    warm::Packet packet;
    const int error_number = warm::receive_packet(connection.socket.get(), bytes, packet);
    if (would_block(error_number)) {
        return true;
    }
    if (error_number != 0 || packet.bytes == 0) {
        connection.served.problem = "it went away without a request";
        return false;
    }
    if (!warm::is_trusted(connection.peer.user, setup_.own_user)) {
        return refuse(connection, warm::Status::kNotForYou, "it is another user's");
    }
    const auto parsed = warm::parse_request(std::span(bytes).first(std::min(packet.bytes, bytes.size())));
    if (const auto* const status = std::get_if<warm::Status>(&parsed); status != nullptr || !packet.whole) {
        const bool other_version = status != nullptr && *status == warm::Status::kOtherVersion;
        return refuse(connection, other_version ? warm::Status::kOtherVersion : warm::Status::kNotUnderstood,
                      other_version ? "it is of another version" : "what it sent is no request");
    }
    return answer(connection, std::get<warm::Request>(parsed));
}

bool WarmServer::refuse(Connection& connection, warm::Status status, std::string problem) {
    warm::Answer answer;
    answer.status = status;
    answer.page_size = warm::number_of(stock_.page_size());
    answer.free_bytes = status == warm::Status::kNotForYou ? 0 : stock_.ready_pieces() * stock_.piece_bytes();
    // There is room for the first packet. If not, the client notices the end of the connection.
    static_cast<void>(warm::send_packet(connection.socket.get(), warm::bytes_of(answer)));
    connection.served.problem = std::move(problem);
    return false;
}

bool WarmServer::answer(Connection& connection, const warm::Request& request) {
    if (request.page_size != warm::number_of(stock_.page_size())) {
        return refuse(connection, warm::Status::kOtherPageSize,
                      "it wants " + page_size_text(request.page_size) + " pages");
    }
    WarmStock::Grant grant = stock_.take(request);
    if (grant.status != warm::Status::kGranted) {
        return refuse(connection, grant.status,
                      grant.status == warm::Status::kShort ? "it wants more than there is"
                                                           : "it wants memory of a node that has none here");
    }
    connection.to_send.assign(std::make_move_iterator(grant.portions.begin()),
                              std::make_move_iterator(grant.portions.end()));
    warm::Answer answer;
    answer.status = warm::Status::kGranted;
    answer.page_size = request.page_size;
    answer.bytes = grant.bytes;
    answer.free_bytes = grant.free_bytes;
    answer.pieces = static_cast<std::uint32_t>(connection.to_send.size());
    if (warm::send_packet(connection.socket.get(), warm::bytes_of(answer)) != 0) {
        connection.served.problem = "it went away before it was answered";
        return false;
    }
    connection.answered = true;
    return send_pieces(connection);
}

bool WarmServer::send_pieces(Connection& connection) {
    while (!connection.to_send.empty()) {
        WarmStock::Portion& portion = connection.to_send.front();
        warm::Piece message;
        message.share = portion.share;
        message.node = portion.piece.node().value_or(warm::kAnyNode);
        message.bytes = portion.bytes;
        try {
            portion.piece.cut_and_seal(portion.bytes);
        } catch (const Error& error) {
            connection.served.problem = error.what();
            return false;
        }
        const int error_number =
            warm::send_packet(connection.socket.get(), warm::bytes_of(message), portion.piece.fd());
        if (would_block(error_number)) {
            return true;
        }
        if (error_number != 0) {
            connection.served.problem = error_number == EPIPE || error_number == ECONNRESET
                                            ? "it went away in the middle of the hand-over"
                                            : "a piece could not be sent: " + errno_reason(error_number);
            return false;
        }
        connection.served.bytes += portion.bytes;
        connection.to_send.pop_front(); // It belongs to the client now, whatever happens to it.
    }
    return false;
}

void WarmServer::end(Place place) {
    Connection& connection = *place;
    for (WarmStock::Portion& portion : connection.to_send) {
        if (!portion.piece.is_sealed()) { // A sealed piece is not put back, because another client may want only a part
                                          // of it.
            stock_.put(std::move(portion.piece));
        }
    }
    connection.served.free_bytes = stock_.ready_pieces() * stock_.piece_bytes();
    if (setup_.served) {
        setup_.served(connection.served);
    }
    connections_.erase(place);
}

int WarmServer::next_deadline_ms(int wait_ms) const {
    const auto now = setup_.now();
    const auto sooner = [&](Clock::time_point at) {
        const auto left = std::chrono::ceil<std::chrono::milliseconds>(at - now).count();
        const int left_ms = static_cast<int>(std::clamp<std::int64_t>(left, 0, 60'000));
        wait_ms = wait_ms < 0 ? left_ms : std::min(wait_ms, left_ms);
    };
    if (!connections_.empty()) {
        sooner(connections_.front().deadline);
    }
    if (no_accept_before_ > now) {
        sooner(no_accept_before_);
    }
    return wait_ms;
}

void WarmServer::turn(int listener_fd, int stop_fd, int wait_ms) {
    const bool accepts = setup_.now() >= no_accept_before_;
    std::vector<pollfd> watched{{stop_fd, POLLIN, 0}, {accepts ? listener_fd : -1, POLLIN, 0}};
    std::vector<Place> places;
    for (auto place = connections_.begin(); place != connections_.end(); ++place) {
        watched.push_back(
            {place->socket.get(), static_cast<short>(place->answered ? POLLOUT : POLLIN), 0}); // poll() ignores -1.
        places.push_back(place);
    }
    if (::poll(watched.data(), watched.size(), next_deadline_ms(wait_ms)) < 0 && errno != EINTR) {
        throw_errno(errno, "wait for clients of the pool");
    }
    if (watched[0].revents != 0) {
        return;
    }
    for (std::size_t i = 0; i < places.size(); ++i) {
        const Place place = places[i];
        bool goes_on = true;
        if (watched[i + 2].revents != 0) {
            goes_on = place->answered ? send_pieces(*place) : read_request(*place);
        }
        if (goes_on && setup_.now() >= place->deadline) {
            place->served.problem = place->answered ? "it did not take what it asked for in time" : "it said nothing";
            goes_on = false;
        }
        if (!goes_on) {
            end(place);
        }
    }
    if (watched[1].revents != 0) {
        accept_from(listener_fd);
    }
}

} // namespace vmm::prefault
