#include "prefault/host/kernel_counts.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "support/host_temporary_directory.hpp"

namespace vmm::prefault {
namespace {

using Words = std::vector<std::string>;

constexpr const char* kVmstat = "proc/vmstat";
constexpr const char* kSharing = "sys/kernel/mm/ksm/pages_sharing";

/// The message for a host whose vmstat changes from `before` to `after`.
Words causes_of(const std::string& before, const std::string& after) {
    const testing::TemporaryDirectory files;
    static_cast<void>(files.write(kVmstat, before));
    const auto first = KernelCounts(files.path().string() + "/").read();
    static_cast<void>(files.write(kVmstat, after));
    return KernelCounts::causes(first, KernelCounts(files.path().string() + "/").read());
}

TEST(KernelCounts, NameWhatRoseAndByHowMuch) {
    const testing::TemporaryDirectory files;
    static_cast<void>(
        files.write(kVmstat, "nr_free_pages 5\ncompact_isolated 10\npgmigrate_success 3\nthp_split_page 1\n"));
    const KernelCounts counts(files.path().string() + "/");
    const auto before = counts.read();
    static_cast<void>(
        files.write(kVmstat, "nr_free_pages 9\ncompact_isolated 15\npgmigrate_success 7\nthp_split_page 1\n"));
    const auto after = counts.read(); // through the same descriptors
    EXPECT_EQ(KernelCounts::rises(before, after), (std::vector<std::pair<std::string_view, std::uint64_t>>{
                                                      {"compact_isolated", 5}, {"pgmigrate_success", 4}}));
    EXPECT_EQ(KernelCounts::causes(before, after), Words{"compaction"}) << "compaction migrates, too";
}

TEST(KernelCounts, SayNothingIfNothingRose) {
    EXPECT_EQ(causes_of("compact_isolated 10\npswpin 4\n", "compact_isolated 10\npswpin 4\n"), Words{});
}

TEST(KernelCounts, CallMigrationByItsNameIfNothingElseExplainsIt) {
    EXPECT_EQ(causes_of("pgmigrate_success 10\n", "pgmigrate_success 11\n"), Words{"migration of pages"});
    EXPECT_EQ(
        causes_of("pgmigrate_success 10\nnuma_pages_migrated 1\n", "pgmigrate_success 11\nnuma_pages_migrated 2\n"),
        Words{"NUMA balancing"});
}

TEST(KernelCounts, NameFirstWhatIsAboutMostPages) {
    EXPECT_EQ(causes_of("pgmigrate_success 10\nnuma_pte_updates 1\n", "pgmigrate_success 60010\nnuma_pte_updates 73\n"),
              (Words{"migration of pages", "NUMA balancing"}));
    EXPECT_EQ(causes_of("thp_collapse_alloc 0\npswpin 0\n", "thp_collapse_alloc 1\npswpin 511\n"),
              (Words{"khugepaged", "swap"}));
}

TEST(KernelCounts, KnowEachThingThatTakesMappings) {
    EXPECT_EQ(causes_of("thp_collapse_alloc 0\n", "thp_collapse_alloc 1\n"), Words{"khugepaged"});
    EXPECT_EQ(causes_of("thp_split_page 0\n", "thp_split_page 1\n"), Words{"the splitting of huge pages"});
    EXPECT_EQ(causes_of("pswpout 0\n", "pswpout 1\n"), Words{"swap"});
    EXPECT_EQ(causes_of("pgdemote_kswapd 0\n", "pgdemote_kswapd 1\n"), Words{"demotion to slower memory"});
    EXPECT_EQ(causes_of("cow_ksm 0\n", "cow_ksm 1\n"), Words{"KSM"});
}

TEST(KernelCounts, KnowOfKsmByWhatItShares) {
    const testing::TemporaryDirectory files;
    static_cast<void>(files.write(kVmstat, ""));
    static_cast<void>(files.write(kSharing, "100\n"));
    const KernelCounts counts(files.path().string() + "/");
    const auto before = counts.read();
    static_cast<void>(files.write(kSharing, "150\n"));
    EXPECT_EQ(KernelCounts::causes(before, counts.read()), Words{"KSM"});
}

TEST(KernelCounts, ThatAHostDoesNotHaveAreLeftOut) {
    const KernelCounts counts("/nowhere");
    EXPECT_EQ(KernelCounts::rises(counts.read(), counts.read()).size(), 0U);
    EXPECT_EQ(causes_of("compact_isolated 1\n", "compact_isolated 2\npswpin 9\n"), Words{"compaction"})
        << "one that is there only later has not risen";
}

TEST(KernelCounts, TakeNoTextForANumber) {
    EXPECT_EQ(causes_of("pswpin x\npswpout\n\n swap\nthp_split_page \n", "pswpin 1\npswpout\n"), Words{});
    EXPECT_EQ(causes_of("pswpin 1", "pswpin 99999999999999999999999"), Words{});
}

TEST(KernelCounts, AreReadHere) {
    const KernelCounts counts;
    const auto values = counts.read();
    EXPECT_TRUE(std::ranges::any_of(values, [](const auto& value) { return value.has_value(); }));
}

} // namespace
} // namespace vmm::prefault
