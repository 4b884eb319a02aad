// Lends the user's terminal to the guest, and takes it back.
#pragma once

namespace vmm {

/// Puts a terminal into raw mode: every key goes to the guest at once, Ctrl-C included. Output processing stays on, so
/// that our messages look right beside the guest's output.
///
/// The terminal is restored on destruction, and if the process ends by a signal that it does not catch. Stopping the
/// process restores it, too, and continuing the process makes it raw again (SIGTSTP, SIGCONT). Only SIGKILL leaves the
/// terminal raw: `stty sane` helps.
///
/// This changes signal dispositions of the process, so it is for programs, not for the library. At most one exists at a
/// time.
/// Threads: the main one.
class RawTerminal {
  public:
    /// Whether `fd` is a terminal that this process, in the foreground, may take.
    [[nodiscard]] static bool is_available(int fd) noexcept;

    /// `fd` is on loan, and is_available() holds for it. Throws Error.
    explicit RawTerminal(int fd);
    ~RawTerminal();
    RawTerminal(const RawTerminal&) = delete;
    RawTerminal& operator=(const RawTerminal&) = delete;
};

} // namespace vmm
