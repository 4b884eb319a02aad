// A source of entropy (virtio 1.2, 5.4).
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <string>

#include "devices/virtio/synchronous_device.hpp"

namespace vmm::devices::virtio {

/// Fills the guest's buffers with random bytes of the host (getrandom(2)): up to kMostBytes for each request, and up to
/// kMostBytesATurn before other descriptors have their turn.
///
/// Threads: one, except for identity().
class Rng final : public SynchronousDevice {
  public:
    static constexpr std::uint64_t kMostBytes = 64 * 1024;
    static constexpr std::uint64_t kMostBytesATurn = 1024 * 1024;

    /// Fills `bytes`. Returns false if it cannot.
    using Entropy = std::function<bool(std::span<std::byte> bytes)>;
    /// The kernel's source of entropy.
    [[nodiscard]] static Entropy host_entropy();

    explicit Rng(std::string name, Entropy entropy = host_entropy());

    [[nodiscard]] DeviceState state() const override { return RngState{}; }

  private:
    void serve() override;
    [[nodiscard]] std::uint64_t fill(const Chain& chain);

    Entropy entropy_;
    Chain chain_;
};

} // namespace vmm::devices::virtio
