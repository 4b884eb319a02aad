// Landlock: a thread gives up the right to reach files by their names (landlock(7)).
#pragma once

#include <span>
#include <string>

#include "kvm/host/unique_fd.hpp"

namespace vmm {

/// Makes a ruleset that takes away all rights that this kernel knows: to reach files by name, and to use TCP ports.
/// Files that are open stay usable. The result is empty if the kernel has no Landlock, or has it switched off. Throws
/// Error if there is no descriptor for it.
[[nodiscard]] UniqueFd make_ruleset_without_rights();

/// A place that stays reachable with make_ruleset().
struct LandlockPlace {
    std::string path;        ///< a file, or a directory with all that is in it; it need not exist
    bool is_written = false; ///< whether files there may also be written; otherwise they may only be read
};
/// Makes a ruleset that allows only to read or write the files of `places`, and to connect to TCP ports if `connects`.
/// Otherwise it is as make_ruleset_without_rights().
[[nodiscard]] UniqueFd make_ruleset(std::span<const LandlockPlace> places, bool connects);

/// Restricts the calling thread by the ruleset, for good. PR_SET_NO_NEW_PRIVS must be set before. Throws Error.
void restrict_this_thread(int ruleset);

/// The version of Landlock that this kernel has; 0: it has none (landlock_create_ruleset(2)).
[[nodiscard]] int landlock_version() noexcept;

} // namespace vmm
