// Runs `vmm` itself, and measures the cost of doing so.
#pragma once

#include <string>
#include <vector>

#include "vmm/bench/child.hpp"
#include "vmm/bench/run.hpp"
#include "vmm/stop_request.hpp"

namespace vmm::bench {

/// The text of the file; empty if it cannot be read.
[[nodiscard]] std::string read_text_file(const std::string& path);

/// Threads: one.
class ProgramRunner {
  public:
    /// `program` is the path of `vmm`. A program that takes longer than `timeout_seconds` is ended, and counts as
    /// failed. `stop` must outlive this object.
    ProgramRunner(std::string program, double timeout_seconds, const StopRequest& stop)
        : program_(std::move(program)), timeout_seconds_(timeout_seconds), stop_(stop) {}

    [[nodiscard]] const std::string& program() const noexcept { return program_; }

    /// Runs a program to its end, and returns its output. The program can read `input` from its standard input. Throws
    /// Error if it failed, or if a stop was requested.
    [[nodiscard]] std::string run(std::vector<std::string> words, const std::string& input);
    /// Sends a request to the guest's control socket, and returns the answer, which is JSON. Throws Error.
    [[nodiscard]] std::string ask(const std::string& socket, std::vector<std::string> words);
    /// Does the same, however that program ends. Throws Error if a stop was requested.
    [[nodiscard]] ChildEnd try_ask(const std::string& socket, std::vector<std::string> words);

    void add_cost(double run_seconds) noexcept { cost_.runs += run_seconds; }
    [[nodiscard]] const HarnessCost& cost() const noexcept { return cost_; }

  private:
    [[nodiscard]] ChildEnd try_run(std::vector<std::string> words, const std::string& input);

    std::string program_;
    double timeout_seconds_;
    const StopRequest& stop_;
    HarnessCost cost_;
};

} // namespace vmm::bench
