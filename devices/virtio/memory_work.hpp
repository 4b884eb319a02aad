// What a memory device asks of the host, and how it hears of the end of it.
#pragma once

#include <condition_variable>
#include <mutex>
#include <optional>
#include <stop_token>

#include "devices/virtio/device.hpp"
#include "kvm/host/event_fd.hpp"
#include "kvm/host/guest_address.hpp"

namespace vmm::devices::virtio {

/// One step: memory that comes, or goes.
struct MemoryChange {
    bool plug = false;
    GuestRange range;

    friend bool operator==(const MemoryChange&, const MemoryChange&) = default;
};

enum class MemoryOutcome {
    kDone,
    kCannot, ///< the host has no memory for it now; nothing has changed
    kPutOff, ///< it was cancelled before it was begun; nothing has changed
};

/// Carries one change at a time from a device to whoever makes memory, which may take long, and its outcome back. The
/// device cancels what nobody has begun, so that a pause does not wait for it.
///
/// Threads: one for the device's functions, and one for the host's.
class MemoryWork {
  public:
    // --- The device's ---------------------------------------------------------------------------------------------

    /// Asks for `change`. None is under way.
    void ask(const MemoryChange& change);
    /// Whether a change was asked for whose outcome was not taken yet.
    [[nodiscard]] bool is_under_way() const noexcept;
    /// The outcome, once it is there, with which the change is over.
    [[nodiscard]] std::optional<MemoryOutcome> take_outcome();
    /// If nobody has begun the change that is under way, its outcome is kPutOff at once.
    void cancel() noexcept;
    /// Readable when there is an outcome. One of Device::sources().
    [[nodiscard]] Source source() const noexcept;

    // --- The host's -----------------------------------------------------------------------------------------------

    /// Waits until there is a change that nobody has begun. Returns nothing if `stop` is requested.
    [[nodiscard]] std::optional<MemoryChange> wait(const std::stop_token& stop);
    /// Takes that change on. Returns false if it was cancelled meanwhile: then it is not to be made.
    [[nodiscard]] bool begin() noexcept;
    /// Says how a change ended that begin() took on.
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
