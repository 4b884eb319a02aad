// Statistics of a few runs: medians, intervals, lines.

#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "vmm/bench/statistics.hpp"

namespace vmm::bench {
namespace {

TEST(BenchStatistics, MedianIsTheMiddleOrTheMeanOfTheTwoThere) {
    EXPECT_EQ(median({3, 1, 2}), 2);
    EXPECT_EQ(median({4, 1, 3, 2}), 2.5);
    EXPECT_EQ(median({7}), 7);
}

TEST(BenchStatistics, PercentileIsTheLeastValueThatSoManyDoNotExceed) {
    EXPECT_EQ(percentile({3, 1, 2, 4}, 50), 2);
    EXPECT_EQ(percentile({3, 1, 2, 4}, 51), 3);
    EXPECT_EQ(percentile({3, 1, 2, 4}, 99), 4);
    EXPECT_EQ(percentile({3, 1, 2, 4}, 0), 1);
    EXPECT_EQ(percentile({7}, 95), 7);
}

TEST(BenchStatistics, DescribesLeastMedianAndMost) {
    const Statistics statistics = describe(std::vector<double>{5, 1, 9});
    EXPECT_EQ(statistics.least, 1);
    EXPECT_EQ(statistics.median, 5);
    EXPECT_EQ(statistics.most, 9);
}

TEST(BenchStatistics, IntervalHoldsTheMedianAndStaysWithinTheValues) {
    const std::vector<double> values{10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 50};
    const Statistics statistics = describe(values);
    EXPECT_LE(statistics.confidence.low, statistics.median);
    EXPECT_GE(statistics.confidence.high, statistics.median);
    EXPECT_GT(statistics.confidence.low, 10) << "not all runs can be that low";
    EXPECT_LT(statistics.confidence.high, 50) << "one run is no median";
}

TEST(BenchStatistics, SameValuesGiveTheSameInterval) {
    const std::vector<double> values{3, 1, 4, 1, 5, 9, 2, 6};
    EXPECT_EQ(describe(values).confidence.low, describe(values).confidence.low);
    EXPECT_EQ(describe(values).confidence.high, describe(values).confidence.high);
}

TEST(BenchStatistics, IntervalOfOneRunIsThatRun) {
    const Statistics statistics = describe(std::vector<double>{4});
    EXPECT_EQ(statistics.confidence.low, 4);
    EXPECT_EQ(statistics.confidence.high, 4);
}

TEST(BenchStatistics, RatioOfWhatIsTwiceAsLongIsTwo) {
    const std::vector<double> from{10, 10.1, 9.9, 10, 10.05};
    std::vector<double> to;
    for (const double value : from) {
        to.push_back(2 * value);
    }
    const Interval interval = ratio_interval(from, to, 0.99);
    EXPECT_NEAR(interval.low, 2, 0.05);
    EXPECT_NEAR(interval.high, 2, 0.05);
}

TEST(BenchStatistics, RatioOfOverlappingRunsHoldsOne) {
    const Interval interval =
        ratio_interval(std::vector<double>{1, 2, 3, 4, 5}, std::vector<double>{2, 3, 4, 5, 6}, 0.99);
    EXPECT_LT(interval.low, 1);
    EXPECT_GT(interval.high, 1);
}

TEST(BenchStatistics, RatioToNothingIsInfiniteAndOfNothingToNothingOne) {
    EXPECT_TRUE(std::isinf(ratio_interval(std::vector<double>{0, 0}, std::vector<double>{3, 3}, 0.99).low));
    EXPECT_EQ(ratio_interval(std::vector<double>{0, 0}, std::vector<double>{0, 0}, 0.99).high, 1);
}

TEST(BenchStatistics, LineFindsBaseAndSlope) {
    const Line line = fit_line(std::vector<double>{1, 2, 4}, std::vector<double>{5, 7, 11});
    EXPECT_DOUBLE_EQ(line.base, 3);
    EXPECT_DOUBLE_EQ(line.slope, 2);
    EXPECT_DOUBLE_EQ(line.r2, 1);
}

TEST(BenchStatistics, LineThroughOneSizeIsFlat) {
    const Line line = fit_line(std::vector<double>{2, 2}, std::vector<double>{5, 7});
    EXPECT_EQ(line.slope, 0);
    EXPECT_EQ(line.base, 6);
}

} // namespace
} // namespace vmm::bench
