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

prefault::KeptReport whole_kept() {
    prefault::KeptReport kept;
    kept.every_ms = 250;
    kept.looks = 101;
    kept.losses = 102;
    kept.lost_bytes = 103 * kMiB;
    kept.splits = 104;
    kept.refills = 105;
    kept.faults = 106;
    kept.longest_spell_seconds = 0.75;
    kept.refill_seconds = 1.25;
    kept.watch_cpu_seconds = 0.0078125;
    kept.problem = "no counters";
    kept.events_total = 107;
    prefault::KeptEvent event;
    event.seconds = 3.5;
    event.before = {31, 32, 33};
    event.mapped = {34, 35, 36};
    event.lost_bytes = 108;
    event.faults = 109;
    event.spell_seconds = 4.5;
    event.wait_seconds = 5.5;
    event.refills = 110;
    event.causes = {"compaction"};
    event.counts = {{"compact_isolated", 111}};
    event.problem = "no memory";
    kept.events = {event};
    return kept;
}

/// A report in which no two numbers are equal.
RunReport whole_report() {
    RunReport report;
    report.host = {prefault::SecondLevelKind::kNpt, true, true};
    report.kvm_pre_fault_memory = true;
    report.memory_bytes = 512 * kMiB;
    report.page_size = PageSize::k2M;
    report.pin = prefault::Pin::kMlock;
    report.numa = {prefault::NumaPolicy::Kind::kNode, 4};
    report.warm_bytes = 20 * kMiB;
    report.locked_bytes = 21 * kMiB;
    report.pinned_bytes = 22 * kMiB;
    report.prefault_when = PrefaultWhen::kBackground;
    report.prefault.scope = prefault::Scope::kAll;
    report.prefault.ranges = {{GuestAddress{0}, 23 * kMiB}, {GuestAddress{4 * kGiB}, 24 * kMiB}};
    report.prefault.bytes = 47 * kMiB;
    report.prefault.method = prefault::Method::kTouch;
    report.prefault.method_reason = "asked for";
    report.prefault.workers = 3;
    report.prefault.host_seconds = 0.5;
    report.prefault.pin_seconds = 0.25;
    report.prefault.second_level_seconds = 0.125;
    report.prefault.smm_seconds = 0.0625;
    report.prefault.total_seconds = 0.9375;
    report.prefault.mapped = {11, 12, 13};
    report.prefault.smm_mapped = {14, 15, 16};
    report.prefault.proof = prefault::Proof::kCounters;
    report.prefault.top_up_passes = 1;
    report.prefault.complete = true;
    report.seconds_until_full = 0.375;
    report.faults_until_full = 17;
    report.kept = whole_kept();
    report.lazy = LazyReport{.chunks = 40,
                             .demanded_chunks = 41,
                             .working_set_chunks = 42,
                             .longest_wait_seconds = 0.5,
                             .seconds_until_loaded = 2.5};
    report.arrival = ArrivalReport{.shared = true,
                                   .received_bytes = 51,
                                   .resumed = 52,
                                   .receiving_seconds = 3.5,
                                   .fill_seconds = 1.25,
                                   .mapped_bytes = 53,
                                   .takeover_seconds = 0.0625,
                                   .faults_in_first_second = 54,
                                   .faults_in_ten_seconds = 55};
    report.seconds_to_first_instruction = 1.5;
    report.vcpus = 2;
    report.cpu = "x86-64-v2";
    report.nested = true;
    report.hardware = HardwareDescription::kBoth;
    report.guest_seconds = 2.5;
    report.exit = ExitReason::kPowerOff;
    report.second_level_faults = {5, 7};
    report.exits = {11, 13};
    report.output = {{"serial", 25, 0, ""}, {"console", 26, 27, "the disk is full"}};
    report.mapped = {18, 19, 20};
    report.resident_overhead_bytes = 9 * kMiB;
    report.teardown_seconds = 0.03125;
    return report;
}

/// "/host/tdp_mmu" and so on: the paths of all values.
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
                                       "/host/nested",
                                       "/memory/bytes",
                                       "/memory/page_size",
                                       "/memory/pin",
                                       "/memory/locked_bytes",
                                       "/memory/pinned_bytes",
                                       "/memory/numa",
                                       "/memory/warm_bytes",
                                       "/prefault/scope",
                                       "/prefault/bytes",
                                       "/prefault/ranges/0/base",
                                       "/prefault/ranges/0/bytes",
                                       "/prefault/ranges/1/base",
                                       "/prefault/ranges/1/bytes",
                                       "/prefault/when",
                                       "/prefault/method",
                                       "/prefault/method_reason",
                                       "/prefault/workers",
                                       "/prefault/seconds/host",
                                       "/prefault/seconds/pin",
                                       "/prefault/seconds/second_level",
                                       "/prefault/seconds/smm",
                                       "/prefault/seconds/total",
                                       "/prefault/mapped/4k",
                                       "/prefault/mapped/2m",
                                       "/prefault/mapped/1g",
                                       "/prefault/smm_mapped/4k",
                                       "/prefault/smm_mapped/2m",
                                       "/prefault/smm_mapped/1g",
                                       "/prefault/top_up_passes",
                                       "/prefault/proof",
                                       "/prefault/complete",
                                       "/prefault/problem",
                                       "/prefault/seconds_until_full",
                                       "/prefault/faults_until_full",
                                       "/kept/every_ms",
                                       "/kept/looks",
                                       "/kept/losses",
                                       "/kept/lost_bytes",
                                       "/kept/splits",
                                       "/kept/refills",
                                       "/kept/faults",
                                       "/kept/longest_spell_seconds",
                                       "/kept/refill_seconds",
                                       "/kept/watch_cpu_seconds",
                                       "/kept/full",
                                       "/kept/problem",
                                       "/kept/events_total",
                                       "/kept/events/0/kind",
                                       "/kept/events/0/seconds",
                                       "/kept/events/0/before/4k",
                                       "/kept/events/0/before/2m",
                                       "/kept/events/0/before/1g",
                                       "/kept/events/0/mapped/4k",
                                       "/kept/events/0/mapped/2m",
                                       "/kept/events/0/mapped/1g",
                                       "/kept/events/0/lost_bytes",
                                       "/kept/events/0/faults",
                                       "/kept/events/0/spell_seconds",
                                       "/kept/events/0/wait_seconds",
                                       "/kept/events/0/refills",
                                       "/kept/events/0/causes/0",
                                       "/kept/events/0/counts/compact_isolated",
                                       "/kept/events/0/problem",
                                       "/lazy/chunks",
                                       "/lazy/demanded_chunks",
                                       "/lazy/working_set_chunks",
                                       "/lazy/longest_wait_seconds",
                                       "/lazy/seconds_until_loaded",
                                       "/arrival/shared",
                                       "/arrival/received_bytes",
                                       "/arrival/resumed",
                                       "/arrival/receiving_seconds",
                                       "/arrival/fill_seconds",
                                       "/arrival/mapped_bytes",
                                       "/arrival/takeover_seconds",
                                       "/arrival/faults_in_first_second",
                                       "/arrival/faults_in_ten_seconds",
                                       "/boot/seconds_to_first_instruction",
                                       "/guest/vcpus",
                                       "/guest/cpu",
                                       "/guest/nested",
                                       "/guest/hardware",
                                       "/guest/seconds",
                                       "/guest/exit",
                                       "/guest/second_level_faults/0",
                                       "/guest/second_level_faults/1",
                                       "/guest/second_level_faults_total",
                                       "/guest/exits/0",
                                       "/guest/exits/1",
                                       "/guest/exits_total",
                                       "/guest/output/0/device",
                                       "/guest/output/0/bytes",
                                       "/guest/output/0/lost_bytes",
                                       "/guest/output/0/lost_because",
                                       "/guest/output/1/device",
                                       "/guest/output/1/bytes",
                                       "/guest/output/1/lost_bytes",
                                       "/guest/output/1/lost_because",
                                       "/guest/mapped/4k",
                                       "/guest/mapped/2m",
                                       "/guest/mapped/1g",
                                       "/vmm/version",
                                       "/vmm/resident_overhead_bytes",
                                       "/vmm/teardown_seconds"};
    EXPECT_EQ(members_of(json::parse(to_json(whole_report()))), schema);
}

TEST(ReportJson, HasEachValueInItsPlace) {
    const json report = json::parse(to_json(whole_report()));
    EXPECT_EQ(report["schema"], 1);
    EXPECT_EQ(report["host"],
              (json{{"second_level", "npt"}, {"tdp_mmu", true}, {"kvm_pre_fault_memory", true}, {"nested", false}}));
    RunReport in_a_guest = whole_report();
    in_a_guest.host.nested = true;
    EXPECT_EQ(json::parse(to_json(in_a_guest))["host"]["nested"], true);
    EXPECT_EQ(report["memory"], (json{{"bytes", 512 * kMiB},
                                      {"page_size", "2M"},
                                      {"pin", "mlock"},
                                      {"locked_bytes", 21 * kMiB},
                                      {"pinned_bytes", 22 * kMiB},
                                      {"numa", "4"},
                                      {"warm_bytes", 20 * kMiB}}));
    EXPECT_EQ(report["prefault"]["scope"], "ranges");
    EXPECT_EQ(report["prefault"]["bytes"], 47 * kMiB);
    EXPECT_EQ(report["prefault"]["ranges"],
              json::array({json{{"base", 0}, {"bytes", 23 * kMiB}}, json{{"base", 4 * kGiB}, {"bytes", 24 * kMiB}}}));
    EXPECT_EQ(report["prefault"]["when"], "background");
    EXPECT_EQ(report["prefault"]["method"], "touch");
    EXPECT_EQ(report["prefault"]["method_reason"], "asked for");
    EXPECT_EQ(report["prefault"]["workers"], 3);
    EXPECT_EQ(report["prefault"]["seconds"],
              (json{{"host", 0.5}, {"pin", 0.25}, {"second_level", 0.125}, {"smm", 0.0625}, {"total", 0.9375}}));
    EXPECT_EQ(report["prefault"]["mapped"], (json{{"4k", 11}, {"2m", 12}, {"1g", 13}}));
    EXPECT_EQ(report["prefault"]["smm_mapped"], (json{{"4k", 14}, {"2m", 15}, {"1g", 16}}));
    EXPECT_EQ(report["prefault"]["top_up_passes"], 1);
    EXPECT_EQ(report["prefault"]["proof"], "counters");
    EXPECT_EQ(report["prefault"]["complete"], true);
    EXPECT_EQ(report["prefault"]["problem"], "");
    EXPECT_EQ(report["prefault"]["seconds_until_full"], 0.375);
    EXPECT_EQ(report["prefault"]["faults_until_full"], 17);
    EXPECT_EQ(report["lazy"], (json{{"chunks", 40},
                                    {"demanded_chunks", 41},
                                    {"working_set_chunks", 42},
                                    {"longest_wait_seconds", 0.5},
                                    {"seconds_until_loaded", 2.5}}));
    EXPECT_EQ(report["arrival"], (json{{"shared", true},
                                       {"received_bytes", 51},
                                       {"resumed", 52},
                                       {"receiving_seconds", 3.5},
                                       {"fill_seconds", 1.25},
                                       {"mapped_bytes", 53},
                                       {"takeover_seconds", 0.0625},
                                       {"faults_in_first_second", 54},
                                       {"faults_in_ten_seconds", 55}}));
    EXPECT_EQ(report["boot"]["seconds_to_first_instruction"], 1.5);
    EXPECT_EQ(report["guest"]["vcpus"], 2);
    EXPECT_EQ(report["guest"]["cpu"], "x86-64-v2");
    EXPECT_EQ(report["guest"]["nested"], true);
    EXPECT_EQ(report["guest"]["hardware"], "both");
    EXPECT_EQ(report["guest"]["seconds"], 2.5);
    EXPECT_EQ(report["guest"]["exit"], "poweroff");
    EXPECT_EQ(report["guest"]["second_level_faults"], (json{5, 7}));
    EXPECT_EQ(report["guest"]["second_level_faults_total"], 12);
    EXPECT_EQ(report["guest"]["exits"], (json{11, 13}));
    EXPECT_EQ(report["guest"]["exits_total"], 24);
    EXPECT_EQ(report["guest"]["output"],
              (json{{{"device", "serial"}, {"bytes", 25}, {"lost_bytes", 0}, {"lost_because", ""}},
                    {{"device", "console"}, {"bytes", 26}, {"lost_bytes", 27}, {"lost_because", "the disk is full"}}}));
    EXPECT_EQ(report["guest"]["mapped"], (json{{"4k", 18}, {"2m", 19}, {"1g", 20}}));
    EXPECT_EQ(report["vmm"],
              (json{{"version", kVersion}, {"resident_overhead_bytes", 9 * kMiB}, {"teardown_seconds", 0.03125}}));
}

TEST(ReportJson, HasWhatTheKeeperSawAndDid) {
    const json kept = json::parse(to_json(whole_report()))["kept"];
    json expected{{"every_ms", 250},        {"looks", 101},
                  {"losses", 102},          {"lost_bytes", 103 * kMiB},
                  {"splits", 104},          {"refills", 105},
                  {"faults", 106},          {"longest_spell_seconds", 0.75},
                  {"refill_seconds", 1.25}, {"watch_cpu_seconds", 0.0078125},
                  {"full", false},          {"problem", "no counters"},
                  {"events_total", 107}};
    expected["events"] = json::array({json{{"kind", "lost"},
                                           {"seconds", 3.5},
                                           {"before", {{"4k", 31}, {"2m", 32}, {"1g", 33}}},
                                           {"mapped", {{"4k", 34}, {"2m", 35}, {"1g", 36}}},
                                           {"lost_bytes", 108},
                                           {"faults", 109},
                                           {"spell_seconds", 4.5},
                                           {"wait_seconds", 5.5},
                                           {"refills", 110},
                                           {"causes", json::array({"compaction"})},
                                           {"counts", {{"compact_isolated", 111}}},
                                           {"problem", "no memory"}}});
    EXPECT_EQ(kept, expected);
    EXPECT_TRUE(json::parse(to_json(RunReport{}))["kept"].is_null());
}

TEST(ReportJson, OfNothingDoneIsStillWhole) {
    const json report = json::parse(to_json(RunReport{}));
    EXPECT_EQ(report["prefault"]["scope"], "none");
    EXPECT_EQ(report["prefault"]["method"], "none");
    EXPECT_EQ(report["prefault"]["ranges"], json::array());
    EXPECT_EQ(report["prefault"]["when"], "before");
    EXPECT_EQ(report["prefault"]["proof"], "none");
    EXPECT_EQ(report["memory"]["numa"], "default");
    EXPECT_EQ(report["guest"]["second_level_faults"], json::array());
    EXPECT_EQ(report["guest"]["second_level_faults_total"], 0);
}

TEST(ReportJson, SaysNullOfATableThatWasNotFullInTheBackground) {
    const json report = json::parse(to_json(RunReport{}));
    for (const std::string member : {"seconds_until_full", "faults_until_full"}) {
        EXPECT_TRUE(report["prefault"].contains(member)) << member;
        EXPECT_TRUE(report["prefault"][member].is_null()) << member;
    }
}

TEST(ReportJson, NamesTheScopeOfAllMemory) {
    RunReport report = whole_report();
    report.prefault.ranges.clear();
    EXPECT_EQ(json::parse(to_json(report))["prefault"]["scope"], "all");
    report.prefault.scope = prefault::Scope::kHost;
    EXPECT_EQ(json::parse(to_json(report))["prefault"]["scope"], "host");
}

TEST(ReportJson, SaysWhyAPrefaultIsNotComplete) {
    RunReport report = whole_report();
    report.prefault.complete = false;
    report.prefault.problem = "KVM maps \"too little\"";
    const json prefault = json::parse(to_json(report))["prefault"];
    EXPECT_EQ(prefault["complete"], false);
    EXPECT_EQ(prefault["problem"], "KVM maps \"too little\"");
}

TEST(ReportJson, KeepsLargeCountsExact) {
    RunReport report;
    report.second_level_faults = {UINT64_MAX - 1, 1};
    EXPECT_EQ(json::parse(to_json(report))["guest"]["second_level_faults_total"], UINT64_MAX);
}

TEST(ReportJson, EndsWithANewline) {
    EXPECT_EQ(to_json(RunReport{}).back(), '\n');
}

TEST(ReportSummary, SaysOfAHostThatIsItselfAGuestWhatTheCountsDoNotTell) {
    RunReport report = whole_report();
    EXPECT_FALSE(mentions(to_summary(report), "nested:"));
    report.host.nested = true;
    EXPECT_TRUE(mentions(to_summary(report), "\nnested: this host is itself a guest, and what its own host maps is not "
                                             "known to it\nresident"))
        << to_summary(report);
    report.prefault.method = prefault::Method::kIoctl;
    EXPECT_TRUE(mentions(to_summary(report), "nothing was touched, so that each page faults there once\n"))
        << to_summary(report);
}

TEST(ReportSummary, TellsPeopleWhatHappened) {
    const std::string summary = to_summary(whole_report());
    EXPECT_TRUE(mentions(summary, "prefault: ranges, in the background, in 0.938 s with 3 workers")) << summary;
    EXPECT_TRUE(mentions(summary, "(host 0.500 s, pin 0.250 s, second level 0.125 s by touch)")) << summary;
    EXPECT_TRUE(mentions(summary, "13 x 1G + 12 x 2M + 11 x 4K (npt), 20 MiB from a pool, complete")) << summary;
    EXPECT_TRUE(mentions(summary,
                         "kept full: 102 losses of 103 MiB in all, 105 refills in 1.250 s, 106 faults meanwhile; "
                         "NOT full at the end; at the longest it was not for 0.750 s: no counters"))
        << summary;
    EXPECT_TRUE(mentions(summary, "guest: poweroff after 2.500 s on 2 vCPUs")) << summary;
    EXPECT_TRUE(mentions(summary, "second-level faults: 12 ")) << summary;
    EXPECT_TRUE(mentions(summary, "full 0.375 s after the guest's start, which had taken 17 faults by then"))
        << summary;
    EXPECT_TRUE(mentions(summary, "9.0 MiB; all given back after 0.031 s")) << summary;
    EXPECT_NE(summary.back(), '\n');
}

TEST(ReportSummary, SaysThatAPrefaultWasNotComplete) {
    RunReport report = whole_report();
    report.prefault.complete = false;
    report.prefault.problem = "KVM maps too little";
    EXPECT_TRUE(mentions(to_summary(report), "NOT complete: KVM maps too little")) << to_summary(report);
}

TEST(ReportSummary, OfHostMemoryAloneClaimsNothingOfTheSecondLevel) {
    RunReport report = whole_report();
    report.prefault.scope = prefault::Scope::kHost;
    report.prefault.ranges.clear();
    report.prefault_when = PrefaultWhen::kBefore;
    report.prefault.workers = 1;
    const std::string summary = to_summary(report);
    EXPECT_TRUE(mentions(summary, "prefault: host in 0.938 s with 1 worker (host 0.500 s, pin 0.250 s), "
                                  "20 MiB from a pool, complete"))
        << summary;
    EXPECT_FALSE(mentions(summary, "KVM maps")) << summary;
}

TEST(ReportSummary, SaysNothingOfAKeeperThatThereWasNot) {
    RunReport report = whole_report();
    report.kept.reset();
    EXPECT_FALSE(mentions(to_summary(report), "kept full")) << to_summary(report);
}

TEST(ReportSummary, SaysNothingOfATableThatWasNotFullInTheBackground) {
    RunReport report = whole_report();
    report.seconds_until_full.reset();
    report.kept.reset();
    EXPECT_FALSE(mentions(to_summary(report), "full")) << to_summary(report);
}

TEST(ReportSummary, OfAnEmptyTableSaysSo) {
    RunReport report = whole_report();
    report.prefault.mapped = {};
    EXPECT_TRUE(mentions(to_summary(report), "KVM maps nothing")) << to_summary(report);
}

TEST(ReportSummary, SaysThatTheGuestNeverRan) {
    RunReport report = whole_report();
    report.seconds_to_first_instruction = 0;
    EXPECT_TRUE(mentions(to_summary(report), "before its first instruction")) << to_summary(report);
}

// What broke: in a root without /proc the summary said "resident beyond guest memory: 0.0 MiB".
TEST(ReportSummary, CallsUnknownWhatCouldNotBeRead) {
    RunReport report = whole_report();
    report.resident_overhead_bytes.reset();
    EXPECT_TRUE(mentions(to_summary(report), "resident beyond guest memory: unknown;")) << to_summary(report);
    report.locked_bytes.reset();
    report.pinned_bytes.reset();
    report.host.tdp_mmu.reset();
    const json text = json::parse(to_json(report));
    EXPECT_TRUE(text["vmm"]["resident_overhead_bytes"].is_null());
    EXPECT_TRUE(text["memory"]["locked_bytes"].is_null());
    EXPECT_TRUE(text["memory"]["pinned_bytes"].is_null());
    EXPECT_TRUE(text["host"]["tdp_mmu"].is_null());
}

TEST(ReportSummary, SaysThatThereWasNoPrefault) {
    EXPECT_TRUE(to_summary(RunReport{}).starts_with("prefault: none\n"));
}

} // namespace
} // namespace vmm
