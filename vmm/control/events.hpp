// What has happened to a machine, for clients that follow it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <mutex>
#include <string>
#include <string_view>
#include <vector>

#include <nlohmann/json_fwd.hpp>

namespace vmm::control {

/// Keeps the last events, each as a line of JSON: {"sequence": 1, "time": 1764388800.123, "event": "started"}. The
/// first event has the number 1. New events replace old ones, so that a client that does not read costs nothing.
///
/// Threads: any.
class Events {
  public:
    static constexpr std::size_t kMostKept = 256;

    /// Adds an event with the members `details` beside its own.
    void add(std::string_view event, const nlohmann::ordered_json& details);
    void add(std::string_view event);

    struct Batch {
        std::vector<std::string> lines; ///< without newlines
        std::uint64_t next = 1;         ///< the number of the first event of the next batch
    };
    /// Returns the events from number `first` on, at most `most`. If some of them are gone already, a line says how
    /// many: {"event": "missed", "count": 3}.
    [[nodiscard]] Batch from(std::uint64_t first, std::size_t most) const;
    /// The number of events since the beginning.
    [[nodiscard]] std::uint64_t count() const;

    /// Sets the function that is called after each event, on the thread that added it. It replaces the one before, and
    /// may be empty.
    void call(std::function<void()> wake);

  private:
    mutable std::mutex lock_;
    std::deque<std::string> lines_;
    std::uint64_t first_ = 1; ///< the number of the first line
    std::function<void()> wake_;
};

} // namespace vmm::control
