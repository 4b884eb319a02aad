#include "vmm/host/memory_facts.hpp"

#include <gtest/gtest.h>

#include <string>

#include "kvm/host/guest_address.hpp"
#include "support/host_errors.hpp"
#include "support/host_temporary_directory.hpp"

namespace vmm {
namespace {

class MemoryCgroup : public ::testing::Test {
  protected:
    [[nodiscard]] auto limit() const {
        return read_memory_cgroup_limit({directory_ / "cgroup-of-self", directory_ / "cgroup"});
    }
    [[nodiscard]] std::vector<MemoryGroup> groups() const {
        return read_memory_groups({directory_ / "cgroup-of-self", directory_ / "cgroup", directory_ / "mounts"});
    }
    void write(const std::string& name, const std::string& content) const { directory_.write(name, content + "\n"); }

  private:
    testing::TemporaryDirectory directory_;
};

TEST_F(MemoryCgroup, ThatCannotBeReadSetsNoLimit) {
    EXPECT_FALSE(limit());
}

TEST_F(MemoryCgroup, OfVersion2SetsTheSmallestLimitOfItsAncestors) {
    write("cgroup-of-self", "0::/a/b");
    write("cgroup/a/b/memory.max", "max");
    write("cgroup/a/memory.max", "4096");
    write("cgroup/memory.max", "8192");
    EXPECT_EQ(limit(), 4096U);
}

TEST_F(MemoryCgroup, OfVersion1IsReadBelowItsController) {
    write("cgroup-of-self", "5:memory:/a\n4:cpu:/b");
    write("cgroup/memory/a/memory.limit_in_bytes", "12288");
    write("cgroup/memory/memory.limit_in_bytes", "9223372036854771712");
    write("cgroup/cpu/b/memory.limit_in_bytes", "1");
    EXPECT_EQ(limit(), 12288U);
}

// What broke: a limit of 256M was compared with guest memory alone, without the memory that the group used already.
TEST_F(MemoryCgroup, HasLeftWhatIsNotInUse) {
    write("cgroup-of-self", "0::/a");
    write("cgroup/a/memory.max", "268435456");
    write("cgroup/a/memory.high", "200000000");
    write("cgroup/a/memory.current", "100000000");
    write("cgroup/a/memory.stat", "anon 1\nfile 41000000\ninactive_file 30000000\nactive_file 10000000\n"
                                  "slab_reclaimable 2000000");
    write("cgroup/a/memory.swap.max", "4096");
    write("cgroup/a/memory.swap.current", "1024");
    ASSERT_EQ(groups().size(), 1U);
    const MemoryGroup group = groups().front();
    EXPECT_EQ(group.used, 58000000U);
    EXPECT_EQ(group.left(), 268435456U - 58000000U);
    EXPECT_EQ(group.left_below_high(), 200000000U - 58000000U);
    EXPECT_EQ(group.swap_limit, 4096U);
    EXPECT_EQ(group.swap_used, 1024U);
}

TEST_F(MemoryCgroup, CountsPagesOfAPoolIfItIsMountedSo) {
    write("cgroup-of-self", "5:memory:/a\n0::/a");
    write("cgroup/memory/a/memory.limit_in_bytes", "1000000");
    write("cgroup/a/memory.max", "4096");
    const auto counts = [this](const std::string& mounts) {
        write("mounts", mounts);
        std::vector<bool> counting;
        for (const MemoryGroup& group : groups()) {
            counting.push_back(group.counts_huge_pages);
        }
        return counting;
    };
    const std::string mount = "30 24 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate";
    EXPECT_EQ(counts(mount + "\n"), (std::vector{false, false}));
    EXPECT_EQ(counts(mount + ",memory_hugetlb_accounting\n"), (std::vector{false, true})) << "version 1 never does";
    EXPECT_EQ(counts("1 2 0:3 / /x rw - tmpfs memory_hugetlb_accounting rw\n"), (std::vector{false, false}));
}

TEST_F(MemoryCgroup, OfVersion1CountsSwapBesideMemory) {
    write("cgroup-of-self", "5:memory:/a");
    write("cgroup/memory/a/memory.limit_in_bytes", "1000000");
    write("cgroup/memory/a/memory.memsw.limit_in_bytes", "1500000");
    write("cgroup/memory/a/memory.usage_in_bytes", "400000");
    write("cgroup/memory/a/memory.memsw.usage_in_bytes", "500000");
    write("cgroup/memory/a/memory.stat", "inactive_file 7\ntotal_inactive_file 100000\ntotal_active_file 50000");
    ASSERT_EQ(groups().size(), 1U);
    EXPECT_EQ(groups().front().used, 250000U);
    EXPECT_EQ(groups().front().swap_limit, 500000U);
    EXPECT_EQ(groups().front().swap_used, 100000U);
}

TEST_F(MemoryCgroup, OfWhichUseCannotBeReadHasAllOfItsLimitLeft) {
    write("cgroup-of-self", "0::/a");
    write("cgroup/a/memory.max", "4096");
    write("cgroup/a/memory.current", "many");
    write("cgroup/a/memory.stat", "");
    ASSERT_EQ(groups().size(), 1U);
    EXPECT_EQ(groups().front().left(), 4096U);
}

// What broke: without /proc/meminfo, doctor showed 16777216 TiB.
TEST(HostMemory, ThatCannotBeReadIsUnknown) {
    const testing::TemporaryDirectory directory;
    for (const char* const text : {"", "MemTotal: lots kB\nMemAvailable:\n", "nothing of the kind\n"}) {
        const HostMemory memory = read_host_memory(directory.write("meminfo", text));
        EXPECT_FALSE(memory.total_bytes) << text;
        EXPECT_FALSE(memory.available_bytes) << text;
        EXPECT_FALSE(memory.free_swap_bytes) << text;
    }
    EXPECT_FALSE(read_host_memory(directory / "missing").total_bytes);
}

TEST(HostMemory, IsReadWhereverItsLinesStand) {
    const testing::TemporaryDirectory directory;
    const HostMemory memory = read_host_memory(
        directory.write("meminfo", "SwapFree: 3 kB\nodd line\nMemAvailable:    2 kB\nMemTotal: 4 kB\n"));
    EXPECT_EQ(memory.total_bytes, 4096U);
    EXPECT_EQ(memory.available_bytes, 2048U);
    EXPECT_EQ(memory.free_swap_bytes, 3072U);
}

MemoryGroup group_of(std::optional<std::uint64_t> limit, std::uint64_t used, std::optional<std::uint64_t> high = {}) {
    MemoryGroup group;
    group.limit_file = "/group/memory.max";
    group.high_file = "/group/memory.high";
    group.limit = limit;
    group.high = high;
    group.used = used;
    return group;
}

MemoryFacts roomy_host() {
    MemoryFacts facts;
    facts.host = {64 * kGiB, 32 * kGiB, 0};
    return facts;
}

/// A need of 100 MiB ahead of time out of 200 MiB, with 10 MiB of tables, or 20.
MemoryNeed small_need() {
    MemoryNeed need;
    need.guest = 200 * kMiB;
    need.guest_ahead = 100 * kMiB;
    need.beside = 10 * kMiB;
    need.beside_all = 20 * kMiB;
    need.mapped = 300 * kMiB;
    return need;
}

struct JudgeCase {
    const char* what;
    MemoryGroup group;
    const char* refusal; ///< what it mentions; empty: none
    const char* warning;
};

TEST(JudgeMemory, WeighsWhatIsNeededAgainstWhatIsLeft) {
    const JudgeCase cases[] = {
        {"room for all", group_of(220 * kMiB, 0), "", ""},
        {"room ahead, and not for all", group_of(219 * kMiB, 0), "", "may kill"},
        {"room ahead to the byte", group_of(110 * kMiB, 0), "", "may kill"},
        {"a byte too little", group_of(110 * kMiB - 1, 0), "memory.max", ""},
        {"room, but in use", group_of(220 * kMiB, 111 * kMiB), "109.0 MiB left of 220.0 MiB", ""},
        {"more in use than allowed", group_of(kMiB, 2 * kMiB), "0.0 MiB left", ""},
        {"slowed down ahead of time", group_of(std::nullopt, 0, 109 * kMiB), "memory.high", ""},
        {"slowed down later", group_of(kGiB, 0, 110 * kMiB), "", "slow the guest down"},
        {"no limit", group_of(std::nullopt, kGiB), "", ""},
    };
    for (const JudgeCase& one : cases) {
        MemoryFacts facts = roomy_host();
        facts.groups = {group_of(kGiB, 0), one.group}; // the parent's limit may be the smaller one
        const MemoryVerdict verdict = judge_memory(small_need(), facts);
        EXPECT_EQ(verdict.refusal.empty(), *one.refusal == '\0') << one.what << ": " << verdict.refusal;
        EXPECT_TRUE(testing::mentions(verdict.refusal, one.refusal)) << one.what << ": " << verdict.refusal;
        EXPECT_EQ(verdict.warnings.empty(), *one.warning == '\0') << one.what;
        if (!verdict.warnings.empty()) {
            EXPECT_TRUE(testing::mentions(verdict.warnings.front(), one.warning)) << verdict.warnings.front();
        }
    }
}

TEST(JudgeMemory, CountsPagesOfAPoolWhereTheGroupDoes) {
    MemoryNeed need;
    need.pool = 200 * kMiB;
    need.pool_ahead = 100 * kMiB;
    need.beside = 10 * kMiB;
    need.beside_all = 20 * kMiB;
    MemoryFacts facts = roomy_host();
    facts.host.available_bytes = kMiB; // they are reserved already
    facts.groups = {group_of(110 * kMiB - 1, 0)};
    EXPECT_EQ(judge_memory(need, facts).refusal, "");
    EXPECT_TRUE(judge_memory(need, facts).warnings.empty());
    facts.groups.front().counts_huge_pages = true;
    EXPECT_TRUE(testing::mentions(judge_memory(need, facts).refusal, "it takes 110.0 MiB"))
        << judge_memory(need, facts).refusal;
    facts.groups.front().limit = 110 * kMiB;
    EXPECT_EQ(judge_memory(need, facts).refusal, "");
    EXPECT_EQ(judge_memory(need, facts).warnings.size(), 1U) << "the guest may touch all of it";
    facts.groups.front().limit = 220 * kMiB;
    EXPECT_TRUE(judge_memory(need, facts).warnings.empty());
}

TEST(JudgeMemory, LetsALazyGuestRunWithAWarning) {
    MemoryNeed need = small_need();
    need.guest_ahead = 0;
    MemoryFacts facts = roomy_host();
    facts.groups = {group_of(kMiB, 0)};
    EXPECT_EQ(judge_memory(need, facts).refusal, "");
    EXPECT_EQ(judge_memory(need, facts).warnings.size(), 1U);
    facts.groups.clear();
    facts.host.available_bytes = kMiB;
    EXPECT_EQ(judge_memory(need, facts).refusal, "");
    EXPECT_EQ(judge_memory(need, facts).warnings.size(), 1U);
}

TEST(JudgeMemory, CountsSwapForWhatIsNotLocked) {
    MemoryFacts facts = roomy_host();
    facts.host.free_swap_bytes = kGiB;
    facts.groups = {group_of(150 * kMiB, 0)};
    MemoryNeed need = small_need();
    EXPECT_TRUE(judge_memory(need, facts).warnings.empty());
    need.locked = true;
    EXPECT_EQ(judge_memory(need, facts).warnings.size(), 1U);
    need.locked = false;
    facts.groups.front().swap_limit = 2 * kMiB;
    EXPECT_EQ(judge_memory(need, facts).warnings.size(), 1U);
}

TEST(JudgeMemory, KnowsTheHost) {
    MemoryFacts facts = roomy_host();
    facts.host.available_bytes = 110 * kMiB - 1;
    EXPECT_TRUE(testing::mentions(judge_memory(small_need(), facts).refusal, "this host has 110.0 MiB available"));
    facts.host.available_bytes = 110 * kMiB;
    EXPECT_EQ(judge_memory(small_need(), facts).refusal, "");
}

TEST(JudgeMemory, TakesNothingUnknownForALimit) {
    EXPECT_EQ(judge_memory(small_need(), MemoryFacts{}).refusal, "");
    EXPECT_TRUE(judge_memory(small_need(), MemoryFacts{}).warnings.empty());
    EXPECT_FALSE(available_bytes(MemoryFacts{}));
}

TEST(JudgeMemory, KnowsLimitsOnAddressSpaceOfLazyGuestsToo) {
    MemoryNeed need = small_need();
    need.guest_ahead = 0;
    MemoryFacts facts = roomy_host();
    facts.mapping_limits = {{"RLIMIT_AS", "ulimit -v", 400 * kMiB, 100 * kMiB}};
    EXPECT_EQ(judge_memory(need, facts).refusal, "");
    facts.mapping_limits.front().used += 1;
    EXPECT_TRUE(testing::mentions(judge_memory(need, facts).refusal, "ulimit -v")) << judge_memory(need, facts).refusal;
}

TEST(AvailableMemory, IsTheLeastOfHostAndGroups) {
    MemoryFacts facts = roomy_host();
    EXPECT_EQ(available_bytes(facts), 32 * kGiB);
    facts.groups = {group_of(kGiB, 100 * kMiB), group_of(2 * kGiB, 0, 500 * kMiB)};
    EXPECT_EQ(available_bytes(facts), 500 * kMiB);
    facts.host = {};
    EXPECT_EQ(available_bytes(facts), 500 * kMiB);
}

} // namespace
} // namespace vmm
