// What the keeper of a full second level has observed and done.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "kvm/host/export.hpp"
#include "prefault/mapped_pages.hpp"

VMM_API_BEGIN
namespace vmm::prefault {

/// What happened to a second level that is kept full.
enum class KeptEventKind {
    kLost,     ///< mappings are missing
    kFull,     ///< none is missing any more
    kRegained, ///< none is missing, but there were faults: the guest itself mapped again what was lost between two
               ///< looks
    kSplit,    ///< large mappings have become smaller ones; nothing is missing
    kHeld,     ///< nothing is refilled while dirty logging is on, because a touch would make every page dirty
    kBackOff,  ///< the next refill waits: mappings are lost as fast as they are made, or the last refill failed
    kEnded,    ///< the keeper gave up, because KVM's counters cannot be read any more
};

/// The name used in the report: "lost", "full", "regained", "split", "held", "back-off", "ended".
[[nodiscard]] std::string_view to_string(KeptEventKind kind) noexcept;

/// How much one of the kernel's counters has risen.
struct KernelCount {
    std::string name; ///< as in /proc/vmstat: "compact_isolated"
    std::uint64_t rise = 0;
};

/// One event. Members that do not apply to its kind are zero or empty.
struct KeptEvent {
    KeptEventKind kind = KeptEventKind::kLost;
    double seconds = 0;           ///< since the guest started
    MappedPages before;           ///< what was mapped when nothing was missing
    MappedPages mapped;           ///< what is mapped now
    std::uint64_t lost_bytes = 0; ///< how much is missing; of kFull: the most that was missing
    /// Second-level faults of the guest's vCPUs. For kLost, those since the previous look. For kFull and kRegained, all
    /// of them until nothing was missing and no more came.
    std::uint64_t faults = 0;
    double spell_seconds = 0; ///< of kFull and kRegained: the time since the loss was noticed
    double wait_seconds = 0;  ///< of kBackOff: the time until the next refill
    unsigned refills = 0;     ///< of kFull: the number of refills; 0 if the guest mapped everything itself
    /// What probably took the mappings, as text for people, the likeliest cause first. Empty if no counter of the
    /// kernel rose.
    std::vector<std::string> causes;
    /// The kernel's counters that rose from shortly before the loss until now. They count for the whole host.
    std::vector<KernelCount> counts;
    std::string problem; ///< of kBackOff and kEnded: what went wrong, for people; empty if nothing did
};

/// Receives each event, on the keeper's thread.
using KeptSink = std::function<void(const KeptEvent&)>;

/// The event as a line for people, without its newline.
[[nodiscard]] std::string to_line(const KeptEvent& event);

/// What a keeper did in a run.
struct KeptReport {
    /// The number of events that are kept: the first ones.
    static constexpr std::size_t kMostEvents = 64;

    unsigned every_ms = 0;            ///< the time between two looks, in milliseconds
    std::uint64_t looks = 0;          ///< at KVM's counters
    std::uint64_t losses = 0;         ///< how often mappings were found to be missing
    std::uint64_t lost_bytes = 0;     ///< the sum over all losses of the most that was missing
    std::uint64_t splits = 0;         ///< how often large mappings were found to be split
    std::uint64_t refills = 0;        ///< how often the second level was filled again
    std::uint64_t faults = 0;         ///< of the guest, in all spells
    double longest_spell_seconds = 0; ///< the longest time from noticing a loss until nothing was missing
    double refill_seconds = 0;        ///< of all refills together
    double watch_cpu_seconds = 0;     ///< processor time of the keeper's thread, without its refills
    bool full = false;                ///< whether nothing was missing at the last look
    std::string problem;              ///< why the keeper ended before the guest; empty if it did not
    std::uint64_t events_total = 0;
    std::vector<KeptEvent> events; ///< at most kMostEvents
};

} // namespace vmm::prefault
VMM_API_END
