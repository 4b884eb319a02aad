// Predicts from the measurements on this host how long larger guests take (docs/scale.md).
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <stop_token>
#include <string>
#include <vector>

#include "vmm/bench/results.hpp"

namespace vmm::bench {

/// A cost that grows with memory and is shared by workers. It consists of one worker's seconds for a GiB, and of the
/// factor by which each doubling of the workers makes it faster.
struct ParallelCost {
    double seconds_per_gib = 0; ///< of one worker
    double gain = 2;            ///< 1 (a second worker is no help) to 2 (it halves the time)
    bool gain_known = false;    ///< whether `gain` was measured; otherwise it is 2
    double r2 = 0;              ///< of the line through the measured sizes of memory

    /// The seconds with `workers`, each as fast as here. If `perfect`, the gain is assumed to be 2.
    [[nodiscard]] double seconds(double gib, unsigned workers, bool perfect) const noexcept;
};

/// In seconds. If a time is shorter, its gain cannot be told from noise.
inline constexpr double kLeastTimeForGain = 0.02;

/// The costs of one page size. Nothing: not measured.
struct PageCosts {
    PageSize page_size = PageSize::k4K;
    std::optional<ParallelCost> host;  ///< populating the host side
    std::optional<ParallelCost> touch; ///< filling the second level by touch
    std::optional<ParallelCost> ioctl; ///< by KVM_PRE_FAULT_MEMORY
    std::optional<ParallelCost> ioctl_then_touch;
    std::optional<ParallelCost> cold;         ///< the guest's faults on memory that nobody populated
    std::optional<ParallelCost> warm;         ///< the guest's faults if the host side is populated
    std::optional<ParallelCost> steady;       ///< a pass that takes no fault
    std::optional<ParallelCost> after_reader; ///< the guest's faults on memory that one of its vCPUs has read
    std::optional<double> reader_seconds_per_gib;
    std::optional<double> seconds_per_cold_fault; ///< of one vCPU
    std::optional<double> seconds_per_warm_fault;
};

/// Fits the costs to `results`, by page size. Returns an empty list if there is nothing to fit.
[[nodiscard]] std::vector<PageCosts> fit_costs(const Results& results);

struct TargetShape {
    std::uint64_t memory_bytes;
    unsigned vcpus; ///< also the number of CPUs and of prefault workers
};
inline constexpr std::array kTargets{TargetShape{64 * kGiB, 32}, TargetShape{kTiB, 128}, TargetShape{16 * kTiB, 896}};

/// The time of a method for a shape, until the guest's first pass is over.
struct Prediction {
    double prefault_seconds = 0; ///< for the reader: the time of reading
    double first_seconds = 0;

    [[nodiscard]] double total() const noexcept { return prefault_seconds + first_seconds; }
};

/// Returns nothing if a needed cost was not measured.
[[nodiscard]] std::optional<Prediction> predict(const PageCosts& costs, Method method, const TargetShape& shape,
                                                bool perfect);

/// The fit, for people: seconds for a GiB and for a fault.
[[nodiscard]] std::string fit_table(const std::vector<PageCosts>& costs);
/// The predictions for those shapes by every method and page size, and how far each is from the time of writing memory
/// once.
[[nodiscard]] std::string model_table(const std::vector<PageCosts>& costs, const Results& results);

/// Measures how many bytes a second all usable CPUs together write to memory that they have touched before.
[[nodiscard]] double measure_bandwidth(const std::stop_token& stop = {});

} // namespace vmm::bench
