// A character device, seen from the host's side: a serial port, a virtio console.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>

namespace vmm::devices {

/// Output is kept until the event loop takes it. If there is no more room, output is dropped, so that a guest never
/// waits for a reader. Input waits with the event loop until there is room.
///
/// Threads: any.
class CharacterPort {
  public:
    static constexpr std::size_t kDefaultOutputBytes = 256 * 1024;

    /// How the port wakes the event loop. Either may be empty, and neither may throw. They are called without a lock,
    /// from the thread that serves the guest, and should do no more than signal an eventfd.
    struct Callbacks {
        /// There is output, and there was none before. It is not called again before `take_output` has taken
        /// everything.
        std::function<void()> output_ready;
        /// The guest has taken input, and there was no room for more before: `feed_input` may continue.
        std::function<void()> input_room_ready;
    };

    CharacterPort() = default;
    CharacterPort(const CharacterPort&) = delete;
    CharacterPort(CharacterPort&&) = delete;
    CharacterPort& operator=(const CharacterPort&) = delete;
    CharacterPort& operator=(CharacterPort&&) = delete;
    virtual ~CharacterPort() = default;

    /// Moves up to `out.size()` bytes of output to the front of `out`, and returns their number. Call it until it
    /// returns 0, because `output_ready` is called again only after that.
    [[nodiscard]] virtual std::size_t take_output(std::span<std::byte> out) noexcept = 0;

    /// The number of output bytes that were dropped because there was no room.
    [[nodiscard]] virtual std::uint64_t dropped_output_bytes() const noexcept = 0;

    /// Receives as much of the front of `bytes` as there is room for, and returns how many bytes that was. The rest
    /// stays with the caller until `input_room_ready`.
    [[nodiscard]] virtual std::size_t feed_input(std::span<const std::byte> bytes) noexcept = 0;
};

} // namespace vmm::devices
