// A signal that saves the machine and then ends it.
#pragma once

#include <csignal>
#include <functional>
#include <stop_token>
#include <string_view>
#include <thread>

#include "kvm/host/event_fd.hpp"
#include "vmm/machine.hpp"
#include "vmm/snapshot.hpp"

namespace vmm {

/// While it lives, one signal does not end the process, but is remembered for a SnapshotOnSignal. Afterwards the signal
/// does what it did before. At most one object exists at a time. Threads: the main one.
class SnapshotSignal {
  public:
    explicit SnapshotSignal(int signal);
    ~SnapshotSignal();
    SnapshotSignal(const SnapshotSignal&) = delete;
    SnapshotSignal& operator=(const SnapshotSignal&) = delete;

    /// It is readable from the time at which the signal comes until somebody reads it.
    [[nodiscard]] const EventFd& arrived() const noexcept { return arrived_; }

  private:
    int signal_;
    EventFd arrived_;
    struct sigaction before_ {};
};

/// Saves a machine when the signal has come, and requests its stop (ExitReason::kSignal) once the snapshot is complete.
/// If the signal comes before the guest runs, the machine is saved as soon as it runs. If the snapshot fails, the guest
/// goes on, an error says why, and the next signal tries again. This happens on a thread of its own.
///
/// Threads: note_started() any; the rest the one that made it.
class SnapshotOnSignal {
  public:
    /// Functions that print messages about it: where the machine was saved, or an error.
    struct Words {
        std::function<void(std::string_view)> say;
        std::function<void(std::string_view)> say_error;
    };
    /// `machine` and `signal` must outlive it. Throws Error if the host gives no thread.
    SnapshotOnSignal(Machine& machine, const SnapshotSignal& signal, SnapshotOptions options, Words words);
    /// Ends a snapshot that is under way, and removes it.
    ~SnapshotOnSignal();
    SnapshotOnSignal(const SnapshotOnSignal&) = delete;
    SnapshotOnSignal& operator=(const SnapshotOnSignal&) = delete;

    /// Tells that the guest runs from now on.
    void note_started() noexcept { started_.signal(); }

  private:
    void body() noexcept;
    /// Returns false if the end comes first.
    [[nodiscard]] bool wait_for(const EventFd& event) const;
    /// Returns whether the snapshot is whole.
    [[nodiscard]] bool save();

    Machine& machine_;
    const SnapshotSignal& signal_;
    SnapshotOptions options_;
    Words words_;
    EventFd started_;
    EventFd ending_;
    std::stop_source stop_;
    std::thread thread_; // last: it uses all of the above
};

} // namespace vmm
