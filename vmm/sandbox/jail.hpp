// A process that sees nothing of its host: an empty directory, itself, and what it has open.
#pragma once

#include <sys/types.h>

#include <optional>
#include <string>
#include <vector>

#include "kvm/host/unique_fd.hpp"

namespace vmm {

/// Where a process is put, and as whom.
struct JailSettings {
    std::string directory;       ///< an empty directory, which becomes the root: in it nothing is ever made
    std::optional<uid_t> user;   ///< nothing: who started the process
    std::optional<gid_t> group;  ///< the same
    std::string cgroup{};        ///< the directory of a control group that the process joins; empty: none
    std::string net_namespace{}; ///< the name of one that `ip netns add` has made; empty: one of its own

    /// Has the calling thread, and those that it makes, become the user and the group, if it is root's; capabilities
    /// are for the caller to drop. Other threads stay who they are: each has to give up its capabilities first or
    /// last on its own, so the C library's calls for all at once will not do. Returns 0 or an errno.
    [[nodiscard]] int become_user() const noexcept;
};

/// Throws Error if `settings` cannot be had: it says what, and what to do. Creates and changes nothing.
void check_jail(const JailSettings& settings);

/// The names of its host are taken from a process in two steps. At first it goes on in a child, in namespaces of its
/// own of users (if root did not start it), processes, mounts, IPC and host names; what the guest needs is still
/// opened by its name, and in the host's network. Then close() leaves it nothing but what is open.
///
/// Threads: the main one. At most one exists.
class Jail {
  public:
    /// Joins the group, closes all descriptors but `kept` and 0 to 2, and goes on in the child. The process that
    /// called it hands on the signals that it gets, waits, and ends as the child does: for it this does not return.
    /// No other thread may exist. Throws Error, in the process that called it.
    Jail(JailSettings settings, const std::vector<int>& kept);

    /// Gives the process a network of its own, the empty root with /proc of its own processes alone (if the host
    /// allows that), limits (no core files, no POSIX queues, no more than `most_fds` descriptors), the user and the
    /// group, and an environment without variables. Throws Error.
    void close(unsigned most_fds);

    [[nodiscard]] const JailSettings& settings() const noexcept { return settings_; }

  private:
    [[nodiscard]] UniqueFd take_network();

    JailSettings settings_;
    UniqueFd network_; ///< the namespace that the settings name, or the socket that one of its own comes by
};

} // namespace vmm
