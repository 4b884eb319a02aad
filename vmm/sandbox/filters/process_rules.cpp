#include "vmm/sandbox/filters/process_rules.hpp"

#include <linux/fs.h>
#include <linux/if_tun.h>
#include <linux/sockios.h>
#include <linux/userfaultfd.h>
#include <sched.h>
#include <seccomp.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>

#include <array>
#include <cerrno>
#include <cstdint>

#include "kvm/uapi.hpp"

namespace vmm {

namespace {

constexpr std::uint64_t kLow = 0xffffffff; ///< the half of an argument that the kernel uses
constexpr std::uint64_t kThread = CLONE_VM | CLONE_SIGHAND | CLONE_THREAD;

void allow_memory(FilterBuilder& filter) {
    filter.allow({SCMP_SYS(brk), SCMP_SYS(munmap), SCMP_SYS(mremap), SCMP_SYS(madvise), SCMP_SYS(mlock),
                  SCMP_SYS(mlock2), SCMP_SYS(munlock), SCMP_SYS(mincore), SCMP_SYS(msync), SCMP_SYS(mbind),
                  SCMP_SYS(get_mempolicy), SCMP_SYS(set_mempolicy), SCMP_SYS(membarrier), SCMP_SYS(memfd_create),
                  SCMP_SYS(userfaultfd)});
    for (const int call : {SCMP_SYS(mmap), SCMP_SYS(mprotect)}) {
        filter.allow_if(call, 2, PROT_EXEC, 0);
        filter.refuse_if(call, 2, PROT_EXEC, PROT_EXEC);
    }
}

/// Allows the use of files that are open, and of files that Landlock allows to open. Nothing can be made, removed or
/// renamed by a name.
void allow_files(FilterBuilder& filter) {
    filter.allow({SCMP_SYS(open),       SCMP_SYS(openat),
                  SCMP_SYS(openat2),    SCMP_SYS(read),
                  SCMP_SYS(write),      SCMP_SYS(readv),
                  SCMP_SYS(writev),     SCMP_SYS(pread64),
                  SCMP_SYS(pwrite64),   SCMP_SYS(preadv),
                  SCMP_SYS(pwritev),    SCMP_SYS(preadv2),
                  SCMP_SYS(pwritev2),   SCMP_SYS(lseek),
                  SCMP_SYS(close),      SCMP_SYS(close_range),
                  SCMP_SYS(dup),        SCMP_SYS(dup2),
                  SCMP_SYS(dup3),       SCMP_SYS(fcntl),
                  SCMP_SYS(fstat),      SCMP_SYS(stat),
                  SCMP_SYS(lstat),      SCMP_SYS(newfstatat),
                  SCMP_SYS(statx),      SCMP_SYS(statfs),
                  SCMP_SYS(fstatfs),    SCMP_SYS(access),
                  SCMP_SYS(faccessat),  SCMP_SYS(faccessat2),
                  SCMP_SYS(readlink),   SCMP_SYS(readlinkat),
                  SCMP_SYS(getcwd),     SCMP_SYS(getdents64),
                  SCMP_SYS(flock),      SCMP_SYS(fsync),
                  SCMP_SYS(fdatasync),  SCMP_SYS(sync_file_range),
                  SCMP_SYS(ftruncate),  SCMP_SYS(fallocate),
                  SCMP_SYS(fadvise64),  SCMP_SYS(readahead),
                  SCMP_SYS(flistxattr), SCMP_SYS(copy_file_range),
                  SCMP_SYS(umask)});
    // The ring itself limits its operations: our rings are restricted. For other rings Landlock holds.
    filter.allow({SCMP_SYS(io_uring_setup), SCMP_SYS(io_uring_enter), SCMP_SYS(io_uring_register)});
}

void allow_requests(FilterBuilder& filter) {
    constexpr std::uint64_t kType = 0xff00; // of the number of a request
    constexpr std::uint64_t kOfUserfaultfd = std::uint64_t{UFFDIO} << 8U;
    constexpr std::uint64_t kOfKvm = std::uint64_t{KVMIO} << 8U;
    filter.allow_if(SCMP_SYS(ioctl), 1, kType, kOfKvm);
    filter.allow_if(SCMP_SYS(ioctl), 1, kType, kOfUserfaultfd);
    // For a terminal: reading its size, setting its modes, and dropping unread input; a process may not type into it.
    // For a disk or a tap interface that a client hands over: finding out its kind.
    static constexpr std::array<unsigned long, 18> kRequests{
        TCGETS,    TCSETS,       TCSETSW,         TCSETSF,      TIOCGWINSZ,    TIOCGPGRP,
        TCFLSH,    FIONBIO,      FIONREAD,        SIOCOUTQ,     TUNSETOFFLOAD, TUNSETQUEUE,
        TUNGETIFF, SIOCGIFINDEX, TUNGETVNETHDRSZ, BLKGETSIZE64, BLKSSZGET,     BLKROGET};
    filter.allow_ioctls(kRequests);
}

void allow_events(FilterBuilder& filter) {
    filter.allow({SCMP_SYS(poll),
                  SCMP_SYS(ppoll),
                  SCMP_SYS(select),
                  SCMP_SYS(pselect6),
                  SCMP_SYS(epoll_create1),
                  SCMP_SYS(epoll_ctl),
                  SCMP_SYS(epoll_wait),
                  SCMP_SYS(epoll_pwait),
                  SCMP_SYS(epoll_pwait2),
                  SCMP_SYS(eventfd2),
                  SCMP_SYS(timerfd_create),
                  SCMP_SYS(timerfd_settime),
                  SCMP_SYS(timerfd_gettime),
                  SCMP_SYS(signalfd4),
                  SCMP_SYS(pipe2),
                  SCMP_SYS(timer_create),
                  SCMP_SYS(timer_settime),
                  SCMP_SYS(timer_delete),
                  SCMP_SYS(futex),
                  SCMP_SYS(clock_gettime),
                  SCMP_SYS(clock_getres),
                  SCMP_SYS(clock_nanosleep),
                  SCMP_SYS(nanosleep),
                  SCMP_SYS(gettimeofday),
                  SCMP_SYS(time)});
}

/// Allows threads of this process to be made, signalled and ended, but no other process.
void allow_threads_and_signals(FilterBuilder& filter) {
    filter.answer(SCMP_SYS(clone3), ENOSYS); // its flags are in memory; if it fails, the C library uses clone()
    filter.allow_if(SCMP_SYS(clone), 0, kThread, kThread);
    filter.refuse_if(SCMP_SYS(clone), 0, CLONE_THREAD, 0);
    filter.allow({SCMP_SYS(set_robust_list),
                  SCMP_SYS(rseq),
                  SCMP_SYS(exit),
                  SCMP_SYS(exit_group),
                  SCMP_SYS(sched_yield),
                  SCMP_SYS(sched_getaffinity),
                  SCMP_SYS(sched_setaffinity),
                  SCMP_SYS(sched_getscheduler),
                  SCMP_SYS(sched_setscheduler),
                  SCMP_SYS(sched_getparam),
                  SCMP_SYS(sched_setattr),
                  SCMP_SYS(sched_getattr),
                  SCMP_SYS(getpriority),
                  SCMP_SYS(setpriority),
                  SCMP_SYS(ioprio_set),
                  SCMP_SYS(ioprio_get),
                  SCMP_SYS(getcpu),
                  SCMP_SYS(gettid),
                  SCMP_SYS(getpid),
                  SCMP_SYS(getppid),
                  SCMP_SYS(getpgrp),
                  SCMP_SYS(getpgid),
                  SCMP_SYS(getsid),
                  SCMP_SYS(getuid),
                  SCMP_SYS(geteuid),
                  SCMP_SYS(getgid),
                  SCMP_SYS(getegid),
                  SCMP_SYS(getresuid),
                  SCMP_SYS(getresgid),
                  SCMP_SYS(getrusage),
                  SCMP_SYS(times),
                  SCMP_SYS(sysinfo),
                  SCMP_SYS(uname),
                  SCMP_SYS(getrandom)});
    filter.allow({SCMP_SYS(rt_sigaction), SCMP_SYS(rt_sigprocmask), SCMP_SYS(rt_sigpending), SCMP_SYS(rt_sigreturn),
                  SCMP_SYS(rt_sigtimedwait), SCMP_SYS(rt_sigsuspend), SCMP_SYS(sigaltstack), SCMP_SYS(restart_syscall),
                  SCMP_SYS(wait4), SCMP_SYS(waitid)});
    filter.allow_if(SCMP_SYS(tgkill), 0, kLow, compiled_filters::kAnyProcess);
    filter.allow({SCMP_SYS(pidfd_send_signal)}); // the broker gives such a descriptor for a program that it started
    for (const int call : {SCMP_SYS(prlimit64), SCMP_SYS(move_pages)}) {
        filter.allow_if(call, 0, kLow, 0); // of this process
    }
    filter.allow({SCMP_SYS(getrlimit), SCMP_SYS(setrlimit)});
    for (const int option : {PR_SET_NAME, PR_GET_NAME, PR_SET_NO_NEW_PRIVS, PR_GET_DUMPABLE}) {
        filter.allow_if(SCMP_SYS(prctl), 0, kLow, static_cast<std::uint64_t>(option));
    }
    // Threads drop further rights of their own.
    filter.allow({SCMP_SYS(seccomp), SCMP_SYS(capget), SCMP_SYS(capset)});
    for (const int call :
         {SCMP_SYS(landlock_create_ruleset), SCMP_SYS(landlock_add_rule), SCMP_SYS(landlock_restrict_self)}) {
        if (call > 0) { // an older libseccomp does not know these calls
            filter.allow({call});
        }
    }
}

void allow_sockets(FilterBuilder& filter, const ProcessNeeds& needs) {
    filter.allow_if(SCMP_SYS(socket), 0, kLow, AF_UNIX);
    filter.allow_if(SCMP_SYS(socketpair), 0, kLow, AF_UNIX);
    if (needs.network) {
        filter.allow_if(SCMP_SYS(socket), 0, kLow, AF_INET);
        filter.allow_if(SCMP_SYS(socket), 0, kLow, AF_INET6);
    }
    filter.allow({SCMP_SYS(connect), SCMP_SYS(accept4), SCMP_SYS(accept), SCMP_SYS(shutdown), SCMP_SYS(recvfrom),
                  SCMP_SYS(recvmsg), SCMP_SYS(sendto), SCMP_SYS(sendmsg), SCMP_SYS(getsockopt), SCMP_SYS(setsockopt),
                  SCMP_SYS(getsockname), SCMP_SYS(getpeername)});
}

/// Refuses calls that no machine needs. Whoever makes one of them does something else.
void refuse_what_no_machine_needs(FilterBuilder& filter) {
    filter.refuse({SCMP_SYS(execve),
                   SCMP_SYS(execveat),
                   SCMP_SYS(fork),
                   SCMP_SYS(vfork),
                   SCMP_SYS(ptrace),
                   SCMP_SYS(process_vm_readv),
                   SCMP_SYS(process_vm_writev),
                   SCMP_SYS(pidfd_getfd),
                   SCMP_SYS(kcmp),
                   SCMP_SYS(mount),
                   SCMP_SYS(umount2),
                   SCMP_SYS(pivot_root),
                   SCMP_SYS(chroot),
                   SCMP_SYS(unshare),
                   SCMP_SYS(setns),
                   SCMP_SYS(open_tree),
                   SCMP_SYS(move_mount),
                   SCMP_SYS(fsopen),
                   SCMP_SYS(fsmount),
                   SCMP_SYS(bpf),
                   SCMP_SYS(perf_event_open),
                   SCMP_SYS(init_module),
                   SCMP_SYS(finit_module),
                   SCMP_SYS(delete_module),
                   SCMP_SYS(kexec_load),
                   SCMP_SYS(kexec_file_load),
                   SCMP_SYS(reboot),
                   SCMP_SYS(keyctl),
                   SCMP_SYS(add_key),
                   SCMP_SYS(request_key),
                   SCMP_SYS(setuid),
                   SCMP_SYS(setgid),
                   SCMP_SYS(setreuid),
                   SCMP_SYS(setregid),
                   SCMP_SYS(setresuid),
                   SCMP_SYS(setresgid),
                   SCMP_SYS(setgroups),
                   SCMP_SYS(setfsuid),
                   SCMP_SYS(setfsgid),
                   SCMP_SYS(open_by_handle_at),
                   SCMP_SYS(mknod),
                   SCMP_SYS(mknodat),
                   SCMP_SYS(ioperm),
                   SCMP_SYS(iopl),
                   SCMP_SYS(modify_ldt),
                   SCMP_SYS(personality),
                   SCMP_SYS(pkey_mprotect),
                   SCMP_SYS(swapon),
                   SCMP_SYS(swapoff),
                   SCMP_SYS(acct),
                   SCMP_SYS(quotactl),
                   SCMP_SYS(syslog),
                   SCMP_SYS(sethostname),
                   SCMP_SYS(setdomainname),
                   SCMP_SYS(clock_settime),
                   SCMP_SYS(settimeofday),
                   SCMP_SYS(adjtimex),
                   SCMP_SYS(clock_adjtime),
                   SCMP_SYS(vhangup),
                   SCMP_SYS(lookup_dcookie)});
}

} // namespace

void allow_process(FilterBuilder& filter, const ProcessNeeds& needs) {
    allow_memory(filter);
    allow_files(filter);
    allow_requests(filter);
    allow_events(filter);
    allow_threads_and_signals(filter);
    allow_sockets(filter, needs);
    refuse_what_no_machine_needs(filter);
}

} // namespace vmm
