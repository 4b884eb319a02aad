// Landlock: a thread gives up the right to reach files by their names (landlock(7)).
#pragma once

#include "kvm/host/unique_fd.hpp"

namespace vmm {

/// Makes a ruleset that leaves none of the rights that this kernel knows of: to reach files by name, and TCP ports.
/// What is open stays open. It is empty if the kernel has no Landlock, or has it switched off. Throws Error: there is
/// no descriptor for it.
[[nodiscard]] UniqueFd make_ruleset_without_rights();

/// Restricts the calling thread by it, for good. PR_SET_NO_NEW_PRIVS has to be set. Throws Error.
void restrict_this_thread(int ruleset);

/// The version of Landlock that this kernel has; 0: none (landlock_create_ruleset(2)).
[[nodiscard]] int landlock_version() noexcept;

} // namespace vmm
