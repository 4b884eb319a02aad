// The kernel's counts of events that take a process's pages away, move them or split them.
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

/// The counters of /proc/vmstat for such events, and how many pages KSM shares. They count for the whole host, so a
/// rise is a hint and no proof. A counter that this kernel does not have is left out; without /proc there are none.
///
/// Threads: one at a time.
class KernelCounts {
  public:
    static constexpr std::size_t kCounters = 20;
    /// By index in a table of names; nothing if there is no such counter.
    using Values = std::array<std::optional<std::uint64_t>, kCounters>;

    /// Opens the files under `root`. Never throws; files that cannot be opened are left out.
    explicit KernelCounts(const std::string& root = "");

    [[nodiscard]] Values read() const;

    /// The causes of the rises from `before` to `after`, as text for people ("compaction"), ordered by the number of
    /// pages. For migration, only pages that no other counter explains are counted.
    [[nodiscard]] static std::vector<std::string> causes(const Values& before, const Values& after);
    /// The names of the counters that rose, and by how much.
    [[nodiscard]] static std::vector<std::pair<std::string_view, std::uint64_t>> rises(const Values& before,
                                                                                       const Values& after);

  private:
    UniqueFd vmstat_;
    UniqueFd ksm_;
};

} // namespace vmm::prefault
