// The options of `vmm bench`.
#pragma once

#include "vmm/bench/command.hpp"

namespace CLI {
class App;
}

namespace vmm {

/// Adds them to `bench`, and the subcommand `compare`, which is returned. What is parsed goes into the commands, which
/// outlive `bench`.
CLI::App* add_bench_options(CLI::App& bench, BenchCommand& command, BenchCompareCommand& compare);

} // namespace vmm
