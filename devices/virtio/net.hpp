// A network interface (virtio 1.2, 5.1).
#pragma once

#include <sys/uio.h>

#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "devices/frame_link.hpp"
#include "devices/tap.hpp"
#include "devices/virtio/alarm.hpp"
#include "devices/virtio/synchronous_device.hpp"

namespace vmm::devices::virtio {

/// One receive queue, one transmit queue and a control queue on a link to the host. If the link can (a tap), checksums
/// and TCP segmentation are left to whoever comes last, host or guest, as negotiated. Frames wait in the link while the
/// guest offers no buffers, and in the guest while the link has no room; neither is looked at meanwhile. A flood in
/// either direction has the thread for one turn at a time. A guest that goes on from a state may be elsewhere now, so
/// the host's network is told of its address (see the constructor), and a driver that can announces its addresses
/// itself. When the host's end goes away the guest's link is down, and what the guest sends is dropped from then on.
///
/// Threads: one, but for identity() and statistics().
class Net final : public SynchronousDevice {
  public:
    /// `link_lost`, unless empty, is called once on the device's thread when the host's end is gone. Throws Error:
    /// this process has no descriptor left, or `state` is that of no such device.
    ///
    /// If there is an address to be `announced`, frames from it are sent as soon as the device that goes on has its
    /// driver, kAnnouncements of them: switches learn from them where the guest is. They are of RARP, as other VMMs
    /// send them, because that needs no address but this one.
    Net(std::string name, std::unique_ptr<FrameLink> link, const MacAddress& mac, std::function<void()> link_lost = {},
        const NetState& state = {}, const std::optional<MacAddress>& announced = {});
    Net(std::string name, Tap tap, const MacAddress& mac);

    [[nodiscard]] std::vector<Source> sources() const override;
    [[nodiscard]] DeviceState state() const override;

    /// What it has done since it was made. Threads: any.
    struct Statistics {
        std::uint64_t received = 0; ///< frames for the guest
        std::uint64_t sent = 0;     ///< frames of the guest's
        std::uint64_t dropped = 0;  ///< frames in either direction that did not fit, or that the host did not take
    };
    [[nodiscard]] Statistics statistics() const noexcept;

    static constexpr std::uint16_t kQueueSize = 256;
    static constexpr std::uint16_t kControlQueueSize = 64;
    static constexpr int kMostFramesATurn = 256;   ///< in each direction, of at most FrameLink::kMostBytes
    static constexpr int kMostBuffersATurn = 4096; ///< of the guest's that are taken for frames, useful or not
    /// A port of a switch may not forward yet when the first one comes.
    static constexpr int kAnnouncements = 5;
    static constexpr std::chrono::milliseconds kBetweenAnnouncements{100};

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
    void look_at_link();
    void obey_some();
    [[nodiscard]] bool obey(const Chain& chain);
    void tell_status();
    void look_at_source(int fd) override;
    void announce();

    std::unique_ptr<FrameLink> link_;
    std::function<void()> link_lost_;    ///< empty once called
    bool told_up_ = true;                ///< what the guest knows of the link
    bool asks_to_announce_ = false;      ///< the driver has to say that the guest is here, and has not said so yet
    bool can_announce_ = false;          ///< the driver
    bool has_asked_to_announce_ = false; ///< by the status
    bool merges_ = false;                ///< a frame may take several buffers
    bool checksums_ = false;             ///< the guest understands checksums that are not computed
    bool segments_ = false;              ///< and frames that are to be cut into segments

    std::vector<std::byte> frame_;  ///< a frame for the guest that is not delivered yet
    std::size_t frame_bytes_ = 0;   ///< its size; 0: there is none
    std::deque<Chain> buffers_;     ///< taken from the receive queue, not yet used
    std::size_t buffers_taken_ = 0; ///< how many of them are; the others keep their memory for the next time
    std::uint64_t room_ = 0;        ///< bytes they hold
    bool wants_buffers_ = false;    ///< the guest has none for the frame that is there
    int buffers_left_ = 0;          ///< how many may still be taken in this turn

    Chain command_;
    Chain sending_;
    bool is_sending_ = false; ///< sending_ waits for room in the link
    std::vector<iovec> pieces_;

    std::vector<std::byte> announcement_; ///< with its header; empty: nothing is to be announced
    std::optional<Alarm> next_announcement_;
    int announcements_left_ = 0;
    bool is_announcement_due_ = false;

    std::atomic<std::uint64_t> received_{0};
    std::atomic<std::uint64_t> sent_{0};
    std::atomic<std::uint64_t> dropped_{0};
};

} // namespace vmm::devices::virtio
