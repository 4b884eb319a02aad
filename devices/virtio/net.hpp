// A network interface (virtio 1.2, 5.1).
#pragma once

#include <chrono>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "devices/frame_link.hpp"
#include "devices/tap.hpp"
#include "devices/virtio/device.hpp"
#include "devices/virtio/net_control.hpp"
#include "devices/virtio/net_pair.hpp"
#include "devices/virtio/part_link.hpp"

namespace vmm::devices::virtio {

/// One or several pairs of a receive queue and a transmit queue, each on a link to the host, and a control queue. If
/// the links support it (a tap), checksums and TCP segmentation are left to the last receiver, host or guest, as
/// negotiated. When the host's end goes away, the guest's link is down.
/// A guest that continues from a state may be on another host now. So the host's network is told of its address (see
/// the constructor), and a driver that can do so announces its addresses itself.
///
/// The device's thread serves the first pair and the control queue; each other pair is a lane. Frames for the guest
/// come by as many pairs as its driver asks for, and by one at first. A driver that does not know of several pairs uses
/// only the first one, and its control queue is in the place of the second pair (5.1.2).
///
/// Threads: one, except for identity(), lanes() and statistics(), and a thread for each lane.
class Net final : public Device {
  public:
    static constexpr unsigned kMostPairs = 16;
    static constexpr std::uint16_t kQueueSize = NetPair::kQueueSize;
    static constexpr int kMostFramesATurn = NetPair::kMostFramesATurn;
    static constexpr int kMostBuffersATurn = NetPair::kMostBuffersATurn;
    static constexpr int kAnnouncements = NetControl::kAnnouncements;
    using Statistics = NetPair::Statistics;

    /// Makes a pair on each of `links`, 1 to kMostPairs of them, of which the first must be attached. `link_lost`,
    /// unless empty, is called once on the device's thread when the host's end has gone. Throws Error if this process
    /// has no descriptor left, or if `state` does not belong to such a device.
    ///
    /// If there is an address to be `announced`, kAnnouncements frames from it are sent as soon as the continuing
    /// device has its driver, so that switches learn where the guest is. They are RARP frames, as other VMMs send them,
    /// because RARP needs no other address.
    Net(std::string name, std::vector<std::unique_ptr<FrameLink>> links, const MacAddress& mac,
        std::function<void()> link_lost = {}, const NetState& state = {},
        const std::optional<MacAddress>& announced = {});
    /// Makes one pair.
    Net(std::string name, std::unique_ptr<FrameLink> link, const MacAddress& mac, std::function<void()> link_lost = {},
        const NetState& state = {}, const std::optional<MacAddress>& announced = {});
    Net(std::string name, Tap tap, const MacAddress& mac);

    [[nodiscard]] const Identity& identity() const noexcept override { return identity_; }
    void activate(Activation activation, DriverLink& driver) override;
    void doorbell(std::uint16_t index) override;
    [[nodiscard]] std::vector<Source> sources() const override;
    void ready(int fd, std::uint32_t events) override;
    [[nodiscard]] std::vector<Lane*> lanes() noexcept override;
    void stop() override;
    [[nodiscard]] bool is_idle() const noexcept override { return true; }
    void stop_queue(std::uint16_t index) override;
    [[nodiscard]] bool is_queue_idle(std::uint16_t /*index*/) const noexcept override { return true; }
    void restart_queue(std::uint16_t index, Queue queue) override;
    void pause() override;
    [[nodiscard]] bool is_paused() const noexcept override { return control_.is_paused(); }
    void resume() override;
    [[nodiscard]] std::vector<std::optional<Queue::State>> queue_states() const override;
    [[nodiscard]] DeviceState state() const override;

    /// The sum over all pairs since the device was made. Threads: any.
    [[nodiscard]] Statistics statistics() const noexcept;
    /// The number of pairs by which frames come to the guest.
    [[nodiscard]] std::uint16_t pairs_in_use() const noexcept { return used_; }

  private:
    /// A pair, and the lock that keeps the device's thread and the pair's own thread apart.
    class PairLane final : public Lane {
      public:
        /// `not_ours` is called for a doorbell if the pair has no driver at that time.
        PairLane(std::uint16_t number, std::unique_ptr<NetPair> pair, std::function<void()> not_ours);

        [[nodiscard]] QueueSet queues() const noexcept override;
        void doorbell(std::uint16_t index) override;
        [[nodiscard]] std::vector<Source> sources() const override;
        void ready(int fd, std::uint32_t events) override;

        /// Calls `act(pair)` on the device's thread. The pair's own thread then checks what has changed.
        template <typename Act>
        auto with(Act act);
        /// Like with(), if nothing changes.
        template <typename See>
        auto see(See see) const;
        void activate(Activation activation, DriverLink& driver);
        /// For calls that any thread may make.
        [[nodiscard]] const NetPair& pair() const noexcept { return *pair_; }
        /// For the device's thread, if it is also the pair's own thread.
        [[nodiscard]] NetPair& own_pair() noexcept { return *pair_; }

      private:
        std::uint16_t first_queue_;
        std::unique_ptr<NetPair> pair_;
        PartLink driver_;
        std::function<void()> not_ours_;
        mutable std::mutex mutex_; ///< guards *pair_
    };

    /// The part of the device that has a queue. If neither member is set, no part has it.
    struct Place {
        bool is_control = false;
        PairLane* lane = nullptr;
        std::uint16_t index = 0; ///< in the part
    };

    [[nodiscard]] Place place_of(std::uint16_t index) noexcept;
    [[nodiscard]] std::uint16_t pair_count() const noexcept { return static_cast<std::uint16_t>(lanes_.size()); }
    [[nodiscard]] bool is_up() const noexcept;
    [[nodiscard]] bool use_pairs(std::uint16_t pairs);

    const Identity identity_;
    std::deque<PairLane> lanes_; ///< by pair; the device's thread serves the first one
    NetControl control_;
    PartLink control_driver_;
    bool is_active_ = false;
    bool has_pairs_ = false;       ///< the driver knows of several pairs
    std::uint16_t control_at_ = 0; ///< the number of the control queue
    std::uint16_t used_ = 1;       ///< pairs by which frames come to the guest
    /// Queues that the driver has enabled but that no part has.
    std::vector<std::optional<Queue>> unused_;
};

} // namespace vmm::devices::virtio
