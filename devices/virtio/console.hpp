// A console (virtio 1.2, 5.3), with one port.
#pragma once

#include <cstddef>
#include <cstdint>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "devices/byte_ring.hpp"
#include "devices/character_port.hpp"
#include "devices/virtio/console_size.hpp"
#include "devices/virtio/synchronous_device.hpp"

namespace vmm::devices::virtio {

/// Linux calls it hvc0. Output that nobody takes is dropped, as CharacterPort says, because Linux's driver holds a lock
/// while it waits for each of its buffers.
///
/// Threads: one, except for identity(), resize() and the members of CharacterPort: any.
class Console final : public SynchronousDevice, public CharacterPort {
  public:
    static constexpr std::size_t kInputBytes = 4096;
    static constexpr std::uint64_t kMostBytesATurn = 1024 * 1024;

    /// If there is a `size`, the guest learns it and later sizes of resize() (VIRTIO_CONSOLE_F_SIZE). Throws Error if
    /// this process has no descriptor left, or if `state` holds more than there is room for.
    Console(std::string name, Callbacks callbacks, std::optional<ConsoleSize> size,
            std::size_t output_capacity = kDefaultOutputBytes, const ConsoleState& state = {});

    /// Reports a new size of the terminal. Does nothing if it had no size at first.
    void resize(ConsoleSize size) noexcept;

    [[nodiscard]] std::size_t take_output(std::span<std::byte> out) noexcept override;
    [[nodiscard]] std::uint64_t dropped_output_bytes() const noexcept override;
    [[nodiscard]] std::size_t feed_input(std::span<const std::byte> bytes) noexcept override;

    [[nodiscard]] std::vector<Source> sources() const override;
    [[nodiscard]] DeviceState state() const override;

  private:
    void serve() override;
    void look_at_source(int fd) override;
    void take_from_guest();
    void give_to_guest();
    [[nodiscard]] bool has_input() const;
    void print(const Chain& chain);
    void announce_output();
    void tell_size();

    const Callbacks callbacks_;
    const bool has_size_;
    AnotherTurn host_spoke_; ///< input or another size has come, or there is output from before a restore
    Chain chain_;
    ConsoleSize told_size_;

    mutable std::mutex mutex_; ///< guards all below
    ByteRing output_;
    ByteRing input_{kInputBytes};
    bool output_announced_ = false; ///< output_ready was called, and not all output has been taken since
    bool input_blocked_ = false;    ///< there was no room, and input_room_ready has not been called since
    std::uint64_t dropped_output_bytes_ = 0;
    ConsoleSize size_;
};

} // namespace vmm::devices::virtio
