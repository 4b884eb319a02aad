#include "vmm/sandbox/sandbox.hpp"

#include <linux/capability.h>
#include <linux/seccomp.h>
#include <malloc.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>
#include <span>
#include <string>
#include <thread>

#include "kvm/host/error.hpp"
#include "kvm/host/thread_rights.hpp"
#include "vmm/machine/vcpu_thread.hpp"
#include "vmm/sandbox/compiled_filters.hpp"
#include "vmm/sandbox/landlock.hpp"
#include "vmm/sandbox/process_sandbox.hpp"

namespace vmm {

namespace {

/// Linux's names of threads are not longer (prctl(2), PR_SET_NAME).
constexpr std::size_t kMostNameBytes = 15;
struct ThreadName {
    std::array<char, kMostNameBytes> text{};
    std::size_t bytes = 0;
};
thread_local constinit ThreadName name_of_this_thread;

[[noreturn]] void throw_cannot(int error_number, const char* what) {
    throw_errno(error_number, std::string("confine a thread (Config::sandbox): ") + what,
                "this kernel lacks seccomp filters, or forbids them: use Config::sandbox=off, and trust the guest");
}

/// Whether the user has set M_ARENA_MAX (mallopt(3)). The allocator takes a value that it cannot use for none.
bool is_told_how_many_arenas() {
    const char* const variable = std::getenv("MALLOC_ARENA_MAX");
    const char* const tunables = std::getenv("GLIBC_TUNABLES");
    return (variable != nullptr && std::strtol(variable, nullptr, 0) > 0) ||
           (tunables != nullptr && std::string_view(tunables).find("arena_max") != std::string_view::npos);
}

/// The allocator of glibc looks at the host when it needs to know something for the first time, in whatever thread that
/// is: how many processors there are when it makes its ninth arena, and how the kernel overcommits memory
/// (/proc/sys/vm/overcommit_memory) when an arena other than the first one shrinks. A confined thread could not.
void prepare_allocator() {
    if (!is_told_how_many_arenas()) { // Then as many as it would have counted.
        constexpr int kArenasOfAProcessor = 8;
        ::mallopt(M_ARENA_MAX,
                  kArenasOfAProcessor * static_cast<int>(std::max(std::thread::hardware_concurrency(), 1U)));
    }
    // A thread has an arena of its own. When more than the threshold at the end of it is free, the allocator gives that
    // back. Left alone, the threshold would rise with each large block that is freed, and the thread below would not
    // reach it.
    constexpr int kTrimBytes = 128 * 1024; // The allocator's own first value.
    ::mallopt(M_TRIM_THRESHOLD, kTrimBytes);
    start_thread("the preparation of the sandbox", [] {
        constexpr std::size_t kLessThanAMapping = 100'000;
        // Volatile, so that the compiler does not leave the allocation out.
        // NOLINTNEXTLINE(modernize-avoid-c-arrays): a std::unique_ptr to an array.
        std::array<std::unique_ptr<volatile char[]>, 4> blocks;
        for (auto& block : blocks) {
            block.reset(new (std::nothrow) volatile char[kLessThanAMapping]); // Without memory nothing shrinks, either.
            if (block) {
                block[0] = 1;
            }
        }
        for (std::size_t last = blocks.size(); last > 0; --last) {
            blocks[last - 1].reset();
        }
    }).join();
}

} // namespace

Sandbox::Sandbox(SandboxMode mode) : mode_(mode) {
    if (mode == SandboxMode::kOff) {
        return;
    }
    prepare_allocator();
    if (mode == SandboxMode::kOn) {
        no_files_ = make_ruleset_without_rights();
    }
}

void Sandbox::confine(ThreadKind kind, std::string_view name) const {
    if (mode_ == SandboxMode::kOff) {
        return;
    }
    name_of_this_thread.bytes = std::min(name.size(), kMostNameBytes);
    std::copy_n(name.begin(), name_of_this_thread.bytes, name_of_this_thread.text.begin());
    if (::prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0) {
        throw_cannot(errno, "give up new privileges");
    }
    if (mode_ == SandboxMode::kOn) {
        note_no_files_in_this_thread();
        if (no_files_) {
            restrict_this_thread(no_files_.get());
        }
        // The thread of a disk locks guest memory as buffers of its ring, which may be more than RLIMIT_MEMLOCK.
        if (const int error = drop_capabilities(kind == ThreadKind::kBlock ? CAP_TO_MASK(CAP_IPC_LOCK) : 0);
            error != 0) {
            throw_cannot(error, "give up its capabilities");
        }
    }
    const std::span<const sock_filter> filter =
        compiled_filters::of_thread(kind, mode_ == SandboxMode::kOn ? Refusal::kSignal : Refusal::kLog);
    // The kernel does not write to it.
    const sock_fprog program{static_cast<unsigned short>(filter.size()), const_cast<sock_filter*>(filter.data())};
    if (::syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &program) != 0) {
        throw_cannot(errno, "filter its system calls");
    }
}

std::string_view confined_thread() noexcept {
    return {name_of_this_thread.text.data(), name_of_this_thread.bytes};
}

} // namespace vmm
