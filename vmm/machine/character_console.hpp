// The connection of a guest's serial port or console with the descriptors of this process.
#pragma once

#include <array>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "devices/character_port.hpp"
#include "kvm/host/event_fd.hpp"
#include "vmm/config.hpp"
#include "vmm/machine/escape_keys.hpp"
#include "vmm/machine/event_loop.hpp"
#include "vmm/output/nonblocking_output.hpp"

namespace vmm {

/// Says why bytes that the guest wrote reached nobody, and what to do about it: "the disk is full (free some room)".
[[nodiscard]] std::string why_output_is_lost(int error_number);

/// Moves the guest's output to one descriptor, and what arrives at another one to the guest. It never waits. If the
/// reader is slow, the port's ring fills and then drops output; if the guest is slow, no more input is read.
///
/// Threads: one (the event loop's). The functions in callbacks() are called on vCPU threads, and pending_input() may be
/// called on any.
class CharacterConsole {
  public:
    /// `stop` is called when the stop key is pressed.
    CharacterConsole(CharacterConfig config, std::function<void()> stop);

    /// The callbacks with which the port must be made.
    [[nodiscard]] devices::CharacterPort::Callbacks callbacks();

    /// Connects `port` and the descriptors to `loop`. It may be called once. `port` and `loop` must live as long as the
    /// loop runs.
    void attach(devices::CharacterPort& port, EventLoop& loop);

    /// The input that was read for the guest and has not gone to the port.
    [[nodiscard]] std::vector<std::byte> pending_input() const;
    /// Adds input that goes to the guest before everything that is read. It must be called before attach(), and takes
    /// at most kMostPending bytes.
    void add_input(std::span<const std::byte> bytes);

    /// The most input that is kept for a guest that does not read. A person may type ahead this much.
    static constexpr std::size_t kMostPending = 4096;

    /// How long flush() waits for a slow reader.
    struct Patience {
        std::chrono::milliseconds quiet; ///< how long it waits while the reader takes nothing
        std::chrono::milliseconds total;
    };
    /// Writes the rest of the output. What the reader does not take in time is lost. It is called once, at the end.
    void flush(Patience patience);

    /// Output that the port dropped, that could not be written, or that the sink could not pass on. Nothing if the port
    /// is not connected. It must be called after flush().
    [[nodiscard]] LostOutput lost_output() const;
    /// How many bytes the guest wrote.
    [[nodiscard]] std::uint64_t output_bytes() const;

  private:
    enum class Drained { kAll, kBlocked, kMoreLeft };
    /// Output that was taken from the port and reached nobody.
    struct Lost {
        std::uint64_t bytes = 0;
        int error_number = 0; ///< of the first write that was refused; 0: nobody took the output in time
    };
    /// The most bytes that are written before other handlers have their turn. A guest may flood the port.
    static constexpr std::size_t kMostAtOnce = 64 * kKiB;

    [[nodiscard]] bool is_connected() const noexcept { return output_.has_value() || config_.sink != nullptr; }
    Drained drain_output();
    void give_to_sink(std::span<const std::byte> bytes);
    void write_off(std::size_t bytes, int error_number) noexcept;
    void pump_output();
    void read_input();
    [[nodiscard]] bool feed_pending();
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
    mutable std::mutex input_lock_;
    /// Guarded by input_lock_:
    std::vector<std::byte> pending_input_; ///< read, not yet taken by the guest; at most one read's worth
    bool input_watched_ = false;
    bool input_always_ready_ = false; ///< a regular file
    bool input_ended_ = false;
    std::uint64_t taken_bytes_ = 0;
    Lost lost_;
    bool output_given_up_ = false; ///< nobody has read in time, so the rest of the output is lost
    bool sink_failed_ = false;
    LostOutput lost_by_sink_;
};

} // namespace vmm
