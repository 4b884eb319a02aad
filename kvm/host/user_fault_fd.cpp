#include "kvm/host/user_fault_fd.hpp"

#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <fstream>
#include <string>

#include "kvm/host/error.hpp"
#include "kvm/host/guest_address.hpp"
#include "kvm/host/retry.hpp"

// These definitions are newer than the oldest header package we build against (include/uapi/linux/userfaultfd.h).
#ifndef USERFAULTFD_IOC_NEW
#define USERFAULTFD_IOC_NEW _IO(0xAA, 0x00)
#endif
#ifndef _UFFDIO_MOVE
// The names come from the kernel.
// NOLINTBEGIN(bugprone-reserved-identifier, modernize-macro-to-enum, readability-identifier-naming)
struct uffdio_move {
    __u64 dst;
    __u64 src;
    __u64 len;
    __u64 mode;
    __s64 move;
};
#define _UFFDIO_MOVE (0x05)
#define UFFDIO_MOVE_MODE_DONTWAKE (std::uint64_t{1} << 0)
#define UFFDIO_MOVE _IOWR(UFFDIO, _UFFDIO_MOVE, struct uffdio_move)
#define UFFD_FEATURE_MOVE (1 << 16)
// NOLINTEND(bugprone-reserved-identifier, modernize-macro-to-enum, readability-identifier-naming)
#endif

namespace vmm {

namespace {

constexpr const char* kUserFaultTried = "have the kernel wait for pages of guest memory (userfaultfd)";
constexpr std::array kUserFaultAdvice{
    ErrnoAdvice{EPERM, "give this user access to /dev/userfaultfd, run with CAP_SYS_PTRACE, or set the sysctl "
                       "vm.unprivileged_userfaultfd to 1"},
    ErrnoAdvice{ENOSYS, "use a kernel with CONFIG_USERFAULTFD"},
};

std::uint64_t address_of(const void* bytes) noexcept {
    return reinterpret_cast<std::uintptr_t>(bytes);
}

/// Opens a userfaultfd that reports faults of the kernel, too. Returns -1 with errno if this process may not have one.
int open_user_fault_fd() noexcept {
    const UniqueFd device(::open("/dev/userfaultfd", O_RDWR | O_CLOEXEC));
    if (device) {
        if (const int fd = ::ioctl(device.get(), USERFAULTFD_IOC_NEW, O_CLOEXEC | O_NONBLOCK); fd >= 0) {
            return fd;
        }
    }
    return static_cast<int>(::syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK));
}

} // namespace

UserFaultFd::UserFaultFd(std::size_t page_bytes) : page_bytes_(page_bytes), fd_(open_user_fault_fd()) {
    if (!fd_) {
        const int error_number = errno;
        throw_errno(error_number, kUserFaultTried, kUserFaultAdvice);
    }
    uffdio_api api{};
    api.api = UFFD_API;
    api.features = UFFD_FEATURE_THREAD_ID;
    if (::ioctl(fd_.get(), UFFDIO_API, &api) != 0) {
        const int error_number = errno;
        throw_errno(error_number, kUserFaultTried, kUserFaultAdvice);
    }
    features_ = api.features;
}

std::string UserFaultFd::problem() {
    try {
        const UserFaultFd probe(kSmallPageBytes);
        return {};
    } catch (const Error& error) {
        return error.what();
    }
}

void UserFaultFd::watch(std::span<std::byte> memory) {
    uffdio_register range{};
    range.range = {address_of(memory.data()), memory.size()};
    range.mode = UFFDIO_REGISTER_MODE_MISSING;
    if (::ioctl(fd_.get(), UFFDIO_REGISTER, &range) != 0) {
        const int error_number = errno;
        throw_errno(error_number, kUserFaultTried,
                    error_number == EINVAL ? "this kernel cannot do it for such memory: take pages of 4K" : "");
    }
}

void UserFaultFd::unwatch(std::span<std::byte> memory) noexcept {
    uffdio_range range{address_of(memory.data()), memory.size()};
    ::ioctl(fd_.get(), UFFDIO_UNREGISTER, &range);
}

std::optional<UserFaultFd::Fault> UserFaultFd::take_fault() {
    for (;;) {
        uffd_msg message{};
        const ssize_t got = uninterrupted([&] { return ::read(fd_.get(), &message, sizeof(message)); });
        if (got < 0) {
            const int error_number = errno;
            if (error_number == EAGAIN) {
                return std::nullopt;
            }
            throw_errno(error_number, "read which page of guest memory is waited for (userfaultfd)");
        }
        if (got == sizeof(message) && message.event == UFFD_EVENT_PAGEFAULT) {
            const std::uint64_t page = message.arg.pagefault.address / kSmallPageBytes * kSmallPageBytes;
            return Fault{reinterpret_cast<std::byte*>(page), // NOLINT(performance-no-int-to-ptr)
                         message.arg.pagefault.feat.ptid};
        }
    }
}

/// A thread that entered the kernel by its own page fault is in no system call, so proc(5) shows -1. io_uring's workers
/// also show -1, but are never in user space; their names tell them apart.
UserFaultFd::Accessor UserFaultFd::accessor(std::uint32_t thread) {
    const std::string directory = "/proc/self/task/" + std::to_string(thread);
    std::string call;
    std::string name;
    std::getline(std::ifstream(directory + "/syscall"), call);
    std::getline(std::ifstream(directory + "/comm"), name);
    if (call == "running") {
        return Accessor::kNobody;
    }
    return call.starts_with("-1 ") && !name.starts_with("iou-") ? Accessor::kProgram : Accessor::kKernel;
}

void UserFaultFd::provide(std::span<std::byte> memory, std::span<const std::byte> content) {
    while (!memory.empty()) {
        uffdio_copy copy{};
        copy.dst = address_of(memory.data());
        copy.src = address_of(content.data());
        copy.len = memory.size();
        copy.mode = UFFDIO_COPY_MODE_DONTWAKE;
        std::size_t done = 0;
        if (::ioctl(fd_.get(), UFFDIO_COPY, &copy) == 0) {
            done = memory.size();
        } else {
            const int error_number = errno;
            done = copy.copy > 0 ? static_cast<std::size_t>(copy.copy) : 0;
            if (done == 0 && error_number == EEXIST) {
                done = std::min(memory.size(), page_bytes_);
            } else if (done == 0 && error_number != EAGAIN) {
                throw_errno(error_number, "give the guest a page of its memory",
                            {{ENOMEM, "free some memory, or give the guest's control group more"},
                             {ESRCH, "the process is ending"}});
            }
        }
        memory = memory.subspan(done);
        content = content.subspan(done);
    }
}

bool UserFaultFd::can_move() const noexcept {
    return (features_ & UFFD_FEATURE_MOVE) != 0;
}

bool UserFaultFd::provide_by_moving(std::span<std::byte> memory, std::span<std::byte> content) noexcept {
    if (!can_move()) {
        return false;
    }
    // EAGAIN means that another thread uses one of the pages at this moment.
    constexpr unsigned kMostTries = 8;
    for (unsigned tries = 0; tries < kMostTries; ++tries) {
        uffdio_move move{};
        move.dst = address_of(memory.data());
        move.src = address_of(content.data());
        move.len = memory.size();
        move.mode = UFFDIO_MOVE_MODE_DONTWAKE;
        if (::ioctl(fd_.get(), UFFDIO_MOVE, &move) == 0) {
            return true;
        }
        if (errno != EAGAIN || move.move > 0) {
            break;
        }
    }
    return false;
}

void UserFaultFd::wake(std::span<std::byte> memory) noexcept {
    uffdio_range range{address_of(memory.data()), memory.size()};
    ::ioctl(fd_.get(), UFFDIO_WAKE, &range);
}

} // namespace vmm
