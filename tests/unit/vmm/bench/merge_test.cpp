// Shares of a matrix, and how the results of many hosts are merged.

#include <gtest/gtest.h>

#include <algorithm>
#include <string>
#include <vector>

#include "support/host_errors.hpp"
#include "vmm/bench/compare.hpp"
#include "vmm/bench/matrix.hpp"
#include "vmm/bench/merge.hpp"
#include "vmm/bench/share.hpp"

namespace vmm::bench {
namespace {

using testing::error_of;
using testing::mentions;

std::vector<Cell> some_cells(std::size_t count) {
    std::vector<Cell> cells(count);
    for (std::size_t i = 0; i < count; ++i) {
        cells[i].memory_bytes = (i + 1) * kGiB;
    }
    return cells;
}

HostFacts host_of(const std::string& node) {
    return {node, "6.12", "processor", 2, 8 * kGiB, "npt", true, true, false, "0x1"};
}

CellResult measured(const Cell& cell, const std::vector<double>& first) {
    CellResult result;
    result.cell = cell;
    for (const double seconds : first) {
        Sample sample;
        sample[Figure::kFirst] = seconds;
        sample[Figure::kTotal] = seconds;
        sample[Figure::kFaults] = 7;
        result.samples.push_back(sample);
    }
    return result;
}

/// The share of a matrix that `node` has measured, with one run of each cell that took `seconds`.
Results results_of(const std::string& node, const std::vector<Cell>& matrix, const Share& share, double seconds = 1) {
    Results results;
    results.version = "1";
    results.host = host_of(node);
    results.settings.share = share;
    results.settings.runs = 1;
    results.matrix = matrix;
    results.complete = true;
    for (const Cell& cell : cells_of_share(matrix, share)) {
        results.cells.push_back(measured(cell, {seconds}));
    }
    return results;
}

/// Files a, b, c and so on.
std::vector<MergeInput> inputs_of(const std::vector<Results>& all) {
    std::vector<MergeInput> inputs;
    for (const Results& results : all) {
        inputs.push_back({"/x/" + std::string(1, static_cast<char>('a' + inputs.size())) + ".json", results});
    }
    return inputs;
}

TEST(BenchShare, IsWrittenAsItIsRead) {
    EXPECT_EQ(parse_share("2/4"), (Share{2, 4}));
    EXPECT_EQ(to_string(Share{2, 4}), "2/4");
    EXPECT_EQ(parse_share("1/10000"), (Share{1, 10'000}));
    for (const char* const wrong : {"", "/", "2", "0/4", "5/4", "2/0", "-1/4", "+1/4", "1/4 ", " 1/4", "1/4/2",
                                    "1/10001", "4294967297/4294967298", "a/b", "1.0/2"}) {
        EXPECT_EQ(parse_share(wrong), std::nullopt) << wrong;
    }
}

TEST(BenchShare, SharesTogetherHaveEachCellOnce) {
    for (const std::size_t count : {0UL, 1UL, 4UL, 7UL, 27UL}) {
        const std::vector<Cell> all = some_cells(count);
        for (const unsigned of : {1U, 2U, 4U, 30U}) {
            std::vector<Cell> together;
            std::size_t most = 0;
            std::size_t least = count;
            for (unsigned index = 1; index <= of; ++index) {
                const std::vector<Cell> cells = cells_of_share(all, {index, of});
                EXPECT_EQ(cells, cells_of_share(all, {index, of})) << "the same each time";
                together.insert(together.end(), cells.begin(), cells.end());
                most = std::max(most, cells.size());
                least = std::min(least, cells.size());
            }
            EXPECT_LE(most - least, 1U) << "no share has more work than others";
            ASSERT_EQ(together.size(), count);
            for (const Cell& cell : all) {
                EXPECT_EQ(std::ranges::count(together, cell), 1);
            }
        }
    }
}

TEST(BenchMerge, OfAllSharesIsWholeAndInTheOrderOfTheMatrix) {
    const std::vector<Cell> matrix = some_cells(7);
    const MergedResults merged = merge(inputs_of({results_of("n3", matrix, {3, 3}), results_of("n1", matrix, {1, 3}),
                                                  results_of("n2", matrix, {2, 3})}),
                                       "1");
    EXPECT_TRUE(merged.is_complete());
    EXPECT_FALSE(merged.any_failed());
    EXPECT_TRUE(merged.retried.empty());
    ASSERT_EQ(merged.groups.size(), 1U);
    EXPECT_EQ(merged.groups[0].nodes, (std::vector<std::string>{"n3", "n1", "n2"}));
    ASSERT_EQ(merged.groups[0].results.cells.size(), 7U);
    for (std::size_t i = 0; i < 7; ++i) {
        EXPECT_EQ(merged.groups[0].results.cells[i].cell, matrix[i]);
    }
    EXPECT_TRUE(mentions(to_table(merged), "COMPLETE: every cell was measured")) << to_table(merged);
    EXPECT_TRUE(mentions(to_table(merged), "3 hosts: n3, n1, n2")) << to_table(merged);
}

TEST(BenchMerge, NamesWhatNobodyMeasured) {
    const std::vector<Cell> matrix = some_cells(4);
    const MergedResults merged =
        merge(inputs_of({results_of("n1", matrix, {1, 3}), results_of("n3", matrix, {3, 3})}), "1");
    EXPECT_FALSE(merged.is_complete());
    EXPECT_TRUE(merged.any_failed());
    EXPECT_EQ(merged.missing, std::vector{matrix[1]});
    EXPECT_TRUE(mentions(to_table(merged), "MISSING " + to_string(matrix[1]))) << to_table(merged);
    EXPECT_TRUE(mentions(to_table(merged), "NOT COMPLETE")) << to_table(merged);
}

TEST(BenchMerge, OfACellThatFailedOnceHasTheFiguresOfTheOther) {
    const std::vector<Cell> matrix = some_cells(2);
    Results failed = results_of("n1", matrix, {1, 1});
    failed.cells[1].samples.clear();
    failed.cells[1].failure = "no memory";
    failed.complete = false;
    Results again = results_of("n2", matrix, {1, 1}, 3);
    again.settings.attempt = 2;
    again.cells.erase(again.cells.begin());
    for (const auto& both : {inputs_of({failed, again}), inputs_of({again, failed})}) {
        const MergedResults merged = merge(both, "1");
        EXPECT_TRUE(merged.is_complete());
        EXPECT_FALSE(merged.any_failed());
        ASSERT_EQ(merged.groups.size(), 1U);
        EXPECT_EQ(merged.groups[0].results.find(matrix[1])->values(Figure::kFirst), std::vector{3.0});
        ASSERT_EQ(merged.retried.size(), 1U);
        EXPECT_EQ(merged.retried[0], (RetriedCell{matrix[1], "n2", 2, "no memory"}));
        EXPECT_TRUE(mentions(to_table(merged), "RETRIED " + to_string(matrix[1]))) << to_table(merged);
        EXPECT_TRUE(mentions(to_table(merged), "another one failed: no memory")) << to_table(merged);
    }
}

TEST(BenchMerge, NamesTheCellsOfALaterAttemptWhoseFirstOneLeftNoFile) {
    const std::vector<Cell> matrix = some_cells(4);
    Results again = results_of("n3", matrix, {2, 2});
    again.settings.attempt = 2;
    const MergedResults merged = merge(inputs_of({results_of("n1", matrix, {1, 2}), again}), "1");
    EXPECT_TRUE(merged.is_complete());
    ASSERT_EQ(merged.retried.size(), 2U);
    EXPECT_EQ(merged.retried[0], (RetriedCell{matrix[1], "n3", 2, ""}));
    EXPECT_EQ(merged.retried[1].cell, matrix[3]);
    EXPECT_TRUE(mentions(to_table(merged), "measured by attempt 2 on n3; no attempt before gave a result"))
        << to_table(merged);
}

TEST(BenchMerge, OfACellThatFailedEverywhereHasFailed) {
    Results failed = results_of("n1", {}, {});
    failed.settings.share.reset();
    failed.cells = {{some_cells(1)[0], {}, "no memory"}};
    Results too = failed;
    too.host.node = "n2";
    const MergedResults merged = merge(inputs_of({failed, too}), "1");
    EXPECT_TRUE(merged.any_failed());
    EXPECT_TRUE(merged.retried.empty());
    EXPECT_TRUE(mentions(to_table(merged), "FAILED " + to_string(some_cells(1)[0]) + ": no memory"));
}

TEST(BenchMerge, PutsRunsOfHostsOfOneKindTogether) {
    Results one = results_of("n1", some_cells(1), {1, 1}, 1);
    Results other = results_of("n2", some_cells(1), {1, 1}, 2);
    other.host.memory_bytes += kMiB; // The memory that the firmware keeps differs between hosts.
    const MergedResults merged = merge(inputs_of({one, other}), "1");
    ASSERT_EQ(merged.groups.size(), 1U);
    EXPECT_EQ(merged.groups[0].results.cells[0].values(Figure::kFirst), (std::vector{1.0, 2.0}));
    EXPECT_TRUE(merged.retried.empty());
}

TEST(BenchMerge, KeepsHostsApartWhereTheyDiffer) {
    const Results here = results_of("n1", some_cells(1), {1, 1});
    std::vector<Results> others(11, results_of("n2", some_cells(1), {1, 1}));
    others[0].host.cpu = "another";
    others[1].host.microcode = "0x2";
    others[2].host.kernel = "6.13";
    others[3].host.cpus = 4;
    others[4].host.second_level = "ept";
    others[5].host.tdp_mmu = false;
    others[6].host.nested = true;
    others[7].version = "2";
    others[8].settings.passes += 1;
    others[9].settings.warm = !others[9].settings.warm;
    others[10].settings.qemu_version = "QEMU 7";
    for (const Results& other : others) {
        EXPECT_EQ(merge(inputs_of({here, other}), "1").groups.size(), 2U);
    }
    others.push_back(here);
    const MergedResults merged = merge(inputs_of(others), "1");
    EXPECT_EQ(merged.groups.size(), 12U);
    EXPECT_TRUE(merged.warnings.empty()) << "each has all of the matrix: " << merged.warnings.front();
    EXPECT_TRUE(mentions(to_table(merged), "=== another (microcode 0x1), 2 CPUs, Linux 6.12, npt with TDP MMU"));
}

TEST(BenchMerge, WarnsOfAMatrixThatKindsOfHostsHaveInParts) {
    const std::vector<Cell> matrix = some_cells(2);
    Results other = results_of("n2", matrix, {2, 2});
    other.host.kernel = "6.13";
    const MergedResults merged = merge(inputs_of({results_of("n1", matrix, {1, 2}), other}), "1");
    EXPECT_TRUE(merged.is_complete()) << "every cell was measured somewhere";
    ASSERT_EQ(merged.warnings.size(), 1U);
    EXPECT_TRUE(mentions(to_table(merged), "warning: one matrix of 2 cells was measured in parts on 2 kinds of hosts"));
}

TEST(BenchMerge, WarnsOfSharesThatAreNotOfOneMatrix) {
    const MergedResults merged =
        merge(inputs_of({results_of("n1", some_cells(4), {1, 2}), results_of("n2", some_cells(3), {2, 2})}), "1");
    EXPECT_EQ(merged.missing, std::vector{some_cells(4)[3]});
    ASSERT_EQ(merged.warnings.size(), 1U);
    EXPECT_TRUE(mentions(merged.warnings[0], "the shares are those of 2 matrices")) << merged.warnings[0];
}

TEST(BenchMerge, RefusesNothingAndTheSameTwice) {
    EXPECT_TRUE(mentions(error_of([] { return merge({}, "1"); }), "no file is named"));
    const Results results = results_of("n1", some_cells(1), {1, 1});
    EXPECT_TRUE(mentions(error_of([&] {
                             return merge(inputs_of({results, results}), "1");
                         }),
                         "/x/a.json and /x/b.json: these are the same results"));
}

MergedResults two_kinds(double first_of_other = 1) {
    Results other = results_of("n2", some_cells(2), {1, 1}, first_of_other);
    other.host.cpu = "another";
    Results failed = results_of("n3", some_cells(4), {1, 2});
    failed.cells[1].failure = "x";
    failed.cells[1].samples.clear();
    Results again = results_of("n4", some_cells(4), {1, 2});
    again.settings.attempt = 2;
    return merge(inputs_of({results_of("n1", some_cells(2), {1, 1}), other, failed, again}), "1.2");
}

TEST(BenchMerge, IsReadAsItWasWritten) {
    const MergedResults merged = two_kinds();
    EXPECT_FALSE(merged.retried.empty());
    EXPECT_FALSE(merged.missing.empty());
    EXPECT_EQ(parse_merged(to_json(merged), "x"), merged);
}

TEST(BenchMerge, ReadsAFileOfOneHostAsOneGroup) {
    const Results results = results_of("n1", some_cells(2), {1, 2});
    const MergedResults merged = parse_merged(to_json(results), "x");
    ASSERT_EQ(merged.groups.size(), 1U);
    EXPECT_EQ(merged.groups[0].results, results);
    EXPECT_TRUE(mentions(error_of([] { return parse_merged("{\"kind\": \"vmm bench merged\", \"schema\": 9}", "x"); }),
                         "its schema is 9"));
    EXPECT_TRUE(mentions(error_of([] { return parse_merged("{\"kind\": \"vmm bench merged\", \"schema\": 1}", "x"); }),
                         "--json"));
    EXPECT_TRUE(
        mentions(error_of([] { return parse_merged("{\"kind\": \"vmm bench state\"}", "x"); }), "another kind"));
}

TEST(BenchMerge, ReadsAFileThatKnowsNothingOfShares) {
    std::string text = to_json(results_of("n1", some_cells(1), {1, 1}));
    const auto drop = [&text](const std::string& from, const std::string& to) {
        const std::size_t at = text.find(from);
        ASSERT_NE(at, std::string::npos) << from;
        text.replace(at, text.find(to, at) + to.size() - at, "");
    };
    drop(",\n    \"cells\": {", "}");
    drop(",\n    \"attempt\":", "1");
    drop("\n    \"microcode\":", ",");
    drop(",\n  \"matrix\": [", "\n  ]");
    const Results results = parse_results(text, "x");
    EXPECT_EQ(results.settings.share, std::nullopt);
    EXPECT_EQ(results.settings.attempt, 1U);
    EXPECT_EQ(results.host.microcode, "");
    EXPECT_TRUE(results.matrix.empty());
}

TEST(BenchMerge, RefusesAShareThatCannotBe) {
    std::string text = to_json(results_of("n1", some_cells(1), {1, 1}));
    const std::size_t at = text.find("\"index\": 1");
    ASSERT_NE(at, std::string::npos);
    text.replace(at, 10, "\"index\": 3");
    EXPECT_NE(error_of([&] { return parse_results(text, "x"); }), "");
}

TEST(BenchMerge, IsDrawnWithARowForEachKindOfHost) {
    const std::string script = plot_script(two_kinds(), PlotFormat::kSvg);
    EXPECT_TRUE(mentions(script, "set multiplot layout 2,1 ")) << script;
    EXPECT_TRUE(mentions(script, "another (microcode 0x1)")) << script;
    EXPECT_TRUE(mentions(script, ",960 font")) << "two rows high: " << script;
    EXPECT_EQ(plot_script(MergedResults{}, PlotFormat::kSvg), "");
}

TEST(BenchCompareHosts, ComparesEachKindWithItself) {
    const HostsComparison same = compare(two_kinds(), two_kinds(), 0.1);
    EXPECT_EQ(same.kinds.size(), 2U);
    EXPECT_TRUE(same.alone.empty());
    EXPECT_FALSE(same.any_worse());
    const auto runs = [](double other) {
        MergedResults merged = two_kinds();
        for (CellResult& cell : merged.groups[1].results.cells) {
            cell = measured(cell.cell, {other, other, other, other, other});
        }
        return merged;
    };
    const HostsComparison worse = compare(runs(1), runs(2), 0.1);
    EXPECT_TRUE(worse.any_worse());
    const std::string text = to_text(worse, 0.1);
    EXPECT_LT(text.find("=== another"), text.find("WORSE")) << text;
}

TEST(BenchCompareHosts, ComparesAcrossAnUpdateAndNamesWhatHasNoCounterpart) {
    MergedResults after = two_kinds();
    after.groups[1].results.host.kernel = "6.13";
    after.groups[1].results.host.microcode = "0x9";
    const HostsComparison updated = compare(two_kinds(), after, 0.1);
    EXPECT_EQ(updated.kinds.size(), 2U);
    EXPECT_TRUE(mentions(to_text(updated, 0.1), "the kernel was '6.12', and is '6.13'")) << to_text(updated, 0.1);
    after.groups[1].results.host.cpu = "a third";
    const HostsComparison other = compare(two_kinds(), after, 0.1);
    EXPECT_EQ(other.kinds.size(), 1U);
    EXPECT_EQ(other.alone.size(), 2U);
    EXPECT_TRUE(mentions(to_text(other, 0.1), "only the file of before has hosts of this kind: another"));
    EXPECT_TRUE(mentions(to_text(other, 0.1), "only the file of after has hosts of this kind: a third"));
}

} // namespace
} // namespace vmm::bench
