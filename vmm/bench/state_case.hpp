// One case of `vmm bench state`: what is done to a guest, and the kind of its memory.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "kvm/host/guest_memory.hpp"
#include "vmm/snapshot.hpp"

namespace vmm::bench {

enum class Scenario {
    kPause,    ///< a running guest is paused, and goes on
    kSnapshot, ///< a snapshot of a running guest is taken, and the guest goes on
    kCold,     ///< a guest boots, without prefault
    kBareRead, ///< no guest: the snapshot's file is read into memory, by the same number of threads
    kRestore,  ///< a guest goes on from the snapshot, and works for a second on an eighth of its memory
    kPasses,   ///< the same, but it runs passes over all of its memory
    kClones,   ///< several guests go on from the snapshot at the same time
};

/// "pause", "snapshot", "cold start", "bare read", "restore", "passes", "clones".
[[nodiscard]] std::string_view to_string(Scenario scenario) noexcept;

struct StateCase {
    Scenario scenario = Scenario::kCold;
    PageSize page_size = PageSize::kThp;
    std::optional<RestoreMode> mode{}; ///< for a guest that goes on from a snapshot

    friend bool operator==(const StateCase&, const StateCase&) = default;
};

/// "restore full, 4K pages"
[[nodiscard]] std::string to_string(const StateCase& each);

/// Whether the case is measured on the guest that is saved, before the snapshot is taken.
[[nodiscard]] bool is_before_snapshot(Scenario scenario) noexcept;

/// Whether all of memory is there before the guest goes on.
[[nodiscard]] bool comes_back_full(RestoreMode mode) noexcept;

/// Whether a guest can go on in this mode with memory of such pages (Config).
[[nodiscard]] bool can_restore(RestoreMode mode, PageSize page_size) noexcept;

/// The page size of the guest that is saved, and of clones: `thp` if it is among `page_sizes`, else the first of them.
[[nodiscard]] PageSize saved_page_size(const std::vector<PageSize>& page_sizes) noexcept;

/// All cases, in the order in which they are shown. Neither list may be empty.
[[nodiscard]] std::vector<StateCase> state_cases(const std::vector<PageSize>& page_sizes,
                                                 const std::vector<RestoreMode>& modes);

} // namespace vmm::bench
