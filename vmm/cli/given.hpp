// What the options have said, before anything is concluded from it.
#pragma once

#include <optional>
#include <string>

#include "vmm/cli/commands.hpp"

namespace vmm {

/// What a command line and its configuration file say. Every option writes its own member. A value is optional if it
/// matters whether anybody gave it.
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

/// The command `vmm run`: fills in what follows from other options. Throws Error if options contradict each other.
[[nodiscard]] RunCommand run_command_of(const Given& given);

} // namespace vmm
