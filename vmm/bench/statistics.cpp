#include "vmm/bench/statistics.hpp"

#include <algorithm>
#include <cassert>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <numeric>
#include <random>

namespace vmm::bench {

namespace {

constexpr std::uint64_t kSeed = 5;

/// Medians of samples drawn with replacement. The generator is a standard one, so its numbers are the same everywhere.
class Resampler {
  public:
    double median_of(std::span<const double> values) {
        drawn_.clear();
        for (std::size_t i = 0; i < values.size(); ++i) {
            drawn_.push_back(values[((random_() >> 32) * values.size()) >> 32]);
        }
        return median(drawn_);
    }

  private:
    std::mt19937_64 random_{kSeed};
    std::vector<double> drawn_;
};

Interval percentiles(std::vector<double> values, double confidence) {
    std::ranges::sort(values);
    const double tail = (1 - confidence) / 2 * static_cast<double>(values.size());
    const auto cut = static_cast<std::size_t>(tail);
    return {values[cut], values[values.size() - 1 - cut]};
}

double ratio(double from, double to) {
    if (from == 0) {
        return to == 0 ? 1 : std::numeric_limits<double>::infinity();
    }
    return to / from;
}

} // namespace

double percentile(std::vector<double> values, double percent) {
    std::ranges::sort(values);
    const auto rank = static_cast<std::size_t>(std::ceil(percent / 100 * static_cast<double>(values.size())));
    return values.at(std::max<std::size_t>(rank, 1) - 1);
}

double median(std::vector<double> values) {
    assert(!values.empty());
    std::ranges::sort(values);
    const std::size_t middle = values.size() / 2;
    return values.size() % 2 == 1 ? values[middle] : (values[middle - 1] + values[middle]) / 2;
}

Statistics describe(std::span<const double> values) {
    assert(!values.empty());
    const auto [least, most] = std::ranges::minmax_element(values);
    if (values.size() == 1) { // all resamples are the same
        return {*least, *least, *least, {*least, *least}};
    }
    Resampler resampler;
    std::vector<double> medians(kResamples);
    std::ranges::generate(medians, [&] { return resampler.median_of(values); });
    return {*least, median({values.begin(), values.end()}), *most, percentiles(std::move(medians), 0.95)};
}

Interval ratio_interval(std::span<const double> from, std::span<const double> to, double confidence) {
    assert(!from.empty() && !to.empty());
    Resampler resampler;
    std::vector<double> ratios(kResamples);
    std::ranges::generate(ratios, [&] {
        const double below = resampler.median_of(from);
        return ratio(below, resampler.median_of(to));
    });
    return percentiles(std::move(ratios), confidence);
}

Line fit_line(std::span<const double> x, std::span<const double> y) {
    assert(x.size() == y.size() && !x.empty());
    const auto count = static_cast<double>(x.size());
    const double mean_x = std::accumulate(x.begin(), x.end(), 0.0) / count;
    const double mean_y = std::accumulate(y.begin(), y.end(), 0.0) / count;
    double xx = 0;
    double xy = 0;
    double yy = 0;
    for (std::size_t i = 0; i < x.size(); ++i) {
        xx += (x[i] - mean_x) * (x[i] - mean_x);
        xy += (x[i] - mean_x) * (y[i] - mean_y);
        yy += (y[i] - mean_y) * (y[i] - mean_y);
    }
    if (xx == 0) {
        return {mean_y, 0, 0};
    }
    const double slope = xy / xx;
    return {mean_y - slope * mean_x, slope, yy == 0 ? 1 : xy * xy / (xx * yy)};
}

} // namespace vmm::bench
