// A pair of a network interface's queues (virtio 1.2, 5.1.2).
#pragma once

#include <sys/uio.h>

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "devices/frame_link.hpp"
#include "devices/virtio/synchronous_device.hpp"

namespace vmm::devices::virtio {

/// A receive queue and a transmit queue on a link to the host. Frames wait in the link while the guest offers no
/// buffers, and in the guest while the link has no room; the device does not poll meanwhile. A flood in one direction
/// uses the thread for only one turn at a time. After the host's end has gone, frames of the guest are dropped.
///
/// Threads: one at a time, except for members that say otherwise.
class NetPair final : public SynchronousDevice {
  public:
    static constexpr std::uint16_t kReceive = 0;
    static constexpr std::uint16_t kTransmit = 1;
    static constexpr std::uint16_t kQueueSize = 256;
    static constexpr int kMostFramesATurn = 256;   ///< in each direction, of at most FrameLink::kMostBytes
    static constexpr int kMostBuffersATurn = 4096; ///< buffers of the guest that are taken for frames, useful or not

    /// Counts since the pair was made.
    struct Statistics {
        std::uint64_t received = 0; ///< frames for the guest
        std::uint64_t sent = 0;     ///< frames of the guest
        std::uint64_t dropped = 0;  ///< frames in either direction that did not fit, or that the host did not accept
    };

    /// `receives` says whether the link is attached. `link_lost` is called once, on the pair's thread, when the host's
    /// end has gone. `frame` is a frame for the guest that another device held, or empty. Throws Error if it is no
    /// frame, or if this process has no descriptor left.
    NetPair(const std::string& name, std::unique_ptr<FrameLink> link, bool receives, std::function<void()> link_lost,
            std::span<const std::byte> frame);

    [[nodiscard]] std::vector<Source> sources() const override;

    [[nodiscard]] FrameLink& link() noexcept { return *link_; }
    /// The frame that waits for buffers of the guest; empty if there is none.
    [[nodiscard]] std::vector<std::byte> frame() const;
    /// Sets whether frames for the guest come by this pair. Frames of the guest are sent in any case. Returns false if
    /// the host refuses.
    [[nodiscard]] bool set_receiving(bool receiving) noexcept;
    [[nodiscard]] bool is_running() const noexcept { return is_active(); }
    [[nodiscard]] bool has_both_queues() const noexcept {
        return has_working_queue(kReceive) && has_working_queue(kTransmit);
    }

    /// False after the host's end has gone. Threads: any.
    [[nodiscard]] bool is_up() const noexcept { return is_up_.load(); }
    /// Makes its thread check everything. Threads: any.
    void look_again() const noexcept { ask_for_another_turn(); }
    /// Threads: any.
    [[nodiscard]] Statistics statistics() const noexcept {
        return {received_.load(std::memory_order_relaxed), sent_.load(std::memory_order_relaxed),
                dropped_.load(std::memory_order_relaxed)};
    }

  private:
    void begin(std::uint64_t features) override;
    void end() noexcept override;
    void forget_queue(std::uint16_t index) noexcept override;
    [[nodiscard]] std::uint16_t put_back(std::uint16_t index) noexcept override;
    void look_at_doorbell(std::uint16_t index) override;
    void serve() override;
    void receive_some();
    [[nodiscard]] bool deliver();
    [[nodiscard]] bool take_buffers(std::size_t bytes);
    [[nodiscard]] bool receive_into_buffers();
    void clean_header();
    void hand_over(std::span<const std::byte> frame, std::size_t bytes);
    void send_some();
    [[nodiscard]] int send(const Chain& chain);

    std::unique_ptr<FrameLink> link_;
    std::function<void()> link_lost_;
    bool told_of_loss_ = false;
    bool receives_;          ///< the link is attached
    bool merges_ = false;    ///< a frame may take several buffers
    bool checksums_ = false; ///< the guest understands checksums that are not computed
    bool segments_ = false;  ///< the guest also understands frames that must still be cut into segments

    std::vector<std::byte> frame_;  ///< a frame for the guest that is not delivered yet
    std::size_t frame_bytes_ = 0;   ///< its size; 0: there is none
    std::deque<Chain> buffers_;     ///< taken from the receive queue, not yet used
    std::size_t buffers_taken_ = 0; ///< how many of them are in use; the others keep their memory for later
    std::uint64_t room_ = 0;        ///< the bytes that they hold
    bool wants_buffers_ = false;    ///< the guest has no buffers for the present frame
    int buffers_left_ = 0;          ///< how many buffers may still be taken in this turn

    Chain sending_;
    bool is_sending_ = false; ///< sending_ waits for room in the link
    std::vector<iovec> pieces_;

    std::atomic<bool> is_up_{true};
    std::atomic<std::uint64_t> received_{0};
    std::atomic<std::uint64_t> sent_{0};
    std::atomic<std::uint64_t> dropped_{0};
};

} // namespace vmm::devices::virtio
