// The output of the guest, the files that are written and read again, and the tables that are shown.

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>
#include <sstream>
#include <string>

#include "support/host_errors.hpp"
#include "support/host_temporary_directory.hpp"
#include "vmm/bench/guest_output.hpp"
#include "vmm/bench/model.hpp"
#include "vmm/bench/plot.hpp"
#include "vmm/bench/results.hpp"
#include "vmm/bench/run.hpp"
#include "vmm/bench/table.hpp"

namespace vmm::bench {
namespace {

using testing::error_of;
using testing::mentions;

constexpr const char* kConsole =
    "\n"
    "guest=vmm-builtin cpus=2 memory_pages=200 stride=4096 order=seq passes=3 tables=own reader=one check=0 "
    "report=live\r\n"
    "pass=reader cpu=0 pages=200 cycles=7000 cycles_per_page=35\r\n"
    "pass=1 cpu=0 pages=100 cycles=4000 cycles_per_page=40\n"
    "pass=1 cpu=1 pages=100 cycles=6000 cycles_per_page=60\n"
    "pass=2 cpu=0 pages=100 cycles=1000 cycles_per_page=10\n"
    "pass=2 cpu=1 pages=100 cycles=2000 cycles_per_page=20\n"
    "pass=3 cpu=0 pages=100 cycles=3000 cycles_per_page=30\n"
    "pass=3 cpu=1 pages=100 cycles=4000 cycles_per_page=40\n"
    "summary cpus=2 passes=3 pages=200 first_cycles=6000 last_cycles=4000 first_over_last=1.50\n";

TEST(BenchGuestOutput, BecomesFigures) {
    Sample sample;
    add_guest_figures(parse_guest_output(kConsole), 1e-3, sample);
    EXPECT_DOUBLE_EQ(sample[Figure::kReader].value(), 7);
    EXPECT_DOUBLE_EQ(sample[Figure::kFirst].value(), 6) << "of the slowest vCPU";
    EXPECT_DOUBLE_EQ(sample[Figure::kFirstMedian].value(), 5);
    EXPECT_DOUBLE_EQ(sample[Figure::kSteady].value(), 3) << "the median of 2 and 4";
    EXPECT_DOUBLE_EQ(sample[Figure::kSteadyMedian].value(), 2.5);
    EXPECT_DOUBLE_EQ(sample[Figure::kFirstOverSteady].value(), 2);
    EXPECT_DOUBLE_EQ(sample[Figure::kTotal].value(), 13) << "what was read first counts";
}

TEST(BenchGuestOutput, ThatIsNotWholeIsRefused) {
    const std::string console = kConsole;
    EXPECT_TRUE(mentions(error_of([&] { return parse_guest_output(""); }), "did not come to its end"));
    EXPECT_TRUE(mentions(error_of([&] { return parse_guest_output(console.substr(0, console.find("summary"))); }),
                         "did not come to its end"));
    std::string one_missing = console;
    const std::size_t at = one_missing.find("pass=2 cpu=1");
    one_missing.erase(at, one_missing.find('\n', at) + 1 - at);
    EXPECT_NE(error_of([&] { return parse_guest_output(one_missing); }), "");
}

TEST(BenchGuestOutput, SaysWhatTheGuestSaysWentWrong) {
    EXPECT_TRUE(mentions(error_of([] { return parse_guest_output("error what=memory_map reason=too-scattered\n"); }),
                         "too-scattered"));
}

TEST(BenchGuestOutput, NumbersThatCannotBeAreNoPasses) {
    EXPECT_NE(error_of([] {
                  return parse_guest_output("pass=99999999999999999999 cpu=0 cycles=1\npass=2 cpu=7 cycles=1\npass=1 "
                                            "cpu=0 cycles=-3\nsummary cpus=18446744073709551615\n");
              }),
              "");
}

TEST(BenchGuestOutput, IsOverWithTheLineOfTheSummary) {
    EXPECT_TRUE(has_summary(kConsole));
    EXPECT_FALSE(has_summary("pass=1 cpu=0\nsummary cpus=2"));
}

TEST(BenchReport, BecomesFigures) {
    Sample sample;
    add_report_figures(R"({"prefault": {"scope": "all", "complete": true, "problem": "",
        "seconds": {"host": 1, "pin": 0.5, "second_level": 2, "total": 3.5}},
        "boot": {"seconds_to_first_instruction": 4},
        "guest": {"exit": "poweroff", "second_level_faults_total": 0, "exits": [3, 4], "exits_total": 7}})",
                       sample);
    EXPECT_EQ(sample[Figure::kPrefault], 3.5);
    EXPECT_EQ(sample[Figure::kSecondLevel], 2);
    EXPECT_EQ(sample[Figure::kReady], 4);
    EXPECT_EQ(sample[Figure::kFaults], 0);
    EXPECT_EQ(sample[Figure::kExits], 7);
}

TEST(BenchReport, OfAPrefaultThatIsNotCompleteIsAFailure) {
    Sample sample;
    const std::string text = R"({"prefault": {"scope": "all", "complete": false, "problem": "no memory",
        "seconds": {}}, "guest": {"exit": "poweroff"}})";
    EXPECT_TRUE(mentions(error_of([&] {
                             add_report_figures(text, sample);
                             return 0;
                         }),
                         "no memory"));
    EXPECT_NE(error_of([&] {
                  add_report_figures("{", sample);
                  return 0;
              }),
              "");
}

TEST(BenchQmp, CountsOfAllVcpusAreAdded) {
    Sample sample;
    add_qmp_figures("{\"QMP\": {}}\r\n{\"return\": {}}\nnonsense\n{\"return\": [{\"provider\": \"kvm\", \"stats\": "
                    "[{\"name\": \"exits\", \"value\": 81}, {\"name\": \"pf_fixed\", \"value\": 63}]}, {\"stats\": "
                    "[{\"name\": \"exits\", \"value\": 19}, {\"name\": \"pf_fixed\", \"value\": 7}]}, 5]}\n",
                    sample);
    EXPECT_EQ(sample[Figure::kExits], 100);
    EXPECT_EQ(sample[Figure::kFaults], 70);
}

TEST(BenchDebugfs, CountsOfTheGroupsVmsAreRead) {
    const testing::TemporaryDirectory directory;
    const std::string own = std::to_string(::getpid());
    directory.write("kvm/" + own + "-11/pf_fixed", "12\n");
    directory.write("kvm/" + own + "-11/exits", "34\n");
    directory.write("kvm/1-11/exits", "1000\n");
    directory.write("kvm/exits", "5\n");
    Sample sample;
    add_debugfs_figures(directory / "kvm", ::getpgrp(), sample);
    EXPECT_EQ(sample[Figure::kFaults], 12);
    EXPECT_EQ(sample[Figure::kExits], 34);
    Sample nothing;
    add_debugfs_figures(directory / "nowhere", ::getpgrp(), nothing);
    EXPECT_EQ(nothing, Sample());
}

Sample sample_of(double prefault, double first, double steady, double faults) {
    Sample sample;
    sample[Figure::kPrefault] = prefault;
    sample[Figure::kHost] = prefault;
    sample[Figure::kSecondLevel] = 0;
    sample[Figure::kFirst] = first;
    sample[Figure::kSteady] = steady;
    sample[Figure::kFaults] = faults;
    derive(sample);
    return sample;
}

CellResult result_of(Method method, std::vector<Sample> samples, PageSize page_size = PageSize::k4K) {
    CellResult result;
    result.cell.memory_bytes = kGiB;
    result.cell.vcpus = 2;
    result.cell.workers = 2;
    result.cell.page_size = page_size;
    result.cell.method = method;
    result.samples = std::move(samples);
    return result;
}

Results some_results() {
    Results results;
    results.version = "1.2.3";
    results.host = {"here", "6.12", "A \"processor\"", 2, 8 * kGiB, "npt", true, true};
    results.settings.preset = "quick";
    results.settings.runs = 2;
    results.settings.time_limit_seconds = 45;
    results.harness = {10, 9, 0.009, 0.003};
    results.complete = true;
    results.cells = {result_of(Method::kNone, {sample_of(0, 5, 0.01, 262144), sample_of(0, 6, 0.01, 262144)}),
                     result_of(Method::kTouch, {sample_of(0.5, 0.01, 0.01, 0), sample_of(0.6, 0.011, 0.01, 0)})};
    return results;
}

TEST(BenchResults, AreReadAsTheyWereWritten) {
    const Results results = some_results();
    EXPECT_EQ(parse_results(to_json(results), "x"), results);
}

TEST(BenchResults, JsonHasStatisticsAndNullForWhatIsMissing) {
    const auto json = nlohmann::json::parse(to_json(some_results()));
    EXPECT_EQ(json["schema"], 1);
    const auto& cell = json["cells"][0];
    EXPECT_EQ(cell["cell"]["prefault"], "none");
    EXPECT_EQ(cell["statistics"]["first_seconds"]["min"], 5);
    EXPECT_EQ(cell["statistics"]["first_seconds"]["median"], 5.5);
    EXPECT_TRUE(cell["runs"][0]["reader_seconds"].is_null());
    EXPECT_FALSE(cell["statistics"].contains("reader_seconds"));
}

TEST(BenchResults, FilesThatAreNoneSayWhy) {
    EXPECT_TRUE(mentions(error_of([] { return parse_results("{", "a.json"); }), "a.json"));
    EXPECT_TRUE(mentions(error_of([] { return parse_results("[]", "a"); }), "--json"));
    EXPECT_TRUE(mentions(error_of([] { return parse_results("{\"kind\": \"vmm bench\"}", "a"); }), "--json"));
    auto json = nlohmann::json::parse(to_json(some_results()));
    json["schema"] = 99;
    EXPECT_TRUE(mentions(error_of([&] { return parse_results(json.dump(), "a"); }), "schema is 99"));
    json["schema"] = 1;
    json["cells"][0]["cell"]["prefault"] = "magic";
    EXPECT_TRUE(mentions(error_of([&] { return parse_results(json.dump(), "a"); }), "magic"));
    json["cells"][0]["cell"]["prefault"] = 7;
    EXPECT_NE(error_of([&] { return parse_results(json.dump(), "a"); }), "");
    EXPECT_TRUE(mentions(error_of([] { return read_results("/nowhere/a.json"); }), "/nowhere/a.json"));
}

TEST(BenchResults, CsvHasALineForEachRunAndAsManyFieldsInEach) {
    std::istringstream lines(to_csv(some_results()));
    std::string line;
    std::size_t count = 0;
    for (; std::getline(lines, line); ++count) {
        EXPECT_EQ(std::count(line.begin(), line.end(), ','), 7 + static_cast<std::ptrdiff_t>(kFigures.size())) << line;
    }
    EXPECT_EQ(count, 1U + 4U);
}

TEST(BenchResults, PreallocOfQemuIsHowMuchLaterItsGuestStarts) {
    Results results;
    for (const Method method : {Method::kNone, Method::kHost}) {
        CellResult result = result_of(method, {Sample(), Sample()});
        result.cell.contender = Contender::kQemu;
        for (Sample& sample : result.samples) {
            sample[Figure::kReady] = method == Method::kNone ? 0.25 : 1.0;
            sample[Figure::kFirst] = 2;
        }
        results.cells.push_back(result);
    }
    derive_prealloc(results);
    EXPECT_EQ(results.cells[1].median_of(Figure::kPrefault), 0.75);
    EXPECT_EQ(results.cells[1].median_of(Figure::kTotal), 2.75);
    EXPECT_EQ(results.cells[0].median_of(Figure::kPrefault), std::nullopt);
}

TEST(BenchTable, NumbersAreForPeople) {
    EXPECT_EQ(format_seconds(1.234), "1.23 s");
    EXPECT_EQ(format_seconds(0.04567), "45.7 ms");
    EXPECT_EQ(format_seconds(0.000789), "789 us");
    EXPECT_EQ(format_seconds(0.99999), "1.00 s");
    EXPECT_EQ(format_seconds(12345), "12345 s");
    EXPECT_EQ(format_seconds(0), "0");
    EXPECT_EQ(format_count(0), "0");
    EXPECT_EQ(format_count(261867), "261,867");
    EXPECT_EQ(format_count(1234567), "1,234,567");
    EXPECT_EQ(format_count(999), "999");
}

TEST(BenchTable, SaysWhatTheMethodsSayAboutEachOther) {
    const std::string table = to_table(some_results());
    EXPECT_TRUE(mentions(table, "4K pages, 1 GiB, 2 vCPUs (2 runs")) << table;
    EXPECT_TRUE(mentions(table, "touch against none: first pass 524 times as fast")) << table;
    EXPECT_TRUE(mentions(table, "262,144")) << table;
    EXPECT_FALSE(mentions(table, "FAILED")) << table;
    EXPECT_FALSE(mentions(table, "NOT COMPLETE")) << table;
}

// What broke: the interval was that of the reciprocal.
TEST(BenchTable, SaysWhenMemoryOfAPoolIsReady) {
    Results results = some_results();
    for (Sample& sample : results.cells[1].samples) {
        sample[Figure::kReady] = 2;
    }
    CellResult pool = result_of(Method::kPool, {sample_of(0.1, 0.01, 0.01, 0)});
    pool.samples[0][Figure::kReady] = 0.5;
    results.cells.push_back(pool);
    EXPECT_TRUE(mentions(to_table(results),
                         "pool against touch: ready after 500 ms instead of 2.00 s, 0.25 times [0.25 .. 0.25]"))
        << to_table(results);
}

TEST(BenchTable, SaysWhenMemoryIsReadyAgainstQemusPrealloc) {
    Results results = some_results();
    for (CellResult& result : results.cells) {
        for (Sample& sample : result.samples) {
            sample[Figure::kReady] = 0.6;
        }
    }
    CellResult qemu = result_of(Method::kHost, {sample_of(1.1, 3, 0.01, 262144)});
    qemu.cell.contender = Contender::kQemu;
    qemu.samples[0][Figure::kReady] = 1.2;
    results.cells.push_back(qemu);
    EXPECT_TRUE(mentions(to_table(results), "touch against qemu prealloc: memory ready after 600 ms instead of 1.20 s "
                                            "(0.50); populating alone 550 ms instead of 1.10 s (0.50)"))
        << to_table(results);
}

TEST(BenchTable, NamesWhatFailed) {
    Results results = some_results();
    results.cells[1].samples.clear();
    results.cells[1].failure = "killed by a meteor";
    results.complete = false;
    const std::string table = to_table(results);
    EXPECT_TRUE(mentions(table, "FAILED 4K pages, 1 GiB, 2 vCPUs, touch, 2 workers: killed by a meteor")) << table;
    EXPECT_TRUE(mentions(table, "NOT COMPLETE")) << table;
}

TEST(BenchTable, WhatTookTooLongForThePresetIsNoFailure) {
    Results results = some_results();
    results.cells[1].failure = "it did not end within 10 s";
    results.cells[1].left_out = true;
    EXPECT_FALSE(results.any_failed());
    EXPECT_TRUE(mentions(to_table(results), "LEFT OUT 4K pages")) << to_table(results);
    EXPECT_EQ(parse_results(to_json(results), "x"), results);
}

TEST(BenchPlot, FormatIsTheNamesEnding) {
    EXPECT_EQ(plot_format("a.svg"), PlotFormat::kSvg);
    EXPECT_EQ(plot_format("b/a.png"), PlotFormat::kPng);
    EXPECT_EQ(plot_format("a.pdf"), std::nullopt);
}

TEST(BenchPlot, HasAPanelForEachPageSizeAndABarForEachMethod) {
    Results results = some_results();
    CellResult smaller = result_of(Method::kNone, {sample_of(0, 1, 1, 5)});
    smaller.cell.memory_bytes = 64 * kMiB;
    results.cells.push_back(smaller);
    results.cells.push_back(result_of(Method::kNone, {sample_of(0, 0.1, 0.01, 512)}, PageSize::k2M));
    const std::string script = plot_script(results, PlotFormat::kSvg);
    EXPECT_TRUE(mentions(script, "layout 1,2")) << script;
    EXPECT_TRUE(mentions(script, "4K pages, 1 GiB, 2 vCPUs")) << script;
    EXPECT_FALSE(mentions(script, "64 MiB")) << "the largest shape is drawn";
    EXPECT_TRUE(mentions(script, "262,144 faults")) << script;
    EXPECT_TRUE(mentions(script, "\"both sides\\n(touch)\" 0.55")) << script;
    EXPECT_TRUE(mentions(script, "milliseconds")) << "the panel of 2M";
}

TEST(BenchPlot, OfNothingIsNothing) {
    Results results = some_results();
    results.cells.clear();
    EXPECT_EQ(plot_script(results, PlotFormat::kPng), "");
}

/// A host on which one worker takes 1 s for a GiB of the host side, and 2 s of the second level. Two workers take 0.75
/// times as long.
Results scaled_results() {
    Results results;
    results.host.cpus = 2;
    for (const unsigned workers : {1U, 2U}) {
        for (const std::uint64_t gib : {1ULL, 2ULL, 4ULL}) {
            const double share = workers == 1 ? 1 : 0.75;
            const auto size = static_cast<double>(gib);
            Sample sample;
            sample[Figure::kHost] = share * size;
            sample[Figure::kSecondLevel] = 2 * share * size;
            sample[Figure::kFirst] = 0.001 * size;
            sample[Figure::kSteady] = 0.001 * size;
            sample[Figure::kFaults] = 0;
            CellResult touch = result_of(Method::kTouch, {sample});
            touch.cell.memory_bytes = gib * kGiB;
            touch.cell.workers = workers;
            sample[Figure::kFirst] = 0.501 * size;
            sample[Figure::kFaults] = 1000 * size;
            CellResult host = touch;
            host.cell.method = Method::kHost;
            host.samples = {sample};
            results.cells.push_back(touch);
            results.cells.push_back(host);
        }
    }
    return results;
}

TEST(BenchModel, FindsCostsAndWhatADoublingGains) {
    const std::vector<PageCosts> costs = fit_costs(scaled_results());
    ASSERT_EQ(costs.size(), 1U);
    EXPECT_NEAR(costs[0].host->seconds_per_gib, 1, 1e-9);
    EXPECT_NEAR(costs[0].host->gain, 4 / 3.0, 1e-9);
    EXPECT_NEAR(costs[0].touch->seconds_per_gib, 2, 1e-9);
    EXPECT_NEAR(costs[0].touch->r2, 1, 1e-9);
    EXPECT_NEAR(costs[0].seconds_per_warm_fault.value(), 0.001, 1e-9) << "0.5 s of two CPUs for 1000 faults";
    EXPECT_FALSE(costs[0].cold.has_value()) << "not measured";
}

TEST(BenchModel, PredictsBetweenPerfectScalingAndWhatWasSeen) {
    const std::vector<PageCosts> costs = fit_costs(scaled_results());
    const TargetShape shape{64 * kGiB, 32};
    const auto best = predict(costs[0], Method::kTouch, shape, true);
    const auto as_here = predict(costs[0], Method::kTouch, shape, false);
    ASSERT_TRUE(best && as_here);
    EXPECT_NEAR(best->prefault_seconds, 64 * 3 / 32.0, 1e-9);
    EXPECT_NEAR(as_here->prefault_seconds, 64 * 3 / std::pow(4 / 3.0, 5), 1e-9);
    EXPECT_FALSE(predict(costs[0], Method::kNone, shape, true).has_value());
    EXPECT_FALSE(predict(costs[0], Method::kIoctl, shape, true).has_value());
    EXPECT_FALSE(predict(costs[0], Method::kIoctlThenTouch, shape, true).has_value());
}

TEST(BenchModel, TimesTooShortSayNothingOfTheGain) {
    Results results = scaled_results();
    for (CellResult& result : results.cells) {
        for (Sample& sample : result.samples) {
            *sample[Figure::kSecondLevel] /= 1000;
        }
    }
    const std::vector<PageCosts> costs = fit_costs(results);
    EXPECT_FALSE(costs[0].touch->gain_known);
    EXPECT_TRUE(costs[0].host->gain_known);
}

TEST(BenchModel, AReadersFirstPassIsWhatItWasHere) {
    Results results = scaled_results();
    Sample sample;
    sample[Figure::kReader] = 4;
    sample[Figure::kFirst] = 8.001;
    sample[Figure::kSteady] = 0.001;
    results.cells.push_back(result_of(Method::kReader, {sample}));
    const auto prediction = predict(fit_costs(results)[0], Method::kReader, {kGiB, 4}, true);
    ASSERT_TRUE(prediction.has_value());
    EXPECT_NEAR(prediction->prefault_seconds, 4, 1e-9) << "one reads, however many there are";
    EXPECT_NEAR(prediction->first_seconds, 4, 0.01) << "16 s of a CPU, by four";
}

TEST(BenchModel, TablesNameShapesAndFloor) {
    Results results = scaled_results();
    results.settings.bandwidth = 2.0 * static_cast<double>(kGiB);
    const std::vector<PageCosts> costs = fit_costs(results);
    const std::string table = model_table(costs, results);
    EXPECT_TRUE(mentions(table, "64 GiB, 32 vCPUs, floor 2.00 s")) << table;
    EXPECT_TRUE(mentions(table, "16 TiB, 896 vCPUs")) << table;
    EXPECT_TRUE(mentions(fit_table(costs), "second level, by touch")) << fit_table(costs);
}

TEST(BenchModel, OfNothingIsEmpty) {
    EXPECT_TRUE(fit_costs(Results()).empty());
}

} // namespace
} // namespace vmm::bench
