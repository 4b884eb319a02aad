// Upper bounds on time, on a machine that may be busy with other things.
#pragma once

#include <algorithm>

namespace vmm::testing {

/// The least of at most `attempts` measurements, of which the first below `bound` is the last: what others do on this
/// machine may delay each of ours by more than `bound`, hardly all of them. What takes longer by itself always does.
template <typename Bound, typename Measure>
auto least_of(int attempts, Bound bound, Measure measure) {
    auto least = measure();
    for (int attempt = 1; attempt < attempts && least >= bound; ++attempt) {
        least = std::min(least, measure());
    }
    return least;
}

} // namespace vmm::testing
