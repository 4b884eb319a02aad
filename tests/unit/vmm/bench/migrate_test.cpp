// `vmm bench migrate`: its cases, the output of both ends, its aims, and what is written and shown.

#include <gtest/gtest.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <optional>
#include <sstream>
#include <string>

#include "support/host_errors.hpp"
#include "vmm/bench/bare_send.hpp"
#include "vmm/bench/migrate_aims.hpp"
#include "vmm/bench/migrate_case.hpp"
#include "vmm/bench/migrate_plot.hpp"
#include "vmm/bench/migrate_results.hpp"
#include "vmm/bench/migrate_run.hpp"
#include "vmm/bench/migrate_table.hpp"

namespace vmm::bench {
namespace {

const MigrateLists kLists{.modes = {kMigrateModes.begin(), kMigrateModes.end()},
                          .page_sizes = {PageSize::k4K, PageSize::kThp},
                          .vcpus = {1, 2},
                          .links = {kMigrateLinks.begin(), kMigrateLinks.end()},
                          .streams = {1, 4},
                          .fills = {kMigrateFills.begin(), kMigrateFills.end()}};

/// Results of one run, in which `set` fills in a sample for each case.
template <typename Set>
MigrateResults migrations_with(Set set) {
    MigrateResults results;
    results.settings.memory_bytes = 64 * kMiB;
    results.settings.lists = kLists;
    results.complete = true;
    for (const MigrateCase& each : migrate_cases(kLists, true)) {
        MigrateSample sample;
        set(each, sample);
        results.cases.push_back({each, {sample}});
    }
    return results;
}

/// The aim for `each` whose name begins so.
std::optional<Aim> aim_of(const MigrateResults& results, const MigrateCase& each, const std::string& begin) {
    const std::vector<Aim> aims = migrate_aims(results);
    const auto found = std::ranges::find_if(
        aims, [&](const Aim& aim) { return aim.name.starts_with(to_string(each) + ": " + begin); });
    return found == aims.end() ? std::nullopt : std::optional(*found);
}

constexpr MigrateCase kFirstCase{MigrateMode::kIdle, PageSize::k4K};

MigrateCase with_mode(MigrateMode mode) {
    MigrateCase each = kFirstCase;
    each.mode = mode;
    return each;
}

TEST(BenchMigrateCases, DifferFromTheFirstOneInOneThing) {
    const std::vector<MigrateCase> cases = migrate_cases(kLists, false);
    EXPECT_EQ(cases.size(), 1U + 1 + 1 + 1 + 1 + 1 + 4);
    EXPECT_EQ(std::ranges::count(cases, kFirstCase), 1);
    for (const MigrateCase& each : cases) {
        const int differences = int{each.mode != kFirstCase.mode} + int{each.page_size != kFirstCase.page_size} +
                                int{each.vcpus != kFirstCase.vcpus} + int{each.link != kFirstCase.link} +
                                int{each.streams != kFirstCase.streams} + int{each.fill != kFirstCase.fill};
        EXPECT_LE(differences, 1) << to_string(each);
    }
}

TEST(BenchMigrateCases, AreEveryCombinationThatCanBeIfAskedFor) {
    const std::vector<MigrateCase> cases = migrate_cases(kLists, true);
    EXPECT_EQ(cases.size(), 3U * 32 /* copied first */ + 4 /* local */ + 16 /* post-copy */);
    EXPECT_TRUE(std::ranges::all_of(cases, can_migrate));
    MigrateCase local = with_mode(MigrateMode::kLocal);
    EXPECT_TRUE(can_migrate(local));
    local.link = MigrateLink::kTcp;
    EXPECT_FALSE(can_migrate(local)) << "descriptors go through unix sockets only";
    MigrateCase post_copy = with_mode(MigrateMode::kPostCopy);
    post_copy.page_size = PageSize::k1G;
    EXPECT_FALSE(can_migrate(post_copy));
}

TEST(BenchMigrateCases, HaveNamesThatTellThemApart) {
    std::vector<std::string> names;
    for (const MigrateCase& each : migrate_cases(kLists, true)) {
        names.push_back(to_string(each));
    }
    std::ranges::sort(names);
    EXPECT_EQ(std::ranges::adjacent_find(names), names.end());
    EXPECT_EQ(to_string(MigrateCase{MigrateMode::kIdle, PageSize::kThp, 2, MigrateLink::kTcp, 4, MigrateFill::kNone}),
              "idle, thp, 2 vCPUs, tcp x 4, none");
}

TEST(BenchMigrateOutput, WhatTheSourceSaysBecomesFigures) {
    MigrateSample sample;
    add_departure(R"({"downtime_seconds": 0.01, "pause_seconds": 0.001, "pages_seconds": 0.002, "state_seconds": 0.003,
        "takeover_seconds": 0.004, "total_seconds": 1.5, "rounds": 3, "sent_bytes": 1000, "last_bytes": 4096,
        "throttled_percent": 20, "first_round_bytes": 800, "first_round_seconds": 0.5})",
                  sample);
    EXPECT_EQ(sample[MigrateFigure::kDowntime], 0.01);
    EXPECT_EQ(sample[MigrateFigure::kTakeover], 0.004);
    EXPECT_EQ(sample[MigrateFigure::kRounds], 3);
    EXPECT_EQ(sample[MigrateFigure::kRate], 1600);
    EXPECT_TRUE(testing::mentions(testing::error_of([&] {
                                      add_departure("{}", sample);
                                      return 0;
                                  }),
                                  "the answer to migrate"));
}

TEST(BenchMigrateOutput, MemoryThatIsHandedOverHasNoRate) {
    MigrateSample sample;
    add_departure(R"({"downtime_seconds": 0, "pause_seconds": 0, "pages_seconds": 0, "state_seconds": 0,
        "takeover_seconds": 0, "total_seconds": 0, "rounds": 0, "sent_bytes": 0, "last_bytes": 0,
        "throttled_percent": 0, "first_round_bytes": 0, "first_round_seconds": 0})",
                  sample);
    EXPECT_FALSE(sample[MigrateFigure::kRate]);
}

TEST(BenchMigrateOutput, WhatTheDestinationReportsBecomesFigures) {
    MigrateSample sample;
    add_arrival(R"({"memory": {"bytes": 100},
        "arrival": {"fill_seconds": 0.5, "mapped_bytes": 50, "faults_in_first_second": 7}})",
                sample);
    EXPECT_EQ(sample[MigrateFigure::kFill], 0.5);
    EXPECT_EQ(sample[MigrateFigure::kMappedShare], 0.5);
    EXPECT_EQ(sample[MigrateFigure::kFaults], 7);
    MigrateSample short_life;
    add_arrival(R"({"memory": {"bytes": 100},
        "arrival": {"fill_seconds": 0.5, "mapped_bytes": 50, "faults_in_first_second": null}})",
                short_life);
    EXPECT_FALSE(short_life[MigrateFigure::kFaults]);
}

TEST(BenchMigrateOutput, AGuestThatChangesTooMuchIsToldFromOneThatFails) {
    EXPECT_EQ(why_it_stayed(R"({"error": "cannot migrate the machine within 5 s: the guest changes 2 GiB", "id": 1})"),
              "cannot migrate the machine within 5 s: the guest changes 2 GiB");
    EXPECT_EQ(why_it_stayed("vmm: error: cannot connect to unix:/nowhere: No such file or directory"), "");
}

TEST(BenchMigrateAims, AreHeldAgainstTheirBounds) {
    const MigrateResults results = migrations_with([](const MigrateCase& each, MigrateSample& sample) {
        sample[MigrateFigure::kDowntime] = each.mode == MigrateMode::kIdle ? 0.015 : 0.150;
        sample[MigrateFigure::kFaults] = each.mode == MigrateMode::kWriter ? 1 : 0;
        sample[MigrateFigure::kFirstOverSteady] = 1.05;
        sample[MigrateFigure::kFirstOverRested] = 1.06;
        sample[MigrateFigure::kRateOverBare] = each.streams == 1 ? 0.9 : 0.8;
        sample[MigrateFigure::kLateP99Before] = 0.010;
        sample[MigrateFigure::kLateP99] = each.link == MigrateLink::kUnix ? 0.0105 : 0.012;
    });
    const auto is_met = [&](const MigrateCase& each, const std::string& begin) {
        const auto aim = aim_of(results, each, begin);
        return aim ? std::optional(aim->is_met()) : std::nullopt;
    };
    EXPECT_EQ(is_met(kFirstCase, "faults"), true);
    EXPECT_EQ(is_met(with_mode(MigrateMode::kWriter), "faults"), false) << "one is too many";
    EXPECT_EQ(is_met(with_mode(MigrateMode::kPostCopy), "faults"), std::nullopt) << "they are what it is";
    EXPECT_EQ(is_met(kFirstCase, "first pass over steady"), true);
    EXPECT_EQ(is_met(kFirstCase, "first pass over a rested one"), false);
    EXPECT_EQ(is_met(kFirstCase, "downtime"), false);
    EXPECT_EQ(is_met(kFirstCase, "downtime, p99"), true);
    EXPECT_EQ(is_met(with_mode(MigrateMode::kLocal), "downtime"), false);
    EXPECT_EQ(is_met(with_mode(MigrateMode::kWriter), "downtime"), false);
    EXPECT_EQ(is_met(kFirstCase, "rate"), true);
    MigrateCase other = kFirstCase;
    other.streams = 4;
    EXPECT_EQ(is_met(other, "rate"), false) << "more is better";
    EXPECT_EQ(is_met(kFirstCase, "beats"), true);
    other.link = MigrateLink::kTcp;
    EXPECT_EQ(is_met(other, "beats"), false);
    other.fill = MigrateFill::kNone;
    EXPECT_EQ(is_met(other, "faults"), std::nullopt) << "it is what the others are held against";
}

TEST(BenchMigrateAims, AGuestThatStayedDidNotStandStillForTooLong) {
    const MigrateResults results = migrations_with(
        [](const MigrateCase& /*each*/, MigrateSample& sample) { sample[MigrateFigure::kCameOver] = 0; });
    const auto aim = aim_of(results, with_mode(MigrateMode::kWriter), "downtime");
    ASSERT_TRUE(aim);
    EXPECT_TRUE(aim->is_met());
    EXPECT_FALSE(aim_of(results, kFirstCase, "downtime")) << "nothing was measured for it";
    const auto stays = aim_of(results, kFirstCase, "runs in which it did not go over");
    ASSERT_TRUE(stays);
    EXPECT_FALSE(stays->is_met()) << "it wrote nothing";
    EXPECT_NE(to_table(results).find("writer, 4K, 1 vCPU, unix: not convergent in 1 of 1 runs"), std::string::npos);
}

TEST(BenchMigrateResults, TheFileHasTheMembersThatAreDocumented) {
    const MigrateResults results = migrations_with([](const MigrateCase& each, MigrateSample& sample) {
        sample[MigrateFigure::kDowntime] = 0.5;
        sample[MigrateFigure::kRate] = copies_first(each.mode) ? std::optional(1.0) : std::nullopt;
    });
    const auto json = nlohmann::json::parse(to_json(results));
    EXPECT_EQ(json.at("schema"), 1);
    EXPECT_EQ(json.at("kind"), "vmm bench migrate");
    EXPECT_EQ(json.at("settings").at("page_sizes"), nlohmann::json({"4K", "thp"}));
    EXPECT_EQ(json.at("settings").at("modes").size(), kMigrateModes.size());
    EXPECT_EQ(json.at("settings").at("links"), nlohmann::json({"unix", "tcp"}));
    ASSERT_EQ(json.at("cases").size(), results.cases.size());
    for (const auto& each : json.at("cases")) {
        const std::string mode = each.at("case").at("mode");
        ASSERT_EQ(each.at("runs").size(), 1U);
        EXPECT_EQ(each.at("runs")[0].size(), kMigrateFigures.size());
        EXPECT_EQ(each.at("runs")[0].at("bytes_per_second").is_null(), mode == "local" || mode == "post-copy");
        EXPECT_EQ(each.at("statistics").at("downtime_seconds").at("median"), 0.5);
        EXPECT_EQ(each.at("statistics").at("downtime_seconds").at("p99"), 0.5);
        EXPECT_EQ(each.at("case").size(), 6U);
    }
    ASSERT_FALSE(json.at("aims").empty());
    for (const auto& aim : json.at("aims")) {
        EXPECT_TRUE(aim.at("met").is_boolean());
        EXPECT_TRUE(aim.at("wanted") == "at most" || aim.at("wanted") == "at least");
    }
}

TEST(BenchMigrateResults, TheTableHasLinesThatFit) {
    MigrateResults results = migrations_with([](const MigrateCase& /*each*/, MigrateSample& sample) {
        for (std::size_t i = 0; i < kMigrateFigures.size(); ++i) {
            sample[static_cast<MigrateFigure>(i)] = kMigrateFigures.at(i).is_time ? 0.1234 : 12;
        }
        sample[MigrateFigure::kRate] = 123.4e9;
        sample[MigrateFigure::kBareRate] = 123.4e9;
        sample[MigrateFigure::kFaults] = 123'456;
        sample[MigrateFigure::kRounds] = 123;
    });
    const std::string text = to_table(results);
    EXPECT_NE(text.find("MISSED"), std::string::npos) << text;
    EXPECT_NE(text.find("  met\n"), std::string::npos) << text;
    std::istringstream lines(text);
    for (std::string line; std::getline(lines, line);) {
        EXPECT_LE(line.size(), 120U) << line;
    }
    results.cases.front().failure = "no luck";
    results.complete = false;
    EXPECT_NE(to_table(results).find("FAILED idle, 4K, 1 vCPU, unix: no luck"), std::string::npos);
}

TEST(BenchMigratePlot, HasABarForEachCaseAndNothingWithoutRuns) {
    const MigrateResults results = migrations_with([](const MigrateCase& /*each*/, MigrateSample& sample) {
        sample[MigrateFigure::kDowntime] = 0.01;
        sample[MigrateFigure::kLateP99] = 0.01;
        sample[MigrateFigure::kLateP99Before] = 0.01;
    });
    const std::string script = plot_script(results, PlotFormat::kSvg);
    for (const char* const name : {"idle\\n4K, 1\\nunix, 1", "post-copy\\nthp, 2\\ntcp, 4", "none"}) {
        EXPECT_NE(script.find(name), std::string::npos) << name << script;
    }
    EXPECT_EQ(plot_script(MigrateResults(), PlotFormat::kSvg), "");
}

TEST(BenchBareSend, GoesThroughEachKindOfConnection) {
    const StopRequest stop;
    for (const MigrateLink link : kMigrateLinks) {
        const auto seconds = send_bare(8 * kMiB, PageSize::k4K, link, 3, stop);
        ASSERT_TRUE(seconds) << to_string(link);
        EXPECT_GT(*seconds, 0) << to_string(link);
    }
}

TEST(BenchBareSend, EndsWhenAStopIsRequested) {
    StopRequest stop;
    stop.request(ExitReason::kStopped);
    EXPECT_FALSE(send_bare(8 * kMiB, PageSize::k4K, MigrateLink::kUnix, 1, stop));
}

} // namespace
} // namespace vmm::bench
