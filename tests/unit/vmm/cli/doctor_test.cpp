#include "vmm/cli/doctor.hpp"

#include <gtest/gtest.h>
#include <sys/prctl.h>

#include <algorithm>
#include <string>
#include <vector>

#include "prefault/x86/second_level_host.hpp"
#include "support/host_child_process.hpp"
#include "support/host_errors.hpp"
#include "support/host_temporary_directory.hpp"
#include "vmm/cli/host_settings.hpp"

namespace vmm {
namespace {

using testing::mentions;
using Verdict = Finding::Verdict;

TEST(Doctor, FindsThatAGuestCanRunUnlessSomethingIsFatal) {
    EXPECT_TRUE(can_run_guests({{Verdict::kGood, "KVM", "yes", ""}, {Verdict::kAdvice, "THP", "off", "switch it on"}}));
    EXPECT_FALSE(
        can_run_guests({{Verdict::kGood, "KVM", "yes", ""}, {Verdict::kFatal, "timer", "no", "newer kernel"}}));
}

TEST(Doctor, SaysEachFindingAndItsAdvice) {
    const std::string text =
        to_text({{Verdict::kGood, "memory", "8 GiB", ""}, {Verdict::kFatal, "KVM", "no", "load it"}});
    EXPECT_TRUE(mentions(text, "ok      memory: 8 GiB\n")) << text;
    EXPECT_TRUE(mentions(text, "FATAL   KVM: no\n        load it\n")) << text;
    EXPECT_TRUE(mentions(text, "A guest cannot run here.\n")) << text;
}

TEST(Doctor, SaysThatTheHostIsItselfAGuestWhereItIs) {
    const std::vector<Finding> findings = examine_host();
    EXPECT_EQ(std::ranges::count(findings, "nesting", &Finding::what), prefault::host_is_guest() ? 1 : 0);
}

TEST(Doctor, AlwaysFindsSomething) {
    EXPECT_FALSE(examine_host().empty()); // with or without KVM on this host
}

constexpr const char* kThp = "/sys/kernel/mm/transparent_hugepage/";
constexpr const char* kKvm = "/sys/module/kvm/parameters/";

/// A host with folders like /proc and /sys; everything is switched off.
class FakeHost {
  public:
    /// `path` as on a real host.
    FakeHost& set(const std::string& path, const std::string& value) {
        root_.write(path.substr(1), value + "\n");
        return *this;
    }
    FakeHost& with_two_nodes() {
        const std::string node = "/sys/devices/system/node/";
        return set(node + "online", "0-1")
            .set(node + "node0/meminfo", "Node 0 MemTotal: 1024 kB")
            .set(node + "node1/meminfo", "Node 1 MemTotal: 1024 kB");
    }
    /// A processor with the bug, and KVM's default mitigation.
    FakeHost& with_nx_huge_pages() {
        return set(kKvm + std::string("nx_huge_pages"), "Y")
            .set(kKvm + std::string("nx_huge_pages_recovery_ratio"), "60")
            .set(kKvm + std::string("nx_huge_pages_recovery_period_ms"), "0")
            .set("/sys/devices/system/cpu/vulnerabilities/itlb_multihit", "KVM: Mitigation: Split huge pages");
    }
    FakeHost& with_merging_of_own_memory() {
        merges_own_memory_ = true;
        return *this;
    }
    [[nodiscard]] std::string path(const std::string& name) const { return root_ / name.substr(1); }
    [[nodiscard]] SettingsSources sources() const { return {root_ / "proc", root_ / "sys", merges_own_memory_, ""}; }
    [[nodiscard]] std::vector<Finding> findings() const { return examine_settings(sources()); }
    /// The finding whose name begins with `what`; one called "none" if there is no such finding.
    [[nodiscard]] Finding finding(const std::string& what) const {
        for (const Finding& finding : findings()) {
            if (finding.what.starts_with(what)) {
                return finding;
            }
        }
        return {Verdict::kGood, "none", "", ""};
    }

  private:
    testing::TemporaryDirectory root_;
    bool merges_own_memory_ = false;
};

TEST(HostSettings, SayInOneLineThatNothingIsOn) {
    const auto findings = FakeHost().findings();
    ASSERT_EQ(findings.size(), 1U);
    EXPECT_EQ(findings[0].verdict, Verdict::kGood);
    EXPECT_EQ(findings[0].advice, "");
}

TEST(HostSettings, ThatAreOffAreNoFindings) {
    FakeHost host;
    host.set("/sys/kernel/mm/ksm/run", "0")
        .set(kThp + std::string("enabled"), "always madvise [never]")
        .set("/proc/sys/kernel/numa_balancing", "0")
        .set("/sys/kernel/mm/numa/demotion_enabled", "false")
        .set("/proc/sys/vm/compaction_proactiveness", "0")
        .set("/proc/sys/vm/compact_unevictable_allowed", "0")
        .set(kKvm + std::string("nx_huge_pages"), "N")
        .set("/proc/swaps", "Filename Type Size Used Priority")
        .set("/sys/kernel/mm/damon/admin/kdamonds/nr_kdamonds", "0")
        .set("/sys/module/damon_reclaim/parameters/enabled", "N")
        .set("/sys/module/kvm_intel/parameters/ept", "Y")
        .set("/sys/module/kvm_intel/parameters/eptad", "Y")
        .set("/sys/module/kvm_amd/parameters/avic", "N")
        .set("/proc/sys/kernel/io_uring_disabled", "0")
        .set("/sys/kernel/mm/lru_gen/enabled", "0x0007")
        .with_two_nodes();
    EXPECT_EQ(host.findings().size(), 1U) << to_text(host.findings());
    EXPECT_EQ(host.findings()[0].verdict, Verdict::kGood);
}

TEST(HostSettings, ThatAreNoNumbersAreNoFindings) {
    FakeHost host;
    host.set("/sys/kernel/mm/ksm/run", "on")
        .set("/proc/sys/vm/compaction_proactiveness", "")
        .set("/proc/sys/vm/compact_unevictable_allowed", "?")
        .set("/proc/swaps", "")
        .set(kThp + std::string("enabled"), "always]madvise[");
    EXPECT_EQ(host.findings().size(), 1U) << to_text(host.findings());
}

TEST(HostSettings, NeverKeepAGuestFromRunning) {
    FakeHost host;
    host.with_nx_huge_pages();
    host.set("/proc/swaps", "Filename Type Size Used Priority\n/swap file 1024 0 -2")
        .set("/sys/kernel/mm/ksm/run", "1");
    EXPECT_TRUE(can_run_guests(host.findings()));
}

TEST(HostSettings, SayThatGuestMemoryIsKeptFromMerging) {
    FakeHost host;
    host.set("/sys/kernel/mm/ksm/run", "1");
    EXPECT_EQ(host.finding("same-page merging").verdict, Verdict::kGood);
    const Finding finding = host.with_merging_of_own_memory().finding("same-page merging");
    EXPECT_EQ(finding.verdict, Verdict::kGood);
    EXPECT_TRUE(mentions(finding.value, "but guest memory")) << finding.value;
}

TEST(HostSettings, SayWhichPagesAWarmPoolCanHave) {
    FakeHost host;
    host.set(kThp + std::string("shmem_enabled"), "always within_size advise [never] deny force");
    const Finding without = host.finding("warm memory");
    EXPECT_EQ(without.verdict, Verdict::kGood);
    EXPECT_TRUE(mentions(without.value, "echo advise | sudo tee " + host.path(kThp + std::string("shmem_enabled"))))
        << without.value;
    host.set(kThp + std::string("shmem_enabled"), "always within_size [advise] never deny force");
    EXPECT_EQ(host.finding("warm memory").value, "2M, 4K and thp");
}

TEST(HostSettings, SeeWhatAParentHasOfferedToMerging) {
    constexpr int kSetMemoryMerge = 67; // PR_SET_MEMORY_MERGE, Linux 6.4
    const std::string seen = testing::in_child_process([] {
        const bool set = ::prctl(kSetMemoryMerge, 1UL, 0UL, 0UL, 0UL) == 0;
        return std::string(!set ? "cannot be set here" : merges_own_memory() ? "seen" : "overlooked");
    });
    if (seen == "cannot be set here") {
        GTEST_SKIP() << "this kernel has no PR_SET_MEMORY_MERGE";
    }
    EXPECT_EQ(seen, "seen");
}

TEST(HostSettings, LeaveKhugepagedInPeaceWhereHugePagesAreMadeOnDemand) {
    FakeHost host;
    host.set(kThp + std::string("enabled"), "always [madvise] never")
        .set(kThp + std::string("defrag"), "always defer defer+madvise [madvise] never");
    EXPECT_EQ(host.finding("khugepaged").verdict, Verdict::kGood);
    host.set(kThp + std::string("defrag"), "always [defer] defer+madvise madvise never");
    const Finding finding = host.finding("khugepaged");
    EXPECT_EQ(finding.verdict, Verdict::kAdvice);
    EXPECT_TRUE(mentions(finding.value, "defrag is defer")) << finding.value;
    EXPECT_TRUE(mentions(finding.advice, "echo madvise | sudo tee")) << finding.advice;
}

TEST(HostSettings, AdviseAgainstSplittingHugePagesOfZerosUnlessItsThresholdIsNever) {
    FakeHost host;
    host.set(kThp + std::string("enabled"), "[always] madvise never")
        .set(kThp + std::string("shrink_underused"), "1")
        .set(kThp + std::string("khugepaged/max_ptes_none"), "511");
    EXPECT_EQ(host.finding("splitting of unused").what, "none");
    host.set(kThp + std::string("khugepaged/max_ptes_none"), "409");
    const Finding finding = host.finding("splitting of unused");
    EXPECT_EQ(finding.verdict, Verdict::kAdvice);
    EXPECT_TRUE(mentions(finding.value, "409")) << finding.value;
    EXPECT_TRUE(mentions(finding.advice, "--page-size=2M")) << finding.advice;
}

TEST(HostSettings, CallNumaBalancingHarmlessAndSilentOnOneNode) {
    FakeHost host;
    host.set("/proc/sys/kernel/numa_balancing", "1");
    EXPECT_EQ(host.finding("NUMA balancing").what, "none");
    host.with_two_nodes();
    EXPECT_EQ(host.finding("NUMA balancing").what, "NUMA balancing");
    EXPECT_EQ(host.finding("NUMA balancing").verdict, Verdict::kGood);
}

TEST(HostSettings, AdviseAgainstDemotionWhereThereIsANodeToDemoteTo) {
    FakeHost host;
    host.set("/sys/kernel/mm/numa/demotion_enabled", "true");
    EXPECT_EQ(host.finding("demotion").what, "none");
    EXPECT_EQ(host.with_two_nodes().finding("demotion").verdict, Verdict::kAdvice);
}

TEST(HostSettings, AdviseAgainstCompactionOfLockedPages) {
    FakeHost host;
    host.set("/proc/sys/vm/compaction_proactiveness", "20").set("/proc/sys/vm/compact_unevictable_allowed", "1");
    const Finding finding = host.finding("compaction");
    EXPECT_EQ(finding.verdict, Verdict::kAdvice);
    EXPECT_TRUE(mentions(finding.value, "proactiveness 20")) << finding.value;
    EXPECT_TRUE(mentions(finding.advice, "--pin=longterm")) << finding.advice;
    EXPECT_TRUE(mentions(finding.advice, "sudo sysctl vm.compact_unevictable_allowed=0 vm.compaction_proactiveness=0"))
        << finding.advice;
}

TEST(HostSettings, AreContentWithCompactionThatLeavesLockedPagesAlone) {
    FakeHost host;
    host.set("/proc/sys/vm/compaction_proactiveness", "20").set("/proc/sys/vm/compact_unevictable_allowed", "0");
    EXPECT_EQ(host.finding("compaction").verdict, Verdict::kGood);
}

TEST(HostSettings, SayHowOftenSplitsOfExecutablePagesAreUndone) {
    FakeHost host;
    host.with_nx_huge_pages();
    Finding finding = host.finding("splitting of executable");
    EXPECT_EQ(finding.verdict, Verdict::kAdvice);
    EXPECT_TRUE(mentions(finding.value, "1/60 of the splits every 60 s")) << finding.value;
    EXPECT_TRUE(mentions(finding.advice, "--page-size=4K")) << finding.advice;
    host.set(kKvm + std::string("nx_huge_pages_recovery_period_ms"), "1500");
    finding = host.finding("splitting of executable");
    EXPECT_TRUE(mentions(finding.value, "every 2 s")) << finding.value;
}

TEST(HostSettings, KnowThatSplitsOfExecutablePagesMayStay) {
    FakeHost host;
    host.with_nx_huge_pages();
    host.set(kKvm + std::string("nx_huge_pages_recovery_ratio"), "0");
    const Finding finding = host.finding("splitting of executable");
    EXPECT_TRUE(mentions(finding.value, "for good")) << finding.value;
    EXPECT_FALSE(mentions(finding.advice, "recovery_ratio")) << finding.advice;
}

TEST(HostSettings, CountAtMostOneRecoveryASecond) {
    FakeHost host;
    host.with_nx_huge_pages();
    host.set(kKvm + std::string("nx_huge_pages_recovery_ratio"), "1000000");
    EXPECT_TRUE(mentions(host.finding("splitting of executable").value, "every 1 s"));
}

TEST(HostSettings, AdviseToDropAMitigationTheProcessorDoesNotNeed) {
    FakeHost host;
    host.with_nx_huge_pages();
    host.set("/sys/devices/system/cpu/vulnerabilities/itlb_multihit", "Not affected");
    const Finding finding = host.finding("splitting of executable");
    EXPECT_TRUE(mentions(finding.advice, "echo off | sudo tee " + host.path(kKvm) + "nx_huge_pages`"))
        << finding.advice;
}

TEST(HostSettings, AddUpSwap) {
    FakeHost host;
    host.set("/proc/swaps", "Filename\tType\tSize\tUsed\tPriority\n"
                            "/dev/sda2  partition\t1048576\t0\t-2\n/swap\\040file file 2097152 5 -3");
    const Finding finding = host.finding("swap");
    EXPECT_EQ(finding.verdict, Verdict::kAdvice);
    EXPECT_EQ(finding.value, "3 GiB in 2 areas");
}

TEST(HostSettings, SeeDamonByItsThread) {
    FakeHost host;
    host.set("/proc/1/comm", "init").set("/proc/77/comm", "kdamond.0");
    EXPECT_EQ(host.finding("access monitoring").value, "1 running");
}

TEST(HostSettings, SeeDamonByItsSwitchesAndSayHowToStopIt) {
    FakeHost host;
    host.set("/sys/kernel/mm/damon/admin/kdamonds/0/state", "on").set("/proc/77/comm", "kdamond.0");
    const Finding finding = host.finding("access monitoring");
    EXPECT_EQ(finding.value, "1 running"); // The thread and the switch belong together.
    EXPECT_TRUE(
        mentions(finding.advice, "echo off | sudo tee " + host.path("/sys/kernel/mm/damon/admin/kdamonds/0/state")))
        << finding.advice;
}

TEST(HostSettings, AdviseAgainstASecondLevelWithoutAccessedBits) {
    FakeHost host;
    host.set("/sys/module/kvm_intel/parameters/ept", "Y")
        .set("/sys/module/kvm_intel/parameters/eptad", "N")
        .set("/sys/kernel/mm/lru_gen/enabled", "0x0007");
    EXPECT_EQ(host.finding("accessed bits").value, "off, and pages are aged by MGLRU");
    EXPECT_EQ(host.set("/sys/kernel/mm/lru_gen/enabled", "0x0000").finding("accessed bits").value, "off");
}

TEST(HostSettings, CallAvicHarmless) {
    FakeHost host;
    EXPECT_EQ(host.set("/sys/module/kvm_amd/parameters/avic", "1").finding("AVIC").verdict, Verdict::kGood);
}

TEST(HostSettings, SayWhoMayUseIoUring) {
    FakeHost host;
    EXPECT_TRUE(
        mentions(host.set("/proc/sys/kernel/io_uring_disabled", "1").finding("io_uring").value, "CAP_SYS_ADMIN"));
    const Finding finding = host.set("/proc/sys/kernel/io_uring_disabled", "2").finding("io_uring");
    EXPECT_EQ(finding.value, "disabled");
    EXPECT_TRUE(mentions(finding.advice, "--pin=longterm")) << finding.advice;
}

TEST(HostSettings, NameTheControlGroupThatReclaims) {
    FakeHost host;
    host.set("/proc/self/cgroup", "0::/user/session")
        .set("/sys/fs/cgroup/user/memory.high", "1073741824")
        .set("/sys/fs/cgroup/user/session/memory.high", "max")
        .set("/sys/fs/cgroup/user/session/memory.max", "2147483648");
    const Finding finding = host.finding("control group");
    EXPECT_EQ(finding.verdict, Verdict::kAdvice);
    EXPECT_TRUE(mentions(finding.value, "1 GiB")) << finding.value;
    EXPECT_TRUE(mentions(finding.advice, host.path("/sys/fs/cgroup/user/memory.high"))) << finding.advice;
}

TEST(HostSettings, SayTheLimitOfAControlGroupThatDoesNotReclaim) {
    FakeHost host;
    host.set("/proc/self/cgroup", "0::/user").set("/sys/fs/cgroup/user/memory.max", "2147483648");
    EXPECT_EQ(host.finding("control group").value, "at most 2 GiB");
    EXPECT_EQ(host.finding("control group").verdict, Verdict::kGood);
}

TEST(HostSettings, TakeOneLineAndOneOfAdviceEach) {
    FakeHost host;
    host.with_nx_huge_pages();
    host.set("/proc/swaps", "Filename Type Size Used Priority\n/swap file 1024 0 -2")
        .set("/proc/sys/vm/compact_unevictable_allowed", "1");
    for (const Finding& finding : host.findings()) {
        EXPECT_FALSE(mentions(finding.value + finding.advice, "\n")) << finding.what;
        EXPECT_EQ(finding.verdict == Verdict::kGood, finding.advice.empty()) << finding.what;
    }
}

Finding finding_of(const std::vector<Finding>& findings, const std::string& what) {
    for (const Finding& finding : findings) {
        if (finding.what.starts_with(what)) {
            return finding;
        }
    }
    return {Verdict::kGood, "none", "", ""};
}

// What broke: without /proc/meminfo, doctor showed 16777216 TiB.
TEST(Doctor, CallsUnknownWhatItCannotRead) {
    const auto findings = examine_host(FakeHost().sources());
    EXPECT_EQ(finding_of(findings, "memory").value, "unknown available of unknown");
    EXPECT_EQ(finding_of(findings, "memory").verdict, Verdict::kAdvice);
    EXPECT_EQ(finding_of(findings, "huge pages of 2 MiB").value, "unknown");
    EXPECT_EQ(finding_of(findings, "transparent huge pages").value, "unknown");
    EXPECT_TRUE(mentions(finding_of(findings, "processors").value, "unknown number of NUMA nodes"));
    EXPECT_FALSE(mentions(to_text(findings), "TiB"));
}

TEST(Doctor, SaysWhichSettingsItCannotSee) {
    const FakeHost host;
    EXPECT_EQ(finding_of(examine_host(host.sources()), "settings in " + host.path("/sys/module")).value, "unknown");
    FakeHost seen;
    seen.set("/sys/module/kvm/parameters/nx_huge_pages", "N");
    EXPECT_EQ(finding_of(examine_host(seen.sources()), "settings in " + seen.path("/sys/module")).what, "none");
}

TEST(Doctor, TellsAMissingPageSizeFromOneItCannotSee) {
    FakeHost host;
    host.set("/sys/kernel/mm/ksm/run", "0");
    const auto findings = examine_host(host.sources());
    EXPECT_EQ(finding_of(findings, "huge pages of 2 MiB").value, "not on this host");
    EXPECT_EQ(finding_of(findings, "transparent huge pages").value, "not in this kernel");
}

// What broke: doctor did not count pages that the kernel makes on demand, which a guest can use as well.
TEST(Doctor, CountsSurplusHugePages) {
    const std::string pool = "/sys/kernel/mm/hugepages/hugepages-2048kB/";
    FakeHost host;
    host.set(pool + "nr_hugepages", "0").set(pool + "free_hugepages", "0").set(pool + "nr_overcommit_hugepages", "100");
    Finding finding = finding_of(examine_host(host.sources()), "huge pages of 2 MiB");
    EXPECT_EQ(finding.verdict, Verdict::kGood);
    EXPECT_TRUE(mentions(finding.value, "up to 100 more on demand")) << finding.value;
    host.set(pool + "nr_hugepages", "30").set(pool + "surplus_hugepages", "30");
    finding = finding_of(examine_host(host.sources()), "huge pages of 2 MiB");
    EXPECT_TRUE(mentions(finding.value, "30 are surplus")) << finding.value;
    EXPECT_TRUE(mentions(finding.value, "up to 70 more on demand")) << finding.value;
    host.set(pool + "nr_overcommit_hugepages", "0")
        .set(pool + "nr_hugepages", "0")
        .set(pool + "surplus_hugepages", "0");
    EXPECT_EQ(finding_of(examine_host(host.sources()), "huge pages of 2 MiB").verdict, Verdict::kAdvice);
}

TEST(HostSettings, SayThatIoUringIsForbiddenWhateverTheSwitchSays) {
    const FakeHost host;
    SettingsSources sources = host.sources();
    sources.why_no_io_uring = "cannot make an io_uring for pinning guest memory: Operation not permitted";
    const Finding finding = finding_of(examine_settings(sources), "io_uring");
    EXPECT_EQ(finding.verdict, Verdict::kAdvice);
    EXPECT_TRUE(mentions(finding.advice, "Operation not permitted")) << finding.advice;
}

} // namespace
} // namespace vmm
