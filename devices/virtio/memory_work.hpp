// Passes changes of memory from a memory device to the host, and their outcomes back.
#pragma once

#include <condition_variable>
#include <mutex>
#include <optional>
#include <stop_token>

#include "devices/virtio/device.hpp"
#include "kvm/host/event_fd.hpp"
#include "kvm/host/guest_address.hpp"

namespace vmm::devices::virtio {

/// One step: memory is plugged or unplugged.
struct MemoryChange {
    bool plug = false;
    GuestRange range;

    friend bool operator==(const MemoryChange&, const MemoryChange&) = default;
};

enum class MemoryOutcome {
    kDone,
    kCannot, ///< the host has no memory for it now; nothing has changed
    kPutOff, ///< it was cancelled before it began; nothing has changed
};

/// Passes one change at a time from a device to the thread that makes memory, which may take long, and passes the
/// outcome back. The device can cancel a change that has not begun, so that a pause does not wait for it.
///
/// Threads: one for the device's functions, and one for the host's.
class MemoryWork {
  public:
    // ---- The device's

    /// Asks for `change`. No other change may be under way.
    void ask(const MemoryChange& change);
    /// True if a change was asked for and its outcome was not taken yet.
    [[nodiscard]] bool is_under_way() const noexcept;
    /// Takes the outcome if there is one. The change is over then.
    [[nodiscard]] std::optional<MemoryOutcome> take_outcome();
    /// If the change that is under way has not begun, its outcome becomes kPutOff at once.
    void cancel() noexcept;
    /// Readable if there is an outcome. It is one of the sources that Device::sources() returns.
    [[nodiscard]] Source source() const noexcept;

    // ---- The host's

    /// Waits until there is a change that has not begun. Returns nothing if `stop` is requested.
    [[nodiscard]] std::optional<MemoryChange> wait(const std::stop_token& stop);
    /// Begins that change. Returns false if it was cancelled meanwhile: then it must not be made.
    [[nodiscard]] bool begin() noexcept;
    /// Reports the outcome of a change for which begin() returned true.
    void finish(MemoryOutcome outcome) noexcept;

  private:
    enum class Stage { kNone, kAsked, kBegun, kOver };

    mutable std::mutex mutex_;
    std::condition_variable_any asked_;
    EventFd over_;
    Stage stage_ = Stage::kNone;
    MemoryChange change_;
    MemoryOutcome outcome_ = MemoryOutcome::kPutOff;
};

} // namespace vmm::devices::virtio
