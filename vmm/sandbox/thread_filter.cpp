#include "vmm/sandbox/thread_filter.hpp"

#include <linux/if_tun.h>
#include <linux/io_uring.h>
#include <sched.h>
#include <seccomp.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <memory>
#include <new>
#include <span>

#include "kvm/host/error.hpp"
#include "kvm/host/retry.hpp"
#include "kvm/host/unique_fd.hpp"
#include "kvm/uapi.hpp"

namespace vmm {

namespace {

constexpr const char* kTried = "make the filter of a thread's system calls";

/// Builds a filter by libseccomp.
class FilterBuilder {
  public:
    explicit FilterBuilder(Refusal refusal)
        : context_(::seccomp_init(refusal == Refusal::kSignal ? SCMP_ACT_TRAP : SCMP_ACT_LOG)) {
        if (!context_) {
            throw std::bad_alloc();
        }
        constexpr std::uint32_t kBinaryTree = 2;
        check(::seccomp_attr_set(context_.get(), SCMP_FLTATR_CTL_OPTIMIZE, kBinaryTree));
        // Calls of another architecture have other numbers.
        check(::seccomp_attr_set(context_.get(), SCMP_FLTATR_ACT_BADARCH,
                                 refusal == Refusal::kSignal ? SCMP_ACT_KILL_PROCESS : SCMP_ACT_LOG));
    }

    void allow(std::initializer_list<int> calls) {
        for (const int call : calls) {
            check(::seccomp_rule_add_array(context_.get(), SCMP_ACT_ALLOW, call, 0, nullptr));
        }
    }
    /// Allows it if the bits of `mask` in this argument (the first is 0) are `value`.
    void allow_if(int call, unsigned argument, std::uint64_t mask, std::uint64_t value) {
        const scmp_arg_cmp comparison{argument, SCMP_CMP_MASKED_EQ, mask, value};
        check(::seccomp_rule_add_array(context_.get(), SCMP_ACT_ALLOW, call, 1, &comparison));
    }
    /// The call is not made. It returns this error; with 0 it looks as if it had been made.
    void answer(int call, unsigned error_number) {
        check(::seccomp_rule_add_array(context_.get(), SCMP_ACT_ERRNO(error_number), call, 0, nullptr));
    }
    void allow_ioctls(std::span<const unsigned long> requests) {
        constexpr std::uint64_t kAllBits = 0xffffffff; // The kernel takes the rest for nothing.
        for (const unsigned long request : requests) {
            allow_if(SCMP_SYS(ioctl), 1, kAllBits, request & kAllBits);
        }
    }

    [[nodiscard]] std::vector<sock_filter> take() {
        const UniqueFd file(::memfd_create("vmm-filter", MFD_CLOEXEC));
        if (!file) {
            throw_errno(errno, kTried);
        }
        check(::seccomp_export_bpf(context_.get(), file.get()));
        const off_t bytes = ::lseek(file.get(), 0, SEEK_END);
        if (bytes < 0) {
            throw_errno(errno, kTried);
        }
        std::vector<sock_filter> program(static_cast<std::size_t>(bytes) / sizeof(sock_filter));
        const std::span<std::byte> to = std::as_writable_bytes(std::span(program));
        const ssize_t count = uninterrupted([&] { return ::pread(file.get(), to.data(), to.size(), 0); });
        if (count != static_cast<ssize_t>(to.size())) {
            throw_errno(count < 0 ? errno : EIO, kTried);
        }
        return program;
    }

  private:
    struct Release {
        void operator()(void* context) const noexcept { ::seccomp_release(context); }
    };
    /// libseccomp returns errors as negative numbers.
    static void check(int result) {
        if (result < 0) {
            throw_errno(-result, kTried);
        }
    }
    std::unique_ptr<void, Release> context_;
};

/// What the C library does for any thread: memory, locks, signals that end it, its own end. Memory is never made
/// executable.
void allow_the_c_library(FilterBuilder& filter) {
    filter.allow({SCMP_SYS(futex), SCMP_SYS(restart_syscall), SCMP_SYS(rt_sigprocmask), SCMP_SYS(rt_sigreturn),
                  SCMP_SYS(munmap), SCMP_SYS(exit)});
    filter.allow({SCMP_SYS(clock_gettime)}); // Without a clock in user space it is a call.
    filter.allow_if(SCMP_SYS(mmap), 2, PROT_EXEC, 0);
    filter.allow_if(SCMP_SYS(mprotect), 2, PROT_EXEC, 0);
    // The allocator then takes its memory by mmap().
    filter.answer(SCMP_SYS(brk), ENOMEM);
    // Whoever yields asks again; and a log asks for the number of its thread, which it does not show.
    filter.answer(SCMP_SYS(sched_yield), 0);
    filter.answer(SCMP_SYS(gettid), 0);
    // An event is told, or a line of the log, by a write to a descriptor that is open.
    filter.allow({SCMP_SYS(write)});
}

/// A vCPU has twelve calls, those that the C library needs included, and nine requests of ioctl(): the last three when
/// the guest sets up its PCI functions.
void allow_vcpu(FilterBuilder& filter) {
    filter.allow({SCMP_SYS(rt_sigtimedwait)}); // It takes a kick.
    // Memory that is free need not be given back at once; and who pauses between two attempts does without the pause.
    filter.answer(SCMP_SYS(madvise), 0);
    filter.answer(SCMP_SYS(clock_nanosleep), 0);
    filter.answer(SCMP_SYS(nanosleep), 0);
    static constexpr std::array<unsigned long, 9> kRequests{KVM_RUN,       KVM_KVMCLOCK_CTRL,   KVM_IRQ_LINE,
                                                            KVM_GET_REGS,  KVM_GET_SREGS,       KVM_GET_MP_STATE,
                                                            KVM_IOEVENTFD, KVM_SET_GSI_ROUTING, KVM_SIGNAL_MSI};
    filter.allow_ioctls(kRequests);
}

/// What each thread of a device does: it waits for its queues, and tells the guest.
void allow_device(FilterBuilder& filter) {
    filter.allow({SCMP_SYS(epoll_wait), SCMP_SYS(epoll_pwait), SCMP_SYS(epoll_ctl), SCMP_SYS(timerfd_settime),
                  SCMP_SYS(read), SCMP_SYS(poll), SCMP_SYS(close)});
    static constexpr std::array<unsigned long, 3> kOfInterrupts{KVM_IRQ_LINE, KVM_SET_GSI_ROUTING, KVM_SIGNAL_MSI};
    filter.allow_ioctls(kOfInterrupts); // Over PCI: the pin, and messages.
    // MADV_DONTNEED, and what of it there is for locked memory: nothing else of memory is at stake than its content.
    filter.allow({SCMP_SYS(madvise), SCMP_SYS(clock_nanosleep), SCMP_SYS(nanosleep)});
}

/// A thread may make threads of this process, which have its filter, and no process. clone3() has its flags in memory,
/// where a filter does not see them; without it the C library uses clone().
void allow_threads(FilterBuilder& filter) {
    filter.answer(SCMP_SYS(clone3), ENOSYS);
    constexpr std::uint64_t kThread = CLONE_VM | CLONE_SIGHAND | CLONE_THREAD;
    filter.allow_if(SCMP_SYS(clone), 0, kThread, kThread);
    filter.allow({SCMP_SYS(set_robust_list), SCMP_SYS(rseq)});
    filter.allow_if(SCMP_SYS(prctl), 0, 0xffffffff, PR_SET_NAME);
}

void allow_kind(FilterBuilder& filter, ThreadKind kind) {
    static constexpr std::array<unsigned long, 2> kOfNets{TUNSETOFFLOAD, TUNGETIFF};
    static constexpr std::array<unsigned long, 1> kOfSockets{FIONREAD};
    switch (kind) {
    case ThreadKind::kVcpu:
        allow_vcpu(filter);
        return;
    case ThreadKind::kBlock:
        allow_device(filter);
        allow_threads(filter); // Where there is no io_uring, threads make the calls for a disk.
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
        filter.allow({SCMP_SYS(fallocate)}); // It punches holes into memory that is a file.
        return;
    }
}

} // namespace

std::vector<sock_filter> make_thread_filter(ThreadKind kind, Refusal refusal) {
    FilterBuilder filter(refusal);
    allow_the_c_library(filter);
    allow_kind(filter, kind);
    return filter.take();
}

} // namespace vmm
