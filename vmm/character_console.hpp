// Between a guest's serial port or console and the descriptors of this process.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <optional>
#include <vector>

#include "devices/character_port.hpp"
#include "vmm/config.hpp"
#include "vmm/escape_keys.hpp"
#include "vmm/event_fd.hpp"
#include "vmm/event_loop.hpp"
#include "vmm/nonblocking_output.hpp"

namespace vmm {

/// Moves the guest's output to a descriptor and what arrives at another one to the guest, without ever waiting: where
/// the reader is slow, the port's ring fills and then drops; where the guest is slow, we stop reading.
///
/// Threads: one (the event loop's), but for the callbacks in `callbacks()`, which are for vCPU threads.
class CharacterConsole {
  public:
    /// `stop` is what the stop key does.
    CharacterConsole(const CharacterConfig& config, std::function<void()> stop);

    /// What the port is to be made with.
    [[nodiscard]] devices::CharacterPort::Callbacks callbacks();

    /// Connects `port` and the descriptors to `loop`. All three outlive each other's use. Once.
    void attach(devices::CharacterPort& port, EventLoop& loop);

    /// Writes what is left of the output, waiting at most `timeout_ms` for a slow reader.
    void flush(int timeout_ms);

    /// Output that was taken from the port and could not be written, because nobody reads it any more.
    [[nodiscard]] std::uint64_t lost_output_bytes() const noexcept { return lost_output_bytes_; }

  private:
    enum class Drained { kAll, kBlocked, kMoreLeft };
    /// A guest that floods the port must not keep the loop from hearing anything else. In bytes.
    static constexpr std::size_t kMostAtOnce = 64 * kKiB;

    Drained drain_output();
    void pump_output();
    void read_input();
    void feed_input();

    CharacterConfig config_;
    std::function<void()> stop_;
    EventFd output_ready_;
    EventFd input_room_;
    std::optional<NonblockingOutput> output_;
    EscapeKeys escape_keys_;

    devices::CharacterPort* port_ = nullptr;
    EventLoop* loop_ = nullptr;
    std::array<std::byte, 4096> pending_output_{}; ///< taken from the port, not yet written
    std::size_t pending_start_ = 0;
    std::size_t pending_end_ = 0;
    bool waiting_for_writable_ = false;
    std::vector<std::byte> pending_input_; ///< read, not yet taken by the guest; at most one read's worth
    bool input_watched_ = false;
    bool input_always_ready_ = false; ///< a regular file
    bool input_ended_ = false;
    std::uint64_t lost_output_bytes_ = 0;
};

} // namespace vmm
