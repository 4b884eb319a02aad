// Landlock: a thread gives up the right to reach files by their names (landlock(7)).
#pragma once

#include <span>
#include <string>

#include "kvm/host/unique_fd.hpp"

namespace vmm {

/// Makes a ruleset that leaves none of the rights that this kernel knows of: to reach files by name, and TCP ports.
/// What is open stays open. It is empty if the kernel has no Landlock, or has it switched off. Throws Error: there is
/// no descriptor for it.
[[nodiscard]] UniqueFd make_ruleset_without_rights();

/// A place that is left by make_ruleset().
struct LandlockPlace {
    std::string path;        ///< a file, or a directory with all that is in it; it need not be there
    bool is_written = false; ///< whether files there are written, too; else they are read
};
/// Makes a ruleset that leaves no right but to read or write files of `places`, and no TCP port but to connect to, if
/// `connects`. Otherwise as make_ruleset_without_rights().
[[nodiscard]] UniqueFd make_ruleset(std::span<const LandlockPlace> places, bool connects);

/// Restricts the calling thread by it, for good. PR_SET_NO_NEW_PRIVS has to be set. Throws Error.
void restrict_this_thread(int ruleset);

/// The version of Landlock that this kernel has; 0: none (landlock_create_ruleset(2)).
[[nodiscard]] int landlock_version() noexcept;

} // namespace vmm
