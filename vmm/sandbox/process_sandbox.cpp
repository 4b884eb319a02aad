#include "vmm/sandbox/process_sandbox.hpp"

#include <fcntl.h>
#include <linux/capability.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <cerrno>
#include <cstdint>
#include <span>
#include <utility>
#include <vector>

#include "kvm/host/error.hpp"
#include "kvm/host/thread_rights.hpp"
#include "vmm/sandbox/landlock.hpp"

namespace vmm {

namespace {

/// What threads that begin need: a ruleset and a broker.
struct Beginning {
    int files = -1;
    FileServer* server = nullptr;
    const JailSettings* jail = nullptr; ///< null: there is none
    std::uint32_t capabilities = 0;     ///< those that are kept, of the first 32
};
constinit std::atomic<const Beginning*> beginning{nullptr};
constinit Beginning current;

constexpr unsigned kMostDescriptorsInAJail = 4096;
constexpr std::uint32_t kKeptCapabilities = CAP_TO_MASK(CAP_IPC_LOCK); // guest memory is locked, and pinned

[[noreturn]] void throw_cannot_confine(int error_number, const char* what) {
    throw_errno(error_number, std::string("confine this process (--sandbox on): ") + what,
                "this kernel lacks what it takes, or forbids it: use --sandbox off, and trust the guest");
}

/// The files of the kernel that are read while a guest runs: memory and its pools, counters, limits, groups.
std::vector<LandlockPlace> places_of_the_kernel(bool lowers_pools) {
    std::vector<LandlockPlace> places;
    for (const char* const path : {"/proc/self", "/proc/meminfo", "/proc/vmstat", "/proc/zoneinfo", "/proc/loadavg",
                                   "/proc/swaps", "/proc/sys", "/sys/fs/cgroup", "/sys/module"}) {
        places.push_back({path});
    }
    for (const char* const path : {"/sys/kernel/mm", "/sys/devices/system"}) {
        places.push_back({path, lowers_pools});
    }
    return places;
}

/// Gives up the rights that the C library need not know of. Returns 0 or an errno.
int give_up_files_and_capabilities(int files, std::uint32_t kept_capabilities) noexcept {
    if (::prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0) {
        return errno;
    }
    if (files >= 0 && ::syscall(SYS_landlock_restrict_self, files, 0) != 0) {
        return errno;
    }
    return drop_capabilities(kept_capabilities);
}

std::vector<sock_filter> filter_of_this_process(const ProcessNeeds& needs, Refusal refusal) {
    const std::span<const sock_filter> compiled = compiled_filters::of_process(needs, refusal);
    std::vector<sock_filter> filter(compiled.begin(), compiled.end());
    for (sock_filter& instruction : filter) {
        if (instruction.k == compiled_filters::kAnyProcess) {
            instruction.k = static_cast<std::uint32_t>(::getpid());
        }
    }
    return filter;
}

} // namespace

int drop_capabilities(std::uint32_t kept) noexcept {
    __user_cap_header_struct header{_LINUX_CAPABILITY_VERSION_3, 0};
    std::array<__user_cap_data_struct, _LINUX_CAPABILITY_U32S_3> sets{};
    if (::syscall(SYS_capget, &header, sets.data()) != 0) {
        return errno;
    }
    for (std::size_t word = 0; word < sets.size(); ++word) {
        const std::uint32_t both = sets[word].permitted & (word == 0 ? kept : 0);
        sets[word] = {.effective = both, .permitted = both, .inheritable = 0};
    }
    return ::syscall(SYS_capset, &header, sets.data()) != 0 ? errno : 0;
}

ProcessSandbox::ProcessSandbox(SandboxMode mode, Settings settings)
    : mode_(mode), needs_(settings.needs), lowers_pools_(settings.lowers_pools),
      stays_dumpable_(settings.stays_dumpable) {
    if (mode_ != SandboxMode::kOn) {
        return;
    }
    broker_.emplace(std::move(settings.broker)); // it stays outside of the jail
    if (settings.jail) {
        settings.kept.push_back(broker_->fd());
        jail_.emplace(*settings.jail, settings.kept);
    }
    own_facts_.reset(::open("/proc/self", O_PATH | O_DIRECTORY | O_CLOEXEC));
    files_ = make_ruleset(places_of_the_kernel(lowers_pools_), needs_.network);
    current = {.files = files_.get(),
               .server = &*broker_,
               .jail = jail_ ? &jail_->settings() : nullptr,
               // With this capability, too, Landlock keeps the process from other processes.
               .capabilities = kKeptCapabilities | (settings.pages_arrive ? CAP_TO_MASK(CAP_SYS_PTRACE) : 0)};
    beginning.store(&current);
    set_beginning_of_threads(&ProcessSandbox::confine_beginning_thread);
}

ProcessSandbox::~ProcessSandbox() {
    set_beginning_of_threads(nullptr);
    beginning.store(nullptr);
    use_file_server(nullptr);
}

void ProcessSandbox::add_socket(const std::string& path) {
    if (broker_) {
        broker_->add_socket(path);
    }
}

/// If this fails, the thread keeps rights that it does not need. That is no reason to end the process, because there
/// are other walls.
void ProcessSandbox::confine_beginning_thread() noexcept {
    if (const Beginning* const now = beginning.load()) {
        if ((now->jail == nullptr || now->jail->become_user() == 0) &&
            give_up_files_and_capabilities(now->files, now->capabilities) == 0) {
            use_file_server_in_this_thread(now->server);
        }
    }
}

void ProcessSandbox::confine() {
    if (mode_ == SandboxMode::kOff) {
        return;
    }
    if (::prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0) {
        throw_cannot_confine(errno, "give up new privileges");
    }
    if (mode_ == SandboxMode::kOn) {
        broker_->settle();
        set_beginning_of_threads(nullptr); // later threads inherit the restrictions
        use_file_server(&*broker_);
        if (jail_) {
            jail_->close(kMostDescriptorsInAJail);
            own_facts_.reset(::open("/proc/self", O_PATH | O_DIRECTORY | O_CLOEXEC)); // the jail has another /proc
            files_ = make_ruleset(places_of_the_kernel(false), needs_.network);
        }
        if (::prctl(PR_SET_DUMPABLE, stays_dumpable_ ? 1 : 0, 0, 0, 0) != 0) {
            throw_cannot_confine(errno, "keep its memory from other processes");
        }
        if (const int error = give_up_files_and_capabilities(files_.get(), kKeptCapabilities); error != 0) {
            throw_cannot_confine(error, "give up files and capabilities");
        }
    }
    std::vector<sock_filter> filter =
        filter_of_this_process(needs_, mode_ == SandboxMode::kOn ? Refusal::kSignal : Refusal::kLog);
    const sock_fprog program{static_cast<unsigned short>(filter.size()), filter.data()};
    const long thread = ::syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_TSYNC, &program);
    if (thread != 0) {
        throw_cannot_confine(thread > 0 ? ESRCH : errno, "filter the system calls of all threads");
    }
}

} // namespace vmm
