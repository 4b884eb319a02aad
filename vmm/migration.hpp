// Live migration: a guest moves to another process, or to another host, while it runs (docs/migration.md).
#pragma once

#include <array>
#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <stop_token>
#include <string>
#include <string_view>

#include "kvm/host/export.hpp"
#include "vmm/log.hpp"
#include "vmm/migration/address.hpp" // IWYU pragma: export

VMM_API_BEGIN
namespace vmm {

/// Whether pages are made smaller before they are sent.
enum class Compression {
    kNone,
    kZstd, ///< all of them, at the fastest level (RFC 8878)
    kAuto, ///< those of parts of memory where it was worth it lately
};

inline constexpr std::array kCompressions{Compression::kNone, Compression::kZstd, Compression::kAuto};

/// The name used on the command line: "none", "zstd", "auto".
[[nodiscard]] std::string_view to_string(Compression compression) noexcept;

/// What is done when a migration takes longer than it may.
enum class OnTimeout {
    kCancel, ///< the guest stays where it is
    kForce,  ///< the guest stands still for as long as the rest takes
};

inline constexpr std::array kOnTimeouts{OnTimeout::kCancel, OnTimeout::kForce};

/// The name used on the command line: "cancel", "force".
[[nodiscard]] std::string_view to_string(OnTimeout on_timeout) noexcept;

/// How far a migration has come.
struct MigrationProgress {
    std::string_view stage{}; ///< for people: "memory", "memory that has changed"
    unsigned round = 0;       ///< over memory, from 1 on
    std::uint64_t done_bytes = 0;
    std::uint64_t total_bytes = 0;              ///< of the round
    std::uint64_t sent_bytes = 0;               ///< over the wire, in all rounds
    std::uint64_t bytes_per_second = 0;         ///< of the last round
    std::uint64_t dirtied_bytes_per_second = 0; ///< by the guest, in the last round
    unsigned throttled_percent = 0;             ///< of their time, for which vCPUs are held
    std::optional<std::chrono::seconds> left{}; ///< until the guest could go over; nothing: it is not known
};

/// What a migration has cost, at the source.
struct MigrationReport {
    bool complete = false;               ///< false: a stop was requested, and the guest is still here
    bool shared = false;                 ///< memory was handed over, and no page was sent
    bool post_copy = false;              ///< the guest went over before all of its memory had
    std::uint64_t memory_bytes = 0;      ///< of the guest
    std::uint64_t sent_bytes = 0;        ///< over the wire, for pages
    std::uint64_t last_bytes = 0;        ///< of memory that was sent while the guest stood still
    unsigned rounds = 0;                 ///< over memory, the last one included
    unsigned reconnects = 0;             ///< how often a connection was cut and made again
    unsigned throttled_percent = 0;      ///< the most that vCPUs were held
    std::uint64_t first_round_bytes = 0; ///< of pages in the first round, before compression
    double first_round_seconds = 0;      ///< until the other end had put all of them into memory
    double total_seconds = 0;
    double downtime_seconds = 0;    ///< from the request to stand still until the other end said that the guest runs
    double pause_seconds = 0;       ///< of it, until nothing moved any more
    double pages_seconds = 0;       ///< of it, until the last page had been sent
    double state_seconds = 0;       ///< of it, until the other end was ready to take the guest
    double takeover_seconds = 0;    ///< of it, the rest: devices, clocks, and the way of the last word
    std::uint64_t mapped_bytes = 0; ///< what KVM had mapped at the other end before the guest's first instruction
};

/// How a guest is sent away (Machine::migrate()).
struct MigrationOptions {
    MigrationAddress address{};
    MigrationSecurity security{};
    unsigned streams = 1; ///< connections that pages go through, each with a thread: 1 to kMostStreams
    /// How long the guest may stand still. If that cannot be kept, the migration goes on, or ends as `on_timeout` says.
    std::chrono::milliseconds downtime{300};
    /// How long all of it may take; 0: as long as it takes.
    std::chrono::seconds timeout{0};
    OnTimeout on_timeout = OnTimeout::kCancel;
    std::uint64_t bytes_per_second = 0; ///< over the wire, over all streams; 0: no limit. Else at least 64 KiB.
    Compression compression = Compression::kNone;
    /// How much of their time vCPUs may be held, in percent, if the guest changes memory faster than it can be sent: 0
    /// (never) to 99.
    unsigned most_throttled_percent = kMostThrottledPercent;
    /// After so many rounds the guest goes over, although some of its memory has not. It waits there for what it
    /// touches, and the rest follows (post-copy). From then on a connection that is cut loses the guest. 0 means never.
    /// It has no effect on memory that is handed over.
    unsigned post_copy_after = 0;
    /// How long devices may take to finish what they have begun (Machine::pause()).
    std::chrono::milliseconds within{20'000};
    /// How long the other end is looked for again after a connection was cut.
    std::chrono::seconds reconnect{10};
    /// A text that goes along: what the machine is configured with, for the other end (IncomingGuest::config()).
    std::string config{};
    /// Is told some ten times a second, on a thread of the migration's. It may be empty.
    std::function<void(const MigrationProgress&)> progress{};
    /// Is told that the guest runs elsewhere, before the machine begins to end, on the thread that migrates. What it
    /// throws is ignored. It may be empty.
    std::function<void(const MigrationReport&)> gone{};

    static constexpr unsigned kMostStreams = 16;
    static constexpr unsigned kMostThrottledPercent = 99;
    static constexpr std::uint64_t kLeastBytesPerSecond = std::uint64_t{64} << 10U;

    /// Throws Error if it asks for what cannot be.
    void check() const;
};

/// What is known of how a guest arrived, at the destination (RunReport::arrival).
struct ArrivalReport {
    bool shared = false;              ///< memory was taken over, and no page was received
    std::uint64_t received_bytes = 0; ///< over the wire, for pages
    unsigned resumed = 0;             ///< how often a connection was cut and made again
    double receiving_seconds = 0;     ///< from the guest's announcement to its last state
    double fill_seconds = 0;          ///< of the prefault, which went on meanwhile
    std::uint64_t mapped_bytes = 0;   ///< by KVM's count, after the last byte and before the first instruction
    double takeover_seconds = 0;      ///< from the last state to the moment at which the guest was let go
    /// Second-level faults of all vCPUs since the guest was let go; nothing if it ended before.
    std::optional<std::uint64_t> faults_in_first_second{};
    std::optional<std::uint64_t> faults_in_ten_seconds{};
};

/// A guest that is to arrive from another process or host: waits for it, and becomes a machine's memory and state
/// (Config::incoming).
///
///     IncomingGuest guest({.address = MigrationAddress::parse("unix:/run/guest.sock")}, log);
///     guest.wait(stop);                        // until a guest has announced itself
///     config = configured_as(guest.config());  // the same machine as there; what is the host's may differ
///     config.incoming = guest;
///     Machine machine(config);                 // memory is made, filled and received; returns when the guest is ours
///     machine.run();                           // the guest goes on
///
/// Whoever connects and is no guest, or may not come, is refused, and it waits for the next.
///
/// Threads: one at a time.
class IncomingGuest {
  public:
    struct Options {
        MigrationAddress address{};
        MigrationSecurity security{};
        /// How long a source whose connection was cut is waited for.
        std::chrono::seconds reconnect{30};
    };

    /// Listens. Throws Error.
    IncomingGuest(const Options& options, LogSink log);
    ~IncomingGuest();
    IncomingGuest(const IncomingGuest&) = delete;
    IncomingGuest& operator=(const IncomingGuest&) = delete;

    /// Where it listens: a port that the host chose takes the place of 0.
    [[nodiscard]] const MigrationAddress& address() const noexcept;

    /// Waits until a guest has announced itself. Throws StoppedError if `stop` is requested, and Error.
    void wait(const std::stop_token& stop = {});
    /// What the source's machine is configured with, as MigrationOptions::config says; after wait().
    [[nodiscard]] const std::string& config() const;
    /// Whether its memory comes as files, and no page is copied; false before wait().
    [[nodiscard]] bool hands_memory_over() const noexcept;
    /// Whether the guest may arrive before all of its memory has (MigrationOptions::post_copy_after): then memory is
    /// populated, pinned and filled while it runs. False before wait().
    [[nodiscard]] bool may_post_copy() const noexcept;
    /// Tells the source that its guest is not taken, and why. The next one can come: see wait().
    void refuse(std::string_view why) noexcept;

    /// What it is made of, for Machine.
    class __attribute__((visibility("hidden"))) Impl;
    [[nodiscard]] __attribute__((visibility("hidden"))) Impl& impl() const noexcept { return *impl_; }

  private:
    std::unique_ptr<Impl> impl_;
};

} // namespace vmm
VMM_API_END
