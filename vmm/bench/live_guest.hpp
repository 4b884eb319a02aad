// A guest that runs beside the benchmark, and gets commands over its serial port.
#pragma once

#include <chrono>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "kvm/host/unique_fd.hpp"
#include "vmm/bench/child.hpp"
#include "vmm/host/child_process.hpp"

namespace vmm::bench {

/// A `vmm run --serial stdio` of the built-in guest. Threads: one.
class LiveGuest {
  public:
    /// Starts the guest. `errors` is the file for its standard error. The waiting functions give up when `stop_fd`
    /// becomes readable, and after `timeout_seconds`. Throws Error.
    LiveGuest(std::vector<std::string> words, const std::string& errors, int stop_fd, double timeout_seconds);
    /// Kills the program if it still runs.
    ~LiveGuest() = default;
    LiveGuest(const LiveGuest&) = delete;
    LiveGuest& operator=(const LiveGuest&) = delete;

    /// Sends the guest bytes, each of which is a command (vmm/guest/README.md).
    void say(std::string_view bytes);
    /// Waits for a line that begins with `start`, after the line that was found before, and returns it without its end.
    /// Throws Error if the program has ended, if a stop was requested, or if it takes too long.
    [[nodiscard]] std::string wait_for(std::string_view start);
    /// Does the same, but returns nothing if the program has ended.
    [[nodiscard]] std::optional<std::string> find(std::string_view start);
    /// Waits until the program has ended. Throws Error as wait_for() does, and if the program failed.
    void wait_for_end();

  private:
    /// Waits for more output. Returns false at its end.
    [[nodiscard]] bool read_more(std::chrono::steady_clock::time_point deadline);
    [[nodiscard]] ChildEnd wait();

    std::string errors_;
    int stop_fd_;
    double timeout_seconds_;
    UniqueFd in_;
    UniqueFd out_;
    std::string output_; ///< output that was read and not searched yet
    std::optional<ChildProcess> process_;
};

} // namespace vmm::bench
