// Writes to a reader that may be slow, or may never read.
#pragma once

#include <chrono>
#include <cstddef>
#include <string>
#include <string_view>

#include "vmm/output/nonblocking_output.hpp"

namespace vmm {

/// How long a reader is waited for.
struct WritePatience {
    std::chrono::milliseconds quiet{3000}; ///< as long as it takes nothing; each byte it takes begins this anew
    int hurry_fd = -1;                     ///< once this is readable, only for `hurried` more; -1: none
    std::chrono::milliseconds hurried{200};
};

struct Written {
    std::size_t bytes = 0;
    int error_number = 0; ///< why not all; ETIMEDOUT: the reader took nothing for so long
};

/// Waits until `fd` is writable, `hurry_fd` tells us to hurry, or it is `deadline`. For loops around
/// NonblockingOutput::write.
class WriteDeadline {
  public:
    explicit WriteDeadline(const WritePatience& patience) : patience_(patience) { note_progress(); }
    /// Something was taken.
    void note_progress() noexcept;
    /// False when time is up.
    [[nodiscard]] bool wait_for(int fd, short events) noexcept;

  private:
    using Clock = std::chrono::steady_clock;
    WritePatience patience_;
    Clock::time_point quiet_end_;
    bool hurrying_ = false;
    Clock::time_point hurry_end_;
};

/// Writes all of `text`, or as much as is taken in time. A regular file is not waited for, other than by the kernel.
[[nodiscard]] Written write_patiently(const NonblockingOutput& output, std::string_view text,
                                      const WritePatience& patience = {});

/// The same for a program's own result on its standard output. True if it is all there, or where the reader did not
/// want more (`vmm doctor | head -1`). Else standard error says why.
[[nodiscard]] bool print_result(std::string_view text, const WritePatience& patience = {});

/// Writes `text` to standard error, waiting a second at most for somebody who takes nothing.
void print_message(std::string_view text) noexcept;

/// "nobody has read it for 3 s" or the reason of `error_number` with its advice.
[[nodiscard]] std::string describe_failure(const Written& written, const WritePatience& patience);

} // namespace vmm
