#include "vmm/report.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <set>
#include <string>

#include "support/host_errors.hpp"
#include "vmm/version.hpp"

namespace vmm {
namespace {

using nlohmann::json;
using testing::mentions;

/// A report in which no two numbers are the same.
RunReport whole_report() {
    RunReport report;
    report.host = {prefault::SecondLevelKind::kNpt, true};
    report.kvm_pre_fault_memory = true;
    report.memory_bytes = 512 * kMiB;
    report.page_size = PageSize::k2M;
    report.pin = prefault::Pin::kMlock;
    report.prefault.scope = prefault::Scope::kAll;
    report.prefault.method = prefault::Method::kTouch;
    report.prefault.workers = 3;
    report.prefault.host_seconds = 0.5;
    report.prefault.pin_seconds = 0.25;
    report.prefault.second_level_seconds = 0.125;
    report.prefault.total_seconds = 0.875;
    report.prefault.mapped = {11, 12, 13};
    report.prefault.top_up_passes = 1;
    report.prefault.complete = true;
    report.seconds_to_first_instruction = 1.5;
    report.vcpus = 2;
    report.guest_seconds = 2.5;
    report.exit = ExitReason::kPowerOff;
    report.second_level_faults = {5, 7};
    report.resident_overhead_bytes = 9 * kMiB;
    return report;
}

/// "/host/tdp_mmu" and the like: every value there is.
std::set<std::string> members_of(const json& document) {
    std::set<std::string> members;
    const json flat = document.flatten();
    for (const auto& [path, value] : flat.items()) {
        members.insert(path);
    }
    return members;
}

TEST(ReportJson, HasTheMembersOfTheSchema) {
    const std::set<std::string> schema{"/schema",
                                       "/host/second_level",
                                       "/host/tdp_mmu",
                                       "/host/kvm_pre_fault_memory",
                                       "/memory/bytes",
                                       "/memory/page_size",
                                       "/memory/pin",
                                       "/prefault/scope",
                                       "/prefault/method",
                                       "/prefault/workers",
                                       "/prefault/seconds/host",
                                       "/prefault/seconds/pin",
                                       "/prefault/seconds/second_level",
                                       "/prefault/seconds/total",
                                       "/prefault/mapped/4k",
                                       "/prefault/mapped/2m",
                                       "/prefault/mapped/1g",
                                       "/prefault/top_up_passes",
                                       "/prefault/complete",
                                       "/boot/seconds_to_first_instruction",
                                       "/guest/vcpus",
                                       "/guest/seconds",
                                       "/guest/exit",
                                       "/guest/second_level_faults/0",
                                       "/guest/second_level_faults/1",
                                       "/guest/second_level_faults_total",
                                       "/vmm/version",
                                       "/vmm/resident_overhead_bytes"};
    EXPECT_EQ(members_of(json::parse(to_json(whole_report()))), schema);
}

TEST(ReportJson, HasEachValueInItsPlace) {
    const json report = json::parse(to_json(whole_report()));
    EXPECT_EQ(report["schema"], 1);
    EXPECT_EQ(report["host"], (json{{"second_level", "npt"}, {"tdp_mmu", true}, {"kvm_pre_fault_memory", true}}));
    EXPECT_EQ(report["memory"], (json{{"bytes", 512 * kMiB}, {"page_size", "2M"}, {"pin", "mlock"}}));
    EXPECT_EQ(report["prefault"]["scope"], "all");
    EXPECT_EQ(report["prefault"]["method"], "touch");
    EXPECT_EQ(report["prefault"]["workers"], 3);
    EXPECT_EQ(report["prefault"]["seconds"],
              (json{{"host", 0.5}, {"pin", 0.25}, {"second_level", 0.125}, {"total", 0.875}}));
    EXPECT_EQ(report["prefault"]["mapped"], (json{{"4k", 11}, {"2m", 12}, {"1g", 13}}));
    EXPECT_EQ(report["prefault"]["complete"], true);
    EXPECT_EQ(report["boot"]["seconds_to_first_instruction"], 1.5);
    EXPECT_EQ(report["guest"]["vcpus"], 2);
    EXPECT_EQ(report["guest"]["seconds"], 2.5);
    EXPECT_EQ(report["guest"]["exit"], "poweroff");
    EXPECT_EQ(report["guest"]["second_level_faults"], (json{5, 7}));
    EXPECT_EQ(report["guest"]["second_level_faults_total"], 12);
    EXPECT_EQ(report["vmm"], (json{{"version", kVersion}, {"resident_overhead_bytes", 9 * kMiB}}));
}

TEST(ReportJson, OfNothingDoneIsStillWhole) {
    const json report = json::parse(to_json(RunReport{}));
    EXPECT_EQ(report["prefault"]["scope"], "none");
    EXPECT_EQ(report["prefault"]["method"], "none");
    EXPECT_EQ(report["guest"]["second_level_faults"], json::array());
    EXPECT_EQ(report["guest"]["second_level_faults_total"], 0);
}

TEST(ReportJson, KeepsLargeCountsExact) {
    RunReport report;
    report.second_level_faults = {UINT64_MAX - 1, 1};
    EXPECT_EQ(json::parse(to_json(report))["guest"]["second_level_faults_total"], UINT64_MAX);
}

TEST(ReportJson, EndsWithANewline) {
    EXPECT_EQ(to_json(RunReport{}).back(), '\n');
}

TEST(ReportSummary, TellsPeopleWhatHappened) {
    const std::string summary = to_summary(whole_report());
    EXPECT_TRUE(mentions(summary, "prefault: all in 0.875 s with 3 workers")) << summary;
    EXPECT_TRUE(mentions(summary, "13 x 1G + 12 x 2M + 11 x 4K (npt), complete")) << summary;
    EXPECT_TRUE(mentions(summary, "guest: poweroff after 2.500 s on 2 vCPUs")) << summary;
    EXPECT_TRUE(mentions(summary, "second-level faults: 12 ")) << summary;
    EXPECT_TRUE(mentions(summary, "9.0 MiB")) << summary;
    EXPECT_NE(summary.back(), '\n');
}

TEST(ReportSummary, SaysThatAPrefaultWasNotComplete) {
    RunReport report = whole_report();
    report.prefault.complete = false;
    EXPECT_TRUE(mentions(to_summary(report), "NOT complete"));
}

TEST(ReportSummary, SaysThatThereWasNoPrefault) {
    EXPECT_TRUE(to_summary(RunReport{}).starts_with("prefault: none\n"));
}

} // namespace
} // namespace vmm
