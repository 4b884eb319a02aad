// The options as they were given, before anything is concluded from them.
#pragma once

#include <optional>
#include <string>

#include "vmm/cli/commands.hpp"

namespace vmm {

/// The content of a command line and its configuration file. Every option writes a member of its own. A value is
/// optional if it matters whether it was given.
struct Given {
    RunCommand run;
    std::optional<std::string> serial;
    std::optional<HardwareDescription> hardware;
    std::optional<unsigned> keep_every_ms;
    std::optional<SandboxMode> sandbox;
    std::string restore; ///< a snapshot; empty: none
    std::optional<RestoreMode> restore_mode;
    std::optional<RestoreClock> restore_clock;
    unsigned record_working_set_ms = 0;
    std::string incoming; ///< an address; empty: no guest arrives
    std::string tls;
    bool insecure = false;
    unsigned verbosity = 0;
    bool quiet = false;
    PoolCommand pool;
    ControlCommand control;
    SnapshotCommand snapshot;
    BenchCommand bench;
    BenchStateCommand bench_state;
    BenchMigrateCommand bench_migrate;
    BenchMergeCommand bench_merge;
    BenchCompareCommand compare;
};

/// Returns the command `vmm run`. It fills in what follows from other options. Throws Error if options contradict each
/// other.
[[nodiscard]] RunCommand run_command_of(const Given& given);

} // namespace vmm
