// `vmm bench state`, from its options to its exit status.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "kvm/host/guest_memory.hpp"
#include "vmm/snapshot.hpp"

namespace vmm {

/// `vmm bench state`
struct BenchStateCommand {
    bool quick = false;                        ///< smaller values for options that are not given
    std::optional<std::uint64_t> memory_bytes; ///< a multiple of 2 MiB
    unsigned vcpus = 1;
    std::optional<unsigned> workers;
    std::vector<PageSize> page_sizes; ///< empty: all that this host has
    std::vector<RestoreMode> modes;   ///< empty: all that this host can do
    std::optional<unsigned> runs;     ///< 1 to BenchCommand::kMaxRuns
    std::optional<unsigned> clones;   ///< 1 to kMaxClones
    double timeout_seconds = 600;     ///< of one run
    bool warm = true;
    std::string json; ///< files; empty: none
    std::string plot;

    static constexpr unsigned kMaxClones = 500;

    /// What counts where the options do not say.
    struct Standard {
        std::uint64_t memory_bytes;
        unsigned runs;
        unsigned clones;
    };
    static constexpr Standard kStandard{kGiB, 5, 20};
    static constexpr Standard kQuick{128 * kMiB, 2, 4}; ///< with `quick`
};

/// Measures and prints. Returns the exit status of the program: 1 if a case failed, 4 if a signal stopped it, and 0
/// otherwise. If a signal stops it, the results until then are printed and written. A missed aim is printed, and is no
/// failure. Throws Error before the first run if it does not fit this host, or if an output cannot be written; and if
/// the guest for the snapshot cannot be saved.
[[nodiscard]] int run_bench_state(const BenchStateCommand& command);

} // namespace vmm
