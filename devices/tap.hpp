// A tap interface of the host's: Ethernet frames by read and write.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <sys/uio.h>

#include "kvm/unique_fd.hpp"

namespace vmm::devices {

using MacAddress = std::array<std::uint8_t, 6>;

/// "52:54:00:12:34:56". Throws Error: it is none, or one for groups or of nobody.
[[nodiscard]] MacAddress parse_mac_address(const std::string& text);
/// An address of local administration that is always the same for the same text.
[[nodiscard]] MacAddress make_mac_address(std::string_view text) noexcept;

/// Throws Error: no network interface can have that name (linux: dev_valid_name).
void check_interface_name(const std::string& name);

/// What the kernel may leave to the guest in frames for it (TUN_F_* of linux/if_tun.h).
struct TapOffloads {
    bool checksum = false; ///< checksums not yet computed
    bool tso4 = false;     ///< TCP segments of up to 64 KiB over IPv4; needs checksum
    bool tso6 = false;     ///< over IPv6
    bool ecn = false;      ///< those with ECN, too
};

/// Each frame comes and goes with a virtio_net_hdr_v1 of 12 bytes before it (virtio 1.2, 5.1.6).
///
/// Threads: one at a time.
class Tap {
  public:
    static constexpr std::size_t kHeaderBytes = 12;
    /// The largest frame with its header: 64 KiB of IP, and Ethernet with a VLAN tag.
    static constexpr std::size_t kMostBytes = 65535 + 18 + kHeaderBytes;

    /// The interface `name`, which is made if it is not there. Throws Error: it is no valid name, is in use, or this
    /// process may not.
    explicit Tap(const std::string& name);
    /// Something else that moves one frame with its header a call, a datagram socket; without offloads. Non-blocking.
    explicit Tap(UniqueFd fd) noexcept : fd_(std::move(fd)) {}

    [[nodiscard]] int fd() const noexcept { return fd_.get(); } ///< on loan
    /// Which of them the guest understands, from now on.
    void set_offloads(const TapOffloads& offloads) noexcept;

    /// One frame, its header first, into `buffers`, at most IOV_MAX. Returns its bytes, or -errno: -EAGAIN where there
    /// is none now.
    [[nodiscard]] std::ptrdiff_t receive(std::span<const iovec> buffers) noexcept;
    /// Sends one frame. Returns 0, or -errno: -EAGAIN where there is no room now.
    [[nodiscard]] int send(std::span<const iovec> frame) noexcept;

  private:
    UniqueFd fd_;
    bool is_tap_ = false;
};

} // namespace vmm::devices
