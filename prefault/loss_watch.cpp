#include "prefault/loss_watch.hpp"

#include <algorithm>
#include <cmath>
#include <utility>

namespace vmm::prefault {

namespace {

/// This many losses that follow each other closely are refilled at once.
constexpr unsigned kPatientLosses = 2;
/// A loss follows closely if it comes within this many intervals of the end of the last spell.
constexpr double kHardUpon = 4;

std::uint64_t large_bytes(const MappedPages& mapped) {
    return (mapped.pages_2m << 21) + (mapped.pages_1g << 30);
}

} // namespace

std::uint64_t LossWatch::lost_bytes() const noexcept {
    return lost_bytes_ + (spell_ ? spell_->lost_bytes : 0);
}

std::uint64_t LossWatch::faults() const noexcept {
    return faults_ + (spell_ ? spell_->faults : 0);
}

KeptEvent LossWatch::event(KeptEventKind kind, double seconds) const {
    KeptEvent event;
    event.kind = kind;
    event.seconds = seconds;
    event.before = spell_ ? spell_->before : whole_;
    event.mapped = last_;
    return event;
}

double LossWatch::wait_seconds() const noexcept {
    return in_a_row_ <= kPatientLosses
               ? 0
               : std::min(kMostWaitSeconds,
                          std::ldexp(every_seconds_, static_cast<int>(std::min(in_a_row_ - kPatientLosses, 30U))));
}

/// Makes `sample` the last one. Returns the new faults.
std::uint64_t LossWatch::take(const KeptSample& sample) {
    const std::uint64_t new_faults = sample.faults > last_faults_ ? sample.faults - last_faults_ : 0;
    const std::uint64_t bytes = sample.mapped.bytes();
    missing_bytes_ = sample.full_bytes > bytes ? sample.full_bytes - bytes : 0;
    last_ = sample.mapped;
    last_faults_ = sample.faults;
    return new_faults;
}

void LossWatch::begin_loss(const KeptSample& sample, std::uint64_t new_faults, std::vector<KeptEvent>& events) {
    const bool hard_upon =
        in_a_row_ != 0 && sample.seconds - last_end_ <= std::max(kHardUpon * every_seconds_, 2 * wait_seconds());
    in_a_row_ = hard_upon ? in_a_row_ + 1 : 1;
    if (!spell_) {
        spell_.emplace(Spell{.begin = sample.seconds, .before = whole_, .faults = new_faults});
    }
    spell_->lost_bytes = missing_bytes_;
    ++losses_;
    KeptEvent lost = event(KeptEventKind::kLost, sample.seconds);
    lost.lost_bytes = missing_bytes_;
    lost.faults = spell_->faults;
    events.push_back(std::move(lost));
    not_before_ = sample.seconds + wait_seconds();
    if (wait_seconds() > 0 && !sample.logs_dirty) {
        KeptEvent back_off = event(KeptEventKind::kBackOff, sample.seconds);
        back_off.wait_seconds = wait_seconds();
        events.push_back(std::move(back_off));
    }
}

/// While large mappings are split one after the other, only the end of this is reported.
void LossWatch::note_split(const KeptSample& sample, std::vector<KeptEvent>& events) {
    const std::uint64_t large = large_bytes(sample.mapped);
    if (large >= large_bytes(whole_)) {
        whole_ = sample.mapped;
    } else if (large == settled_large_bytes_) {
        ++splits_;
        events.push_back(event(KeptEventKind::kSplit, sample.seconds));
        whole_ = sample.mapped;
    }
    settled_large_bytes_ = large;
}

void LossWatch::end_spell(const KeptSample& sample, std::vector<KeptEvent>& events) {
    const bool had_loss = spell_->lost_bytes != 0;
    KeptEvent over = event(had_loss ? KeptEventKind::kFull : KeptEventKind::kRegained, sample.seconds);
    over.lost_bytes = spell_->lost_bytes;
    over.faults = spell_->faults;
    over.spell_seconds = sample.seconds - spell_->begin;
    over.refills = spell_->refills;
    events.push_back(std::move(over));
    faults_ += spell_->faults;
    lost_bytes_ += spell_->lost_bytes;
    if (had_loss) {
        longest_spell_seconds_ = std::max(longest_spell_seconds_, sample.seconds - spell_->begin);
        last_end_ = sample.seconds;
    }
    whole_ = sample.mapped;
    settled_large_bytes_ = large_bytes(sample.mapped);
    spell_.reset();
}

LossWatch::Answer LossWatch::look(const KeptSample& sample) {
    Answer answer;
    if (sample.full_bytes == 0) {
        static_cast<void>(take(sample));
        return answer;
    }
    const std::uint64_t new_faults = take(sample);
    if (!std::exchange(judged_, true)) { // A state before the first fill is no loss.
        whole_ = sample.mapped;
        settled_large_bytes_ = large_bytes(sample.mapped);
        if (missing_bytes_ == 0) {
            return answer;
        }
    }
    if (spell_) {
        spell_->faults += new_faults;
    }
    if (missing_bytes_ == 0) {
        if (!spell_) {
            note_split(sample, answer.events);
            if (new_faults != 0 && !sample.logs_dirty) {
                spell_.emplace(Spell{.begin = sample.seconds, .before = whole_, .faults = new_faults});
            }
        } else if (spell_->lost_bytes != 0 ? sample.seconds >= not_before_ : new_faults == 0) {
            end_spell(sample, answer.events);
        }
        return answer;
    }
    if (!spell_ || spell_->lost_bytes == 0) {
        begin_loss(sample, new_faults, answer.events);
    }
    spell_->lost_bytes = std::max(spell_->lost_bytes, missing_bytes_);
    if (sample.logs_dirty) {
        std::ranges::move(note_held(sample.seconds), std::back_inserter(answer.events));
    } else {
        answer.refill = sample.seconds >= not_before_;
    }
    return answer;
}

std::vector<KeptEvent> LossWatch::note_held(double seconds) {
    std::vector<KeptEvent> events;
    if (spell_ && !std::exchange(spell_->held, true)) {
        events.push_back(event(KeptEventKind::kHeld, seconds));
    }
    return events;
}

std::vector<KeptEvent> LossWatch::note_refill(const KeptSample& after, std::string problem) {
    std::vector<KeptEvent> events;
    const std::uint64_t new_faults = take(after);
    if (!spell_) {
        return events;
    }
    spell_->faults += new_faults;
    ++spell_->refills;
    if (missing_bytes_ == 0 && problem.empty()) {
        end_spell(after, events);
        return events;
    }
    // If something is missing again already, it was lost during the refill.
    in_a_row_ = std::max(in_a_row_, 1U) + 1;
    not_before_ = after.seconds + std::max(wait_seconds(), every_seconds_);
    if (wait_seconds() > 0 || !problem.empty()) {
        KeptEvent back_off = event(KeptEventKind::kBackOff, after.seconds);
        back_off.wait_seconds = not_before_ - after.seconds;
        back_off.problem = std::move(problem);
        events.push_back(std::move(back_off));
    }
    return events;
}

} // namespace vmm::prefault
