// Carries a network interface's Ethernet frames between guest and host.
#pragma once

#include <sys/uio.h>

#include <cstddef>
#include <span>

namespace vmm::devices {

/// The work that the host may leave to the guest in frames for it.
struct FrameOffloads {
    bool checksum = false; ///< checksums not yet computed
    bool tso4 = false;     ///< TCP segments of up to 64 KiB over IPv4; requires `checksum`
    bool tso6 = false;     ///< the same over IPv6
    bool ecn = false;      ///< segments with ECN, too
};

/// Moves one frame for each call, preceded by a virtio_net_hdr_v1 of 12 bytes (virtio 1.2, 5.1.6). Nothing here blocks.
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
    /// True if the headers have a meaning, so that checksums and segmentation can be left to the host.
    [[nodiscard]] virtual bool has_offloads() const noexcept = 0;
    /// Sets the offloads that the guest understands from now on. If an interface has several links, only one is told.
    virtual void set_offloads(const FrameOffloads& offloads) noexcept = 0;

    /// Receives one frame, its header first, into `buffers`, at most IOV_MAX of them. Bytes that do not fit are lost.
    /// Returns the number of bytes, or -errno: -EAGAIN if there is no frame now.
    [[nodiscard]] virtual std::ptrdiff_t receive(std::span<const iovec> buffers) = 0;
    /// Sends one frame. Returns 0, or -errno: -EAGAIN if there is no room now, -EPERM if the frame is not allowed.
    [[nodiscard]] virtual int send(std::span<const iovec> frame) = 0;
    /// Like send(), for a frame that this process has made and not the guest: it may go anywhere.
    [[nodiscard]] virtual int send_own(std::span<const iovec> frame) { return send(frame); }

    /// Whether frames for the guest come by this link, if the interface has several. Returns false if the host refuses.
    /// A link that is the only one always has its frames.
    [[nodiscard]] virtual bool set_attached(bool /*attached*/) noexcept { return true; }

    /// True if the host's end exists. If it has gone, it does not come back, and fd() must not be waited on.
    [[nodiscard]] virtual bool is_up() const noexcept = 0;
    /// True if a part of a frame that send() accepted waits for room. The caller must then wait until fd() is writable,
    /// and call send_rest().
    [[nodiscard]] virtual bool has_rest() const noexcept { return false; }
    virtual void send_rest() noexcept {}

  protected:
    FrameLink(FrameLink&&) = default;
    FrameLink& operator=(FrameLink&&) = default;
};

} // namespace vmm::devices
