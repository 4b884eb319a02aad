// A memory balloon (virtio 1.2, 5.5): guest memory that the guest does without goes back to the host.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "devices/virtio/synchronous_device.hpp"

namespace vmm::devices::virtio {

/// The guest is asked for so much memory (target), and may say which of its free pages it does not need just now
/// (reporting). The host pages behind both are given back at once; a page that the guest takes into use again is a new
/// one of zeros. Every page is checked to be RAM: a driver that names another one has broken a rule.
///
/// For memory that can be given back: neither from a pool of huge pages, nor locked, nor pinned. And with a prefault it
/// makes no sense: what is taken into use again faults.
///
/// Threads: one, but for identity(), set_target() and statistics(): any.
class Balloon final : public SynchronousDevice {
  public:
    static constexpr std::uint64_t kPageBytes = 4096; ///< of the guest's page numbers, on every machine (5.5.6)
    static constexpr std::uint64_t kMostTargetBytes = kPageBytes * UINT32_MAX;
    /// How many page numbers of one request count. Linux has 256 in each.
    static constexpr std::uint64_t kMostPages = 16 * 1024;
    /// Which queues may be for reporting. The specification numbers it 4; Linux leaves out those before it that this
    /// device does not offer, and takes the first.
    static constexpr std::uint16_t kFirstReportingQueue = 2;
    static constexpr std::uint16_t kLastReportingQueue = 4;

    /// `target_bytes` is a multiple of kPageBytes, at most kMostTargetBytes. Throws Error: this process has no
    /// descriptor left.
    Balloon(std::string name, std::uint64_t target_bytes, bool reporting);

    /// The guest is asked for another amount: it gives more, or takes some back. As the constructor has it.
    void set_target(std::uint64_t target_bytes) noexcept;

    /// Since it was made, in bytes. Threads: any.
    struct Statistics {
        std::uint64_t inflated = 0; ///< put into the balloon
        std::uint64_t deflated = 0; ///< taken out of it
        std::uint64_t reported = 0; ///< said to be free
    };
    [[nodiscard]] Statistics statistics() const noexcept;

    [[nodiscard]] std::vector<Source> sources() const override;

  private:
    void begin(std::uint64_t features) override;
    void serve() override;
    void look_at_source(int fd) override { target_changed_.take(fd); }
    void serve_queue(std::uint16_t index);
    [[nodiscard]] bool answer(std::uint16_t index, const Chain& chain);
    [[nodiscard]] bool inflate(const Chain& chain);
    [[nodiscard]] bool release_pages(std::span<std::uint32_t> pages);
    void release_reported(const Chain& chain);
    void tell_target();

    AnotherTurn target_changed_;
    bool broken_ = false; ///< the driver named a page that is none
    Chain chain_;
    std::vector<std::uint32_t> pages_;
    std::uint32_t told_target_;
    std::atomic<std::uint32_t> target_; ///< in pages

    std::atomic<std::uint64_t> inflated_{0};
    std::atomic<std::uint64_t> deflated_{0};
    std::atomic<std::uint64_t> reported_{0};
};

} // namespace vmm::devices::virtio
