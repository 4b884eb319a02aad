// Puts pages of guest memory that arrive where they belong.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <exception>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "kvm/host/guest_memory.hpp"
#include "vmm/migration/channel.hpp"

namespace vmm {

/// Receives the frames of several streams, each on a thread of its own. What is sent is never trusted: a range outside
/// of memory, or a wrong checksum, ends all. A checksum is that of what lies in memory in the end, so a page that two
/// streams bring at once is refused as one that was changed on its way; a source brings it by one stream a round.
///
/// Threads: any.
class PageReceiver {
  public:
    /// Both are called on threads of this object, and do not wait for it.
    struct Callbacks {
        std::function<void(std::uint64_t round)> synced; ///< all streams have ended this round
        std::function<void(std::exception_ptr)> failed;  ///< LinkError, or what was wrong; of each stream
    };

    /// `memory` outlives it.
    PageReceiver(const GuestMemory& memory, unsigned streams, Callbacks callbacks);
    /// Cuts the streams.
    ~PageReceiver();
    PageReceiver(const PageReceiver&) = delete;
    PageReceiver& operator=(const PageReceiver&) = delete;

    /// Begins to receive from stream `index`. Throws Error: there is no such stream, or it is there already.
    void add(unsigned index, std::unique_ptr<Channel> channel);
    /// Ends all streams and waits for their threads, none of which touches memory any more. They may be added again.
    /// Who calls it while it goes on waits, too; a stream that is added meanwhile may be cut or not.
    void cut() noexcept;

    /// How many frames of each stream have been put into memory since the beginning. After cut().
    [[nodiscard]] std::vector<std::uint64_t> applied_frames() const;
    [[nodiscard]] std::uint64_t received_bytes() const noexcept { return received_bytes_.load(); }

  private:
    struct Stream {
        std::unique_ptr<Channel> channel;
        std::thread thread;
        std::uint64_t applied_frames = 0;
        std::uint64_t synced_round = 0;
    };
    void receive(Stream& stream) noexcept;
    void receive_all(Stream& stream);
    void note_sync(Stream& stream, std::uint64_t round);

    const GuestMemory& memory_;
    const Callbacks callbacks_;
    std::mutex cutting_;      ///< held by cut(), and taken before lock_
    mutable std::mutex lock_; ///< guards what stands in the streams, but for the channels in use
    std::vector<Stream> streams_;
    std::atomic<std::uint64_t> received_bytes_{0};
};

} // namespace vmm
