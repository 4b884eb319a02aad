// The keys that are commands to the machine, and not input for the guest.
#pragma once

#include <cstddef>
#include <span>
#include <vector>

namespace vmm {

/// Finds commands in what is typed: Ctrl-A and then x (stop), h (help), or Ctrl-A (the key itself, for the guest).
/// After any other key both keys go to the guest. Threads: one.
class EscapeKeys {
  public:
    struct Result {
        std::vector<std::byte> for_guest;
        bool stop = false;
        bool help = false;
    };
    /// Takes what was typed. A command may be split between two calls.
    [[nodiscard]] Result filter(std::span<const std::byte> typed);

  private:
    bool prefix_seen_ = false;
};

} // namespace vmm
