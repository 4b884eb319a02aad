// Shows people what is being done.
#pragma once

#include <unistd.h>

#include <span>
#include <string>
#include <string_view>

#include "vmm/output/nonblocking_output.hpp"

namespace vmm::bench {

/// Shows on a terminal what is being done. If nobody reads the terminal, or it is stopped, the text is dropped.
/// Threads: one.
class ProgressText {
  public:
    ProgressText() = default;
    ProgressText(const ProgressText&) = delete;
    ProgressText& operator=(const ProgressText&) = delete;
    ~ProgressText() { write("\r\033[K"); }

    void show(const std::string& text) { write("\r\033[K" + text.substr(0, 110)); }

  private:
    void write(std::string_view text) {
        if (terminal_) {
            static_cast<void>(output_.write(std::as_bytes(std::span(text))));
        }
    }

    bool terminal_ = ::isatty(STDERR_FILENO) == 1;
    NonblockingOutput output_{STDERR_FILENO};
};

} // namespace vmm::bench
