// Decides from counts whether a second level has lost mappings, and when it is filled again. Pure: no KVM, no clock.
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
    /// How much KVM maps when nothing is missing; 0: the second level has not been filled yet, and nothing is judged.
    std::uint64_t full_bytes = 0;
    bool logs_dirty = false; ///< whether dirty logging is on, so that nothing may be touched
};

/// Compares samples with each other, and with what is mapped if nothing is missing. A *spell* begins with a loss, or
/// with faults of the guest, and ends when nothing is missing and no fault comes any more. A large mapping that became
/// 512 small ones is no loss.
///
/// If a loss follows hard upon the one before, three times and more, refills wait: for two times the interval between
/// samples, then twice as long each time, at most kMostWaitSeconds. After as long a time without a loss the next one is
/// made good at once again.
///
/// Threads: one at a time.
class LossWatch {
  public:
    static constexpr double kMostWaitSeconds = 30;

    /// `every_seconds` is about the time between two samples.
    explicit LossWatch(double every_seconds) : every_seconds_(every_seconds) {}

    struct Answer {
        std::vector<KeptEvent> events; ///< without causes
        bool refill = false;           ///< whether the second level is to be filled now; then note_refill() follows
    };
    [[nodiscard]] Answer look(const KeptSample& sample);
    /// A refill has ended, and `after` is what was counted then. `problem` says why it did not come to its end.
    [[nodiscard]] std::vector<KeptEvent> note_refill(const KeptSample& after, std::string problem);
    /// Nothing was filled, because dirty logging has begun.
    [[nodiscard]] std::vector<KeptEvent> note_held(double seconds);

    /// Whether a spell is under way.
    [[nodiscard]] bool in_spell() const noexcept { return spell_.has_value(); }
    /// Whether nothing was missing in the last sample.
    [[nodiscard]] bool is_full() const noexcept { return judged_ && missing_bytes_ == 0; }

    [[nodiscard]] std::uint64_t losses() const noexcept { return losses_; }
    [[nodiscard]] std::uint64_t lost_bytes() const noexcept;
    [[nodiscard]] std::uint64_t splits() const noexcept { return splits_; }
    /// Faults of the guest in all spells, that under way included.
    [[nodiscard]] std::uint64_t faults() const noexcept;
    [[nodiscard]] double longest_spell_seconds() const noexcept { return longest_spell_seconds_; }

  private:
    struct Spell {
        double begin = 0;
        MappedPages before;
        std::uint64_t lost_bytes = 0; ///< the most that was missing; 0: there were only faults
        std::uint64_t faults = 0;
        unsigned refills = 0;
        bool held = false; ///< it was said that nothing is filled
    };

    [[nodiscard]] std::uint64_t take(const KeptSample& sample);
    void begin_loss(const KeptSample& sample, std::uint64_t new_faults, std::vector<KeptEvent>& events);
    void note_split(const KeptSample& sample, std::vector<KeptEvent>& events);
    void end_spell(const KeptSample& sample, std::vector<KeptEvent>& events);
    [[nodiscard]] double wait_seconds() const noexcept;
    [[nodiscard]] KeptEvent event(KeptEventKind kind, double seconds) const;

    double every_seconds_;
    bool judged_ = false;                   ///< there has been a sample of a second level that was filled
    MappedPages last_;                      ///< of the last sample
    MappedPages whole_;                     ///< when nothing was missing, last
    std::uint64_t settled_large_bytes_ = 0; ///< in large mappings at the last sample of which nothing was missing
    std::uint64_t last_faults_ = 0;         ///< of the last sample
    std::uint64_t missing_bytes_ = 0;
    std::optional<Spell> spell_;
    unsigned in_a_row_ = 0; ///< losses hard upon each other
    double last_end_ = 0;   ///< of the last spell with a loss
    double not_before_ = 0; ///< when the next refill may begin
    std::uint64_t losses_ = 0;
    std::uint64_t lost_bytes_ = 0; ///< of spells that are over
    std::uint64_t splits_ = 0;
    std::uint64_t faults_ = 0; ///< of spells that are over
    double longest_spell_seconds_ = 0;
};

} // namespace vmm::prefault
