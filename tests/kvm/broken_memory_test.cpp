// A page of the guest's memory that the host has lost, or cannot give.

#include <gtest/gtest.h>

#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <cstdio>
#include <exception>
#include <span>
#include <string>

#include "kvm/host/error.hpp"
#include "kvm/host/unique_fd.hpp"
#include "prefault/x86/second_level_host.hpp"
#include "support/host_errors.hpp"
#include "support/host_pipe.hpp"
#include "support/kvm_command.hpp"
#include "support/kvm_machine.hpp"
#include "support/kvm_require.hpp"
#include "vmm/cli/broken_memory.hpp"

#ifndef MADV_HWPOISON
#define MADV_HWPOISON 100
#endif

namespace vmm {
namespace {

using testing::mentions;
using testing::TestKernel;

constexpr GuestAddress kLost{0x800000};
/// Writes to kLost, mov %al, 0x800000, and powers off.
const testing::kernels::Code kTouchesIt{0xa2, 0x00, 0x00, 0x80, 0x00, 0x66, 0xba,
                                        0x00, 0x06, 0xb0, 0x34, 0xee, 0xeb, 0xfe};

Config small_config(const TestKernel& kernel) {
    Config config = kernel.config();
    config.page_size = PageSize::k4K;
    return config;
}

/// Makes the kernel treat a page of ours as broken, as if the hardware had reported it. Returns false if the kernel
/// does not do that. Ignores the immediate signal: the test is about the later use of the page.
bool break_page(std::span<std::byte> page) {
    struct sigaction pass {};
    struct sigaction before {};
    pass.sa_handler = [](int) {};
    ::sigaction(SIGBUS, &pass, &before);
    page[0] = std::byte{1};
    const bool broken = ::madvise(page.data(), page.size(), MADV_HWPOISON) == 0;
    ::sigaction(SIGBUS, &before, nullptr);
    return broken;
}

using BrokenGuestMemory = testing::KvmTest;

TEST_F(BrokenGuestMemory, WithoutAPageOfTheHostsIsAClearError) {
    if (prefault::detect_second_level().kind == prefault::SecondLevelKind::kShadow) {
        GTEST_SKIP()
            << "shadow paging in software: KVM emulates the guest, and takes memory it cannot write for a device";
    }
    const TestKernel kernel(kTouchesIt);
    Machine machine(small_config(kernel));
    const auto bytes = machine.memory().at({kLost, 4096});
    ASSERT_TRUE(bytes);
    const UniqueFd empty(::memfd_create("empty", MFD_CLOEXEC));
    ASSERT_NE(::mmap(bytes->data(), bytes->size(), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, empty.get(), 0),
              MAP_FAILED);
    const std::string error = testing::error_of([&] { return machine.run(); });
    EXPECT_TRUE(mentions(error, "cannot run vCPU 0")) << error;
    EXPECT_TRUE(mentions(error, "the host has no memory for a page of the guest")) << error;
}

TEST_F(BrokenGuestMemory, ThatTheHardwareLostEndsInOneLineThatNamesTheGuestsAddress) {
    const TestKernel kernel(kTouchesIt);
    testing::Pipe errors;
    const pid_t child = ::fork();
    if (child == 0) {
        ::dup2(errors.writer.get(), STDERR_FILENO);
        try {
            Machine machine(small_config(kernel));
            const BrokenMemoryReport report(machine.memory());
            const auto bytes = machine.memory().at({kLost, 4096});
            if (!break_page(*bytes)) {
                ::_exit(77);
            }
            static_cast<void>(machine.run());
            ::_exit(0);
        } catch (const std::exception& error) {
            std::fprintf(stderr, "vmm: error: %s\n", error.what());
            ::_exit(1);
        }
    }
    int status = 0;
    ::waitpid(child, &status, 0);
    errors.writer.reset();
    if (WIFEXITED(status) && WEXITSTATUS(status) == 77) {
        GTEST_SKIP() << "this kernel breaks no page on demand (MADV_HWPOISON: CONFIG_MEMORY_FAILURE and CAP_SYS_ADMIN)";
    }
    const std::string said = testing::read_available(errors.reader.get());
    ASSERT_TRUE(WIFEXITED(status)) << status << ": " << said;
    EXPECT_EQ(WEXITSTATUS(status), 1) << said;
    EXPECT_TRUE(mentions(said, "broken")) << said;
    EXPECT_TRUE(mentions(said, "0x800000")) << said;
}

TEST_F(BrokenGuestMemory, ThatTheHardwareLostBeforeAPrefaultIsAClearError) {
    const TestKernel kernel(kTouchesIt);
    Machine machine(small_config(kernel));
    const auto bytes = machine.memory().at({kLost, 4096});
    if (!break_page(*bytes)) {
        GTEST_SKIP() << "this kernel breaks no page on demand (MADV_HWPOISON)";
    }
    const std::string error =
        testing::error_of([&] { return machine.prefault({.scope = prefault::Scope::kHost}).complete; });
    EXPECT_TRUE(mentions(error, "broken")) << error;
}

} // namespace
} // namespace vmm
