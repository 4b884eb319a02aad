// The way of a network interface's Ethernet frames between guest and host.
#pragma once

#include <sys/uio.h>

#include <cstddef>
#include <span>

namespace vmm::devices {

/// What the host may leave to the guest in frames for it.
struct FrameOffloads {
    bool checksum = false; ///< checksums not yet computed
    bool tso4 = false;     ///< TCP segments of up to 64 KiB over IPv4; requires `checksum`
    bool tso6 = false;     ///< the same over IPv6
    bool ecn = false;      ///< segments with ECN, too
};

/// Moves one frame a call, with a virtio_net_hdr_v1 of 12 bytes before it (virtio 1.2, 5.1.6). Nothing here blocks.
///
/// Threads: one at a time.
class FrameLink {
  public:
    static constexpr std::size_t kHeaderBytes = 12;
    /// The largest frame with its header: 64 KiB of IP, and Ethernet with a VLAN tag.
    static constexpr std::size_t kMostBytes = 65535 + 18 + kHeaderBytes;

    FrameLink() = default;
    virtual ~FrameLink() = default;

    /// A descriptor to wait on, on loan. It is readable when there may be a frame, and writable when there may be room
    /// for one.
    [[nodiscard]] virtual int fd() const noexcept = 0;
    /// True if headers have a meaning, so that checksums and segmentation can be left to the host.
    [[nodiscard]] virtual bool has_offloads() const noexcept = 0;
    /// From now on the guest understands these offloads. For several links of one interface, one is told.
    virtual void set_offloads(const FrameOffloads& offloads) noexcept = 0;

    /// Receives one frame, its header first, into `buffers`, at most IOV_MAX of them. What does not fit is lost.
    /// Returns the number of bytes, or -errno: -EAGAIN if there is no frame now.
    [[nodiscard]] virtual std::ptrdiff_t receive(std::span<const iovec> buffers) = 0;
    /// Sends one frame. Returns 0, or -errno: -EAGAIN if there is no room now, -EPERM if the frame may not go there.
    [[nodiscard]] virtual int send(std::span<const iovec> frame) = 0;
    /// As send(), of a frame that is not the guest's but this process's own: it may go anywhere.
    [[nodiscard]] virtual int send_own(std::span<const iovec> frame) { return send(frame); }

    /// Of several links of one interface: whether frames for the guest come by this one. Returns false if the host
    /// refuses it. A link of its own always has its frames.
    [[nodiscard]] virtual bool set_attached(bool /*attached*/) noexcept { return true; }

    /// True if the host's end is there. Once it is gone it does not come back, and fd() must not be waited on.
    [[nodiscard]] virtual bool is_up() const noexcept = 0;
    /// True if a part of a frame that send() took waits for room. Then wait until fd() is writable, and call
    /// send_rest().
    [[nodiscard]] virtual bool has_rest() const noexcept { return false; }
    virtual void send_rest() noexcept {}

  protected:
    FrameLink(FrameLink&&) = default;
    FrameLink& operator=(FrameLink&&) = default;
};

} // namespace vmm::devices
