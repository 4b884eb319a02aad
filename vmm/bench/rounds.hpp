// The rounds of a benchmark.
#pragma once

#include <algorithm>
#include <string>
#include <vector>

#include "kvm/host/error.hpp"
#include "kvm/host/format.hpp"
#include "vmm/bench/matrix.hpp"
#include "vmm/bench/progress_text.hpp"
#include "vmm/stop_request.hpp"

namespace vmm::bench {

/// Calls `run_one` with each of `results` once in each of `runs` rounds, so that slow changes of the host affect all
/// cases alike. If it throws Error for a case, the case has failed, and is left out from then on. It returns early if
/// `stop` is requested. A result must have `of`, whose to_string() is the name, and `failure`.
template <typename Result, typename RunOne>
void run_rounds(std::vector<Result>& results, unsigned runs, const StopRequest& stop, ProgressText& progress,
                RunOne run_one) {
    for (unsigned round = 0; round < runs; ++round) {
        for (const std::size_t i : round_order(results.size(), round)) {
            Result& result = results[i];
            if (stop.is_requested()) {
                return;
            }
            if (!result.failure.empty()) {
                continue;
            }
            progress.show(vmm::format("run {} of {}: {}", round + 1, runs, to_string(result.of)));
            try {
                run_one(result);
            } catch (const Error& error) {
                if (!stop.is_requested()) {
                    result.failure = error.what();
                }
            }
        }
    }
}

/// Whether every case had all its runs, and none failed. A result must have `failure` and `samples`.
template <typename Result>
[[nodiscard]] bool have_all_runs(const std::vector<Result>& results, unsigned runs) {
    return std::ranges::all_of(
        results, [runs](const Result& result) { return result.failure.empty() && result.samples.size() == runs; });
}

} // namespace vmm::bench
