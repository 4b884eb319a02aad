// What the kernel counts of the things that take a process's pages, move them or split them.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "kvm/host/unique_fd.hpp"

namespace vmm::prefault {

/// The counters of /proc/vmstat that tell of such things, and how many pages KSM shares. They are the host's, so a rise
/// is a hint and no proof. A counter that this kernel does not have is left out; without /proc there is none.
///
/// Threads: one at a time.
class KernelCounts {
  public:
    static constexpr std::size_t kCounters = 20;
    /// By place in a table of names; nothing if there is no such counter.
    using Values = std::array<std::optional<std::uint64_t>, kCounters>;

    /// Opens the files under `root`. Never throws: what cannot be opened is left out.
    explicit KernelCounts(const std::string& root = "");

    [[nodiscard]] Values read() const;

    /// What the counters of `after` that are above those of `before` stand for, as words for people, by how many
    /// pages each is about: "compaction". Migration is that of pages which no other counter explains.
    [[nodiscard]] static std::vector<std::string> causes(const Values& before, const Values& after);
    /// The counters that rose, by name, and by how much.
    [[nodiscard]] static std::vector<std::pair<std::string_view, std::uint64_t>> rises(const Values& before,
                                                                                       const Values& after);

  private:
    UniqueFd vmstat_;
    UniqueFd ksm_;
};

} // namespace vmm::prefault
