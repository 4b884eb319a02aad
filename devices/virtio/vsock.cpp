#include "devices/virtio/vsock.hpp"

#include <poll.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <charconv>
#include <cstring>
#include <optional>
#include <string_view>

#include "devices/virtio/driver_link.hpp"
#include "kvm/host/error.hpp"
#include "kvm/host/retry.hpp"

namespace vmm::devices::virtio {

namespace {

// Queues (5.10.2).
constexpr std::uint16_t kToGuest = 0;
constexpr std::uint16_t kFromGuest = 1;
constexpr std::uint16_t kEvents = 2;
constexpr std::size_t kQueues = 3;
constexpr std::uint16_t kQueueSize = 256;

constexpr std::uint64_t kHostCid = 2;
constexpr std::uint16_t kStream = 1;
constexpr std::uint32_t kFirstHostPort = 1U << 30; // Above the ports that programs choose.

// Operations (5.10.6).
constexpr std::uint16_t kRequest = 1;
constexpr std::uint16_t kResponse = 2;
constexpr std::uint16_t kReset = 3;
constexpr std::uint16_t kShutdown = 4;
constexpr std::uint16_t kReadWrite = 5;
constexpr std::uint16_t kCreditUpdate = 6;
constexpr std::uint16_t kCreditRequest = 7;

// Flags of a shutdown (5.10.6.5): what its sender will no longer do.
constexpr std::uint32_t kReceivesNoMore = 1;
constexpr std::uint32_t kSendsNoMore = 2;

constexpr std::uint32_t kTransportReset = 0; ///< an event (5.10.6.7)

/// If this many packets wait for the guest, no more are taken from it until it has taken some of these.
constexpr std::size_t kMostReplies = 512;
constexpr std::size_t kLongestGreeting = 32; // "CONNECT 4294967295\n" and some room.
constexpr std::size_t kLongestPath = 96;     // A port fits behind it.
constexpr std::string_view kSocket = "the vsock's unix socket";
/// The most packets that are moved before other descriptors have their turn.
constexpr int kMostAtOnce = 256;
/// The most programs that are accepted, or refused, before other descriptors have their turn.
constexpr int kMostAcceptedAtOnce = 64;
/// The most packets of one program that go to the guest before the next program has its turn.
constexpr int kMostOfOneProgram = 16;
/// How long nobody is accepted if the host has no descriptor or no memory left.
constexpr std::chrono::seconds kAcceptPause{1};
/// The most buffers without room for a packet that are given back before other descriptors have their turn.
constexpr int kMostUselessAtOnce = 64;

std::string trying_to_make(const std::string& path) {
    return "make " + std::string(kSocket) + " " + path;
}

bool is_hung_up(int fd) noexcept {
    pollfd state{fd, 0, 0};
    return ::poll(&state, 1, 0) == 1 && (state.revents & (POLLHUP | POLLERR)) != 0;
}

bool has_unread(int fd) noexcept {
    int bytes = 0;
    return ::ioctl(fd, FIONREAD, &bytes) == 0 && bytes > 0;
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

// Copies the header, because nothing may refer to the fields of a packed structure.
template <typename Header>
std::pair<std::uint32_t, std::uint32_t> ports_from_guest(Header header) noexcept {
    return {std::uint32_t{header.destination_port}, std::uint32_t{header.source_port}};
}
template <typename Header>
std::pair<std::uint32_t, std::uint32_t> ports_to_guest(Header header) noexcept {
    return {std::uint32_t{header.source_port}, std::uint32_t{header.destination_port}};
}

} // namespace

void check_vsock_path(const std::string& path) {
    if (path.find('\0') != std::string::npos) {
        throw Error("cannot make the vsock's unix socket: its path has a byte of zero in it");
    }
    const std::string tried = "cannot " + trying_to_make(path);
    if (path.empty() || path.size() > kLongestPath) {
        throw Error(tried + ": the path must have 1 to " + std::to_string(kLongestPath) + " bytes");
    }
    const std::size_t digits = path.find_last_not_of("0123456789");
    if (digits != std::string::npos && path[digits] == '_' && digits + 1 != path.size()) {
        throw Error(tried + ": a path that ends in '_' and a number is that of port " + path.substr(digits + 1) +
                    " of a vsock at " + path.substr(0, digits) +
                    ", whose guest could connect to it (take another name)");
    }
}

namespace {

std::string checked(std::string path) {
    check_vsock_path(path);
    return path;
}

} // namespace

// ---- The device

Vsock::Vsock(std::string name, const VsockConfig& config, const VsockState& state)
    : SynchronousDevice(identity_of(std::move(name), config.guest_cid)), config_(config),
      listener_(checked(config.path), SOCK_STREAM, std::string(kSocket), config.warn),
      spare_(make_unix_socket(SOCK_STREAM)), told_cid_(state.guest_cid != 0 ? state.guest_cid : config.guest_cid),
      had_driver_(state.has_driver), next_port_(state.next_host_port != 0 ? state.next_host_port : kFirstHostPort) {
    if (next_port_ < kFirstHostPort) {
        throw Error("cannot restore the device " + identity().name + ": the port " + std::to_string(next_port_) +
                    " is none that it gives to programs");
    }
}

DeviceState Vsock::state() const {
    return VsockState{is_active() || had_driver_, told_cid_, next_port_};
}

void Vsock::begin(std::uint64_t /*features*/) {
    reset_event_ = std::exchange(had_driver_, false) ? ResetEvent::kDue : ResetEvent::kNone;
    if (told_cid_ != config_.guest_cid) { // The driver reads it when it is told of the reset.
        told_cid_ = config_.guest_cid;
        driver().change_config(0, std::as_bytes(std::span(&told_cid_, 1)));
    }
}

void Vsock::end() noexcept {
    reset_event_ = ResetEvent::kNone;
    had_driver_ = false;
    connections_.clear();
    begun_by_guest_ = 0;
    alarm_at_ = Clock::time_point::max();
    greetings_.clear();
    replies_.clear();
}

void Vsock::forget_queue(std::uint16_t index) noexcept {
    if (index == kToGuest) {
        has_room_ = false;
        wants_room_ = false;
    }
}

std::uint16_t Vsock::put_back(std::uint16_t index) noexcept {
    const bool has_taken = index == kToGuest && has_room_;
    forget_queue(index);
    return has_taken ? 1 : 0;
}

bool Vsock::is_gated() const noexcept {
    return reset_event_ != ResetEvent::kNone && has_working_queue(kEvents);
}

/// Tells the driver that its connections are gone, after it has given a buffer for that, and then waits until it gives
/// another one. A driver without a queue for events is not told.
void Vsock::tell_of_reset() {
    for (int useless = 0; reset_event_ == ResetEvent::kDue; ++useless) {
        if (useless == kMostUselessAtOnce) {
            ask_for_another_turn();
            return;
        }
        if (!take(kEvents, chain_)) {
            return;
        }
        Queue& events = *working_queue(kEvents);
        const std::size_t count = copy_to(chain_, 0, std::as_bytes(std::span(&kTransportReset, 1)));
        events.push(chain_.head, static_cast<std::uint32_t>(count));
        if (count == sizeof(kTransportReset)) {
            reset_event_ = ResetEvent::kTold;
            event_buffers_ = events.waiting();
        }
    }
    Queue* const events = working_queue(kEvents);
    if (reset_event_ != ResetEvent::kTold || events == nullptr) {
        return;
    }
    const auto one_more = static_cast<std::uint16_t>(std::min<unsigned>(event_buffers_ + 1U, events->size()));
    static_cast<void>(events->ask_for_doorbell(one_more));
    if (events->waiting() > event_buffers_) {
        reset_event_ = ResetEvent::kNone;
    }
}

bool Vsock::is_readable(const Connection& connection) const noexcept {
    if (!has_working_queue(kToGuest) || is_gated()) {
        return false; // Bytes that are read would go nowhere.
    }
    return connection.established && connection.host_sends && connection.guest_receives && !wants_room_ &&
           credit(connection) != 0;
}

std::vector<Source> Vsock::sources() const {
    std::vector<Source> sources = SynchronousDevice::sources();
    if (!is_active()) {
        return sources;
    }
    sources.push_back(alarm_.source());
    if (accept_again_at_ == Clock::time_point::min()) {
        sources.push_back({listener_.fd(), EPOLLIN});
    }
    for (const Greeting& greeting : greetings_) {
        sources.push_back({greeting.fd.get(), EPOLLIN, greeting.serial});
    }
    for (const auto& [ports, connection] : connections_) {
        const std::uint32_t events = (is_readable(connection) ? static_cast<std::uint32_t>(EPOLLIN) : 0U) |
                                     (connection.to_host.empty() ? 0U : static_cast<std::uint32_t>(EPOLLOUT));
        // The kernel reports a hang-up even if no event is asked for. If it is known already, it would be reported
        // again and again.
        if (events != 0 || !connection.left) {
            sources.push_back({connection.fd.get(), events, connection.serial});
        }
    }
    return sources;
}

void Vsock::look_at_doorbell(std::uint16_t index) {
    wants_room_ = wants_room_ && index != kToGuest;
}

void Vsock::look_at_source(int fd) {
    if (!is_active()) {
        return;
    }
    alarm_.take(fd);
    if (fd == listener_.fd()) {
        accept_programs();
    }
    const auto greeting = std::ranges::find_if(greetings_, [fd](const Greeting& g) { return g.fd.get() == fd; });
    if (greeting != greetings_.end()) {
        read_greeting(greeting);
    }
    const auto connection =
        std::ranges::find_if(connections_, [fd](const auto& entry) { return entry.second.fd.get() == fd; });
    if (connection == connections_.end()) {
        return;
    }
    if (!connection->second.left && is_hung_up(fd)) {
        program_left(connection);
    } else if (!connection->second.to_host.empty()) {
        flush(connection);
    }
}

/// Moves as many bytes and packets as possible in both directions.
void Vsock::serve() {
    tell_of_reset();
    expire();
    send_to_guest();
    take_packets();
    const bool waited = replies_.size() >= kMostReplies;
    send_to_guest();
    if (waited && replies_.size() < kMostReplies) {
        ask_for_another_turn(); // For packets that were left and that no doorbell will announce.
    }
    set_alarm();
}

// ---- Time limits

void Vsock::expire() {
    const Clock::time_point now = config_.now();
    if (accept_again_at_ <= now) {
        accept_again_at_ = Clock::time_point::min();
    }
    while (!greetings_.empty() && greetings_.front().deadline <= now) { // The oldest greeting is in front.
        greetings_.pop_front();
    }
    for (auto connection = connections_.begin(); connection != connections_.end();) {
        const auto next = std::next(connection);
        if (connection->second.deadline <= now) {
            give_up(connection);
        }
        connection = next;
    }
}

void Vsock::set_alarm() {
    Clock::time_point next = Clock::time_point::max();
    if (accept_again_at_ != Clock::time_point::min()) {
        next = accept_again_at_;
    }
    if (!greetings_.empty()) {
        next = std::min(next, greetings_.front().deadline);
    }
    for (const auto& [ports, connection] : connections_) {
        next = std::min(next, connection.deadline);
    }
    if (next != alarm_at_ && next != Clock::time_point::max()) {
        alarm_.set(Clock::now() + (next - config_.now()));
    }
    alarm_at_ = next;
}

void Vsock::erase(Connections::iterator connection) {
    begun_by_guest_ -= connection->second.by_guest ? 1 : 0;
    connections_.erase(connection);
}

/// Handles a program that has closed its end. The guest still gets what the program wrote before. What the guest writes
/// is dropped.
void Vsock::program_left(Connections::iterator connection) {
    Connection& there = connection->second;
    const Ports ports = connection->first;
    there.forwarded_bytes += static_cast<std::uint32_t>(there.to_host.size() - there.own_bytes);
    there.own_bytes = 0;
    there.to_host.drop(there.to_host.size());
    if (there.established && there.host_sends && there.guest_receives && has_unread(there.fd.get())) {
        there.left = true;
        there.deadline = config_.now() + kLeftTime;
        return;
    }
    if (!there.established) {
        give_up(connection);
        return;
    }
    Header header = header_to_guest(ports, kShutdown);
    header.flags = kReceivesNoMore | kSendsNoMore;
    header.forwarded_bytes = there.forwarded_bytes;
    replies_.push_back(header);
    erase(connection);
}

/// Ends a connection after its time limit has passed.
void Vsock::give_up(Connections::iterator connection) {
    const Ports ports = connection->first;
    // If the guest has not seen the request yet, it need not be told.
    const auto request = std::ranges::find_if(replies_, [&](const Header& header) {
        return header.operation == kRequest && ports_to_guest(header) == ports;
    });
    if (request != replies_.end()) {
        replies_.erase(request);
    } else {
        reply(ports, kReset);
    }
    erase(connection);
}

bool Vsock::has_room_for_connection(bool by_guest) {
    const auto begun = [&] { return by_guest ? begun_by_guest_ : connections_.size() - begun_by_guest_; };
    if (begun() < kMostConnections) {
        return true;
    }
    auto oldest = connections_.end();
    for (auto each = connections_.begin(); each != connections_.end(); ++each) {
        if (each->second.left && each->second.by_guest == by_guest &&
            (oldest == connections_.end() || each->second.deadline < oldest->second.deadline)) {
            oldest = each;
        }
    }
    if (oldest != connections_.end()) {
        give_up(oldest);
    }
    return begun() < kMostConnections;
}

// ---- From the guest

void Vsock::take_packets() {
    std::size_t bytes = 0;
    for (int packets = 0; packets < kMostAtOnce && bytes < kMostBytesATurn; ++packets) {
        if (replies_.size() >= kMostReplies || !take(kFromGuest, chain_)) {
            return;
        }
        bytes += take_packet(chain_);
        working_queue(kFromGuest)->push(chain_.head, 0);
    }
    ask_for_another_turn();
}

std::size_t Vsock::take_packet(const Chain& chain) {
    Header header{};
    if (copy_from(chain, 0, std::as_writable_bytes(std::span(&header, 1))) != sizeof(header)) {
        return 0; // Without a header there is nobody to answer.
    }
    // A guest may use only its own CID (5.10.6.4.2).
    if (header.source_cid != config_.guest_cid) {
        return 0;
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
        return 0;
    }
    if (header.operation == kRequest) {
        begin_connection(header);
        return 0;
    }
    const auto connection = connections_.find(ports);
    if (connection == connections_.end()) {
        refuse();
        return 0;
    }
    connection->second.guest_buffer_bytes = header.buffer_bytes;
    connection->second.guest_forwarded_bytes = header.forwarded_bytes;
    switch (header.operation) {
    case kResponse:
        if (!connection->second.established) {
            connection->second.established = true;
            connection->second.deadline = Clock::time_point::max();
            const std::string words = "OK " + std::to_string(ports.first) + "\n";
            connection->second.own_bytes = connection->second.to_host.push(std::as_bytes(std::span(words)));
            flush(connection);
        }
        break;
    case kReset:
        erase(connection);
        break;
    case kShutdown:
        shut_down(connection, header.flags);
        break;
    case kReadWrite:
        take_bytes(connection, header, chain);
        return header.length;
    case kCreditUpdate:
        break;
    case kCreditRequest:
        reply(ports, kCreditUpdate);
        break;
    default:
        erase(connection);
        refuse();
        break;
    }
    return 0;
}

void Vsock::begin_connection(const Header& header) {
    const Ports ports = ports_from_guest(header);
    UniqueFd fd;
    if (!connections_.contains(ports) && has_room_for_connection(true)) {
        fd = make_unix_socket(SOCK_STREAM);
        // The connection is made at once, unless there is no listener or its backlog is full.
        if (fd && connect_unix_socket(fd.get(), config_.path + "_" + std::to_string(ports.first)) != 0) {
            fd = UniqueFd();
        }
    }
    if (!fd) {
        if (const auto first = connections_.find(ports); first != connections_.end()) {
            erase(first); // A guest that begins a connection twice has lost the first one.
        }
        reply(ports, kReset);
        return;
    }
    Connection& connection = connections_.try_emplace(ports, std::move(fd), next_serial_++, true).first->second;
    ++begun_by_guest_;
    connection.established = true;
    connection.guest_buffer_bytes = header.buffer_bytes;
    connection.guest_forwarded_bytes = header.forwarded_bytes;
    reply(ports, kResponse);
}

void Vsock::take_bytes(Connections::iterator connection, const Header& header, const Chain& chain) {
    Connection& there = connection->second;
    // The guest sent more than the room that it was told of, or it sent after it had said that it would send no more.
    if (header.length > there.to_host.room() || !there.guest_sends || !there.established) {
        const Ports ports = connection->first;
        erase(connection);
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
    if (there.left && !there.guest_receives) {
        give_up(connection); // Neither side uses the connection any more.
        return;
    }
    flush(connection);
}

/// Writes the guest's bytes to the program, as far as the program takes them now. Ends the connection if it is over.
void Vsock::flush(Connections::iterator connection) {
    Connection& there = connection->second;
    const Ports ports = connection->first;
    if (there.left) { // Nobody takes these bytes, and the guest must not wait for them.
        there.forwarded_bytes += static_cast<std::uint32_t>(there.to_host.size());
        there.to_host.drop(there.to_host.size());
    }
    while (!there.to_host.empty()) {
        const std::span<const std::byte> piece = there.to_host.front();
        const ssize_t written = ::send(there.fd.get(), piece.data(), piece.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
        if (written < 0) {
            if (would_block(errno)) {
                break;
            }
            program_left(connection);
            return;
        }
        there.to_host.drop(static_cast<std::size_t>(written));
        const std::size_t own = std::min(there.own_bytes, static_cast<std::size_t>(written));
        there.own_bytes -= own;
        there.forwarded_bytes += static_cast<std::uint32_t>(static_cast<std::size_t>(written) - own);
    }
    if (there.to_host.empty()) {
        if (!there.guest_sends && !there.guest_receives) {
            erase(connection);
            reply(ports, kReset); // 5.10.6.5: the answer to a shutdown of both directions
            return;
        }
        if (!there.guest_sends && !there.left) {
            ::shutdown(there.fd.get(), SHUT_WR);
        }
    }
    // The guest is told when half of its buffer has been taken, so that it need not wait and is not told of every byte.
    // It is not told again while that packet waits for a buffer of the guest.
    if (there.forwarded_bytes - there.announced_bytes >= kBufferBytes / 2 && there.guest_sends) {
        there.announced_bytes = there.forwarded_bytes;
        reply(ports, kCreditUpdate);
    }
}

// ---- From programs of the host

void Vsock::accept_programs() {
    for (int accepted = 0; accepted < kMostAcceptedAtOnce; ++accepted) {
        UniqueFd fd(::accept4(listener_.fd(), nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC));
        if (fd) {
            if (greetings_.size() < kMostGreetings) {
                greetings_.push_back({std::move(fd), next_serial_++, config_.now() + kGreetingTime});
            } // Otherwise it is closed, so the program notices at once that there is no room.
        } else if (errno == EMFILE || errno == ENFILE) {
            refuse_program();
        } else {
            if (errno == ENOBUFS || errno == ENOMEM) { // The socket would be reported as ready again and again.
                accept_again_at_ = config_.now() + kAcceptPause;
            }
            return;
        }
    }
}

/// Accepts the next program and closes its connection, because there is no descriptor left to speak to it.
void Vsock::refuse_program() {
    spare_.reset();
    UniqueFd(::accept4(listener_.fd(), nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC)).reset();
    spare_ = make_unix_socket(SOCK_STREAM);
    if (!spare_) {
        accept_again_at_ = config_.now() + kAcceptPause;
    }
}

void Vsock::read_greeting(const std::deque<Greeting>::iterator& greeting) {
    constexpr std::string_view kWord = "CONNECT ";
    // The line is read byte by byte, because the bytes after it belong to the guest.
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
    if (replies_.size() >= kMostReplies || !has_room_for_connection(false)) {
        return; // This closes the connection.
    }
    while (connections_.contains({next_port_, port})) {
        next_port_ = next_port_ == UINT32_MAX ? kFirstHostPort : next_port_ + 1;
    }
    const Ports ports{next_port_, port};
    next_port_ = next_port_ == UINT32_MAX ? kFirstHostPort : next_port_ + 1;
    const auto connection = connections_.try_emplace(ports, std::move(program), next_serial_++, false).first;
    connection->second.deadline = config_.now() + kAnswerTime;
    reply(ports, kRequest);
}

// ---- To the guest

std::uint32_t Vsock::credit(const Connection& connection) noexcept {
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

/// Puts a packet into room_, the guest's buffer. Returns false if the header did not fit.
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
    if (!has_working_queue(kToGuest) || is_gated()) {
        return;
    }
    int useless = 0; // The guest may offer such buffers without end.
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
                working_queue(kToGuest)->push(room_.head, 0); // The buffer is of no use.
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
    // Begin where the last turn ended, so that every connection has its turn.
    int budget = kMostAtOnce;
    std::size_t bytes = 0;
    for (std::size_t left = connections_.size(); left != 0 && budget > 0 && bytes < kMostBytesATurn; --left) {
        auto connection = connections_.lower_bound(next_to_read_);
        if (connection == connections_.end()) {
            connection = connections_.begin();
        }
        const auto next = std::next(connection); // The connection may end meanwhile.
        next_to_read_ = next == connections_.end() ? Ports{} : next->first;
        for (int packets = 0;
             packets < kMostOfOneProgram && budget > 0 && is_readable(connection->second) && has_room(); ++packets) {
            --budget;
            const auto sent = send_bytes(connection);
            if (!sent) {
                break;
            }
            bytes += *sent;
        }
    }
}

/// Reads from the program into room_, the guest's buffer. Returns the number of bytes; nothing if there is no more to
/// read now, or if the connection is over.
std::optional<std::size_t> Vsock::send_bytes(Connections::iterator connection) {
    Connection& there = connection->second;
    // The header goes to the front of the buffer, and the bytes go directly behind it.
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
    if (count == 0) { // The buffer has too many pieces to hold more than a header: it is given back.
        has_room_ = false;
        working_queue(kToGuest)->push(room_.head, 0);
        return 0;
    }
    msghdr message{};
    message.msg_iov = pieces.data();
    message.msg_iovlen = count;
    const ssize_t received = ::recvmsg(there.fd.get(), &message, MSG_DONTWAIT);
    if (received < 0 && would_block(errno)) {
        return std::nullopt;
    }
    if (received <= 0) { // The program sends no more, or it has gone.
        there.host_sends = false;
        const bool has_gone = received < 0 || is_hung_up(there.fd.get());
        Header header = header_to_guest(connection->first, kShutdown);
        header.flags = has_gone ? kReceivesNoMore | kSendsNoMore : kSendsNoMore;
        static_cast<void>(put_packet(header));
        if (has_gone) {
            erase(connection);
        }
        return std::nullopt;
    }
    Header header = header_to_guest(connection->first, kReadWrite);
    header.length = static_cast<std::uint32_t>(received);
    there.sent_bytes += header.length;
    if (there.left) {
        there.deadline = config_.now() + kLeftTime;
    }
    static_cast<void>(put_packet(header));
    return static_cast<std::size_t>(received);
}

} // namespace vmm::devices::virtio
