// The filters that were compiled during the build of this program.

#include "vmm/sandbox/compiled_filters.hpp"

#include <gtest/gtest.h>
#include <linux/audit.h>
#include <linux/bpf_common.h>
#include <linux/seccomp.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>

#include <algorithm>
#include <cstddef>
#include <cstring>

namespace vmm {
namespace {

constexpr std::uint32_t kAllowed = SECCOMP_RET_ALLOW;
constexpr std::uint32_t kSignal = SECCOMP_RET_TRAP;
constexpr std::uint32_t kLogged = SECCOMP_RET_LOG;

/// The answer of `program` to a call, as the kernel would run it (seccomp(2), linux/filter.h). It knows only the
/// instructions that libseccomp generates.
std::uint32_t answer(std::span<const sock_filter> program, seccomp_data call) {
    std::uint32_t accumulator = 0;
    for (std::size_t at = 0; at < program.size(); ++at) {
        const sock_filter& instruction = program[at];
        switch (instruction.code) {
        case BPF_LD | BPF_W | BPF_ABS:
            std::memcpy(&accumulator, reinterpret_cast<const std::byte*>(&call) + instruction.k, sizeof(accumulator));
            break;
        case BPF_ALU | BPF_AND | BPF_K:
            accumulator &= instruction.k;
            break;
        case BPF_JMP | BPF_JA:
            at += instruction.k;
            break;
        case BPF_JMP | BPF_JEQ | BPF_K:
            at += accumulator == instruction.k ? instruction.jt : instruction.jf;
            break;
        case BPF_JMP | BPF_JGT | BPF_K:
            at += accumulator > instruction.k ? instruction.jt : instruction.jf;
            break;
        case BPF_JMP | BPF_JGE | BPF_K:
            at += accumulator >= instruction.k ? instruction.jt : instruction.jf;
            break;
        case BPF_RET | BPF_K:
            return instruction.k & SECCOMP_RET_ACTION_FULL;
        default:
            ADD_FAILURE() << "an instruction of code " << instruction.code;
            return SECCOMP_RET_KILL_PROCESS;
        }
    }
    ADD_FAILURE() << "a program that does not end";
    return SECCOMP_RET_KILL_PROCESS;
}

seccomp_data call(int number, std::uint64_t first = 0, std::uint64_t second = 0) {
    seccomp_data data{};
    data.nr = number;
    data.arch = AUDIT_ARCH_X86_64;
    data.args[0] = first;
    data.args[1] = second;
    return data;
}

TEST(CompiledFilters, OfEachKindOfThreadAllowItsOwnAndRefuseTheRest) {
    for (int kind = 0; kind <= static_cast<int>(kLastThreadKind); ++kind) {
        const auto refusing = compiled_filters::of_thread(static_cast<ThreadKind>(kind), Refusal::kSignal);
        EXPECT_EQ(answer(refusing, call(SYS_futex)), kAllowed) << kind;
        EXPECT_EQ(answer(refusing, call(SYS_execve)), kSignal) << kind;
        EXPECT_EQ(answer(refusing, call(SYS_openat)), kSignal) << kind;
        const bool is_vsock = static_cast<ThreadKind>(kind) == ThreadKind::kVsock;
        EXPECT_EQ(answer(refusing, call(SYS_connect)), is_vsock ? kAllowed : kSignal) << kind;
        const auto logging = compiled_filters::of_thread(static_cast<ThreadKind>(kind), Refusal::kLog);
        EXPECT_EQ(answer(logging, call(SYS_execve)), kLogged) << kind;
    }
}

TEST(CompiledFilters, OfAProcessAllowInternetSocketsWhereTheyAreNeeded) {
    constexpr std::uint64_t kInternet = 2; // AF_INET
    constexpr std::uint64_t kUnix = 1;
    for (const bool network : {false, true}) {
        const auto filter = compiled_filters::of_process({.network = network}, Refusal::kSignal);
        EXPECT_EQ(answer(filter, call(SYS_socket, kUnix)), kAllowed);
        EXPECT_EQ(answer(filter, call(SYS_socket, kInternet)) == kAllowed, network);
        EXPECT_EQ(answer(filter, call(SYS_execve)), kSignal);
        EXPECT_EQ(answer(compiled_filters::of_process({.network = network}, Refusal::kLog), call(SYS_execve)), kLogged);
    }
}

TEST(CompiledFilters, OfAProcessLetATerminalBeGivenBack) {
    const auto filter = compiled_filters::of_process({}, Refusal::kSignal);
    for (const int request : {TCGETS, TCSETS, TIOCGPGRP, TCFLSH}) {
        EXPECT_EQ(answer(filter, call(SYS_ioctl, 0, static_cast<std::uint64_t>(request))), kAllowed) << request;
    }
    EXPECT_NE(answer(filter, call(SYS_ioctl, 0, TIOCSTI)), kAllowed) << "it would type at the terminal";
}

TEST(CompiledFilters, OfAProcessNameItOnce) {
    for (const Refusal refusal : {Refusal::kSignal, Refusal::kLog}) {
        for (const bool network : {false, true}) {
            const auto filter = compiled_filters::of_process({.network = network}, refusal);
            EXPECT_EQ(std::ranges::count(filter, compiled_filters::kAnyProcess, &sock_filter::k), 1);
            EXPECT_EQ(answer(filter, call(SYS_tgkill, compiled_filters::kAnyProcess)), kAllowed);
            EXPECT_NE(answer(filter, call(SYS_tgkill, 1)), kAllowed);
        }
    }
}

TEST(CompiledFilters, KillACallOfAnotherArchitecture) {
    seccomp_data other = call(SYS_futex);
    other.arch = AUDIT_ARCH_I386;
    EXPECT_EQ(answer(compiled_filters::of_thread(ThreadKind::kVcpu, Refusal::kSignal), other),
              std::uint32_t{SECCOMP_RET_KILL_PROCESS});
}

TEST(CompiledFilters, KnowTheNamesOfCalls) {
    EXPECT_EQ(compiled_filters::name_of_call(SYS_read), "read");
    EXPECT_EQ(compiled_filters::name_of_call(SYS_execveat), "execveat");
    for (const int number : {-1, 1000, 1'000'000}) {
        EXPECT_EQ(compiled_filters::name_of_call(number), "") << number;
    }
}

} // namespace
} // namespace vmm
