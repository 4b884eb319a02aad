// Takes away from a whole process the rights that it does not need once its machine has been made.
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

/// Confines all threads of the process. It is for programs, not for the library. It is made before there are other
/// threads, and confine() is called when everything that the machine needs is open. Later, a broker opens files by name
/// and starts programs (files::, ChildProcess). If the mode is kOff, it does nothing; if it is kLog, the calls that the
/// filter would refuse are only logged.
///
/// From its construction on, threads that begin (begin_thread()) give up their capabilities and their files at once.
/// confine() does the same to the calling thread, whose children inherit it, and filters the system calls of all
/// threads.
///
/// Threads: the main one. At most one object exists at a time.
class ProcessSandbox {
  public:
    struct Settings {
        ProcessNeeds needs{};
        BrokerRules broker{};
        /// Whether the process lowers the pools of huge pages when it ends.
        bool lowers_pools = false;
        /// Whether threads that begin before confine() may wait for pages of guest memory that have not arrived yet
        /// (userfaultfd(2)). On many hosts this needs CAP_SYS_PTRACE.
        bool pages_arrive = false;
        /// Whether the process may be debugged by its user. Otherwise only root may read which system call a thread is
        /// in (/proc/self/task/TID/syscall). The process needs this to decide what happens with pages that cannot be
        /// had.
        bool stays_dumpable = false;
        /// Where the process is put; nothing: it stays where it is. It is allowed only with SandboxMode::kOn.
        std::optional<JailSettings> jail{};
        /// With a jail: the descriptors beside 0 to 2 that were inherited for a purpose.
        std::vector<int> kept{};
    };
    /// With a jail the program goes on in another process (Jail). Throws Error if the host cannot confine the process,
    /// or gives no process for the jail or the broker.
    ProcessSandbox(SandboxMode mode, Settings settings);
    ~ProcessSandbox();
    ProcessSandbox(const ProcessSandbox&) = delete;
    ProcessSandbox& operator=(const ProcessSandbox&) = delete;

    /// Adds a unix socket that is removed at the end. Throws Error.
    void add_socket(const std::string& path);

    /// Confines the process, for good. It enters its jail if it has one, gains no rights by execve(2), is not dumpable
    /// (prctl(2), PR_SET_DUMPABLE) unless `stays_dumpable`, and has no capability but CAP_IPC_LOCK. By name it reaches
    /// only the files of the kernel that a machine's measurements need (Landlock), and it makes only the system calls
    /// of compiled_filters::of_process(). Throws Error.
    void confine();

  private:
    static void confine_beginning_thread() noexcept;

    SandboxMode mode_;
    ProcessNeeds needs_;
    bool lowers_pools_;
    bool stays_dumpable_;
    UniqueFd own_facts_; ///< /proc/self, for Landlock, which identifies a file by its inode in memory
    UniqueFd files_;     ///< a Landlock ruleset; none: the host has no Landlock
    std::optional<Broker> broker_;
    std::optional<Jail> jail_;
};

/// Drops all capabilities of the calling thread except those whose bits are set in `kept`, of the first 32. Returns 0
/// or an errno.
[[nodiscard]] int drop_capabilities(std::uint32_t kept) noexcept;

} // namespace vmm
