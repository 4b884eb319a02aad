// Conditions that must hold in a fuzz target.
#pragma once

#include <cstdio>
#include <cstdlib>

namespace vmm::fuzz {

/// Aborts with `what` unless `holds`: a finding.
inline void require(bool holds, const char* what) {
    if (!holds) {
        std::fprintf(stderr, "broken: %s\n", what);
        std::abort();
    }
}

} // namespace vmm::fuzz
