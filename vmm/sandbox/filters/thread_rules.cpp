#include "vmm/sandbox/filters/thread_rules.hpp"

#include <linux/if_tun.h>
#include <linux/io_uring.h>
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

/// Allows what the C library does in any thread: memory, locks, signals, and the thread's end. Memory can never be made
/// executable.
void allow_the_c_library(FilterBuilder& filter) {
    filter.allow({SCMP_SYS(futex), SCMP_SYS(restart_syscall), SCMP_SYS(rt_sigprocmask), SCMP_SYS(rt_sigreturn),
                  SCMP_SYS(munmap), SCMP_SYS(exit)});
    filter.allow({SCMP_SYS(clock_gettime)}); // it is a system call only if there is no clock in user space
    filter.allow_if(SCMP_SYS(mmap), 2, PROT_EXEC, 0);
    filter.allow_if(SCMP_SYS(mprotect), 2, PROT_EXEC, 0);
    // The allocator then takes its memory by mmap(). The call returns the end of the heap, and it has failed if that is
    // below the requested end (brk(2), "C library/kernel differences"). An errno would look like a very large address,
    // and so like a heap that has grown.
    filter.answer(SCMP_SYS(brk), 0);
    // A thread that yields tries again anyway. The logger asks for the number of its thread, but does not show it.
    filter.answer(SCMP_SYS(sched_yield), 0);
    filter.answer(SCMP_SYS(gettid), 0);
    // An event, or a line for the log, is passed on by a write to an open descriptor.
    filter.allow({SCMP_SYS(write)});
}

/// A vCPU has twelve calls, including those that the C library needs, and nine requests of ioctl(). The last three
/// requests are used when the guest sets up its PCI functions.
void allow_vcpu(FilterBuilder& filter) {
    filter.allow({SCMP_SYS(rt_sigtimedwait)}); // it takes a kick
    // Free memory need not be given back at once. A thread that pauses between two attempts works without the pause,
    // too.
    filter.answer(SCMP_SYS(madvise), 0);
    filter.answer(SCMP_SYS(clock_nanosleep), 0);
    filter.answer(SCMP_SYS(nanosleep), 0);
    static constexpr std::array<unsigned long, 9> kRequests{KVM_RUN,       KVM_KVMCLOCK_CTRL,   KVM_IRQ_LINE,
                                                            KVM_GET_REGS,  KVM_GET_SREGS,       KVM_GET_MP_STATE,
                                                            KVM_IOEVENTFD, KVM_SET_GSI_ROUTING, KVM_SIGNAL_MSI};
    filter.allow_ioctls(kRequests);
}

/// Allows what each thread of a device does: it waits for its queues, and interrupts the guest.
void allow_device(FilterBuilder& filter) {
    filter.allow({SCMP_SYS(epoll_wait), SCMP_SYS(epoll_pwait), SCMP_SYS(epoll_ctl), SCMP_SYS(timerfd_settime),
                  SCMP_SYS(read), SCMP_SYS(poll), SCMP_SYS(close)});
    static constexpr std::array<unsigned long, 3> kOfInterrupts{KVM_IRQ_LINE, KVM_SET_GSI_ROUTING, KVM_SIGNAL_MSI};
    filter.allow_ioctls(kOfInterrupts); // over PCI: the pin, and messages
    // MADV_DONTNEED, and its variant for locked memory. The call can only destroy the content of memory.
    filter.allow({SCMP_SYS(madvise), SCMP_SYS(clock_nanosleep), SCMP_SYS(nanosleep)});
}

/// Allows a thread to make threads of this process, which inherit its filter, but no process. The flags of clone3() are
/// in memory, where a filter cannot see them. If it fails, the C library uses clone().
void allow_threads(FilterBuilder& filter) {
    filter.answer(SCMP_SYS(clone3), ENOSYS);
    constexpr std::uint64_t kThread = CLONE_VM | CLONE_SIGHAND | CLONE_THREAD;
    filter.allow_if(SCMP_SYS(clone), 0, kThread, kThread);
    filter.allow({SCMP_SYS(set_robust_list), SCMP_SYS(rseq)});
    filter.allow_if(SCMP_SYS(prctl), 0, 0xffffffff, PR_SET_NAME);
}

void allow_kind(FilterBuilder& filter, ThreadKind kind) {
    static constexpr std::array<unsigned long, 3> kOfNets{TUNSETOFFLOAD, TUNSETQUEUE, TUNGETIFF};
    static constexpr std::array<unsigned long, 1> kOfSockets{FIONREAD};
    switch (kind) {
    case ThreadKind::kVcpu:
        allow_vcpu(filter);
        return;
    case ThreadKind::kBlock:
        allow_device(filter);
        allow_threads(filter); // without io_uring, threads make the calls for a disk
        filter.allow({SCMP_SYS(io_uring_enter), SCMP_SYS(preadv), SCMP_SYS(preadv2), SCMP_SYS(pwritev),
                      SCMP_SYS(pwritev2), SCMP_SYS(fdatasync), SCMP_SYS(fallocate)});
        // Guest memory becomes buffers of the ring when the driver begins.
        filter.allow_if(SCMP_SYS(io_uring_register), 1, 0xffffffff, IORING_REGISTER_BUFFERS);
        return;
    case ThreadKind::kNet:
        allow_device(filter);
        filter.allow({SCMP_SYS(readv), SCMP_SYS(writev), SCMP_SYS(recvfrom), SCMP_SYS(recvmsg), SCMP_SYS(sendto),
                      SCMP_SYS(sendmsg)});
        filter.allow_ioctls(kOfNets);
        return;
    case ThreadKind::kVsock:
        allow_device(filter);
        filter.allow_if(SCMP_SYS(socket), 0, 0xffffffff, AF_UNIX);
        filter.allow({SCMP_SYS(connect), SCMP_SYS(accept4), SCMP_SYS(shutdown), SCMP_SYS(recvfrom), SCMP_SYS(recvmsg),
                      SCMP_SYS(sendto), SCMP_SYS(sendmsg), SCMP_SYS(getsockopt)});
        filter.allow_ioctls(kOfSockets);
        return;
    case ThreadKind::kConsole:
        allow_device(filter);
        return;
    case ThreadKind::kEntropy:
        allow_device(filter);
        filter.allow({SCMP_SYS(getrandom)});
        return;
    case ThreadKind::kBalloon:
        allow_device(filter);
        filter.allow({SCMP_SYS(fallocate)}); // punches holes into memory that is a file
        return;
    }
}

} // namespace

void allow_thread(FilterBuilder& filter, ThreadKind kind) {
    allow_the_c_library(filter);
    allow_kind(filter, kind);
}

} // namespace vmm
