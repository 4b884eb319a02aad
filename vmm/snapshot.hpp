// Snapshots of a machine: how they are taken, and how a machine goes on from one.
#pragma once

#include <array>
#include <chrono>
#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <string_view>

#include "kvm/host/export.hpp"

VMM_API_BEGIN
namespace vmm {

/// How far a snapshot has come.
struct SnapshotProgress {
    std::string_view stage;        ///< for people: "memory", "memory that has changed"
    std::uint64_t done_bytes = 0;  ///< of guest memory
    std::uint64_t total_bytes = 0; ///< of guest memory
};

/// How a snapshot is taken (Machine::snapshot()).
struct SnapshotOptions {
    /// The directory that is made for the snapshot. It must not exist, and its parent directory must.
    std::string directory{};
    /// The directory of another snapshot of a guest with the same memory. Pieces of 2 MiB that have the same content
    /// there are not written again, so whoever restores this snapshot needs both. The files of `base` must not change
    /// while either snapshot exists. Empty: all of memory is written.
    std::string base{};
    /// A text that is kept with the snapshot as `config.json`, for the program that restores it. The `vmm` command
    /// keeps its options there.
    std::string config{};
    /// Whether the guest goes on afterwards. Otherwise it stays paused.
    bool resume = false;
    unsigned workers = 0; ///< threads that write memory, at most Config::kMaxPrefaultWorkers; 0: as for a prefault
    /// How long devices may take to finish what they have begun (Machine::pause()).
    std::chrono::milliseconds within{20'000};
    /// It is called some ten times a second, on the thread that takes the snapshot. It may be empty.
    std::function<void(const SnapshotProgress&)> progress{};
};

/// What a snapshot has cost.
struct SnapshotReport {
    bool complete = false;           ///< false: a stop was requested, and there is no snapshot
    std::uint64_t memory_bytes = 0;  ///< of the guest
    std::uint64_t written_bytes = 0; ///< of memory; zero pages are left out, and what changed was written again
    std::uint64_t based_bytes = 0;   ///< of memory that is as in SnapshotOptions::base, and was left out
    std::uint64_t stopped_bytes = 0; ///< of written_bytes: bytes that were written while the guest stood still
    unsigned passes = 0;             ///< over memory, the last one included
    double total_seconds = 0;
    double stopped_seconds = 0; ///< the longest time for which the guest stood still; 0 if it was paused before
    /// Whether the second level has been filled again. This is done if it was full before, because the dirty log drops
    /// mappings.
    bool refilled = false;
};

/// How memory came to a guest while it ran (RestoreMode::kLazy). It comes in chunks of 2 MiB.
struct LazyReport {
    std::uint64_t chunks = 0;             ///< of the guest's memory
    std::uint64_t demanded_chunks = 0;    ///< chunks that somebody touched before they were there
    std::uint64_t working_set_chunks = 0; ///< chunks that were known to be needed first
    double longest_wait_seconds = 0;      ///< for one of the demanded chunks, from when it was noticed
    /// From when memory was mapped until all was there; nothing if the guest ended before.
    std::optional<double> seconds_until_loaded;
};

/// How the guest gets the memory of a snapshot.
enum class RestoreMode {
    kFull, ///< memory is read, by several threads at once, and populated as Config says
    kCow,  ///< the file is mapped: pages are read when they are touched, and copied when they are written
    /// The guest runs at once. Whoever touches memory that is not there yet waits until it is read (userfaultfd), and
    /// the rest is read in the background. Then memory is populated, pinned and filled as Config says, as with kFull.
    kLazy,
};

/// All modes, in the order in which help lists them.
inline constexpr std::array kRestoreModes{RestoreMode::kFull, RestoreMode::kCow, RestoreMode::kLazy};

/// The name used on the command line: "full", "cow", "lazy".
[[nodiscard]] std::string_view to_string(RestoreMode mode) noexcept;

/// What the guest's clocks show after a restore.
enum class RestoreClock {
    kStopped,  ///< no time has passed since the snapshot
    kRealtime, ///< as much time has passed as on the host's clock
};

/// The name used on the command line: "stopped", "realtime".
[[nodiscard]] std::string_view to_string(RestoreClock clock) noexcept;

/// A snapshot from which a machine goes on, instead of booting a kernel. The rest of the configuration must describe
/// the machine that was saved. Only settings of the host may differ: paths, pins, the size of pages, what is populated.
struct RestoreFrom {
    std::string path{}; ///< the snapshot's directory
    RestoreMode mode = RestoreMode::kFull;
    RestoreClock clock = RestoreClock::kStopped;
    /// With kLazy: for this time after the start only memory that is touched is read. These chunks are kept with the
    /// snapshot as its working set, and a later restore by kLazy reads them first. 0: nothing is recorded. At most an
    /// hour.
    std::chrono::milliseconds record_working_set{0};

    static constexpr std::chrono::milliseconds kLongestRecord{3'600'000};

    /// Throws Error if no host can give what it asks for.
    void check() const;

    friend bool operator==(const RestoreFrom&, const RestoreFrom&) = default;
};

} // namespace vmm
VMM_API_END
