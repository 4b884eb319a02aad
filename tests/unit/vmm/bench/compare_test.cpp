// Differences that count as a change between two results.

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "support/host_errors.hpp"
#include "vmm/bench/compare.hpp"

namespace vmm::bench {
namespace {

using testing::mentions;

/// One cell whose first pass took these times, with the same number of faults in each run.
Results results_of(const std::vector<double>& first, double faults = 0) {
    Results results;
    results.host = {"here", "6.12", "processor", 2, 8 * kGiB, "npt", true, true};
    CellResult result;
    result.cell.memory_bytes = kGiB;
    for (const double seconds : first) {
        Sample sample;
        sample[Figure::kFirst] = seconds;
        sample[Figure::kFaults] = faults;
        result.samples.push_back(sample);
    }
    results.cells.push_back(result);
    return results;
}

const std::vector<double> kTimes{1.0, 1.05, 0.98, 1.02, 1.01};
const std::vector<double> kTwice{2.0, 2.1, 1.96, 2.04, 2.02};

TEST(BenchCompare, AFileWithItselfHasNotChanged) {
    const Comparison comparison = compare(results_of(kTimes), results_of(kTimes), 0.1);
    EXPECT_TRUE(comparison.changes.empty());
    EXPECT_FALSE(comparison.any_worse());
    EXPECT_TRUE(mentions(to_text(comparison, 0.1), "no change")) << to_text(comparison, 0.1);
    EXPECT_GT(comparison.compared, 0U);
}

TEST(BenchCompare, FindsWhatTakesTwiceAsLong) {
    const Comparison comparison = compare(results_of(kTimes), results_of(kTwice), 0.1);
    ASSERT_EQ(comparison.changes.size(), 1U);
    EXPECT_TRUE(comparison.changes[0].worse);
    EXPECT_TRUE(comparison.any_worse());
    EXPECT_TRUE(mentions(to_text(comparison, 0.1), "WORSE  ")) << to_text(comparison, 0.1);
    EXPECT_TRUE(mentions(to_text(comparison, 0.1), "first_seconds 1.01 s -> 2.02 s (+100%"))
        << to_text(comparison, 0.1);
}

TEST(BenchCompare, WhatIsBetterIsAChangeButNoRegression) {
    const Comparison comparison = compare(results_of(kTwice), results_of(kTimes), 0.1);
    EXPECT_EQ(comparison.changes.size(), 1U);
    EXPECT_FALSE(comparison.any_worse());
}

TEST(BenchCompare, AChangeWithinTheThresholdIsNone) {
    EXPECT_TRUE(compare(results_of(kTimes), results_of(kTwice), 1.5).changes.empty());
}

TEST(BenchCompare, RunsThatOverlapAreNoise) {
    EXPECT_TRUE(compare(results_of({1, 1.5, 2, 1.2, 1.1}), results_of({1.9, 2.5, 1.4, 2.2, 2.1}), 0.1).changes.empty());
}

TEST(BenchCompare, RunsThatLieSideBySideByChanceAreNoise) {
    // A machine that is slower in the afternoon.
    EXPECT_TRUE(
        compare(results_of({1, 1.04, 1.08, 1.1, 1.02}), results_of({1.13, 1.3, 1.25, 1.3, 1.2}), 0.1).changes.empty());
    // With three runs each, one pair in ten differs by chance.
    EXPECT_TRUE(compare(results_of({1, 1.05, 1.1}), results_of({1.25, 1.3, 1.28}), 0.1).changes.empty());
    EXPECT_EQ(compare(results_of({1, 1.05, 1.1}), results_of({2, 2.1, 2.2}), 0.1).changes.size(), 1U);
}

TEST(BenchCompare, DifferencesTooSmallToTellAreNone) {
    EXPECT_TRUE(compare(results_of({1e-5, 1.1e-5, 1e-5}), results_of({3e-5, 3.1e-5, 3e-5}), 0.1).changes.empty());
}

TEST(BenchCompare, FaultsWhereThereWereNoneAreARegression) {
    const Comparison comparison = compare(results_of(kTimes, 0), results_of(kTimes, 3), 0.1);
    ASSERT_EQ(comparison.changes.size(), 1U);
    EXPECT_EQ(comparison.changes[0].figure, Figure::kFaults);
    EXPECT_TRUE(comparison.any_worse());
}

TEST(BenchCompare, TimesOfTwoRunsAreNotComparedButCountsAre) {
    const Comparison comparison = compare(results_of({1, 1}, 0), results_of({9, 9}, 5), 0.1);
    ASSERT_EQ(comparison.changes.size(), 1U);
    EXPECT_EQ(comparison.changes[0].figure, Figure::kFaults);
    EXPECT_TRUE(mentions(to_text(comparison, 0.1), "warning: times of fewer than 3 runs"));
}

TEST(BenchCompare, DifferentHostsGetAWarning) {
    Results other = results_of(kTimes);
    other.host.kernel = "6.1";
    const Comparison comparison = compare(results_of(kTimes), other, 0.1);
    ASSERT_EQ(comparison.warnings.size(), 1U);
    EXPECT_TRUE(mentions(comparison.warnings[0], "different hosts")) << comparison.warnings[0];
    EXPECT_TRUE(mentions(comparison.warnings[0], "6.1"));
}

TEST(BenchCompare, CellsThatOneFileLacksAreLeftOutAndCounted) {
    Results other = results_of(kTimes);
    other.cells[0].cell.memory_bytes = 2 * kGiB;
    const Comparison comparison = compare(results_of(kTimes), other, 0.1);
    EXPECT_EQ(comparison.compared, 0U);
    ASSERT_EQ(comparison.warnings.size(), 1U);
    EXPECT_TRUE(mentions(comparison.warnings[0], "2 cells")) << comparison.warnings[0];
    EXPECT_TRUE(mentions(to_text(comparison, 0.1), "nothing to compare"));
}

} // namespace
} // namespace vmm::bench
