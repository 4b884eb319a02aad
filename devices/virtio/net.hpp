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
/// the links can (a tap), checksums and TCP segmentation are left to whoever comes last, host or guest, as negotiated.
/// A guest that goes on from a state may be elsewhere now, so the host's network is told of its address (see the
/// constructor), and a driver that can announces its addresses itself. When the host's end goes away the guest's link
/// is down.
///
/// The device's thread serves the first pair and the control queue; each other pair is a lane. Frames for the guest
/// come by as many pairs as its driver asks for, by one at first. A driver that does not know of several pairs has the
/// first one, and its control queue is where the second pair would be (5.1.2).
///
/// Threads: one, but for identity(), lanes() and statistics(), and a thread for each lane.
class Net final : public Device {
  public:
    static constexpr unsigned kMostPairs = 16;
    static constexpr std::uint16_t kQueueSize = NetPair::kQueueSize;
    static constexpr int kMostFramesATurn = NetPair::kMostFramesATurn;
    static constexpr int kMostBuffersATurn = NetPair::kMostBuffersATurn;
    static constexpr int kAnnouncements = NetControl::kAnnouncements;
    using Statistics = NetPair::Statistics;

    /// A pair on each of `links`, 1 to kMostPairs of them, of which the first is attached. `link_lost`, unless empty,
    /// is called once on the device's thread when the host's end is gone. Throws Error: this process has no descriptor
    /// left, or `state` is that of no such device.
    ///
    /// If there is an address to be `announced`, frames from it are sent as soon as the device that goes on has its
    /// driver, kAnnouncements of them: switches learn from them where the guest is. They are of RARP, as other VMMs
    /// send them, because that needs no address but this one.
    Net(std::string name, std::vector<std::unique_ptr<FrameLink>> links, const MacAddress& mac,
        std::function<void()> link_lost = {}, const NetState& state = {},
        const std::optional<MacAddress>& announced = {});
    /// One pair.
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

    /// What all pairs together have done since the device was made. Threads: any.
    [[nodiscard]] Statistics statistics() const noexcept;
    /// By how many pairs frames come to the guest.
    [[nodiscard]] std::uint16_t pairs_in_use() const noexcept { return used_; }

  private:
    /// A pair, and what keeps the device's thread and the pair's own from it at the same time.
    class PairLane final : public Lane {
      public:
        /// `not_ours` is called for a doorbell while the pair has no driver.
        PairLane(std::uint16_t number, std::unique_ptr<NetPair> pair, std::function<void()> not_ours);

        [[nodiscard]] QueueSet queues() const noexcept override;
        void doorbell(std::uint16_t index) override;
        [[nodiscard]] std::vector<Source> sources() const override;
        void ready(int fd, std::uint32_t events) override;

        /// Calls `act(pair)` on the device's thread. Then the pair's own thread looks at what has changed.
        template <typename Act>
        auto with(Act act);
        /// As with(), where nothing changes.
        template <typename See>
        auto see(See see) const;
        void activate(Activation activation, DriverLink& driver);
        /// For what any thread may ask of it.
        [[nodiscard]] const NetPair& pair() const noexcept { return *pair_; }
        /// For the device's thread, if it is the pair's own.
        [[nodiscard]] NetPair& own_pair() noexcept { return *pair_; }

      private:
        std::uint16_t first_queue_;
        std::unique_ptr<NetPair> pair_;
        PartLink driver_;
        std::function<void()> not_ours_;
        mutable std::mutex mutex_; ///< guards *pair_
    };

    /// Where a queue of the device is. If both are false, no part has it.
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
    std::deque<PairLane> lanes_; ///< by pair; the first is the device's thread's
    NetControl control_;
    PartLink control_driver_;
    bool is_active_ = false;
    bool has_pairs_ = false;       ///< the driver knows of several
    std::uint16_t control_at_ = 0; ///< the number of the control queue
    std::uint16_t used_ = 1;       ///< pairs by which frames come to the guest
    /// Queues that the driver has enabled, and that no part has.
    std::vector<std::optional<Queue>> unused_;
};

} // namespace vmm::devices::virtio
