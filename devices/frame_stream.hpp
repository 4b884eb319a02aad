// Ethernet frames over a stream socket. The length of a frame comes before it in 4 bytes, the highest first. passt and
// QEMU's `-netdev stream` use this protocol.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "devices/frame_filter.hpp"
#include "devices/frame_link.hpp"
#include "kvm/host/unique_fd.hpp"

namespace vmm::devices {

/// Headers have no meaning here: they are not sent, and are zero in received frames. The other side is a program that
/// may end, or send nonsense, at any time; the link is then down.
///
/// If there is a filter, only frames that it lets through are sent. The filter judges a copy, and the copy is sent,
/// because the guest may change its memory meanwhile.
///
/// Threads: one at a time.
class FrameStream final : public FrameLink {
  public:
    /// `socket` must be a connected stream socket.
    explicit FrameStream(UniqueFd socket) : FrameStream(std::move(socket), nullptr, {}) {}
    /// `kept` is called for each frame that `filter` keeps from the host itself, with the destination of the frame. It
    /// may be empty.
    FrameStream(UniqueFd socket, std::unique_ptr<FrameFilter> filter, std::function<void(const std::string&)> kept);

    [[nodiscard]] int fd() const noexcept override { return socket_.get(); }
    [[nodiscard]] bool has_offloads() const noexcept override { return false; }
    void set_offloads(const FrameOffloads& /*offloads*/) noexcept override {}
    [[nodiscard]] std::ptrdiff_t receive(std::span<const iovec> buffers) override;
    [[nodiscard]] int send(std::span<const iovec> frame) override { return send(frame, filter_.get()); }
    [[nodiscard]] int send_own(std::span<const iovec> frame) override { return send(frame, nullptr); }
    [[nodiscard]] bool is_up() const noexcept override { return up_; }
    [[nodiscard]] bool has_rest() const noexcept override { return up_ && rest_begin_ != rest_.size(); }
    void send_rest() noexcept override;

  private:
    [[nodiscard]] bool read_more() noexcept;
    [[nodiscard]] int send(std::span<const iovec> frame, FrameFilter* filter);
    [[nodiscard]] int send_pieces(std::span<iovec> pieces);

    UniqueFd socket_;
    std::unique_ptr<FrameFilter> filter_; ///< null: every frame passes
    std::function<void(const std::string&)> kept_;
    bool up_ = true;
    std::vector<std::byte> input_; ///< bytes that were read; unread frames are in [input_begin_, input_end_)
    std::size_t input_begin_ = 0;
    std::size_t input_end_ = 0;
    std::vector<std::byte> rest_; ///< from rest_begin_ on, the part of a frame that is still to be sent
    std::size_t rest_begin_ = 0;
};

} // namespace vmm::devices
