// What carries a network interface's Ethernet frames between guest and host.
#pragma once

#include <sys/uio.h>

#include <cstddef>
#include <span>

namespace vmm::devices {

/// What the host may leave to the guest in frames for it.
struct FrameOffloads {
    bool checksum = false; ///< checksums not yet computed
    bool tso4 = false;     ///< TCP segments of up to 64 KiB over IPv4; needs checksum
    bool tso6 = false;     ///< over IPv6
    bool ecn = false;      ///< those with ECN, too
};

/// One frame a call, with a virtio_net_hdr_v1 of 12 bytes before it (virtio 1.2, 5.1.6). Nothing here blocks.
///
/// Threads: one at a time.
class FrameLink {
  public:
    static constexpr std::size_t kHeaderBytes = 12;
    /// The largest frame with its header: 64 KiB of IP, and Ethernet with a VLAN tag.
    static constexpr std::size_t kMostBytes = 65535 + 18 + kHeaderBytes;

    FrameLink() = default;
    virtual ~FrameLink() = default;

    /// To wait on, on loan: readable when there may be a frame, writable when there may be room for one.
    [[nodiscard]] virtual int fd() const noexcept = 0;
    /// Whether headers say something: checksums and segmentation can be left to the host.
    [[nodiscard]] virtual bool has_offloads() const noexcept = 0;
    /// Which of them the guest understands, from now on.
    virtual void set_offloads(const FrameOffloads& offloads) noexcept = 0;

    /// One frame, its header first, into `buffers`, at most IOV_MAX; what does not fit is lost. Returns its bytes, or
    /// -errno: -EAGAIN where there is none now.
    [[nodiscard]] virtual std::ptrdiff_t receive(std::span<const iovec> buffers) = 0;
    /// Sends one frame. Returns 0, or -errno: -EAGAIN where there is no room now, -EPERM where it may not go there.
    [[nodiscard]] virtual int send(std::span<const iovec> frame) = 0;

    /// Whether the host's end is there. Once it is gone it does not come back, and fd() is not to be waited on.
    [[nodiscard]] virtual bool is_up() const noexcept = 0;
    /// Whether a part of a frame that send() took waits for room: wait for fd() to be writable, then send_rest().
    [[nodiscard]] virtual bool has_rest() const noexcept { return false; }
    virtual void send_rest() noexcept {}

  protected:
    FrameLink(FrameLink&&) = default;
    FrameLink& operator=(FrameLink&&) = default;
};

} // namespace vmm::devices
