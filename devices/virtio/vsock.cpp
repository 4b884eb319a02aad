#include "devices/virtio/vsock.hpp"

#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <charconv>
#include <cstring>
#include <string_view>

#include "devices/virtio/mmio_transport.hpp"
#include "kvm/error.hpp"

namespace vmm::devices::virtio {

namespace {

// Queues (5.10.2).
constexpr std::uint16_t kToGuest = 0;
constexpr std::uint16_t kFromGuest = 1;
constexpr std::size_t kQueues = 3; // The third is for events, of which there are none without migration.
constexpr std::uint16_t kQueueSize = 256;

constexpr std::uint64_t kHostCid = 2;
constexpr std::uint16_t kStream = 1;
constexpr std::uint32_t kFirstHostPort = 1U << 30; // Above what programs choose.

// Operations (5.10.6).
constexpr std::uint16_t kRequest = 1;
constexpr std::uint16_t kResponse = 2;
constexpr std::uint16_t kReset = 3;
constexpr std::uint16_t kShutdown = 4;
constexpr std::uint16_t kReadWrite = 5;
constexpr std::uint16_t kCreditUpdate = 6;
constexpr std::uint16_t kCreditRequest = 7;

// Flags of a shutdown (5.10.6.5): what its sender will not do any more.
constexpr std::uint32_t kReceivesNoMore = 1;
constexpr std::uint32_t kSendsNoMore = 2;

/// Beyond that no more packets are taken from the guest until it has taken some of these.
constexpr std::size_t kMostReplies = 512;
constexpr std::size_t kMostGreetings = 64;
constexpr std::size_t kLongestGreeting = 32; // "CONNECT 4294967295\n" and some room.
constexpr std::size_t kLongestPath = 96;
/// How many packets are moved before other descriptors have their turn.
constexpr int kMostAtOnce = 256;
/// How many buffers without room for a packet are given back before that.
constexpr int kMostUselessAtOnce = 64;

sockaddr_un address_of(const std::string& path) {
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    path.copy(address.sun_path, sizeof(address.sun_path) - 1);
    return address;
}

UniqueFd make_socket() {
    return UniqueFd(::socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
}

/// The socket API takes every kind of address as a sockaddr; the size says which it is.
int connect_to(int fd, const std::string& path) {
    const sockaddr_un address = address_of(path);
    return ::connect(fd, reinterpret_cast<const sockaddr*>(&address), sizeof(address));
}

UniqueFd listen_at(const std::string& path) {
    const std::string tried = "make the vsock's unix socket " + path;
    if (path.empty() || path.size() > kLongestPath) {
        throw Error("cannot " + tried + ": the path must have 1 to " + std::to_string(kLongestPath) + " bytes");
    }
    UniqueFd fd = make_socket();
    if (!fd) {
        throw_errno(errno, tried);
    }
    const sockaddr_un address = address_of(path);
    if (::bind(fd.get(), reinterpret_cast<const sockaddr*>(&address), sizeof(address)) != 0) {
        throw_errno(errno, tried,
                    errno == EADDRINUSE ? "another process uses it, or one that ended left it behind: then delete it"
                                        : "");
    }
    if (::listen(fd.get(), 64) != 0) {
        const int error = errno;
        ::unlink(path.c_str());
        throw_errno(error, tried);
    }
    return fd;
}

Identity identity_of(std::string name, std::uint32_t guest_cid) {
    if (guest_cid < 3 || guest_cid == UINT32_MAX) {
        throw Error("cannot give the guest the CID " + std::to_string(guest_cid) + ": 3 to 4294967294 are for guests");
    }
    Identity identity;
    identity.id = DeviceId::kVsock;
    identity.name = std::move(name);
    identity.queue_sizes.assign(kQueues, kQueueSize);
    identity.config.resize(sizeof(std::uint64_t)); // le64 guest_cid (5.10.4)
    std::memcpy(identity.config.data(), &guest_cid, sizeof(guest_cid));
    return identity;
}

// Copies, because nothing may refer to the fields of a packed structure.
template <typename Header>
std::pair<std::uint32_t, std::uint32_t> ports_from_guest(Header header) noexcept {
    return {std::uint32_t{header.destination_port}, std::uint32_t{header.source_port}};
}
template <typename Header>
std::pair<std::uint32_t, std::uint32_t> ports_to_guest(Header header) noexcept {
    return {std::uint32_t{header.source_port}, std::uint32_t{header.destination_port}};
}

bool would_block(int error) noexcept {
    return error == EAGAIN || error == EWOULDBLOCK || error == EINTR;
}

} // namespace

Vsock::Vsock(std::string name, const VsockConfig& config)
    : SynchronousDevice(identity_of(std::move(name), config.guest_cid)), config_(config),
      listener_(listen_at(config.path)), next_port_(kFirstHostPort) {}

Vsock::~Vsock() {
    if (listener_) {
        ::unlink(config_.path.c_str());
    }
}

void Vsock::end() noexcept {
    connections_.clear();
    greetings_.clear();
    replies_.clear();
}

void Vsock::forget_queue(std::uint16_t index) noexcept {
    if (index == kToGuest) {
        has_room_ = false;
        wants_room_ = false;
    }
}

bool Vsock::is_readable(const Connection& connection) const noexcept {
    if (!has_working_queue(kToGuest)) {
        return false; // What is read goes nowhere.
    }
    return connection.established && connection.host_sends && connection.guest_receives && !wants_room_ &&
           credit(connection) != 0;
}

std::vector<Source> Vsock::sources() const {
    std::vector<Source> sources = SynchronousDevice::sources();
    if (!is_active()) {
        return sources;
    }
    if (!out_of_descriptors_ && connections_.size() + greetings_.size() < kMostConnections &&
        greetings_.size() < kMostGreetings) {
        sources.push_back({listener_.get(), EPOLLIN});
    }
    for (const Greeting& greeting : greetings_) {
        sources.push_back({greeting.fd.get(), EPOLLIN, greeting.serial});
    }
    for (const auto& [ports, connection] : connections_) {
        const std::uint32_t events = (is_readable(connection) ? static_cast<std::uint32_t>(EPOLLIN) : 0U) |
                                     (connection.to_host.empty() ? 0U : static_cast<std::uint32_t>(EPOLLOUT));
        if (events != 0) { // Otherwise a hang-up, which cannot be masked, would come again and again.
            sources.push_back({connection.fd.get(), events, connection.serial});
        }
    }
    return sources;
}

void Vsock::look_at_doorbell(std::uint16_t index) {
    wants_room_ = wants_room_ && index != kToGuest;
    out_of_descriptors_ = false; // Perhaps some have been closed since.
}

void Vsock::look_at_source(int fd) {
    if (!is_active()) {
        return;
    }
    if (fd == listener_.get()) {
        accept_programs();
    }
    const auto greeting =
        std::find_if(greetings_.begin(), greetings_.end(), [fd](const Greeting& g) { return g.fd.get() == fd; });
    if (greeting != greetings_.end()) {
        read_greeting(greeting);
    }
    const auto connection = std::find_if(connections_.begin(), connections_.end(),
                                         [fd](const auto& entry) { return entry.second.fd.get() == fd; });
    if (connection != connections_.end() && !connection->second.to_host.empty()) {
        flush(connection);
    }
}

/// Moves what can be moved in both directions.
void Vsock::serve() {
    send_to_guest();
    take_packets();
    const bool waited = replies_.size() >= kMostReplies;
    send_to_guest();
    if (waited && replies_.size() < kMostReplies) {
        ask_for_another_turn(); // For packets that were left, of which no doorbell will tell.
    }
}

// --- From the guest -------------------------------------------------------------------------------------------------

void Vsock::take_packets() {
    for (int packets = 0; packets < kMostAtOnce; ++packets) {
        if (replies_.size() >= kMostReplies || !take(kFromGuest, chain_)) {
            return;
        }
        take_packet(chain_);
        working_queue(kFromGuest)->push(chain_.head, 0);
    }
    ask_for_another_turn();
}

void Vsock::take_packet(const Chain& chain) {
    Header header{};
    if (copy_from(chain, 0, std::as_writable_bytes(std::span(&header, 1))) != sizeof(header)) {
        return; // Nothing says to whom it would have to be answered.
    }
    // A guest may speak for itself only (5.10.6.4.2).
    if (header.source_cid != config_.guest_cid) {
        return;
    }
    const Ports ports = ports_from_guest(header);
    const auto refuse = [&] {
        if (header.operation != kReset) {
            reply(ports, kReset);
        }
    };
    if (header.destination_cid != kHostCid || header.type != kStream ||
        header.length > chain.readable_bytes - sizeof(header)) {
        refuse();
        return;
    }
    if (header.operation == kRequest) {
        begin_connection(header);
        return;
    }
    const auto connection = connections_.find(ports);
    if (connection == connections_.end()) {
        refuse();
        return;
    }
    connection->second.guest_buffer_bytes = header.buffer_bytes;
    connection->second.guest_forwarded_bytes = header.forwarded_bytes;
    switch (header.operation) {
    case kResponse:
        if (!connection->second.established) {
            connection->second.established = true;
            const std::string words = "OK " + std::to_string(ports.first) + "\n";
            connection->second.own_bytes = connection->second.to_host.push(std::as_bytes(std::span(words)));
            flush(connection);
        }
        break;
    case kReset:
        connections_.erase(connection);
        break;
    case kShutdown:
        shut_down(connection, header.flags);
        break;
    case kReadWrite:
        take_bytes(connection, header, chain);
        break;
    case kCreditUpdate:
        break;
    case kCreditRequest:
        reply(ports, kCreditUpdate);
        break;
    default:
        connections_.erase(connection);
        refuse();
        break;
    }
}

void Vsock::begin_connection(const Header& header) {
    const Ports ports = ports_from_guest(header);
    UniqueFd fd;
    if (connections_.size() < kMostConnections && !connections_.contains(ports)) {
        fd = make_socket();
        // The connection is there at once, or there is no listener, or it has too many to accept already.
        if (fd && connect_to(fd.get(), config_.path + "_" + std::to_string(ports.first)) != 0) {
            fd = UniqueFd();
        }
    }
    if (!fd) {
        connections_.erase(ports); // A guest that begins one twice has lost the first one.
        reply(ports, kReset);
        return;
    }
    Connection& connection = connections_.try_emplace(ports, std::move(fd), next_serial_++).first->second;
    connection.established = true;
    connection.guest_buffer_bytes = header.buffer_bytes;
    connection.guest_forwarded_bytes = header.forwarded_bytes;
    reply(ports, kResponse);
}

void Vsock::take_bytes(Connections::iterator connection, const Header& header, const Chain& chain) {
    Connection& there = connection->second;
    // More than it was told there is room for, or after it said that there would be no more.
    if (header.length > there.to_host.room() || !there.guest_sends || !there.established) {
        const Ports ports = connection->first;
        connections_.erase(connection);
        reply(ports, kReset);
        return;
    }
    std::uint64_t skip = sizeof(Header);
    std::uint64_t left = header.length;
    for (const std::span<std::byte> buffer : chain.readable) {
        const std::uint64_t skipped = std::min<std::uint64_t>(skip, buffer.size());
        skip -= skipped;
        const std::uint64_t count = std::min<std::uint64_t>(left, buffer.size() - skipped);
        there.to_host.push(buffer.subspan(skipped, count));
        left -= count;
    }
    flush(connection);
}

void Vsock::shut_down(Connections::iterator connection, std::uint32_t flags) {
    Connection& there = connection->second;
    there.guest_receives = there.guest_receives && (flags & kReceivesNoMore) == 0;
    there.guest_sends = there.guest_sends && (flags & kSendsNoMore) == 0;
    flush(connection);
}

/// Writes what the guest sent to the program, as far as it takes it now; ends what is over.
void Vsock::flush(Connections::iterator connection) {
    Connection& there = connection->second;
    const Ports ports = connection->first;
    while (!there.to_host.empty()) {
        const std::span<const std::byte> piece = there.to_host.front();
        const ssize_t written = ::send(there.fd.get(), piece.data(), piece.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
        if (written < 0) {
            if (would_block(errno)) {
                break;
            }
            connections_.erase(connection); // The program has gone.
            reply(ports, kReset);
            return;
        }
        there.to_host.drop(static_cast<std::size_t>(written));
        const std::size_t own = std::min(there.own_bytes, static_cast<std::size_t>(written));
        there.own_bytes -= own;
        there.forwarded_bytes += static_cast<std::uint32_t>(static_cast<std::size_t>(written) - own);
    }
    if (there.to_host.empty()) {
        if (!there.guest_sends && !there.guest_receives) {
            connections_.erase(connection);
            reply(ports, kReset); // 5.10.6.5: the answer to a shutdown of both directions
            return;
        }
        if (!there.guest_sends) {
            ::shutdown(there.fd.get(), SHUT_WR);
        }
    }
    // Told when half of it has been taken, so that a sender need not wait, and is not told of every byte: nor again
    // while what it is to be told waits for a buffer of the guest's.
    if (there.forwarded_bytes - there.announced_bytes >= kBufferBytes / 2 && there.guest_sends) {
        there.announced_bytes = there.forwarded_bytes;
        reply(ports, kCreditUpdate);
    }
}

// --- From programs of the host -----------------------------------------------------------------------------------

void Vsock::accept_programs() {
    while (connections_.size() + greetings_.size() < kMostConnections && greetings_.size() < kMostGreetings) {
        UniqueFd fd(::accept4(listener_.get(), nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC));
        if (!fd) {
            // Without descriptors left, it would be reported as ready again and again.
            out_of_descriptors_ = errno == EMFILE || errno == ENFILE || errno == ENOBUFS || errno == ENOMEM;
            return;
        }
        greetings_.push_back({std::move(fd), next_serial_++, {}});
    }
}

void Vsock::read_greeting(std::deque<Greeting>::iterator greeting) {
    constexpr std::string_view kWord = "CONNECT ";
    // Byte by byte: what comes after the line belongs to the guest.
    for (char next = 0; next != '\n';) {
        const ssize_t count = ::recv(greeting->fd.get(), &next, 1, MSG_DONTWAIT);
        if (count < 0 && would_block(errno)) {
            return;
        }
        if (count <= 0 || greeting->words.size() == kLongestGreeting) {
            greetings_.erase(greeting);
            return;
        }
        greeting->words.push_back(next);
    }
    std::uint32_t port = 0;
    const std::string words = std::move(greeting->words);
    const char* const end = words.data() + words.size() - 1;
    UniqueFd fd = std::move(greeting->fd);
    greetings_.erase(greeting);
    if (words.starts_with(kWord)) {
        const auto [rest, error] = std::from_chars(words.data() + kWord.size(), end, port);
        if (error == std::errc{} && rest == end) {
            begin_from_host(std::move(fd), port);
        }
    }
}

void Vsock::begin_from_host(UniqueFd program, std::uint32_t port) {
    if (replies_.size() >= kMostReplies || connections_.size() >= kMostConnections) {
        return; // Closes it.
    }
    while (connections_.contains({next_port_, port})) {
        next_port_ = next_port_ == UINT32_MAX ? kFirstHostPort : next_port_ + 1;
    }
    const Ports ports{next_port_, port};
    next_port_ = next_port_ == UINT32_MAX ? kFirstHostPort : next_port_ + 1;
    connections_.try_emplace(ports, std::move(program), next_serial_++);
    reply(ports, kRequest);
}

// --- To the guest ------------------------------------------------------------------------------------------------

std::uint32_t Vsock::credit(const Connection& connection) const noexcept {
    const std::uint32_t on_the_way = connection.sent_bytes - connection.guest_forwarded_bytes;
    return connection.guest_buffer_bytes > on_the_way ? connection.guest_buffer_bytes - on_the_way : 0;
}

Vsock::Header Vsock::header_to_guest(const Ports& ports, std::uint16_t operation) const {
    Header header{};
    header.source_cid = kHostCid;
    header.destination_cid = config_.guest_cid;
    header.source_port = ports.first;
    header.destination_port = ports.second;
    header.type = kStream;
    header.operation = operation;
    header.buffer_bytes = kBufferBytes;
    return header;
}

void Vsock::reply(const Ports& ports, std::uint16_t operation, std::uint32_t flags) {
    Header header = header_to_guest(ports, operation);
    header.flags = flags;
    replies_.push_back(header);
}

/// The next buffer of the guest's for a packet, in room_. False if there is none.
bool Vsock::put_packet(const Header& header) {
    Header whole = header;
    if (const auto connection = connections_.find(ports_to_guest(header)); connection != connections_.end()) {
        whole.forwarded_bytes = connection->second.forwarded_bytes;
        connection->second.announced_bytes = whole.forwarded_bytes;
    }
    const std::size_t count = copy_to(room_, 0, std::as_bytes(std::span(&whole, 1)));
    has_room_ = false;
    working_queue(kToGuest)->push(room_.head, static_cast<std::uint32_t>(count + whole.length));
    return count == sizeof(whole);
}

void Vsock::send_to_guest() {
    if (!has_working_queue(kToGuest)) {
        return;
    }
    int useless = 0; // The guest may go on offering such for ever.
    const auto has_room = [&] {
        while (!has_room_) {
            if (useless == kMostUselessAtOnce) {
                ask_for_another_turn();
                return false;
            }
            if (!take(kToGuest, room_)) {
                wants_room_ = true;
                return false;
            }
            has_room_ = room_.writable_bytes > sizeof(Header);
            if (!has_room_) {
                working_queue(kToGuest)->push(room_.head, 0); // Of no use to anybody.
                ++useless;
            }
        }
        wants_room_ = false;
        return true;
    };
    while (!replies_.empty() && has_room()) {
        static_cast<void>(put_packet(replies_.front()));
        replies_.pop_front();
    }
    if (!replies_.empty()) {
        return;
    }
    int budget = kMostAtOnce;
    for (auto connection = connections_.begin(); connection != connections_.end();) {
        const auto next = std::next(connection); // It may be over.
        while (budget > 0 && is_readable(connection->second) && has_room() && send_bytes(connection)) {
            --budget;
        }
        connection = next;
    }
}

/// Reads from the program into the buffer that room_ is. False if there is nothing more to read now.
bool Vsock::send_bytes(Connections::iterator connection) {
    Connection& there = connection->second;
    // The header goes to the front of the buffer, the bytes straight behind it.
    std::array<iovec, 64> pieces{};
    std::size_t count = 0;
    std::uint64_t skip = sizeof(Header);
    std::uint64_t left = std::min<std::uint64_t>(credit(there), 64 * 1024);
    for (const std::span<std::byte> buffer : room_.writable) {
        const std::uint64_t skipped = std::min<std::uint64_t>(skip, buffer.size());
        skip -= skipped;
        const std::uint64_t bytes = std::min<std::uint64_t>(left, buffer.size() - skipped);
        if (bytes != 0 && count < pieces.size()) {
            pieces[count++] = {buffer.data() + skipped, bytes};
            left -= bytes;
        }
    }
    if (count == 0) { // In too many pieces to hold more than a header: given back.
        has_room_ = false;
        working_queue(kToGuest)->push(room_.head, 0);
        return true;
    }
    msghdr message{};
    message.msg_iov = pieces.data();
    message.msg_iovlen = count;
    const ssize_t received = ::recvmsg(there.fd.get(), &message, MSG_DONTWAIT);
    if (received < 0 && would_block(errno)) {
        return false;
    }
    if (received <= 0) { // It sends no more; where it has gone altogether, writing to it will show.
        there.host_sends = false;
        Header header = header_to_guest(connection->first, kShutdown);
        header.flags = received < 0 ? kReceivesNoMore | kSendsNoMore : kSendsNoMore;
        return put_packet(header);
    }
    Header header = header_to_guest(connection->first, kReadWrite);
    header.length = static_cast<std::uint32_t>(received);
    there.sent_bytes += header.length;
    return put_packet(header);
}

} // namespace vmm::devices::virtio
