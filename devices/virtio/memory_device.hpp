// Memory that a guest gets and gives back while it runs (virtio 1.2, 5.15).
#pragma once

#include <atomic>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "devices/virtio/memory_work.hpp"
#include "devices/virtio/synchronous_device.hpp"

namespace vmm::devices::virtio {

/// A region of guest addresses in blocks, none of which is plugged at first. The guest is asked for an amount, and says
/// which blocks it takes (plugs) and which it gives back. It gets the answer when the host has made the blocks or taken
/// them away. The thread that serves work() does that, in steps of limited size.
///
/// The guest never has more than it is asked for. Each block that it names must lie in the region and be in the right
/// state; otherwise the driver gets an error, as the specification says. If the host has no memory for a request, none
/// of its blocks is plugged, and the guest is told to try again later.
///
/// Blocks stay plugged when the driver resets the device. A driver that has forgotten them sends UNPLUG_ALL.
///
/// Threads: one, except for identity(), set_requested(), statistics() and work(): any.
class MemoryDevice final : public SynchronousDevice {
  public:
    struct Settings {
        GuestRange region;             ///< whole blocks, not empty
        std::uint64_t block_bytes = 0; ///< a power of two, at least 4096
        /// The guest's NUMA node to which the memory belongs (the proximity domain in ACPI's tables). Nothing means
        /// that the guest is not told of nodes.
        std::optional<std::uint16_t> node{};
        std::uint64_t requested_bytes = 0; ///< asked of the guest at first; whole blocks within the region
    };
    /// The most blocks that a region can have.
    static constexpr std::uint64_t kMostBlocks = 1U << 16U;
    /// The number of bytes that a step plugs or unplugs, unless a block is larger.
    static constexpr std::uint64_t kStepBytes = 128ULL * 1024 * 1024;

    /// Throws Error if this process has no descriptor left, or if `state` does not belong to such a device.
    MemoryDevice(std::string name, const Settings& settings, const MemoryState& state = {});

    /// Asks the guest for another amount. It must be whole blocks and at most the region.
    void set_requested(std::uint64_t bytes) noexcept;

    /// The present amounts, in bytes. Threads: any.
    struct Statistics {
        std::uint64_t requested = 0;
        std::uint64_t plugged = 0;
        std::uint64_t refused = 0; ///< requests since the device was made for which the host had no memory
    };
    [[nodiscard]] Statistics statistics() const noexcept;

    [[nodiscard]] const Settings& settings() const noexcept { return settings_; }
    /// The work that the host must do. It lives as long as the device.
    [[nodiscard]] MemoryWork& work() noexcept { return work_; }

    [[nodiscard]] std::vector<Source> sources() const override;
    [[nodiscard]] DeviceState state() const override;

    /// The blocks that are plugged in a saved state, as ranges in ascending order. Throws Error if the state does not
    /// belong to a device with these settings.
    [[nodiscard]] static std::vector<GuestRange> plugged_in(const MemoryState& state, const Settings& settings);

  private:
    /// The kinds of requests, and of answers (5.15.6).
    enum class Kind : std::uint16_t { kPlug = 0, kUnplug = 1, kUnplugAll = 2, kState = 3 };
    enum class Answer : std::uint16_t { kAck = 0, kNack = 1, kBusy = 2, kError = 3 };

    /// A request that takes several steps.
    struct Request {
        Chain chain;
        bool is_under_way = false;
        Kind kind = Kind::kState;
        std::optional<Answer> refusal;
        std::uint64_t first = 0; ///< a block
        std::uint64_t count = 0;
        bool goes_back = false; ///< the host cannot do all of it, so the part that is done is undone
    };

    void begin(std::uint64_t features) override;
    void forget_queue(std::uint16_t index) noexcept override;
    [[nodiscard]] std::uint16_t put_back(std::uint16_t index) noexcept override;
    void serve() override;
    void look_at_source(int fd) override { target_changed_.take(fd); }
    [[nodiscard]] bool has_work_outside() const noexcept override { return work_.is_under_way(); }
    void look_at_work_outside(int fd) override;

    void tell_target();
    [[nodiscard]] bool take_request();
    [[nodiscard]] std::optional<Answer> refusal_of(std::uint16_t kind, std::uint64_t address, std::uint64_t count);
    [[nodiscard]] std::optional<Answer> go_on();
    [[nodiscard]] std::optional<Answer> step(bool plug);
    [[nodiscard]] std::optional<Answer> step_of_all();
    void ask(bool plug, std::uint64_t first, std::uint64_t count);
    void give(Answer answer);

    [[nodiscard]] std::uint64_t blocks() const noexcept { return plugged_.size(); }
    [[nodiscard]] std::uint64_t block_at(GuestAddress address) const noexcept;
    [[nodiscard]] std::uint64_t count_plugged(std::uint64_t first, std::uint64_t count) const noexcept;
    [[nodiscard]] std::uint64_t most_blocks_a_step() const noexcept;

    const Settings settings_;
    std::vector<bool> plugged_; ///< by block
    Request request_;
    std::uint64_t done_ = 0; ///< blocks of the request that is under way, or was put back
    MemoryWork work_;
    MemoryChange asked_;         ///< the change that work_ does now
    bool is_of_request_ = false; ///< that change is a step of a request that was not reset
    bool has_failed_ = false;    ///< the last step of the request
    DriverLink* link_ = nullptr; ///< of the last activation; valid until the device is idle
    AnotherTurn target_changed_;
    std::uint64_t told_bytes_;
    std::atomic<std::uint64_t> requested_bytes_;
    std::atomic<std::uint64_t> plugged_bytes_;
    std::atomic<std::uint64_t> refused_{0};
};

} // namespace vmm::devices::virtio
