// The link to the driver for a part of a device.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>

#include "devices/virtio/driver_link.hpp"

namespace vmm::devices::virtio {

/// A device may consist of several parts, each of which has some of its queues. Queue n of a part is queue `first` + n
/// of the whole device.
///
/// Threads: as for DriverLink.
class PartLink final : public DriverLink {
  public:
    /// Sets both for this activation. `whole` must outlive it.
    void connect(DriverLink& whole, std::uint16_t first) noexcept {
        whole_ = &whole;
        first_ = first;
    }

    void notify(QueueSet queues) noexcept override {
        QueueSet of_whole;
        queues.each([&](std::uint16_t index) { of_whole.add(static_cast<std::uint16_t>(first_ + index)); });
        whole_->notify(of_whole);
    }
    void change_config(std::size_t offset, std::span<const std::byte> bytes) override {
        whole_->change_config(offset, bytes);
    }
    void note_config(std::size_t offset, std::span<const std::byte> bytes) override {
        whole_->note_config(offset, bytes);
    }
    void fail(std::string_view why) override { whole_->fail(why); }
    [[nodiscard]] const GuestMemory& memory() const noexcept override { return whole_->memory(); }

  private:
    DriverLink* whole_ = nullptr;
    std::uint16_t first_ = 0;
};

} // namespace vmm::devices::virtio
