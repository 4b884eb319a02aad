// The user's terminal, lent to the guest and given back.
#pragma once

namespace vmm {

/// Puts a terminal into raw mode: every key goes to the guest at once, Ctrl-C included. It is put back on destruction
/// and whenever the process ends by a signal it does not catch itself; stopping and continuing the process (SIGTSTP,
/// SIGCONT) restores and retakes it. Only SIGKILL leaves it raw, because nothing runs then: `stty sane` helps.
///
/// Output processing stays on, so that what we log looks right beside the guest's output.
///
/// This is the one place that changes signal dispositions of the process, so it is for programs, not for the library.
/// At most one exists at a time. Threads: the main one.
class RawTerminal {
  public:
    /// Whether `fd` is a terminal that this process, in the foreground, may take.
    [[nodiscard]] static bool is_available(int fd) noexcept;

    /// `fd` is a loan for which is_available(). Throws Error.
    explicit RawTerminal(int fd);
    ~RawTerminal();
    RawTerminal(const RawTerminal&) = delete;
    RawTerminal& operator=(const RawTerminal&) = delete;
};

} // namespace vmm
