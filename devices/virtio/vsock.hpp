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

/// The settings of a vsock device. It maps connections to unix sockets like other small VMMs:
///
/// - Host to guest: a program connects to the unix socket `path` and writes "CONNECT <port>\n". If the guest listens on
///   that port, the answer is "OK <a port of the host>\n", and bytes flow. Otherwise the connection is closed.
/// - Guest to host: if the guest connects to port P of CID 2, the device connects to the unix socket `<path>_<P>`.
struct VsockConfig {
    std::uint32_t guest_cid = 3; ///< 3 to 0xfffffffe: lower numbers are the hypervisor, loopback and the host
    std::string path;            ///< see check_vsock_path()
    std::function<void(const std::string&)> warn{}; ///< warns the user; may be empty
    std::function<Alarm::Clock::time_point()> now = &Alarm::Clock::now;
};

/// Checks that a vsock can have its unix socket at `path`. A path has 1 to 96 bytes, so that a port fits behind it. It
/// must not end in '_' and digits, because the guest of another vsock could connect to it as to a port. Throws Error.
void check_vsock_path(const std::string& path);

/// The device. Neither side can make it hold more than kMostConnections connections of kBufferBytes each. If there is
/// no room for a connection, it is closed at once.
///
/// Bytes for a program that does not read wait here, up to the room that the guest was told of. Bytes for a guest that
/// does not read wait in the unix socket. The device notices at any time that a program has gone, even if the guest
/// neither answers nor reads.
///
/// Connections do not survive a pause that ends in another process. The device that is made from the state tells the
/// driver so (VIRTIO_VSOCK_EVENT_TRANSPORT_RESET, 5.10.6.7), and sends nothing else until the driver has seen it.
///
/// Threads: one, except for identity().
class Vsock final : public SynchronousDevice {
  public:
    static constexpr std::size_t kMostConnections = 256;      ///< begun by programs, and as many begun by the guest
    static constexpr std::size_t kMostGreetings = 64;         ///< programs that have not named their port yet
    static constexpr std::uint32_t kBufferBytes = 128 * 1024; ///< for each connection: what the guest may send ahead
    static constexpr std::size_t kMostBytesATurn = 4 * 1024 * 1024; ///< in each direction

    /// How long a program may take to name its port.
    static constexpr std::chrono::seconds kGreetingTime{30};
    /// How long the guest may take to answer.
    static constexpr std::chrono::seconds kAnswerTime{10};
    /// How long the guest may read nothing of the bytes that a program has left behind.
    static constexpr std::chrono::seconds kLeftTime{60};

    /// Listens on `config.path`. Throws Error as check_vsock_path() and UnixListener do, or if `state` does not belong
    /// to such a device.
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

    /// (port of the host, port of the guest)
    using Ports = std::pair<std::uint32_t, std::uint32_t>;

    using Clock = Alarm::Clock;

    struct Connection {
        Connection(UniqueFd socket, std::uint64_t number, bool of_guest)
            : fd(std::move(socket)), serial(number), by_guest(of_guest) {}
        UniqueFd fd;
        std::uint64_t serial;
        bool by_guest;                                         ///< which side began it
        bool left = false;                                     ///< the program has gone, and left bytes for the guest
        Clock::time_point deadline = Clock::time_point::max(); ///< when it ends
        ByteRing to_host{kBufferBytes + kMostOwnBytes};        ///< from the guest, not yet written
        /// The number of bytes at the front of to_host that are our answer to the program. They do not count in
        /// forwarded_bytes: if a guest is told of more bytes than it has sent, it believes that there is no room at
        /// all.
        std::size_t own_bytes = 0;
        bool established = false;                ///< the guest has answered, or began the connection
        bool guest_sends = true;                 ///< the guest has not shut down sending
        bool guest_receives = true;              ///< the guest has not shut down receiving
        bool host_sends = true;                  ///< the program has not shut down sending
        std::uint32_t guest_buffer_bytes = 0;    ///< buf_alloc: how much room the guest has
        std::uint32_t guest_forwarded_bytes = 0; ///< fwd_cnt: how many of our bytes its program has taken
        std::uint32_t sent_bytes = 0;            ///< tx_cnt: how many bytes we have sent
        std::uint32_t forwarded_bytes = 0;       ///< our fwd_cnt: how many bytes the program has taken
        std::uint32_t announced_bytes = 0;       ///< the last fwd_cnt that the guest was told, or will be told
    };
    using Connections = std::map<Ports, Connection>;

    /// A program that has connected and has not named its port yet.
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
        kTold, ///< it has not given another buffer for events yet, which it does after it has dropped them
    };

    void begin(std::uint64_t features) override;
    void end() noexcept override;
    void forget_queue(std::uint16_t index) noexcept override;
    [[nodiscard]] std::uint16_t put_back(std::uint16_t index) noexcept override;
    void tell_of_reset();
    /// True if nothing may go to the guest, because it would take it for part of a connection that it must drop.
    [[nodiscard]] bool is_gated() const noexcept;
    void look_at_doorbell(std::uint16_t index) override;
    void look_at_source(int fd) override;
    void serve() override;
    void take_packets();
    /// Returns the number of bytes for a program that the packet had.
    std::size_t take_packet(const Chain& chain);
    void begin_connection(const Header& header);
    void take_bytes(Connections::iterator connection, const Header& header, const Chain& chain);
    void shut_down(Connections::iterator connection, std::uint32_t flags);
    void flush(Connections::iterator connection);
    void program_left(Connections::iterator connection);
    void give_up(Connections::iterator connection);
    void erase(Connections::iterator connection);
    /// True if that side may begin another connection. A connection that a program has left may be ended to make room.
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
    UniqueFd spare_; ///< closed to refuse a program if there is no other descriptor left
    Alarm alarm_;
    Clock::time_point alarm_at_ = Clock::time_point::max();
    Clock::time_point accept_again_at_ = Clock::time_point::min(); ///< until then no program is accepted
    Chain chain_;                                                  ///< of the queue of packets from the guest
    Chain room_;                                                   ///< of the queue of packets to the guest
    bool has_room_ = false;                                        ///< room_ was popped and is not used yet
    bool wants_room_ = false; ///< the guest has offered no buffer for the waiting bytes
    Connections connections_;
    std::size_t begun_by_guest_ = 0; ///< how many of them the guest began
    Ports next_to_read_{};           ///< the next connection to read from
    std::deque<Greeting> greetings_;
    std::deque<Header> replies_; ///< packets without payload for the guest
    std::uint64_t next_serial_ = 1;
    std::uint32_t told_cid_; ///< the CID in the guest's configuration space
    bool had_driver_;        ///< an earlier device had the driver
    ResetEvent reset_event_ = ResetEvent::kNone;
    std::uint16_t event_buffers_ = 0; ///< the buffers that were there when the driver was told
    std::uint32_t next_port_;         ///< of the host, for connections that a program begins
};

} // namespace vmm::devices::virtio
