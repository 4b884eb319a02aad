// A process for which the kernel refuses a kind of call from now on. The kernel asks no other process, so the process
// can refuse its own calls.
#pragma once

#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sys/prctl.h>
#include <sys/syscall.h>

#include <array>
#include <cerrno>
#include <cstddef>
#include <cstdint>

namespace vmm::testing {

/// Makes each call with this number fail with EIO if the lower half of its argument `argument` (counted from 0) is
/// `value`. It applies to the calling thread and to the processes that it makes, and cannot be undone. Returns false if
/// this process may not do that.
inline bool refuse_calls(int number, unsigned argument, std::uint32_t value) {
    // The lower half comes first, because the supported machines are little-endian.
    const auto place = static_cast<std::uint32_t>(offsetof(seccomp_data, args) + argument * sizeof(std::uint64_t));
    std::array program{
        sock_filter(BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(seccomp_data, nr))),
        sock_filter(BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, static_cast<std::uint32_t>(number), 0, 3)),
        sock_filter(BPF_STMT(BPF_LD | BPF_W | BPF_ABS, place)),
        sock_filter(BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, value, 0, 1)),
        sock_filter(BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EIO)),
        sock_filter(BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW)),
    };
    const sock_fprog filter{static_cast<unsigned short>(program.size()), program.data()};
    return ::prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 && ::prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &filter) == 0;
}

} // namespace vmm::testing
