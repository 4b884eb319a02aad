// The common part of devices that answer each request at once.
#pragma once

#include <cstdint>
#include <optional>
#include <utility>
#include <vector>

#include "devices/virtio/another_turn.hpp"
#include "devices/virtio/device.hpp"

namespace vmm::devices::virtio {

/// A device that never leaves a request with the host, and so is idle as soon as it is stopped; has_work_outside() is
/// the exception. It keeps the queues, and serves them in turns of limited length. After each turn the driver is
/// notified once.
///
/// A derived device defines what it does in a turn, and what it forgets with a queue. Device has an example.
///
/// Threads: as for Device.
class SynchronousDevice : public Device {
  public:
    [[nodiscard]] const Identity& identity() const noexcept final { return identity_; }
    void activate(Activation activation, DriverLink& driver) final;
    void doorbell(std::uint16_t index) final;
    [[nodiscard]] std::vector<Source> sources() const override { return {another_turn_.source()}; }
    void ready(int fd, std::uint32_t events) final;
    void stop() final;
    [[nodiscard]] bool is_idle() const noexcept final { return !has_work_outside(); }
    void stop_queue(std::uint16_t index) final;
    [[nodiscard]] bool is_queue_idle(std::uint16_t /*index*/) const noexcept final { return !has_work_outside(); }
    void restart_queue(std::uint16_t index, Queue queue) final;
    void pause() final;
    [[nodiscard]] bool is_paused() const noexcept final { return paused_ && !has_work_outside(); }
    void resume() final;
    [[nodiscard]] std::vector<std::optional<Queue::State>> queue_states() const final;

  protected:
    /// Throws Error if the process has no descriptor left.
    explicit SynchronousDevice(Identity identity) : identity_(std::move(identity)) {}

    // ---- What a derived device does

    /// Does one turn, while the device is active. If it leaves work that nothing else will announce, it must ask for
    /// another turn.
    virtual void serve() = 0;
    /// The driver has negotiated `features`; a turn follows.
    virtual void begin(std::uint64_t /*features*/) {}
    /// The driver has reset the device, or there never was one. forget_queue() was called for each queue before.
    virtual void end() noexcept {}
    /// Queue `index` is gone, and so are the requests that were taken from it.
    virtual void forget_queue(std::uint16_t /*index*/) noexcept {}
    /// Forgets the requests of queue `index` that it has taken and not given back, and returns their number. They must
    /// be the last ones that it has taken, and go back into the queue.
    [[nodiscard]] virtual std::uint16_t put_back(std::uint16_t /*index*/) noexcept { return 0; }
    /// The driver rang for queue `index`, which may not be enabled. A turn follows if the device is active.
    virtual void look_at_doorbell(std::uint16_t /*index*/) {}
    /// One of sources() is ready, whether the device is active or not. If it is active, a turn follows.
    virtual void look_at_source(int /*fd*/) {}
    /// True while another thread works for the device: the device is neither idle nor paused until that work has ended,
    /// which one of sources() reports. end() and put_back() are the places to speed it up.
    [[nodiscard]] virtual bool has_work_outside() const noexcept { return false; }
    /// One of sources() is ready, in any state. It is called before look_at_source().
    virtual void look_at_work_outside(int /*fd*/) {}

    // ---- What it does that with

    /// True if there is a driver. driver() may be called only then.
    [[nodiscard]] bool is_active() const noexcept { return driver_ != nullptr; }
    [[nodiscard]] DriverLink& driver() const noexcept { return *driver_; }
    /// Null if the driver did not enable the queue, or has broken it.
    [[nodiscard]] Queue* working_queue(std::uint16_t index) noexcept;
    [[nodiscard]] bool has_working_queue(std::uint16_t index) const noexcept;
    /// Takes the next request of queue `index` into `chain`. Returns false if there is none, and a doorbell will
    /// announce the next one. Also returns false if the queue does not work; the driver has then been told.
    [[nodiscard]] bool take(std::uint16_t index, Chain& chain);
    /// Gives this device another turn after its thread has checked everything else. Threads: any.
    void ask_for_another_turn() const noexcept { another_turn_.ask(); }

  private:
    void turn();
    [[nodiscard]] std::uint16_t queue_count() const noexcept { return static_cast<std::uint16_t>(queues_.size()); }

    const Identity identity_;
    AnotherTurn another_turn_;
    DriverLink* driver_ = nullptr;
    std::vector<std::optional<Queue>> queues_;
    bool paused_ = false;
};

} // namespace vmm::devices::virtio
