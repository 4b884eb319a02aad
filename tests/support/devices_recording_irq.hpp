// An interrupt line that counts its pulses.
#pragma once

#include <atomic>
#include <cstdint>

#include "devices/device.hpp"

namespace vmm::devices::testing {

/// Threads: any, at once.
class RecordingIrq final : public IrqLine {
  public:
    void raise() noexcept override { pulses_.fetch_add(1); }

    /// Pulses so far.
    [[nodiscard]] std::uint64_t pulses() const noexcept { return pulses_.load(); }
    /// Pulses since the last call.
    std::uint64_t take() noexcept { return pulses_.exchange(0); }

  private:
    std::atomic<std::uint64_t> pulses_ = 0;
};

} // namespace vmm::devices::testing
