// `vmm bench migrate`, from its options to its exit status.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "kvm/host/guest_memory.hpp"
#include "vmm/bench/cell.hpp"
#include "vmm/bench/migrate_case.hpp"

namespace vmm {

/// `vmm bench migrate`
struct BenchMigrateCommand {
    std::uint64_t memory_bytes = bench::kStandardMemoryBytes; ///< a multiple of 2 MiB
    bench::MigrateLists lists{}; ///< empty lists mean everything that is possible on this host
    bool every = false;
    std::optional<unsigned> workers;
    unsigned runs = 3;          ///< 1 to BenchCommand::kMaxRuns
    unsigned downtime_ms = 100; ///< 1 to kMaxDowntimeMs
    unsigned give_up_seconds = 5;
    double timeout_seconds = 600; ///< of one run
    bool warm = true;
    std::string json; ///< files; empty: none
    std::string plot;

    static constexpr std::array kVcpus{1U, 2U, 4U}; ///< of `lists`, if they do not say: those that this host has
    static constexpr std::array kStreams{1U, 2U};   ///< likewise, all of them

    static constexpr unsigned kMaxDowntimeMs = 60'000;
    static constexpr unsigned kMaxGiveUpSeconds = 86'400;
};

/// Measures and prints. Returns the exit status of the program: 1 if a case failed, 4 if a signal stopped it, and 0
/// otherwise. If a signal stops it, the results until then are printed and written. A missed aim is printed and is no
/// failure; nor is a guest that changes too much to go over. Throws Error before the first run if the case does not fit
/// this host, or if an output cannot be written.
[[nodiscard]] int run_bench_migrate(const BenchMigrateCommand& command);

} // namespace vmm
