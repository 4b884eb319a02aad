// What devices have in common that answer each request at once.
#pragma once

#include <cstdint>
#include <optional>
#include <utility>
#include <vector>

#include "devices/virtio/another_turn.hpp"
#include "devices/virtio/device.hpp"

namespace vmm::devices::virtio {

/// A device that never leaves a request with the host, and so is idle as soon as it is stopped; but see
/// has_work_outside(). It keeps the queues, and serves them in turns of limited length. After each turn the driver is
/// notified once.
///
/// A derived device says what it does in a turn, and what it forgets with a queue. Device has an example.
///
/// Threads: as Device has it.
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
    /// Throws Error: the process has no descriptor left.
    explicit SynchronousDevice(Identity identity) : identity_(std::move(identity)) {}

    // --- What a derived device does -------------------------------------------------------------------------------

    /// One turn, while it is active. If it leaves work of which nothing else will tell, it asks for another turn.
    virtual void serve() = 0;
    /// The driver has settled on `features`; a turn follows.
    virtual void begin(std::uint64_t /*features*/) {}
    /// The driver has reset the device, or there never was one. forget_queue() was called for each queue.
    virtual void end() noexcept {}
    /// Queue `index` is gone, and with it what was taken from it.
    virtual void forget_queue(std::uint16_t /*index*/) noexcept {}
    /// Forgets the requests of queue `index` that it has taken and not given back, and returns how many they are. They
    /// are the last ones that it has taken, and go back into the queue.
    [[nodiscard]] virtual std::uint16_t put_back(std::uint16_t /*index*/) noexcept { return 0; }
    /// The driver rang for queue `index`, which may not be enabled. A turn follows if the device is active.
    virtual void look_at_doorbell(std::uint16_t /*index*/) {}
    /// One of sources() is ready, active or not. A turn follows if it is.
    virtual void look_at_source(int /*fd*/) {}
    /// Whether another thread works for the device: it is neither idle nor paused until that has ended, of which one of
    /// sources() tells. end() and put_back() are when to hurry that up.
    [[nodiscard]] virtual bool has_work_outside() const noexcept { return false; }
    /// One of sources() is ready, in any state; before look_at_source().
    virtual void look_at_work_outside(int /*fd*/) {}

    // --- What it does that with -----------------------------------------------------------------------------------

    /// Whether there is a driver. driver() may be called only then.
    [[nodiscard]] bool is_active() const noexcept { return driver_ != nullptr; }
    [[nodiscard]] DriverLink& driver() const noexcept { return *driver_; }
    /// Null if the driver did not enable the queue, or has broken it.
    [[nodiscard]] Queue* working_queue(std::uint16_t index) noexcept;
    [[nodiscard]] bool has_working_queue(std::uint16_t index) const noexcept;
    /// Takes the next request of queue `index` into `chain`. Returns false if there is none, in which case a doorbell
    /// will tell of the next one; or if the queue does not work, in which case the driver has been told.
    [[nodiscard]] bool take(std::uint16_t index, Chain& chain);
    /// Has this thread come back after it has looked at everything else. Threads: any.
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
