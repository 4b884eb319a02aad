// Repeats a system call that the kernel did not complete.
#pragma once

#include <cerrno>
#include <chrono>
#include <optional>
#include <stop_token>

namespace vmm {

/// Counts the tries of one system call that answers EINTR or EAGAIN, and says how long to wait before the next one.
/// There are at most kMostTries, and the pauses together take less than a second, so a caller ends in time even if it
/// is not told to stop. Make a new object, or call forget(), whenever the call has made progress.
///
/// Threads: one at a time.
class Retries {
  public:
    static constexpr unsigned kMostTries = 100;

    /// How long to wait before the next try (0 for the first tries); nothing if it has been tried often enough.
    [[nodiscard]] std::optional<std::chrono::milliseconds> next() noexcept;
    /// Waits until the next try is due. Returns false if there must be no further try, or if `stop` is requested.
    [[nodiscard]] bool again(const std::stop_token& stop = {}) noexcept;
    /// Begins the count anew.
    void forget() noexcept { tries_ = 1; }

  private:
    unsigned tries_ = 1; ///< the first try was made before this object is asked
};

/// True if `error_number` says that a call could do nothing now, but can be made again later.
[[nodiscard]] constexpr bool would_block(int error_number) noexcept {
    return error_number == EAGAIN || error_number == EWOULDBLOCK || error_number == EINTR;
}

/// Makes `call` again as long as it is interrupted, at most as often as Retries allows. `call` returns a value below
/// zero and sets errno if it fails. The last answer may still be EINTR.
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
