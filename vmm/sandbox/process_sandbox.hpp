// Takes away from a whole process what it does not need once its machine has been made.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "kvm/host/unique_fd.hpp"
#include "vmm/config.hpp"
#include "vmm/sandbox/broker.hpp"
#include "vmm/sandbox/compiled_filters.hpp"
#include "vmm/sandbox/jail.hpp"

namespace vmm {

/// For programs, not for the library: it confines all threads of the process. It is made before there are others, and
/// confine() is called when everything that the machine needs has been opened. What is reached by its name later goes
/// through a broker (files::, ChildProcess). If the mode is kOff, it does nothing; if it is kLog, what the filter
/// would refuse is logged, and nothing else changes.
///
/// From its construction on, threads that begin (begin_thread()) give up their capabilities and their files at once.
/// confine() does it to the calling thread, whose children inherit it, and filters the system calls of all.
///
/// Threads: the main one. At most one exists at a time.
class ProcessSandbox {
  public:
    struct Settings {
        ProcessNeeds needs{};
        BrokerRules broker{};
        /// Whether the process lowers the pools of huge pages when it ends.
        bool lowers_pools = false;
        /// Whether threads that begin before confine() may wait for pages of guest memory that are elsewhere
        /// (userfaultfd(2)), which takes CAP_SYS_PTRACE on many hosts.
        bool pages_arrive = false;
        /// Whether the process may be debugged by its user. Otherwise the kernel gives to root what it says of a
        /// thread's system call (/proc/self/task/TID/syscall), which decides what becomes of pages that cannot be had.
        bool stays_dumpable = false;
        /// Where the process is put; nothing: it stays where it is. Only with SandboxMode::kOn.
        std::optional<JailSettings> jail{};
        /// With a jail: the descriptors beside 0 to 2 that were inherited for a purpose.
        std::vector<int> kept{};
    };
    /// With a jail it goes on in another process (Jail). Throws Error: the host cannot confine the process, or has no
    /// other process for it.
    ProcessSandbox(SandboxMode mode, Settings settings);
    ~ProcessSandbox();
    ProcessSandbox(const ProcessSandbox&) = delete;
    ProcessSandbox& operator=(const ProcessSandbox&) = delete;

    /// One more unix socket that is removed at the end. Throws Error.
    void add_socket(const std::string& path);

    /// Confines the process, for good: it is put into its jail if it has one, gains no rights by execve(2), is not
    /// dumpable (prctl(2), PR_SET_DUMPABLE) unless that is wanted, has no capability but CAP_IPC_LOCK, reaches by name
    /// only the files of the kernel that a machine is measured by (Landlock), and makes the system calls of
    /// make_process_filter() alone. Throws Error.
    void confine();

  private:
    static void confine_beginning_thread() noexcept;

    SandboxMode mode_;
    ProcessNeeds needs_;
    bool lowers_pools_;
    bool stays_dumpable_;
    UniqueFd own_facts_; ///< /proc/self, which Landlock knows by what is in memory of it
    UniqueFd files_;     ///< a Landlock ruleset; none: the host has no Landlock
    std::optional<Broker> broker_;
    std::optional<Jail> jail_;
};

/// Takes all capabilities from the calling thread but those whose bits are set in `kept`, of the first 32. Returns 0 or
/// an errno.
[[nodiscard]] int drop_capabilities(std::uint32_t kept) noexcept;

} // namespace vmm
