// Statistics of a few runs.
#pragma once

#include <optional>
#include <span>
#include <vector>

namespace vmm::bench {

/// The middle value, or the mean of the two in the middle. `values` must not be empty.
[[nodiscard]] double median(std::vector<double> values);

/// The least of `values` that `percent` of 100 of them do not exceed. `values` must not be empty.
[[nodiscard]] double percentile(std::vector<double> values, double percent);

/// From `low` to `high`.
struct Interval {
    double low = 0;
    double high = 0;
};

struct Statistics {
    double least = 0;
    double median = 0;
    double most = 0;
    Interval confidence; ///< of the median, 95%
};

/// `values` must not be empty. The interval is a percentile bootstrap (Efron and Tibshirani, "An Introduction to the
/// Bootstrap", 13.3) of kResamples resamples from a fixed seed: the same values give the same interval.
[[nodiscard]] Statistics describe(std::span<const double> values);

/// The values of one figure (FigureValues), in the samples that have it.
template <typename Sample, typename Figure>
[[nodiscard]] std::vector<double> values_of(const std::vector<Sample>& samples, Figure figure) {
    std::vector<double> values;
    for (const Sample& sample : samples) {
        if (const auto value = sample[figure]) {
            values.push_back(*value);
        }
    }
    return values;
}

/// The statistics of the figure; nothing if no sample has it.
template <typename Sample, typename Figure>
[[nodiscard]] std::optional<Statistics> statistics_of(const std::vector<Sample>& samples, Figure figure) {
    const std::vector<double> values = values_of(samples, figure);
    return values.empty() ? std::nullopt : std::optional(describe(values));
}

/// The bootstrap interval of median(to) / median(from), with this confidence (0.99: 99%). Neither may be empty. The
/// ratio is infinite if only the median of `from` is 0, and 1 if both are 0.
[[nodiscard]] Interval ratio_interval(std::span<const double> from, std::span<const double> to, double confidence);

inline constexpr unsigned kResamples = 2000;

/// y = base + slope * x, fitted by least squares.
struct Line {
    double base = 0;
    double slope = 0;
    double r2 = 0; ///< the share of the variation that it explains, 0 to 1
};

/// Needs at least two points of different x; otherwise the line is flat.
[[nodiscard]] Line fit_line(std::span<const double> x, std::span<const double> y);

} // namespace vmm::bench
