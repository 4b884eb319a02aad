// A disk (virtio 1.2, 5.2).
#pragma once

#include <sys/uio.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "devices/disk_image.hpp"
#include "devices/disk_io.hpp"
#include "devices/virtio/alarm.hpp"
#include "devices/virtio/another_turn.hpp"
#include "devices/virtio/device.hpp"
#include "devices/virtio/interrupt_moderation.hpp"

namespace vmm::devices::virtio {

struct BlockConfig {
    unsigned queues = 1; ///< 1 to 16
    std::string id;      ///< the answer to GET_ID, at most 20 bytes
    /// Returns guest memory that is pinned, for DiskIo. It is called when the driver is ready, and may be empty.
    std::function<std::vector<std::span<std::byte>>()> pinned_memory;
    /// Receives errors of the host, on the device's thread, at most once a second. It may be empty.
    std::function<void(const std::string&)> warn;
    DiskIoKind io = DiskIoKind::kAuto;
    bool moderation = true; ///< whether interrupts and doorbells may be delayed (InterruptModeration)
};

/// The device. The requests of all its queues go through one DiskIo, many at once, and complete in any order. Without
/// VIRTIO_BLK_F_FLUSH each write is on stable storage before it completes (5.2.6.2).
///
/// A long request is done in operations of at most kMostOperationBytes. The number of bytes of each queue that are with
/// the host is bounded. If the driver resets, operations that are not with the host yet never begin.
///
/// If the host has failed to flush once, every later flush fails, whatever the guest does: the kernel forgets the data
/// that it could not write, and would report success for the next flush.
///
/// The device has no other state between requests. When it is paused, it waits for all requests that it has taken.
///
/// Threads: one, except for identity() and statistics().
class Block final : public Device {
  public:
    /// Everything that its I/O needs from the host exists afterwards. Throws Error if the host refuses some of it, or
    /// if `state` belongs to a device on another disk.
    Block(std::string name, DiskImage image, BlockConfig config, const BlockState& state = {});
    /// Uses `io` for its I/O, which must allow kMostOperations at once.
    Block(std::string name, DiskImage image, std::unique_ptr<DiskIo> io, BlockConfig config,
          const BlockState& state = {});
    ~Block() override;

    [[nodiscard]] const Identity& identity() const noexcept override { return identity_; }
    void activate(Activation activation, DriverLink& driver) override;
    void doorbell(std::uint16_t index) override;
    [[nodiscard]] std::vector<Source> sources() const override;
    void ready(int fd, std::uint32_t events) override;
    void stop() override;
    [[nodiscard]] bool is_idle() const noexcept override;
    void stop_queue(std::uint16_t index) override;
    [[nodiscard]] bool is_queue_idle(std::uint16_t index) const noexcept override;
    void restart_queue(std::uint16_t index, Queue queue) override;
    void pause() override;
    [[nodiscard]] bool is_paused() const noexcept override { return paused_ && is_idle(); }
    void resume() override;
    [[nodiscard]] std::vector<std::optional<Queue::State>> queue_states() const override;
    [[nodiscard]] DeviceState state() const override;
    void release_host(bool flush) override { image_.release(flush); }
    void reclaim_host() override { image_.reclaim(); }

    /// Counts since the device was made. Threads: any.
    struct Statistics {
        std::uint64_t reads = 0;
        std::uint64_t writes = 0;
        std::uint64_t flushes = 0;
        std::uint64_t errors = 0;     ///< requests that ended with a status other than OK
        std::uint64_t operations = 0; ///< operations that the host did for them
    };
    [[nodiscard]] Statistics statistics() const noexcept;

    /// Room for a request of 1 MiB in single pages, which Linux would otherwise cut in two (seg_max).
    static constexpr std::uint16_t kQueueSize = 512;
    /// The largest discard and write-zeroes request, in sectors: 1 GiB.
    static constexpr std::uint32_t kMostSectors = 1U << 21;
    /// The most operations that may be with the host at once, over all queues.
    static constexpr unsigned kMostOperations = 256;
    /// The most that one operation reads, writes, zeroes or discards, in bytes.
    static constexpr std::uint64_t kMostOperationBytes = std::uint64_t{4} << 20;
    /// The most bytes that the operations of all queues together should move at once. Each queue has its part of that,
    /// but may always have one operation.
    static constexpr std::uint64_t kMostBytesAtOnce = std::uint64_t{32} << 20;

  private:
    /// The final statuses of a request (5.2.6).
    enum class Status : std::uint8_t { kOk = 0, kIoError = 1, kUnsupported = 2 };
    struct Request;
    struct ServedQueue {
        std::optional<Queue> queue;     ///< empty while the driver has not enabled it
        unsigned work = 0;              ///< the number of its requests that were taken and not given back
        std::uint32_t life = 0;         ///< counts its stops: a request from before a stop is not given back
        std::uint64_t bytes = 0;        ///< the bytes that its operations with the host move
        std::deque<Request*> waiting{}; ///< requests that wait for `bytes` to become fewer
    };
    /// A range of the disk, in bytes; empty if `end` is not greater than `begin`.
    struct ByteRange {
        std::uint64_t begin = UINT64_MAX;
        std::uint64_t end = 0;
        void add(const ByteRange& other) noexcept {
            begin = std::min(begin, other.begin);
            end = std::max(end, other.end);
        }
    };

    [[nodiscard]] std::uint16_t queue_count() const noexcept { return static_cast<std::uint16_t>(queues_.size()); }
    void build_config(const BlockConfig& config);
    void serve();
    [[nodiscard]] std::chrono::steady_clock::duration linger() const noexcept;
    [[nodiscard]] unsigned take_all();
    [[nodiscard]] unsigned take_all_of(std::uint16_t index);
    [[nodiscard]] bool ask_for_doorbells(unsigned requests);
    [[nodiscard]] unsigned under_way() const noexcept;
    void begin(Request& request);
    void begin_transfer(Request& request, bool write, std::uint64_t sector);
    static void add_memory(Request& request, std::uint64_t before, std::span<std::byte> memory);
    void begin_range(Request& request, std::uint32_t type);
    void give_id(Request& request);
    [[nodiscard]] bool may_take(std::uint16_t index) const noexcept;
    [[nodiscard]] bool is_wanted(const Request& request) const noexcept;
    [[nodiscard]] bool has_room(const ServedQueue& queue, std::uint64_t bytes) const noexcept;
    void proceed(Request& request);
    void start_operation(Request& request);
    void start_waiting(ServedQueue& queue);
    void drop_unwanted();
    static void advance(Request& request, std::uint64_t bytes);
    void complete(Request& request, int result);
    void complete_operation(Request& request, int result);
    void done(Request& request);
    void flush(Request& request);
    void start_flush();
    void complete_flush(int result);
    void finish(Request& request, Status status, std::uint64_t written = 0);
    bool reap();
    void submit();
    void notify(std::chrono::steady_clock::time_point now);
    void interrupt_if_wanted();
    void warn(const Request& request, int error);
    void warn_of_lost_data(int error);

    Identity identity_;
    DiskImage image_;
    BlockConfig config_;
    AnotherTurn another_turn_;
    Alarm alarm_;                  ///< for an interrupt that waits
    DriverLink* driver_ = nullptr; ///< while it is active
    bool stopping_ = false;
    bool paused_ = false; ///< nothing more is taken, and what was taken is given back
    bool failed_ = false; ///< a rule was broken: nothing more is taken, and what was taken is given back
    bool write_through_ = false;
    std::vector<ServedQueue> queues_;
    InterruptModeration moderation_{config_.moderation}; ///< of all queues: they have one interrupt
    unsigned pushed_ = 0;                                ///< requests given back that moderation_ does not know of yet
    bool pushed_small_ = false;                          ///< one of them was small
    std::uint64_t begun_bytes_ = 0; ///< what requests move that were begun and that moderation_ does not know of yet
    std::unique_ptr<DiskIo> io_;
    bool buffers_offered_ = false; ///< io_ was offered the pinned memory
    std::vector<std::unique_ptr<Request>> requests_;
    std::vector<Request*> free_;
    /// The requests for which the host flushes now. There is only one flush at a time, so that a flush cannot get the
    /// error of another one.
    std::vector<Request*> flushing_;
    std::vector<Request*> flush_waiters_; ///< requests that wait for the next flush
    ByteRange changed_;                   ///< the range written since the last flush began
    ByteRange being_flushed_;             ///< the range written before that, since the last flush that succeeded
    bool data_lost_ = false;              ///< a flush failed

    std::atomic<std::uint64_t> reads_{0};
    std::atomic<std::uint64_t> writes_{0};
    std::atomic<std::uint64_t> flushes_{0};
    std::atomic<std::uint64_t> errors_{0};
    std::atomic<std::uint64_t> operations_{0};
    std::chrono::steady_clock::time_point last_warning_{};
    std::uint64_t warnings_left_out_ = 0;
};

} // namespace vmm::devices::virtio
