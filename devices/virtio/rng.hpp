// A source of entropy (virtio 1.2, 5.4).
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "devices/virtio/another_turn.hpp"
#include "devices/virtio/device.hpp"

namespace vmm::devices::virtio {

/// Fills the guest's buffers with random bytes of the host's (getrandom(2)): up to kMostBytes of each request, and
/// kMostBytesATurn before other descriptors have their turn.
///
/// Threads: one, but for identity().
class Rng final : public Device {
  public:
    static constexpr std::uint64_t kMostBytes = 64 * 1024;
    static constexpr std::uint64_t kMostBytesATurn = 1024 * 1024;

    /// Fills `bytes`, and returns false where it cannot.
    using Entropy = std::function<bool(std::span<std::byte> bytes)>;
    /// The kernel's.
    [[nodiscard]] static Entropy host_entropy();

    explicit Rng(std::string name, Entropy entropy = host_entropy());

    [[nodiscard]] const Identity& identity() const noexcept override { return identity_; }
    void activate(Activation activation, MmioTransport& transport) override;
    void doorbell(std::uint16_t index) override;
    [[nodiscard]] std::vector<Source> sources() const override { return {another_turn_.source()}; }
    void ready(int fd, std::uint32_t events) override;
    void stop() override;
    [[nodiscard]] bool is_idle() const noexcept override { return true; }
    void stop_queue(std::uint16_t index) override;
    [[nodiscard]] bool is_queue_idle(std::uint16_t /*index*/) const noexcept override { return true; }
    void restart_queue(std::uint16_t index, Queue queue) override;

  private:
    void serve();
    [[nodiscard]] std::uint64_t fill(const Chain& chain);

    Identity identity_;
    Entropy entropy_;
    AnotherTurn another_turn_;
    MmioTransport* transport_ = nullptr; ///< while it is active
    std::optional<Queue> queue_;
    Chain chain_;
};

} // namespace vmm::devices::virtio
