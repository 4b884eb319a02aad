// Sends pages of guest memory through several streams at once.
#pragma once

#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <span>
#include <stop_token>
#include <vector>

#include "kvm/host/guest_memory.hpp"
#include "prefault/host/pace.hpp"
#include "vmm/migration.hpp"
#include "vmm/migration/channel.hpp"
#include "vmm/migration/frames.hpp"
#include "vmm/state/page_bits.hpp"

namespace vmm {

/// Sends pages, in rounds. Each stream has a thread as long as a round goes on.
///
/// Threads: one, but for sent_bytes() and content_bytes().
class PageSender {
  public:
    struct Settings {
        Compression compression = Compression::kNone;
        std::uint64_t bytes_per_second = 0; ///< over all streams; 0: no limit
        /// Is told of each part of memory, of at most 2 MiB, before it is read, on the thread that reads it. May be
        /// empty.
        std::function<void(GuestRange)> before{};
        /// Is told some ten times a second how many bytes of memory of the round are done, of how many. May be empty.
        std::function<void(std::uint64_t done, std::uint64_t total)> progress{};
    };

    /// `memory` outlives it. The destination's memory is zero at first.
    PageSender(const GuestMemory& memory, Settings settings);
    ~PageSender();
    PageSender(const PageSender&) = delete;
    PageSender& operator=(const PageSender&) = delete;

    /// From now on pages go through these.
    void use(std::vector<std::unique_ptr<Channel>> streams);
    /// As Channel::set_patience(), of all streams.
    void set_patience(std::chrono::milliseconds patience) noexcept;
    /// Whether the other end has ended a stream, or has said there that it does not take it: nothing else is said
    /// there.
    [[nodiscard]] bool is_cut() const noexcept;
    /// Ends the streams at once.
    void shut_down() noexcept;

    /// Sends `pages`, and the end of round `number`. The guest may run meanwhile: what it writes is to be sent again.
    /// Returns false if `stop` was requested. Throws LinkError, StoppedError, Error.
    [[nodiscard]] bool send(const PageBits& pages, std::uint64_t number, const std::stop_token& stop);
    /// Answers what the destination asks for on `channel`, until it ends that, or `stop` is requested. Memory does not
    /// change any more. Throws LinkError when the channel ends, StoppedError, and Error. Any threads may call it,
    /// several at once.
    void serve(Channel& channel, const std::stop_token& stop);

    /// The destination has put all of the last round into memory.
    void note_synced() noexcept;
    /// Those of `pages`, which the last send() was given, that the destination has not put into memory.
    /// `applied_frames` of each stream are from the destination. The next send() counts from there. Throws Error:
    /// they are more than were sent.
    [[nodiscard]] PageBits missing(const PageBits& pages, std::span<const std::uint64_t> applied_frames);

    /// What went over the wire, headers included. Threads: any.
    [[nodiscard]] std::uint64_t sent_bytes() const noexcept { return sent_bytes_.load(); }
    /// How many bytes of memory went over that were not zero. Compression does not change this count. Threads: any.
    [[nodiscard]] std::uint64_t content_bytes() const noexcept { return content_bytes_.load(); }

  private:
    class Worker;
    struct Stream {
        std::unique_ptr<Channel> channel;
        std::uint64_t synced_frames = 0; ///< since the migration began
        std::vector<GuestRange> frames;  ///< that were sent since then
    };
    struct Chunk {
        std::size_t region = 0;
        std::uint64_t first_page = 0;
        std::uint64_t pages = 0;
    };
    [[nodiscard]] std::vector<Chunk> chunks_of(const PageBits& pages) const;
    void run(std::vector<std::unique_ptr<Worker>>& workers, const PageBits& pages, const std::vector<Chunk>& chunks,
             const std::stop_token& stop);
    void note_progress(std::uint64_t bytes);

    const GuestMemory& memory_;
    const Settings settings_;
    prefault::Pace pace_;
    std::vector<Stream> streams_;
    std::vector<std::unique_ptr<Worker>> workers_;                     ///< one for each stream
    std::vector<std::vector<std::atomic<std::uint64_t>>> has_content_; ///< pages that may not be zero over there
    std::atomic<std::size_t> next_chunk_{0};
    std::atomic<std::uint64_t> sent_bytes_{0};
    std::atomic<std::uint64_t> content_bytes_{0};
    std::mutex progress_lock_;
    std::uint64_t done_bytes_ = 0;
    std::uint64_t total_bytes_ = 0;
    std::chrono::steady_clock::time_point told_{};
};

} // namespace vmm
