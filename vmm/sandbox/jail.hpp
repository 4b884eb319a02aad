// A process that sees nothing of its host except an empty directory, itself, and the files that it has open.
#pragma once

#include <sys/types.h>

#include <optional>
#include <string>
#include <vector>

#include "kvm/host/unique_fd.hpp"

namespace vmm {

/// The place into which a process is put, and the user that it becomes.
struct JailSettings {
    std::string directory;       ///< an empty directory, which becomes the root; nothing is ever made in it
    std::optional<uid_t> user;   ///< nothing: the user who started the process
    std::optional<gid_t> group;  ///< the same
    std::string cgroup{};        ///< the directory of a control group that the process joins; empty: none
    std::string net_namespace{}; ///< the name of a namespace that `ip netns add` has made; empty: a new one

    /// Makes the calling thread, and threads that it creates later, become the user and the group, if it is root's.
    /// Capabilities are not dropped; the caller must do that. Only the calling thread changes, because each thread must
    /// give up its capabilities by itself. The C library's functions change all threads at once and cannot be used.
    /// Returns 0 or an errno.
    [[nodiscard]] int become_user() const noexcept;
};

/// Throws Error if `settings` are not possible on this host; it says why, and what to do. It creates and changes
/// nothing.
void check_jail(const JailSettings& settings);

/// Takes from a process the names of its host, in two steps. First the process goes on in a child with new namespaces
/// of users (if root did not start it), processes, mounts, IPC and host names. What the guest needs is still opened by
/// name there, and in the host's network. Then close() leaves the process only the files that are open.
///
/// Threads: the main one. At most one object exists.
class Jail {
  public:
    /// Joins the control group, closes all descriptors except `kept` and 0 to 2, and goes on in the child. In the
    /// process that called it, it does not return: that process passes on the signals that it gets, waits, and ends as
    /// the child does. No other thread may exist. Throws Error, in the process that called it.
    Jail(JailSettings settings, const std::vector<int>& kept);

    /// Gives the process a network of its own and the empty root, in which only /proc of its own processes is mounted
    /// (if the host allows that). It sets limits (no core files, no POSIX queues, at most `most_fds` descriptors),
    /// becomes the user and the group, and clears the environment. Throws Error.
    void close(unsigned most_fds);

    [[nodiscard]] const JailSettings& settings() const noexcept { return settings_; }

  private:
    [[nodiscard]] UniqueFd take_network();

    JailSettings settings_;
    UniqueFd network_; ///< the namespace that the settings name, or the socket that one of its own comes by
};

} // namespace vmm
