// How often a system call is made again that the kernel did not get to.
#pragma once

#include <cerrno>
#include <chrono>
#include <optional>
#include <stop_token>

namespace vmm {

/// Counts the tries of one system call that answers EINTR or EAGAIN, and says how long to wait before the next. There
/// are at most kMostTries, and the pauses between them take less than a second together: a caller who hears of no stop
/// meanwhile still ends in time. Make a new one, or forget(), whenever the call has made progress.
///
/// Threads: one at a time.
class Retries {
  public:
    static constexpr unsigned kMostTries = 100;

    /// How long to wait before the next try, at first not at all; nothing if it has been tried often enough.
    [[nodiscard]] std::optional<std::chrono::milliseconds> next() noexcept;
    /// Waits for the next try. False if there is to be none, or if `stop` is requested.
    [[nodiscard]] bool again(const std::stop_token& stop = {}) noexcept;
    /// Begins the count anew.
    void forget() noexcept { tries_ = 1; }

  private:
    unsigned tries_ = 1; ///< the call that brings its maker here was one
};

/// Makes `call`, which answers below zero with errno set if it fails, again while it was interrupted; as often as
/// Retries allows, so that the last answer may be EINTR all the same.
template <typename Call>
auto uninterrupted(const Call& call) {
    Retries retries;
    auto result = call();
    while (result < 0 && errno == EINTR && retries.again()) {
        result = call();
    }
    return result;
}

} // namespace vmm
