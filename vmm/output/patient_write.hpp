// Writes to a reader that may be slow, or may never read.
#pragma once

#include <chrono>
#include <cstddef>
#include <string>
#include <string_view>

#include "vmm/output/nonblocking_output.hpp"

namespace vmm {

/// How long a writer waits for a reader.
struct WritePatience {
    std::chrono::milliseconds quiet{3000}; ///< while it takes nothing; each byte that it takes starts this time again
    int hurry_fd = -1;                     ///< once this is readable, only `hurried` is left; -1: there is none
    std::chrono::milliseconds hurried{200};
};

struct Written {
    std::size_t bytes = 0;
    int error_number = 0; ///< why not all was written; ETIMEDOUT: the reader took nothing for too long
};

/// Waits until `fd` is writable, `hurry_fd` is readable, or the time is up. It is for loops around
/// NonblockingOutput::write.
class WriteDeadline {
  public:
    explicit WriteDeadline(const WritePatience& patience) : patience_(patience) { note_progress(); }
    /// Tells that the reader has taken something.
    void note_progress() noexcept;
    /// Returns false when the time is up.
    [[nodiscard]] bool wait_for(int fd, short events) noexcept;

  private:
    using Clock = std::chrono::steady_clock;
    WritePatience patience_;
    Clock::time_point quiet_end_;
    bool hurrying_ = false;
    Clock::time_point hurry_end_;
};

/// Writes all of `text`, or as much as the reader takes in time. For a regular file only the kernel waits.
[[nodiscard]] Written write_patiently(const NonblockingOutput& output, std::string_view text,
                                      const WritePatience& patience = {});

/// Does the same for a program's own result on its standard output. Returns true if all was written, or if the reader
/// did not want more (`vmm doctor | head -1`). Otherwise standard error says why.
[[nodiscard]] bool print_result(std::string_view text, const WritePatience& patience = {});

/// Writes `text` to standard error. It waits at most a second for a reader that takes nothing.
void print_message(std::string_view text) noexcept;

/// Returns "nobody has read it for 3 s", or the reason of `error_number` with its advice.
[[nodiscard]] std::string describe_failure(const Written& written, const WritePatience& patience);

} // namespace vmm
