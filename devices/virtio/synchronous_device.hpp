// What devices have in common that answer each request where they take it.
#pragma once

#include <cstdint>
#include <optional>
#include <utility>
#include <vector>

#include "devices/virtio/another_turn.hpp"
#include "devices/virtio/device.hpp"

namespace vmm::devices::virtio {

/// A device none of whose requests is ever with the host: it is idle as soon as it is stopped. It keeps the queues, and
/// serves them in turns of limited length, after each of which the driver is notified once.
///
/// A derived device says what it does in a turn, and what it has to forget with a queue.
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
    [[nodiscard]] bool is_idle() const noexcept final { return true; }
    void stop_queue(std::uint16_t index) final;
    [[nodiscard]] bool is_queue_idle(std::uint16_t /*index*/) const noexcept final { return true; }
    void restart_queue(std::uint16_t index, Queue queue) final;

  protected:
    /// Throws Error where the process has no descriptor left.
    explicit SynchronousDevice(Identity identity) : identity_(std::move(identity)) {}

    // --- What a derived device does -------------------------------------------------------------------------------

    /// One turn, while it is active. Asks for another_turn() where it leaves work of which nothing else will tell.
    virtual void serve() = 0;
    /// The driver has settled on `features`; a turn follows.
    virtual void begin(std::uint64_t /*features*/) {}
    /// The driver has reset the device, or there never was one. forget_queue() was called for each queue.
    virtual void end() noexcept {}
    /// Queue `index` is gone, and with it what was taken from it.
    virtual void forget_queue(std::uint16_t /*index*/) noexcept {}
    /// The driver rang for queue `index`, which may not be enabled. A turn follows if the device is active.
    virtual void look_at_doorbell(std::uint16_t /*index*/) {}
    /// One of sources() is ready, active or not. A turn follows if it is.
    virtual void look_at_source(int /*fd*/) {}

    // --- What it does that with -----------------------------------------------------------------------------------

    /// Whether there is a driver. Only then is there a driver().
    [[nodiscard]] bool is_active() const noexcept { return driver_ != nullptr; }
    [[nodiscard]] DriverLink& driver() const noexcept { return *driver_; }
    /// Null where the driver did not enable it, or has broken it.
    [[nodiscard]] Queue* working_queue(std::uint16_t index) noexcept;
    [[nodiscard]] bool has_working_queue(std::uint16_t index) const noexcept;
    /// Takes the next request of queue `index` into `chain`. False where there is none, and a doorbell will tell of the
    /// next one; or where the queue does not work, which the driver has then been told.
    [[nodiscard]] bool take(std::uint16_t index, Chain& chain);
    /// Has this thread come back, after it has looked at everything else. Threads: any.
    void ask_for_another_turn() const noexcept { another_turn_.ask(); }

  private:
    void turn();

    const Identity identity_;
    AnotherTurn another_turn_;
    DriverLink* driver_ = nullptr;
    std::vector<std::optional<Queue>> queues_;
};

} // namespace vmm::devices::virtio
