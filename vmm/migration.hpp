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

/// Says whether pages are compressed before they are sent.
enum class Compression {
    kNone,
    kZstd, ///< all of them, at the fastest level (RFC 8878)
    kAuto, ///< pages of those parts of memory in which compression was worth it lately
};

inline constexpr std::array kCompressions{Compression::kNone, Compression::kZstd, Compression::kAuto};

/// The name used on the command line: "none", "zstd", "auto".
[[nodiscard]] std::string_view to_string(Compression compression) noexcept;

/// What is done if a migration takes longer than MigrationOptions::timeout.
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
    unsigned throttled_percent = 0;             ///< the part of their time for which vCPUs are held
    std::optional<std::chrono::seconds> left{}; ///< until the guest could go over; nothing: it is not known
};

/// What a migration has cost, at the source.
struct MigrationReport {
    bool complete = false;               ///< false: a stop was requested, and the guest is still here
    bool shared = false;                 ///< memory was handed over, and no page was sent
    bool post_copy = false;              ///< the guest went over before all of its memory was there
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
    /// How long the guest may stand still. If this time is not enough, the migration goes on, or ends as `on_timeout`
    /// says.
    std::chrono::milliseconds downtime{300};
    /// How long the whole migration may take; 0: there is no limit.
    std::chrono::seconds timeout{0};
    OnTimeout on_timeout = OnTimeout::kCancel;
    std::uint64_t bytes_per_second = 0; ///< over the wire, over all streams; 0: no limit. Else at least 64 KiB.
    Compression compression = Compression::kNone;
    /// How much of their time vCPUs may be held if the guest changes memory faster than it can be sent, in percent: 0
    /// (never) to 99.
    unsigned most_throttled_percent = kMostThrottledPercent;
    /// The guest goes over after this number of rounds, although some of its memory has not (post-copy); 0: never.
    /// There it waits for the memory that it touches, and the rest follows. If a connection is cut from then on, the
    /// guest is lost. It has no effect on memory that is handed over.
    unsigned post_copy_after = 0;
    /// How long devices may take to finish what they have begun (Machine::pause()).
    std::chrono::milliseconds within{20'000};
    /// How long the source tries to reach the other end again after a connection was cut.
    std::chrono::seconds reconnect{10};
    /// A text for the other end that describes the machine's configuration (IncomingGuest::config()).
    std::string config{};
    /// It is called some ten times a second, on a thread of the migration. It may be empty.
    std::function<void(const MigrationProgress&)> progress{};
    /// It is called when the guest runs elsewhere and before the machine begins to end, on the thread that migrates.
    /// What it throws is ignored. It may be empty.
    std::function<void(const MigrationReport&)> gone{};

    static constexpr unsigned kMostStreams = 16;
    static constexpr unsigned kMostThrottledPercent = 99;
    static constexpr std::uint64_t kLeastBytesPerSecond = std::uint64_t{64} << 10U;

    /// Throws Error if it asks for something impossible.
    void check() const;
};

/// How a guest arrived, as the destination knows it (RunReport::arrival).
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

/// A guest that is to arrive from another process or host. It waits for the guest, and becomes the memory and state of
/// a machine (Config::incoming).
///
///     IncomingGuest guest({.address = MigrationAddress::parse("unix:/run/guest.sock")}, log);
///     guest.wait(stop);                        // until a guest has announced itself
///     config = configured_as(guest.config());  // the same machine as there; what is the host's may differ
///     config.incoming = guest;
///     Machine machine(config);                 // memory is made, filled and received; returns when the guest is ours
///     machine.run();                           // the guest goes on
///
/// It refuses whoever connects and is no guest, or may not come; then it waits for the next connection.
///
/// Threads: only one thread may use it at a time.
class IncomingGuest {
  public:
    struct Options {
        MigrationAddress address{};
        MigrationSecurity security{};
        /// How long it waits for the source to come back after a connection was cut.
        std::chrono::seconds reconnect{30};
    };

    /// Listens. Throws Error.
    IncomingGuest(const Options& options, LogSink log);
    ~IncomingGuest();
    IncomingGuest(const IncomingGuest&) = delete;
    IncomingGuest& operator=(const IncomingGuest&) = delete;

    /// The address at which it listens. If the port was 0, it is the port that the host chose.
    [[nodiscard]] const MigrationAddress& address() const noexcept;

    /// Waits until a guest has announced itself. Throws StoppedError if `stop` is requested, and Error.
    void wait(const std::stop_token& stop = {});
    /// The configuration of the source's machine, as in MigrationOptions::config. It is there after wait().
    [[nodiscard]] const std::string& config() const;
    /// Whether memory arrives as files, so that no page is copied; false before wait().
    [[nodiscard]] bool hands_memory_over() const noexcept;
    /// Whether the guest may arrive before all of its memory has (MigrationOptions::post_copy_after). Then memory is
    /// populated, pinned and filled while the guest runs. False before wait().
    [[nodiscard]] bool may_post_copy() const noexcept;
    /// Tells the source that its guest is not taken, and why. After that, wait() can be called for the next one.
    void refuse(std::string_view why) noexcept;

    /// The parts from which Machine takes the guest.
    class __attribute__((visibility("hidden"))) Impl;
    [[nodiscard]] __attribute__((visibility("hidden"))) Impl& impl() const noexcept { return *impl_; }

  private:
    std::unique_ptr<Impl> impl_;
};

} // namespace vmm
VMM_API_END
