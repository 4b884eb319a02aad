// Stream sockets between guest and host (virtio 1.2, 5.10), carried over unix sockets of the host.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "devices/byte_ring.hpp"
#include "devices/virtio/alarm.hpp"
#include "devices/virtio/synchronous_device.hpp"
#include "kvm/host/unique_fd.hpp"
#include "kvm/host/unix_listener.hpp"

namespace vmm::devices::virtio {

/// What a vsock device stands on. Other small VMMs have it in the same way:
///
/// - Host to guest: a program connects to the unix socket `path` and writes "CONNECT <port>\n". If the guest listens on
///   that port, the answer is "OK <a port of the host's>\n", and bytes flow. Otherwise the connection is closed.
/// - Guest to host: if the guest connects to port P of CID 2, the device connects to the unix socket `<path>_<P>`.
struct VsockConfig {
    std::uint32_t guest_cid = 3; ///< 3 to 0xfffffffe: below are the hypervisor, loopback and the host
    std::string path;            ///< see check_vsock_path()
    std::function<void(const std::string&)> warn{}; ///< the user; may be empty
    std::function<Alarm::Clock::time_point()> now = &Alarm::Clock::now;
};

/// Checks that a vsock can have its unix socket at `path`. A path has 1 to 96 bytes, so that a port fits behind it. It
/// does not end in '_' and digits, because the guest of another vsock could connect to it as to a port. Throws Error.
void check_vsock_path(const std::string& path);

/// The device. Neither side makes it hold more than kMostConnections connections of kBufferBytes each. A connection for
/// which there is no room is closed at once.
///
/// Bytes for a program that does not read wait here, up to the room that the guest was told of. Bytes for a guest that
/// does not read wait in the unix socket. A program that goes away is noticed at any time, also while the guest neither
/// answers nor reads.
///
/// Connections do not outlive a pause that ends in another process: the device that is made from the state tells the
/// driver so (VIRTIO_VSOCK_EVENT_TRANSPORT_RESET, 5.10.6.7), and sends nothing else until the driver has seen it.
///
/// Threads: one, but for identity().
class Vsock final : public SynchronousDevice {
  public:
    static constexpr std::size_t kMostConnections = 256; ///< that programs began, and as many that the guest began
    static constexpr std::size_t kMostGreetings = 64;    ///< programs that have not yet said to which port they connect
    static constexpr std::uint32_t kBufferBytes = 128 * 1024; ///< for each connection, what the guest may send ahead
    static constexpr std::size_t kMostBytesATurn = 4 * 1024 * 1024; ///< in each direction

    /// How long a program may take to say to which port it connects.
    static constexpr std::chrono::seconds kGreetingTime{30};
    /// How long the guest may take to answer.
    static constexpr std::chrono::seconds kAnswerTime{10};
    /// How long the guest may take nothing of what a program has left behind.
    static constexpr std::chrono::seconds kLeftTime{60};

    /// Listens on `config.path`. Throws Error: as check_vsock_path() and UnixListener have it, or `state` is that of
    /// no such device.
    Vsock(std::string name, const VsockConfig& config, const VsockState& state = {});

    [[nodiscard]] std::vector<Source> sources() const override;
    [[nodiscard]] DeviceState state() const override;

  private:
    /// The header of every packet, little endian (5.10.6).
    struct Header {
        std::uint64_t source_cid;
        std::uint64_t destination_cid;
        std::uint32_t source_port;
        std::uint32_t destination_port;
        std::uint32_t length;
        std::uint16_t type;
        std::uint16_t operation;
        std::uint32_t flags;
        std::uint32_t buffer_bytes;
        std::uint32_t forwarded_bytes;
    } __attribute__((packed));
    static_assert(sizeof(Header) == 44);

    static constexpr std::size_t kMostOwnBytes = 16; ///< "OK 4294967295\n"

    /// (port of the host's, port of the guest's)
    using Ports = std::pair<std::uint32_t, std::uint32_t>;

    using Clock = Alarm::Clock;

    struct Connection {
        Connection(UniqueFd socket, std::uint64_t number, bool of_guest)
            : fd(std::move(socket)), serial(number), by_guest(of_guest) {}
        UniqueFd fd;
        std::uint64_t serial;
        bool by_guest;     ///< which side began it
        bool left = false; ///< the program has gone, and left bytes for the guest behind
        Clock::time_point deadline = Clock::time_point::max(); ///< when it ends
        ByteRing to_host{kBufferBytes + kMostOwnBytes};        ///< from the guest, not yet written
        /// How many bytes at the front of that are our answer to the program. They do not count in forwarded_bytes: a
        /// guest that is told of more than it has sent believes that there is no room at all.
        std::size_t own_bytes = 0;
        bool established = false;                ///< the guest has answered, or began it
        bool guest_sends = true;                 ///< it has not shut that down
        bool guest_receives = true;              ///< likewise
        bool host_sends = true;                  ///< the program has not
        std::uint32_t guest_buffer_bytes = 0;    ///< buf_alloc: how much the guest has room for
        std::uint32_t guest_forwarded_bytes = 0; ///< fwd_cnt: how much of ours its program has taken
        std::uint32_t sent_bytes = 0;            ///< tx_cnt: how much we have sent
        std::uint32_t forwarded_bytes = 0;       ///< our fwd_cnt: what the program has taken
        std::uint32_t announced_bytes = 0;       ///< the fwd_cnt that the guest was last told, or will be
    };
    using Connections = std::map<Ports, Connection>;

    /// A program that has connected and not yet said to which port.
    struct Greeting {
        UniqueFd fd;
        std::uint64_t serial = 0;
        Clock::time_point deadline;
        std::string words{};
    };

    /// How far the driver knows that its connections are gone (5.10.6.7).
    enum class ResetEvent {
        kNone,
        kDue,
        kTold, ///< it has not yet given another buffer for events, which it does after it has dropped them
    };

    void begin(std::uint64_t features) override;
    void end() noexcept override;
    void forget_queue(std::uint16_t index) noexcept override;
    [[nodiscard]] std::uint16_t put_back(std::uint16_t index) noexcept override;
    void tell_of_reset();
    /// Whether nothing may go to the guest: it would take it for part of a connection that it is to drop.
    [[nodiscard]] bool is_gated() const noexcept;
    void look_at_doorbell(std::uint16_t index) override;
    void look_at_source(int fd) override;
    void serve() override;
    void take_packets();
    /// Returns how many bytes for a program it had.
    std::size_t take_packet(const Chain& chain);
    void begin_connection(const Header& header);
    void take_bytes(Connections::iterator connection, const Header& header, const Chain& chain);
    void shut_down(Connections::iterator connection, std::uint32_t flags);
    void flush(Connections::iterator connection);
    void program_left(Connections::iterator connection);
    void give_up(Connections::iterator connection);
    void erase(Connections::iterator connection);
    /// Whether another connection of that side may begin. A connection that was left behind makes room.
    [[nodiscard]] bool has_room_for_connection(bool by_guest);
    void expire();
    void set_alarm();
    void accept_programs();
    void refuse_program();
    void read_greeting(const std::deque<Greeting>::iterator& greeting);
    void begin_from_host(UniqueFd program, std::uint32_t port);
    [[nodiscard]] std::optional<std::size_t> send_bytes(Connections::iterator connection);
    void send_to_guest();
    [[nodiscard]] bool put_packet(const Header& header);
    void reply(const Ports& ports, std::uint16_t operation, std::uint32_t flags = 0);
    [[nodiscard]] Header header_to_guest(const Ports& ports, std::uint16_t operation) const;
    [[nodiscard]] static std::uint32_t credit(const Connection& connection) noexcept;
    [[nodiscard]] bool is_readable(const Connection& connection) const noexcept;

    VsockConfig config_;
    UnixListener listener_;
    UniqueFd spare_; ///< given up to refuse a program if there is no other descriptor left
    Alarm alarm_;
    Clock::time_point alarm_at_ = Clock::time_point::max();
    Clock::time_point accept_again_at_ = Clock::time_point::min(); ///< until then nobody can be accepted
    Chain chain_;                                                  ///< of the queue of packets from the guest
    Chain room_;                                                   ///< of the queue of packets to the guest
    bool has_room_ = false;                                        ///< room_ was popped and is not used yet
    bool wants_room_ = false; ///< the guest has offered no buffer for what is there
    Connections connections_;
    std::size_t begun_by_guest_ = 0; ///< how many of them
    Ports next_to_read_{};           ///< whose turn it is to be read from
    std::deque<Greeting> greetings_;
    std::deque<Header> replies_; ///< packets without payload for the guest
    std::uint64_t next_serial_ = 1;
    std::uint32_t told_cid_; ///< what the guest has in its configuration space
    bool had_driver_;        ///< a device before this one had it
    ResetEvent reset_event_ = ResetEvent::kNone;
    std::uint16_t event_buffers_ = 0; ///< that were there when it was told
    std::uint32_t next_port_;         ///< of the host's, for connections that a program begins
};

} // namespace vmm::devices::virtio
