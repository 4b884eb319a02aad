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

/// The last events, each as a line of JSON: {"sequence": 1, "time": 1764388800.123, "event": "started"}. The first one
/// has the number 1. Old ones go when new ones come, so that a client that does not read costs nothing.
///
/// Threads: any.
class Events {
  public:
    static constexpr std::size_t kMostKept = 256;

    /// Adds an event with these members beside its own.
    void add(std::string_view event, const nlohmann::ordered_json& details);
    void add(std::string_view event);

    struct Batch {
        std::vector<std::string> lines; ///< without newlines
        std::uint64_t next = 1;         ///< the number from which to go on
    };
    /// The events from number `first` on, `most` at most. If some of them are gone already, a line says how many:
    /// {"event": "missed", "count": 3}.
    [[nodiscard]] Batch from(std::uint64_t first, std::size_t most) const;
    /// How many there have been.
    [[nodiscard]] std::uint64_t count() const;

    /// `wake` is called after each event, on the thread that added it, until it is replaced by another function. It
    /// may be empty.
    void call(std::function<void()> wake);

  private:
    mutable std::mutex lock_;
    std::deque<std::string> lines_;
    std::uint64_t first_ = 1; ///< the number of the first of them
    std::function<void()> wake_;
};

} // namespace vmm::control
