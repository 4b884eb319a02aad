// A memory balloon (virtio 1.2, 5.5), by which a guest gives memory that it does not need back to the host.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "devices/virtio/synchronous_device.hpp"

namespace vmm::devices::virtio {

/// The guest is asked to give up an amount of memory (the target), and may report free pages that it does not need at
/// present (reporting). The host pages behind both are given back at once. If the guest uses such a page again, it gets
/// a new page of zeros. Every page is checked to be RAM: a driver that names another page breaks a rule.
///
/// Memory from a pool of huge pages, locked memory and pinned memory cannot be given back. A balloon makes no sense
/// with a prefault, because a page that is used again faults.
///
/// Threads: one, except for identity(), set_target() and statistics(): any.
class Balloon final : public SynchronousDevice {
  public:
    static constexpr std::uint64_t kPageBytes = 4096; ///< of the guest's page numbers, on every machine (5.5.6)
    static constexpr std::uint64_t kMostTargetBytes = kPageBytes * UINT32_MAX;
    /// The most page numbers of one request that are used. Linux sends 256 in each.
    static constexpr std::uint64_t kMostPages = 16 * 1024;
    /// The most page numbers that are handled in one turn, and so the most times that the host is asked to take a page
    /// back.
    static constexpr std::uint64_t kMostPagesATurn = 4 * 1024;
    /// The most reported pieces that are given back in one turn.
    static constexpr unsigned kMostPiecesATurn = 512;
    /// The most bytes of these pieces together.
    static constexpr std::uint64_t kMostReportedATurn = 256ULL * 1024 * 1024;
    /// The last queue that may be the one for reporting: its number in the specification. Linux does not count queues
    /// before it that this device does not offer, and uses the first free number.
    static constexpr std::uint16_t kLastReportingQueue = 4;

    /// `target_bytes` must be a multiple of kPageBytes, at most kMostTargetBytes. Throws Error if this process has no
    /// descriptor left, or if `state` does not belong to such a balloon.
    Balloon(std::string name, std::uint64_t target_bytes, bool reporting, const BalloonState& state = {});

    /// Sets another target. The guest gives up more memory, or takes some back. The limits are those of the
    /// constructor.
    void set_target(std::uint64_t target_bytes) noexcept;

    /// Counts since the balloon was made, in bytes. Threads: any.
    struct Statistics {
        std::uint64_t inflated = 0; ///< put into the balloon
        std::uint64_t deflated = 0; ///< taken out of it
        std::uint64_t reported = 0; ///< said to be free
    };
    [[nodiscard]] Statistics statistics() const noexcept;

    [[nodiscard]] std::vector<Source> sources() const override;
    [[nodiscard]] DeviceState state() const override;

  private:
    /// A request that takes several turns.
    struct Work {
        Chain chain;
        bool is_under_way = false;
        /// Page numbers, or bytes of a report. If no request is under way, it is for the next request.
        std::uint64_t done = 0;
    };
    enum class Progress { kDone, kMore, kBroken };

    void begin(std::uint64_t features) override;
    void forget_queue(std::uint16_t index) noexcept override;
    [[nodiscard]] std::uint16_t put_back(std::uint16_t index) noexcept override;
    void serve() override;
    void look_at_source(int fd) override { target_changed_.take(fd); }
    void serve_queue(std::uint16_t index);
    [[nodiscard]] Progress go_on(std::uint16_t index, Work& work);
    [[nodiscard]] Progress inflate(Work& work);
    [[nodiscard]] bool release_pages(std::span<std::uint32_t> pages);
    [[nodiscard]] Progress release_reported(Work& work);
    void tell_target();

    AnotherTurn target_changed_;
    bool broken_ = false;     ///< the driver named a page that is not RAM
    std::vector<Work> works_; ///< by queue
    std::vector<std::uint32_t> pages_;
    // The remaining work of this turn.
    std::uint64_t pages_left_ = 0;
    unsigned pieces_left_ = 0;
    std::uint64_t reported_left_ = 0;
    std::uint32_t told_target_;
    std::atomic<std::uint32_t> target_; ///< in pages

    std::atomic<std::uint64_t> inflated_{0};
    std::atomic<std::uint64_t> deflated_{0};
    std::atomic<std::uint64_t> reported_{0};
};

} // namespace vmm::devices::virtio
