#include "prefault/loss_watch.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <string>
#include <vector>

namespace vmm::prefault {
namespace {

using Kind = KeptEventKind;

constexpr double kEvery = 0.25;
constexpr MappedPages kAll{0, 256, 0}; ///< 512 MiB in large mappings
constexpr std::uint64_t kAllBytes = 256ULL << 21;

std::vector<Kind> kinds_of(const std::vector<KeptEvent>& events) {
    std::vector<Kind> kinds;
    for (const KeptEvent& event : events) {
        kinds.push_back(event.kind);
    }
    return kinds;
}

/// A watch that has seen a full second level, and its clock.
class Watched {
  public:
    Watched() {
        EXPECT_TRUE(look(kAll).events.empty());
        EXPECT_TRUE(watch.is_full());
    }

    /// The next look, one interval later. The guest has taken `new_faults` more.
    LossWatch::Answer look(MappedPages mapped, std::uint64_t new_faults = 0, bool logs_dirty = false) {
        now += kEvery;
        faults += new_faults;
        return watch.look({now, mapped, faults, kAllBytes, logs_dirty});
    }
    /// A refill that takes 0.125 s and leaves `mapped`.
    std::vector<KeptEvent> refill(MappedPages mapped, std::uint64_t new_faults = 0, const std::string& problem = "") {
        now += 0.125;
        faults += new_faults;
        return watch.note_refill({now, mapped, faults, kAllBytes, false}, problem);
    }
    /// A loss that a refill repairs. Returns how many looks the refill waited.
    unsigned lose_and_refill() {
        unsigned waited = 0;
        while (!look({0, 128, 0}).refill) {
            ++waited;
        }
        EXPECT_EQ(kinds_of(refill(kAll)), (std::vector{Kind::kFull}));
        return waited;
    }

    LossWatch watch{kEvery};
    double now = 0;
    std::uint64_t faults = 7; ///< those of the guest's start
};

TEST(LossWatch, SaysNothingOfWhatWasNeverFilled) {
    LossWatch watch(kEvery);
    for (int i = 0; i < 3; ++i) {
        const auto answer = watch.look({i * kEvery, {}, 100ULL * static_cast<unsigned>(i), 0, false});
        EXPECT_TRUE(answer.events.empty());
        EXPECT_FALSE(answer.refill);
    }
    EXPECT_FALSE(watch.is_full());
    EXPECT_EQ(watch.faults(), 0U);
}

TEST(LossWatch, CountsTheFaultsBeforeTheFirstFillForNothing) {
    LossWatch watch(kEvery);
    static_cast<void>(watch.look({0, {}, 0, 0, false}));
    EXPECT_TRUE(watch.look({1, kAll, 5000, kAllBytes, false}).events.empty());
    EXPECT_TRUE(watch.look({2, kAll, 5000, kAllBytes, false}).events.empty());
    EXPECT_EQ(watch.faults(), 0U);
    EXPECT_TRUE(watch.is_full());
}

TEST(LossWatch, SaysNothingWhileNothingHappens) {
    Watched it;
    for (int i = 0; i < 1000; ++i) {
        const auto answer = it.look(kAll);
        ASSERT_TRUE(answer.events.empty());
        ASSERT_FALSE(answer.refill);
    }
}

TEST(LossWatch, RefillsAtOnceWhatIsMissing) {
    Watched it;
    const auto answer = it.look({0, 250, 0}, 3);
    EXPECT_TRUE(answer.refill);
    ASSERT_EQ(kinds_of(answer.events), (std::vector{Kind::kLost}));
    const KeptEvent& lost = answer.events[0];
    EXPECT_EQ(lost.seconds, it.now);
    EXPECT_EQ(lost.lost_bytes, 6ULL << 21);
    EXPECT_EQ(lost.before.pages_2m, 256U);
    EXPECT_EQ(lost.mapped.pages_2m, 250U);
    EXPECT_EQ(lost.faults, 3U);
    EXPECT_TRUE(it.watch.in_spell());
    EXPECT_FALSE(it.watch.is_full());
    EXPECT_EQ(it.watch.losses(), 1U);
}

TEST(LossWatch, IsFullAgainAfterARefillAndSaysWhatItCost) {
    Watched it;
    ASSERT_TRUE(it.look({0, 250, 0}, 3).refill);
    const auto events = it.refill(kAll, 2);
    ASSERT_EQ(kinds_of(events), (std::vector{Kind::kFull}));
    EXPECT_EQ(events[0].spell_seconds, 0.125);
    EXPECT_EQ(events[0].faults, 5U);
    EXPECT_EQ(events[0].refills, 1U);
    EXPECT_EQ(events[0].lost_bytes, 6ULL << 21);
    EXPECT_EQ(it.watch.faults(), 5U);
    EXPECT_EQ(it.watch.lost_bytes(), 6ULL << 21);
    EXPECT_EQ(it.watch.longest_spell_seconds(), 0.125);
    EXPECT_TRUE(it.watch.is_full());
    EXPECT_TRUE(it.look(kAll).events.empty());
}

TEST(LossWatch, CountsTheSameBytesInSmallMappingsForNoLoss) {
    Watched it;
    const MappedPages split{512 * 6, 250, 0};
    EXPECT_FALSE(it.look(split).refill);
    const auto answer = it.look(split);
    EXPECT_FALSE(answer.refill);
    ASSERT_EQ(kinds_of(answer.events), (std::vector{Kind::kSplit}));
    EXPECT_EQ(answer.events[0].before.pages_2m, 256U);
    EXPECT_EQ(answer.events[0].mapped.pages_4k, 512U * 6);
    EXPECT_EQ(it.watch.splits(), 1U);
    EXPECT_EQ(it.watch.losses(), 0U);
    EXPECT_TRUE(it.watch.is_full());
    EXPECT_TRUE(it.look(split).events.empty());
}

TEST(LossWatch, TellsOfManySplitsOnceWhenTheyAreOver) {
    Watched it;
    for (std::uint64_t large = 255; large > 0; --large) {
        ASSERT_TRUE(it.look({(256 - large) * 512, large, 0}).events.empty());
    }
    EXPECT_EQ(kinds_of(it.look({255 * 512, 1, 0}).events), (std::vector{Kind::kSplit}));
    EXPECT_EQ(it.watch.splits(), 1U);
}

TEST(LossWatch, SaysNothingOfMappingsThatBecomeLarger) {
    Watched it;
    static_cast<void>(it.look({512 * 6, 250, 0}));
    static_cast<void>(it.look({512 * 6, 250, 0}));
    EXPECT_TRUE(it.look(kAll).events.empty());
    EXPECT_TRUE(it.look(kAll).events.empty());
    EXPECT_EQ(it.watch.splits(), 1U);
}

TEST(LossWatch, SaysNothingOfMoreThanIsNeeded) {
    // A guest of the guest has mappings of its own, which appear and disappear.
    Watched it;
    EXPECT_TRUE(it.look({1000, 256, 0}).events.empty());
    EXPECT_TRUE(it.look(kAll).events.empty());
}

TEST(LossWatch, TellsWhatTheGuestMadeAgainItselfBetweenTwoLooks) {
    Watched it;
    EXPECT_TRUE(it.look(kAll, 4).events.empty());
    EXPECT_TRUE(it.look(kAll, 5).events.empty());
    const auto answer = it.look(kAll);
    EXPECT_FALSE(answer.refill);
    ASSERT_EQ(kinds_of(answer.events), (std::vector{Kind::kRegained}));
    EXPECT_EQ(answer.events[0].faults, 9U);
    EXPECT_EQ(answer.events[0].spell_seconds, 2 * kEvery);
    EXPECT_EQ(it.watch.losses(), 0U);
    EXPECT_EQ(it.watch.faults(), 9U);
}

TEST(LossWatch, OfFaultsThatComeFirstIsOneSpellWithTheLoss) {
    Watched it;
    static_cast<void>(it.look(kAll, 4));
    const auto answer = it.look({0, 200, 0}, 5);
    EXPECT_TRUE(answer.refill);
    ASSERT_EQ(kinds_of(answer.events), (std::vector{Kind::kLost}));
    EXPECT_EQ(answer.events[0].faults, 9U);
    const auto events = it.refill(kAll, 1);
    ASSERT_EQ(kinds_of(events), (std::vector{Kind::kFull}));
    EXPECT_EQ(events[0].faults, 10U);
}

TEST(LossWatch, SaysThatTheGuestWasFasterThanARefill) {
    Watched it;
    // The third loss in a row waits.
    it.lose_and_refill();
    it.lose_and_refill();
    ASSERT_FALSE(it.look({0, 255, 0}, 1).refill);
    EXPECT_TRUE(it.look(kAll, 1).events.empty()) << "the spell lasts until a refill might begin";
    std::vector<KeptEvent> events;
    while (events.empty()) {
        events = it.look(kAll).events;
    }
    ASSERT_EQ(kinds_of(events), (std::vector{Kind::kFull}));
    EXPECT_EQ(events[0].refills, 0U);
    EXPECT_EQ(events[0].faults, 2U);
}

TEST(LossWatch, HoldsRefillsWhileDirtyLoggingIsOn) {
    Watched it;
    const auto first = it.look({0, 100, 0}, 1, true);
    EXPECT_FALSE(first.refill);
    EXPECT_EQ(kinds_of(first.events), (std::vector{Kind::kLost, Kind::kHeld}));
    for (int i = 0; i < 10; ++i) {
        const auto more = it.look({0, 100, 0}, 1, true);
        EXPECT_FALSE(more.refill);
        EXPECT_TRUE(more.events.empty());
    }
    EXPECT_TRUE(it.look({0, 100, 0}).refill);
    EXPECT_EQ(kinds_of(it.refill(kAll)), (std::vector{Kind::kFull}));
}

TEST(LossWatch, SaysOnceThatDirtyLoggingBeganBeforeTheRefillDid) {
    Watched it;
    ASSERT_TRUE(it.look({0, 100, 0}).refill);
    EXPECT_EQ(kinds_of(it.watch.note_held(it.now)), (std::vector{Kind::kHeld}));
    EXPECT_TRUE(it.watch.note_held(it.now).empty());
}

TEST(LossWatch, SaysNothingOfFaultsWhileDirtyLoggingIsOn) {
    Watched it;
    for (int i = 0; i < 10; ++i) {
        EXPECT_TRUE(it.look(kAll, 100, true).events.empty());
    }
    EXPECT_FALSE(it.watch.in_spell());
}

TEST(LossWatch, WaitsLongerAndLongerForWhatIsTakenAllTheTime) {
    Watched it;
    EXPECT_EQ(it.lose_and_refill(), 0U);
    EXPECT_EQ(it.lose_and_refill(), 0U);
    unsigned last = 0;
    for (int i = 0; i < 6; ++i) {
        const unsigned waited = it.lose_and_refill();
        EXPECT_GT(waited, last);
        last = waited;
    }
    for (int i = 0; i < 100; ++i) {
        last = it.lose_and_refill();
    }
    EXPECT_EQ(last * kEvery, LossWatch::kMostWaitSeconds);
}

TEST(LossWatch, SaysThatItBacksOffAndForHowLong) {
    Watched it;
    it.lose_and_refill();
    it.lose_and_refill();
    const auto answer = it.look({0, 128, 0});
    EXPECT_FALSE(answer.refill);
    ASSERT_EQ(kinds_of(answer.events), (std::vector{Kind::kLost, Kind::kBackOff}));
    EXPECT_EQ(answer.events[1].wait_seconds, 2 * kEvery);
    EXPECT_EQ(answer.events[1].problem, "");
}

TEST(LossWatch, RefillsAtOnceAgainAfterATimeWithoutALoss) {
    Watched it;
    for (int i = 0; i < 6; ++i) {
        it.lose_and_refill();
    }
    for (double quiet = 0; quiet <= LossWatch::kMostWaitSeconds; quiet += kEvery) {
        static_cast<void>(it.look(kAll));
    }
    EXPECT_EQ(it.lose_and_refill(), 0U);
}

TEST(LossWatch, DoesNotBackOffFromLossesThatAreFarApart) {
    Watched it;
    for (int i = 0; i < 20; ++i) {
        EXPECT_EQ(it.lose_and_refill(), 0U);
        for (int quiet = 0; quiet < 6; ++quiet) {
            static_cast<void>(it.look(kAll));
        }
    }
}

TEST(LossWatch, TriesAgainLaterIfARefillFails) {
    Watched it;
    ASSERT_TRUE(it.look({0, 100, 0}).refill);
    const auto events = it.refill({0, 100, 0}, 0, "the host has no memory");
    ASSERT_EQ(kinds_of(events), (std::vector{Kind::kBackOff}));
    EXPECT_EQ(events[0].problem, "the host has no memory");
    EXPECT_EQ(events[0].wait_seconds, kEvery);
    EXPECT_TRUE(it.watch.in_spell());
    EXPECT_TRUE(it.look({0, 100, 0}).refill);
    const auto again = it.refill({0, 100, 0}, 0, "the host has no memory");
    ASSERT_EQ(kinds_of(again), (std::vector{Kind::kBackOff}));
    EXPECT_GT(again[0].wait_seconds, kEvery);
    EXPECT_FALSE(it.look({0, 100, 0}).refill);
    EXPECT_EQ(it.watch.losses(), 1U);
}

TEST(LossWatch, OfMemoryThatWasAddedWaitsUntilThatIsFilled) {
    Watched it;
    EXPECT_TRUE(it.look({0, 300, 0}).events.empty()) << "it is being filled";
    it.now += kEvery;
    const auto answer = it.watch.look({it.now, {0, 300, 0}, it.faults, 300ULL << 21, false});
    EXPECT_TRUE(answer.events.empty());
    it.now += kEvery;
    EXPECT_TRUE(it.watch.look({it.now, kAll, it.faults, 300ULL << 21, false}).refill);
}

TEST(LossWatch, FindsWhatWasLostBeforeItsFirstLook) {
    LossWatch watch(kEvery);
    const auto answer = watch.look({0, {0, 255, 0}, 0, kAllBytes, false});
    EXPECT_TRUE(answer.refill);
    EXPECT_EQ(kinds_of(answer.events), (std::vector{Kind::kLost}));
}

KeptEvent event_of(Kind kind) {
    KeptEvent event;
    event.kind = kind;
    event.seconds = 12.25;
    event.before = {0, 256, 0};
    event.mapped = {512, 250, 0};
    event.lost_bytes = 10ULL << 20;
    event.faults = 1;
    event.spell_seconds = 0.5;
    event.wait_seconds = 2;
    event.refills = 1;
    event.causes = {"compaction", "swap"};
    event.counts = {{"compact_isolated", 12}, {"pswpout", 3}};
    event.problem = "no memory";
    return event;
}

TEST(KeptLine, SaysWhatWasLostAndWhatProbablyTookIt) {
    EXPECT_EQ(to_line(event_of(Kind::kLost)),
              "keep: 12.250 s, lost 10 MiB: mapped 0 x 1G + 250 x 2M + 512 x 4K of 0 x 1G + 256 x 2M + 0 x 4K, new "
              "faults 1; probably compaction, or swap (compact_isolated +12, pswpout +3)");
}

TEST(KeptLine, SaysHowItBecameFullAgain) {
    KeptEvent event = event_of(Kind::kFull);
    event.causes.clear();
    EXPECT_EQ(to_line(event), "keep: 12.250 s, full again after 0.500 s, by a refill: mapped 0 x 1G + 250 x 2M + 512 x "
                              "4K; the guest took 1 fault; the kernel counted nothing that would take mappings");
}

TEST(KeptLine, SaysWhyARefillFailed) {
    EXPECT_EQ(to_line(event_of(Kind::kBackOff)),
              "keep: 12.250 s, the refill did not come to its end: no memory: the next one is in 2.000 s");
}

TEST(KeptLine, OfEachKindIsOneLineAndNamesAreDifferent) {
    std::vector<std::string> names;
    for (const Kind kind :
         {Kind::kLost, Kind::kFull, Kind::kRegained, Kind::kSplit, Kind::kHeld, Kind::kBackOff, Kind::kEnded}) {
        const std::string line = to_line(event_of(kind));
        EXPECT_EQ(line.find('\n'), std::string::npos);
        EXPECT_EQ(std::ranges::count(names, line), 0);
        names.push_back(line);
        EXPECT_NE(to_string(kind), "unknown");
    }
}

} // namespace
} // namespace vmm::prefault
