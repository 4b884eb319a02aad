#include "kvm/host/error.hpp"

#include <algorithm>
#include <array>
#include <cerrno>
#include <system_error>

namespace vmm {

namespace {

/// Advice that holds for every call. A place that knows better has a table of its own.
constexpr std::array kGeneralAdvice{
    ErrnoAdvice{EACCES, "see who may do this: the permissions of the file and of the directories above it, and what a "
                        "container or a security module forbids"},
    ErrnoAdvice{EPERM, "see what forbids it: a missing capability, a container's seccomp filter, a security module"},
    ErrnoAdvice{EMFILE, "this process has as many files open as it may: raise the limit with `ulimit -n`"},
    ErrnoAdvice{ENFILE, "the whole host has as many files open as it may: raise fs.file-max with `sysctl`"},
    ErrnoAdvice{ENOMEM, "the host, or the control group of this process, is short of memory: free some, or raise "
                        "memory.max"},
    ErrnoAdvice{ENOBUFS, "the kernel is short of memory for buffers: free some"},
    ErrnoAdvice{EAGAIN,
                "the host is short of something just now, or a limit is reached: try again, and see `ulimit -a`"},
    ErrnoAdvice{ENOSPC, "no space is left there: free some"},
    ErrnoAdvice{EDQUOT, "the quota of this user is used up: free some space, or raise the quota"},
    ErrnoAdvice{EFBIG, "the file would be larger than it may be: see `ulimit -f` and the limits of its file system"},
    ErrnoAdvice{EROFS, "the file system is mounted read-only: take another place, or mount it writable"},
    ErrnoAdvice{ENOENT, "check the name: nothing is there"},
    ErrnoAdvice{ENOTDIR, "check the name: a part of the path is a file where a directory is needed"},
    ErrnoAdvice{EISDIR, "name a file: this is a directory"},
    ErrnoAdvice{ELOOP, "check the name: a symbolic link leads to itself, or may not be followed"},
    ErrnoAdvice{ENAMETOOLONG, "take a shorter name"},
    ErrnoAdvice{EEXIST, "something of that name is there already: take another name, or remove it"},
    ErrnoAdvice{ETXTBSY, "it is a program that is running: end it, or take another file"},
    ErrnoAdvice{EBUSY, "something else is using it: end that first"},
    ErrnoAdvice{ENXIO, "no device, or nobody at the other end, is there"},
    ErrnoAdvice{ENODEV, "no such device is there: see that its driver is loaded"},
    ErrnoAdvice{EIO, "the device or the kernel failed: see `dmesg`"},
    ErrnoAdvice{EHWPOISON, "a page of this host's memory is broken: see `dmesg`"},
    ErrnoAdvice{ESTALE, "the file has gone from its server: open it again"},
    ErrnoAdvice{EPIPE, "the reader has gone"},
    ErrnoAdvice{ETIMEDOUT, "the other side did not answer in time: see that it runs"},
    ErrnoAdvice{ENOSYS, "this kernel lacks the call, or a container's seccomp filter hides it"},
    ErrnoAdvice{EOPNOTSUPP, "this kernel, or this file system, does not do that"},
    ErrnoAdvice{EINVAL, "this host does not take that: `vmm doctor` shows what it lacks"},
    ErrnoAdvice{ENOTTY, "this host does not take that: `vmm doctor` shows what it lacks"},
};

} // namespace

std::string errno_reason(int error_number) {
    return std::generic_category().message(error_number);
}

std::string_view errno_advice(int error_number, std::span<const ErrnoAdvice> table) noexcept {
    const auto entry = std::ranges::find(table, error_number, &ErrnoAdvice::error_number);
    return entry == table.end() ? errno_advice(error_number) : entry->advice;
}

std::string_view errno_advice(int error_number) noexcept {
    const auto* const entry = std::ranges::find(kGeneralAdvice, error_number, &ErrnoAdvice::error_number);
    return entry == kGeneralAdvice.end() ? std::string_view() : entry->advice;
}

void throw_errno(int error_number, std::string_view tried, std::string_view advice) {
    if (advice.empty()) {
        advice = errno_advice(error_number);
    }
    std::string message = "cannot ";
    message += tried;
    message += ": ";
    message += errno_reason(error_number);
    if (!advice.empty()) {
        message += " (";
        message += advice;
        message += ')';
    }
    throw Error(message);
}

void throw_errno(int error_number, std::string_view tried, std::span<const ErrnoAdvice> table) {
    throw_errno(error_number, tried, errno_advice(error_number, table));
}

void throw_errno(int error_number, std::string_view tried, std::initializer_list<ErrnoAdvice> table) {
    throw_errno(error_number, tried, std::span(table.begin(), table.size()));
}

} // namespace vmm
