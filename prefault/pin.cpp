#include "prefault/pin.hpp"

#include <linux/capability.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <array>
#include <cassert>
#include <cerrno>
#include <cinttypes>
#include <cstdio>
#include <fstream>
#include <string>

#include "kvm/error.hpp"

namespace vmm::prefault {

namespace {

constexpr const char* kAdvice = "raise it with `ulimit -l` or LimitMEMLOCK=, give CAP_IPC_LOCK, or take --pin=none";

bool has_ipc_lock_capability() {
    __user_cap_header_struct header{_LINUX_CAPABILITY_VERSION_3, 0};
    std::array<__user_cap_data_struct, 2> data{};
    if (::syscall(SYS_capget, &header, data.data()) != 0) {
        return false;
    }
    static_assert(CAP_IPC_LOCK < 32);
    return (data[0].effective & (1U << CAP_IPC_LOCK)) != 0;
}

/// What this process has locked already; the limit is on all of it together.
std::uint64_t locked_bytes() {
    std::ifstream status("/proc/self/status");
    std::string line;
    std::uint64_t kib = 0;
    while (std::getline(status, line)) {
        if (std::sscanf(line.c_str(), "VmLck: %" SCNu64, &kib) == 1) {
            break;
        }
    }
    return kib * kKiB;
}

} // namespace

std::string_view to_string(Pin pin) noexcept {
    return pin == Pin::kMlock ? "mlock" : "none";
}

void check_may_pin(Pin pin, std::uint64_t bytes) {
    rlimit limit{};
    if (pin == Pin::kNone || has_ipc_lock_capability() || ::getrlimit(RLIMIT_MEMLOCK, &limit) != 0 ||
        limit.rlim_cur == RLIM_INFINITY) {
        return;
    }
    const std::uint64_t locked = locked_bytes();
    if (locked <= limit.rlim_cur && bytes <= limit.rlim_cur - locked) {
        return;
    }
    throw Error("cannot lock " + format_bytes(bytes) +
                " of guest memory: the limit on locked memory (RLIMIT_MEMLOCK) is " + format_bytes(limit.rlim_cur) +
                (locked != 0 ? ", of which " + format_bytes(locked) + " are in use" : "") + " (" + kAdvice + ")");
}

void pin_memory(const GuestMemory& memory, std::span<const GuestRange> ranges, Pin pin) {
    if (pin == Pin::kNone) {
        return;
    }
    for (const GuestRange& range : ranges) {
        const auto bytes = memory.at(range);
        assert(bytes);
        if (::mlock2(bytes->data(), bytes->size(), MLOCK_ONFAULT) != 0) {
            throw_errno(errno, "lock guest memory " + to_string(range),
                        std::string("the limit is RLIMIT_MEMLOCK: ") + kAdvice);
        }
    }
}

} // namespace vmm::prefault
