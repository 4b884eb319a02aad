// Decides from counts whether a second level has lost mappings, and when to fill it again. Pure: no KVM, no clock.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "prefault/kept.hpp"
#include "prefault/mapped_pages.hpp"

namespace vmm::prefault {

/// What was counted at one moment.
struct KeptSample {
    double seconds = 0; ///< since the guest started
    MappedPages mapped;
    std::uint64_t faults = 0; ///< of all vCPUs of the guest, since it started
    /// How much KVM maps if nothing is missing. 0 means that the second level has not been filled yet; such a sample is
    /// not judged.
    std::uint64_t full_bytes = 0;
    bool logs_dirty = false; ///< whether dirty logging is on, so that nothing may be touched
};

/// Compares each sample with the one before, and with what is mapped if nothing is missing. A *spell* begins with a
/// loss, or with faults of the guest, and ends when nothing is missing and no more faults come. It is no loss if a
/// large mapping became 512 small ones.
///
/// If three or more losses follow each other closely, refills wait: two intervals between samples at first, then twice
/// as long each time, at most kMostWaitSeconds. If no loss comes for four intervals, or for twice the last wait if that
/// is longer, the next loss is refilled at once again.
///
/// Threads: one at a time.
class LossWatch {
  public:
    static constexpr double kMostWaitSeconds = 30;

    /// `every_seconds` is about the time between two samples.
    explicit LossWatch(double every_seconds) : every_seconds_(every_seconds) {}

    struct Answer {
        std::vector<KeptEvent> events; ///< without causes
        bool refill = false;           ///< whether to fill the second level now; note_refill() must follow
    };
    [[nodiscard]] Answer look(const KeptSample& sample);
    /// Notes the end of a refill; `after` is the sample taken then. `problem` says why the refill did not complete;
    /// empty if it did.
    [[nodiscard]] std::vector<KeptEvent> note_refill(const KeptSample& after, std::string problem);
    /// Notes that nothing was filled, because dirty logging has begun.
    [[nodiscard]] std::vector<KeptEvent> note_held(double seconds);

    /// True if a spell is under way.
    [[nodiscard]] bool in_spell() const noexcept { return spell_.has_value(); }
    /// True if nothing was missing in the last sample.
    [[nodiscard]] bool is_full() const noexcept { return judged_ && missing_bytes_ == 0; }

    [[nodiscard]] std::uint64_t losses() const noexcept { return losses_; }
    [[nodiscard]] std::uint64_t lost_bytes() const noexcept;
    [[nodiscard]] std::uint64_t splits() const noexcept { return splits_; }
    /// Faults of the guest in all spells, including the current one.
    [[nodiscard]] std::uint64_t faults() const noexcept;
    [[nodiscard]] double longest_spell_seconds() const noexcept { return longest_spell_seconds_; }

  private:
    struct Spell {
        double begin = 0;
        MappedPages before;
        std::uint64_t lost_bytes = 0; ///< the most that was missing; 0: there were only faults
        std::uint64_t faults = 0;
        unsigned refills = 0;
        bool held = false; ///< kHeld was reported in this spell
    };

    [[nodiscard]] std::uint64_t take(const KeptSample& sample);
    void begin_loss(const KeptSample& sample, std::uint64_t new_faults, std::vector<KeptEvent>& events);
    void note_split(const KeptSample& sample, std::vector<KeptEvent>& events);
    void end_spell(const KeptSample& sample, std::vector<KeptEvent>& events);
    [[nodiscard]] double wait_seconds() const noexcept;
    [[nodiscard]] KeptEvent event(KeptEventKind kind, double seconds) const;

    double every_seconds_;
    bool judged_ = false;                   ///< there was a sample of a filled second level
    MappedPages last_;                      ///< of the last sample
    MappedPages whole_;                     ///< the last sample in which nothing was missing
    std::uint64_t settled_large_bytes_ = 0; ///< bytes in large mappings in the last sample in which nothing was missing
    std::uint64_t last_faults_ = 0;         ///< of the last sample
    std::uint64_t missing_bytes_ = 0;
    std::optional<Spell> spell_;
    unsigned in_a_row_ = 0; ///< losses that followed each other closely
    double last_end_ = 0;   ///< the end of the last spell with a loss
    double not_before_ = 0; ///< when the next refill may begin
    std::uint64_t losses_ = 0;
    std::uint64_t lost_bytes_ = 0; ///< of spells that are over
    std::uint64_t splits_ = 0;
    std::uint64_t faults_ = 0; ///< of spells that are over
    double longest_spell_seconds_ = 0;
};

} // namespace vmm::prefault
