// A guest that runs beside the benchmark, and is spoken to over its serial port.
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

/// A program that is the built-in guest's `vmm run --serial stdio`. Threads: one.
class LiveGuest {
  public:
    /// Starts it. `errors` is a file for what it says on standard error. Whoever waits for it gives up when `stop_fd`
    /// becomes readable, and `timeout_seconds` after it began to wait. Throws Error.
    LiveGuest(std::vector<std::string> words, const std::string& errors, int stop_fd, double timeout_seconds);
    /// Kills it, if it runs.
    ~LiveGuest() = default;
    LiveGuest(const LiveGuest&) = delete;
    LiveGuest& operator=(const LiveGuest&) = delete;

    /// Sends the guest bytes, each of which is a command (vmm/guest/README.md).
    void say(std::string_view bytes);
    /// Waits for a line that begins so, behind the one that was found before, and returns it without its end. Throws
    /// Error: the program has ended, or a stop was requested, or it takes too long.
    [[nodiscard]] std::string wait_for(std::string_view start);
    /// The same; nothing if the program has ended before.
    [[nodiscard]] std::optional<std::string> find(std::string_view start);
    /// Waits until the program has ended. Throws Error, as wait_for() does, or because it failed.
    void wait_for_end();

  private:
    /// Waits for more output. False at its end.
    [[nodiscard]] bool read_more(std::chrono::steady_clock::time_point deadline);
    [[nodiscard]] ChildEnd wait();

    std::string errors_;
    int stop_fd_;
    double timeout_seconds_;
    UniqueFd in_;
    UniqueFd out_;
    std::string output_; ///< what has been read, and not been looked at
    std::optional<ChildProcess> process_;
};

} // namespace vmm::bench
