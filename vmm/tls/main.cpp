// vmm-tls: encrypts one connection of a migration, in a process that has nothing but that connection. So keys, and the
// library that handles bytes of strangers, stay out of the process that runs the guest.
//
// It is started by vmm/migration/tls_helper.cpp:
//   vmm-tls connect|listen DIRECTORY NAME
// with three descriptors: 0 is the plain end, a unix stream socket; 1 is a pipe for its one line; 3 is the connected
// TCP socket. Neither socket blocks. The line is "ok", or the reason why there is no connection. NAME is the server's
// name; with listen it is not used. The process ends when the connection ends, or when the plain end is closed.
#include <linux/audit.h>
#include <linux/capability.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <csignal>
#include <cstddef>
#include <cstdio>
#include <exception>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "vmm/tls/session.hpp"

namespace {

constexpr int kPlain = 0;
constexpr int kStatus = 1;
constexpr int kTcp = 3;
constexpr int kFirstUnknown = 4;
#ifdef VMM_SANITIZED
constexpr bool kIsSanitized = true; // The runtime opens pipes, and makes calls of its own.
#else
constexpr bool kIsSanitized = false;
#endif

// This call is newer than some headers with which this may be built.
#ifndef SYS_close_range
#define SYS_close_range 436
#endif

/// The calls for a connection, for memory, time and random bytes. Other calls fail with EPERM.
constexpr auto kAllowedCalls = std::to_array<unsigned>({
    SYS_read,    SYS_write,           SYS_close,         SYS_recvfrom,     SYS_sendto,
    SYS_recvmsg, SYS_sendmsg,         SYS_shutdown,      SYS_getsockopt,
#ifdef SYS_poll
    SYS_poll,
#endif
    SYS_ppoll,   SYS_restart_syscall, SYS_rt_sigreturn,  SYS_brk,          SYS_mmap,
    SYS_munmap,  SYS_mremap,          SYS_madvise,       SYS_futex,        SYS_sched_yield,
    SYS_getpid,  SYS_getrandom,       SYS_clock_gettime, SYS_gettimeofday,
#ifdef SYS_time
    SYS_time,
#endif
    SYS_exit,    SYS_exit_group,
});

/// Makes the kernel refuse all other calls from now on. It does nothing on an architecture whose numbers of calls are
/// not known here.
void allow_few_calls() {
#if defined(__x86_64__)
    constexpr unsigned kArchitecture = AUDIT_ARCH_X86_64;
#elif defined(__aarch64__)
    constexpr unsigned kArchitecture = AUDIT_ARCH_AARCH64;
#else
    constexpr unsigned kArchitecture = 0;
#endif
    if (kArchitecture == 0 || kIsSanitized) {
        return;
    }
    std::vector<sock_filter> filter{
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(seccomp_data, arch)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, kArchitecture, 1, 0),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS),
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(seccomp_data, nr)),
    };
    for (const unsigned call : kAllowedCalls) {
        filter.push_back(BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, call, 0, 1));
        filter.push_back(BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW));
    }
    filter.push_back(BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM));
    const sock_fprog program{static_cast<unsigned short>(filter.size()), filter.data()};
    ::prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program, 0, 0);
}

/// Restricts this process so that a stranger who takes it over can only use its two sockets. If an older kernel refuses
/// a part of this, the process goes on.
void give_up_privileges() {
    ::syscall(SYS_close_range, kFirstUnknown, ~0U, 0);
    // No further descriptor can be opened. The limit is the present number, because poll(2) needs that many.
    const rlimit files{kFirstUnknown, kFirstUnknown};
    if (!kIsSanitized) {
        ::setrlimit(RLIMIT_NOFILE, &files);
    }
    const rlimit none{0, 0};
    ::setrlimit(RLIMIT_CORE, &none);
    ::setrlimit(RLIMIT_NPROC, &none);
    ::setrlimit(RLIMIT_FSIZE, &none);
    // No core file and no other process of this user can read the key.
    ::prctl(PR_SET_DUMPABLE, 0, 0, 0, 0);
    __user_cap_header_struct header{_LINUX_CAPABILITY_VERSION_3, 0};
    const std::array<__user_cap_data_struct, 2> capabilities{};
    ::syscall(SYS_capset, &header, capabilities.data());
    ::prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
    allow_few_calls();
}

void say(std::string line) noexcept {
    line += '\n';
    // The line is shorter than the room of a pipe. It is no error if nobody waits for it any more.
    [[maybe_unused]] const ssize_t written = ::write(kStatus, line.data(), line.size());
}

std::optional<vmm::tls::Role> role_of(std::string_view word) noexcept {
    if (word == "connect") {
        return vmm::tls::Role::kConnect;
    }
    return word == "listen" ? std::optional(vmm::tls::Role::kListen) : std::nullopt;
}

int run(int count, char** words) {
    const auto role = count == 4 ? role_of(words[1]) : std::nullopt;
    if (!role) {
        std::fputs("usage: vmm-tls connect|listen DIRECTORY NAME (vmm starts it, with sockets as descriptors)\n",
                   stderr);
        return 2;
    }
    ::signal(SIGPIPE, SIG_IGN);
    try {
        vmm::tls::Session session(*role, words[2], words[3]);
        give_up_privileges();
        session.shake_hands(kTcp, kPlain);
        say("ok");
        session.pump();
        return 0;
    } catch (const vmm::tls::NobodyWaits&) {
        return 1;
    } catch (const std::exception& error) {
        say(error.what());
        return 1;
    }
}

} // namespace

int main(int count, char** words) {
    // _exit() runs no destructor and no check, because these may need something that was given up.
    ::_exit(run(count, words));
}
