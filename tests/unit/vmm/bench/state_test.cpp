// `vmm bench state`: its cases, the guest's output, its aims, and what is written and shown.

#include <gtest/gtest.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <sstream>
#include <string>

#include "vmm/bench/heartbeat_output.hpp"
#include "vmm/bench/state_aims.hpp"
#include "vmm/bench/state_case.hpp"
#include "vmm/bench/state_plot.hpp"
#include "vmm/bench/state_results.hpp"
#include "vmm/bench/state_table.hpp"

namespace vmm::bench {
namespace {

const std::vector<PageSize> kSizes{PageSize::k4K, PageSize::kThp, PageSize::k2M};
const std::vector<RestoreMode> kModes{kRestoreModes.begin(), kRestoreModes.end()};

/// Results of one run, in which `set` fills in a sample for each case.
template <typename Set>
StateResults results_with(Set set) {
    StateResults results;
    results.settings.memory_bytes = 64 * kMiB;
    results.settings.page_sizes = kSizes;
    results.settings.modes = kModes;
    results.settings.clones = 20;
    results.complete = true;
    for (const StateCase& each : state_cases(kSizes, kModes)) {
        StateSample sample;
        set(each, sample);
        results.cases.push_back({each, {sample}});
    }
    return results;
}

const Aim* find_aim(const std::vector<Aim>& aims, const std::string& part) {
    const auto found =
        std::ranges::find_if(aims, [&](const Aim& aim) { return aim.name.find(part) != std::string::npos; });
    return found == aims.end() ? nullptr : &*found;
}

TEST(BenchStateCases, CoverEachModeAndPageSizeThatGoTogether) {
    const std::vector<StateCase> cases = state_cases(kSizes, kModes);
    const auto has = [&](const StateCase& each) { return std::ranges::count(cases, each) == 1; };
    for (const PageSize page_size : kSizes) {
        EXPECT_TRUE(has({Scenario::kCold, page_size}));
        EXPECT_TRUE(has({Scenario::kBareRead, page_size}));
        EXPECT_TRUE(has({Scenario::kPasses, page_size, RestoreMode::kFull}));
        for (const RestoreMode mode : kModes) {
            EXPECT_EQ(has({Scenario::kRestore, page_size, mode}), can_restore(mode, page_size))
                << to_string(StateCase{Scenario::kRestore, page_size, mode});
        }
    }
    EXPECT_FALSE(can_restore(RestoreMode::kCow, PageSize::k2M)) << "a file on disk has no huge pages of a pool";
    EXPECT_TRUE(has({Scenario::kClones, PageSize::kThp, RestoreMode::kCow}));
    EXPECT_FALSE(has({Scenario::kClones, PageSize::kThp, RestoreMode::kFull}));
    EXPECT_TRUE(has({Scenario::kSnapshot, PageSize::kThp}));
}

TEST(BenchStateCases, TheGuestThatIsSavedHasTheFirstPageSizeIfThereIsNoThp) {
    EXPECT_EQ(saved_page_size({PageSize::k4K, PageSize::k2M}), PageSize::k4K);
    EXPECT_EQ(saved_page_size(kSizes), PageSize::kThp);
}

TEST(BenchHeartbeat, ALineBecomesFigures) {
    const auto line =
        parse_heartbeat("heartbeat beats=1000 late_p50_us=0.50 late_p99_us=12.25 late_max_us=1500.00 backward=2");
    ASSERT_TRUE(line);
    StateSample sample;
    sample[StateFigure::kBackward] = 1;
    add_heartbeat(*line, sample);
    EXPECT_EQ(line->beats, 1000);
    EXPECT_DOUBLE_EQ(*sample[StateFigure::kLateP50], 0.5e-6);
    EXPECT_DOUBLE_EQ(*sample[StateFigure::kLateP99], 12.25e-6);
    EXPECT_DOUBLE_EQ(*sample[StateFigure::kLateMax], 1.5e-3);
    EXPECT_EQ(*sample[StateFigure::kBackward], 3);
}

TEST(BenchHeartbeat, LinesOfOthersAndPiecesAreNone) {
    EXPECT_FALSE(parse_heartbeat(""));
    EXPECT_FALSE(parse_heartbeat("summary cpus=1"));
    EXPECT_FALSE(parse_heartbeat("heartbeat beats=1000 late_p50_us=0.50"));
    EXPECT_FALSE(parse_heartbeat("heartbeat beats=x late_p50_us=0 late_p99_us=0 late_max_us=0 backward=0"));
    EXPECT_FALSE(parse_heartbeat("heartbeat beats=-1 late_p50_us=0 late_p99_us=0 late_max_us=0 backward=0"));
}

TEST(BenchStateAims, AreRatiosOfTheSameRoundAgainstTheirBounds) {
    const StateResults results = results_with([](const StateCase& each, StateSample& sample) {
        if (each.scenario == Scenario::kBareRead) {
            sample[StateFigure::kRead] = 0.10;
            sample[StateFigure::kPopulate] = 0.20;
        } else if (each.scenario == Scenario::kRestore) {
            sample[StateFigure::kReady] = each.mode == RestoreMode::kFull ? 0.30 : 0.04;
            sample[StateFigure::kFaults] = each.mode == RestoreMode::kFull ? 1 : 1000;
        } else if (each.scenario == Scenario::kCold) {
            sample[StateFigure::kReady] = 0.03;
        } else if (each.scenario == Scenario::kPasses) {
            sample[StateFigure::kFirstOverSteady] = 1.05;
        } else if (each.scenario == Scenario::kClones) {
            sample[StateFigure::kReady] = 0.2;
        }
    });
    const std::vector<Aim> aims = state_aims(results);
    const Aim* const strict = find_aim(aims, "restore full, 4K pages: ready over a bare read into populated");
    ASSERT_NE(strict, nullptr);
    EXPECT_DOUBLE_EQ(strict->value.median, 3);
    EXPECT_FALSE(strict->is_met());
    const Aim* const whole = find_aim(aims, "restore full, 4K pages: ready over a bare read, populating");
    ASSERT_NE(whole, nullptr);
    EXPECT_DOUBLE_EQ(whole->value.median, 1);
    EXPECT_TRUE(whole->is_met());
    const Aim* const cow = find_aim(aims, "restore cow, thp pages: ready over a cold start");
    ASSERT_NE(cow, nullptr);
    EXPECT_DOUBLE_EQ(cow->value.median, 0.04 / 0.03);
    EXPECT_TRUE(cow->is_met());
    const Aim* const first = find_aim(aims, "passes full, 2M pages: first pass");
    ASSERT_NE(first, nullptr);
    EXPECT_TRUE(first->is_met());
    const Aim* const faults = find_aim(aims, "restore full, thp pages: faults");
    ASSERT_NE(faults, nullptr);
    EXPECT_FALSE(faults->is_met()) << "one fault is one too many";
    const Aim* const clones = find_aim(aims, "20 at once, clones cow");
    ASSERT_NE(clones, nullptr);
    EXPECT_DOUBLE_EQ(clones->value.median, 5);
    EXPECT_FALSE(clones->is_met());
    EXPECT_EQ(find_aim(aims, "stood still"), nullptr) << "nothing was measured for it";
    EXPECT_EQ(find_aim(aims, "clock went back"), nullptr);
}

TEST(BenchStateAims, AStopMayTakeTwentyMillisecondsAndTheTimeOfWhatIsDirty) {
    EXPECT_DOUBLE_EQ(wanted_stop_seconds(0, 1e9, 1), 0.02);
    EXPECT_DOUBLE_EQ(wanted_stop_seconds(1e8, 1e9, 1), 0.12);
    EXPECT_DOUBLE_EQ(wanted_stop_seconds(1e8, 0, 1), 0.02);
    const StateResults results = results_with([](const StateCase& each, StateSample& sample) {
        if (each.scenario == Scenario::kSnapshot) {
            sample[StateFigure::kTotal] = 1;
            sample[StateFigure::kWrittenBytes] = 1e9;
            sample[StateFigure::kStoppedBytes] = 1e7;
            sample[StateFigure::kStopped] = 0.025;
            sample[StateFigure::kLateMax] = 0.035;
        }
    });
    const std::vector<Aim> aims = state_aims(results);
    const Aim* const stopped = find_aim(aims, "stood still");
    ASSERT_NE(stopped, nullptr);
    EXPECT_DOUBLE_EQ(stopped->bound, 0.03);
    EXPECT_TRUE(stopped->is_met());
    const Aim* const latest = find_aim(aims, "latest beat");
    ASSERT_NE(latest, nullptr);
    EXPECT_FALSE(latest->is_met());
}

TEST(BenchStateAims, AClockThatWentBackInOneRunOfManyIsSeen) {
    const StateResults results = results_with([](const StateCase& each, StateSample& sample) {
        sample[StateFigure::kBackward] = each == StateCase{Scenario::kPause, PageSize::kThp} ? 1 : 0;
    });
    const std::vector<Aim> aims = state_aims(results);
    const Aim* const backward = find_aim(aims, "clock went back");
    ASSERT_NE(backward, nullptr);
    EXPECT_EQ(backward->value.median, 1);
    EXPECT_FALSE(backward->is_met());
}

TEST(BenchStateResults, TheFileHasTheMembersThatAreDocumented) {
    const StateResults results = results_with([](const StateCase& each, StateSample& sample) {
        sample[StateFigure::kReady] = 0.5;
        sample[StateFigure::kFirst] = each.scenario == Scenario::kPasses ? std::optional(1.0) : std::nullopt;
    });
    const auto json = nlohmann::json::parse(to_json(results));
    EXPECT_EQ(json.at("schema"), 1);
    EXPECT_EQ(json.at("kind"), "vmm bench state");
    EXPECT_EQ(json.at("settings").at("page_sizes"), nlohmann::json({"4K", "thp", "2M"}));
    EXPECT_EQ(json.at("settings").at("restore_modes").size(), kRestoreModes.size());
    EXPECT_TRUE(json.at("load").at("before").is_null());
    EXPECT_EQ(json.at("cases").size(), results.cases.size());
    for (const auto& each : json.at("cases")) {
        const bool has_mode = !each.at("case").at("restore_mode").is_null();
        const std::string scenario = each.at("case").at("scenario");
        EXPECT_EQ(has_mode, scenario == "restore" || scenario == "passes" || scenario == "clones") << each;
        ASSERT_EQ(each.at("runs").size(), 1U);
        EXPECT_EQ(each.at("runs")[0].size(), kStateFigures.size());
        EXPECT_EQ(each.at("runs")[0].at("ready_seconds"), 0.5);
        EXPECT_EQ(each.at("runs")[0].at("first_seconds").is_null(), scenario != "passes");
        EXPECT_EQ(each.at("statistics").at("ready_seconds").at("median"), 0.5);
    }
    ASSERT_FALSE(json.at("aims").empty());
    for (const auto& aim : json.at("aims")) {
        EXPECT_TRUE(aim.at("met").is_boolean());
        EXPECT_TRUE(aim.at("bound").is_number());
        EXPECT_TRUE(aim.at("statistics").at("median").is_number());
    }
}

TEST(BenchStateResults, TheTableSaysWhichAimsAreMissedAndHasLinesThatFit) {
    StateResults results = results_with([](const StateCase& each, StateSample& sample) {
        sample[StateFigure::kReady] = 1234.5;
        sample[StateFigure::kRead] = 1;
        sample[StateFigure::kPopulate] = 1;
        sample[StateFigure::kFirstOverSteady] = 1;
        sample[StateFigure::kFaults] = 1e6;
        sample[StateFigure::kExits] = 1e6;
        sample[StateFigure::kLateP50] = 0.1234;
        sample[StateFigure::kLateP99] = 0.1234;
        sample[StateFigure::kLateMax] = 0.1234;
        sample[StateFigure::kBackward] = each.scenario == Scenario::kPause ? 0 : 1;
    });
    for (StateResult& result : results.cases) {
        result.samples.push_back(result.samples.front());
    }
    const std::string text = to_table(results);
    EXPECT_NE(text.find("MISSED"), std::string::npos) << text;
    EXPECT_NE(text.find("  met\n"), std::string::npos) << text;
    std::istringstream lines(text);
    for (std::string line; std::getline(lines, line);) {
        EXPECT_LE(line.size(), 120U) << line;
    }
    results.cases.front().failure = "no luck";
    results.complete = false;
    EXPECT_NE(to_table(results).find("FAILED pause, thp pages: no luck"), std::string::npos);
}

TEST(BenchStatePlot, HasABarForEachWayOfStartingAndNothingWithoutRuns) {
    const StateResults results = results_with([](const StateCase& /*each*/, StateSample& sample) {
        sample[StateFigure::kReady] = 0.5;
        sample[StateFigure::kRead] = 0.1;
        sample[StateFigure::kPopulate] = 0.1;
    });
    const std::string script = plot_script(results, PlotFormat::kSvg);
    for (const char* const name :
         {"cold start\\n4K", "bare read\\nthp", "full\\n2M", "cow\\n4K", "clones, cow\\nthp"}) {
        EXPECT_NE(script.find(name), std::string::npos) << name << script;
    }
    EXPECT_EQ(plot_script(StateResults(), PlotFormat::kSvg), "");
}

} // namespace
} // namespace vmm::bench
