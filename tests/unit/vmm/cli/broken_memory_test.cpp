// The program's messages if the host has no page, or a broken one, behind its guest's memory.
#include "vmm/cli/broken_memory.hpp"

#include <gtest/gtest.h>

#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <csignal>
#include <cstddef>
#include <cstdlib>
#include <string>
#include <thread>

#include "kvm/host/guest_memory.hpp"
#include "kvm/host/unique_fd.hpp"
#include "support/host_errors.hpp"
#include "support/host_pipe.hpp"

namespace vmm {
namespace {

constexpr GuestAddress kBase{0x40000000};

/// Guest memory for which the host has no page: it is mapped from a file that has been truncated.
class MissingMemory {
  public:
    MissingMemory() : file_(::memfd_create("missing", MFD_CLOEXEC)) {
        EXPECT_EQ(::ftruncate(file_.get(), kBytes), 0);
        void* const mapped =
            ::mmap(nullptr, 2 * kBytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, file_.get(), 0);
        EXPECT_NE(mapped, MAP_FAILED);
        const auto start = reinterpret_cast<std::uintptr_t>(mapped); // as a number, to be rounded
        host_ = static_cast<std::byte*>(mapped) + ((start + kBytes - 1) / kBytes * kBytes - start);
        EXPECT_EQ(::ftruncate(file_.get(), 0), 0);
    }
    [[nodiscard]] MemoryRegion region() const { return {{kBase, kBytes}, host_}; }
    [[nodiscard]] std::byte* at(std::uint64_t offset) const { return host_ + offset; }

  private:
    static constexpr std::uint64_t kBytes = 2 * kMiB;
    UniqueFd file_;
    std::byte* host_ = nullptr;
};

struct End {
    int status = 0;
    std::string said;
};

/// How a process ends that has the handler for `missing` and does `action`.
template <typename Action>
End end_of(const MissingMemory& missing, Action action) {
    testing::Pipe errors;
    const pid_t child = ::fork();
    if (child == 0) {
        ::dup2(errors.writer.get(), STDERR_FILENO);
        std::signal(SIGBUS, SIG_DFL);
        const std::array regions{missing.region()};
        const GuestMemory memory(std::span<const MemoryRegion>(regions), PageSize::k4K);
        const BrokenMemoryReport report(memory);
        action();
        ::_exit(42);
    }
    End end;
    ::waitpid(child, &end.status, 0);
    errors.writer.reset();
    end.said = testing::read_available(errors.reader.get());
    return end;
}

void touch(std::byte* byte) {
    *static_cast<volatile std::byte*>(byte) = std::byte{1};
}

TEST(BrokenMemory, WithoutAPageEndsInOneLineThatNamesTheGuestsAddress) {
    const MissingMemory missing;
    const End end = end_of(missing, [&] { touch(missing.at(0x1a234)); });
    ASSERT_TRUE(WIFEXITED(end.status)) << end.status;
    EXPECT_EQ(WEXITSTATUS(end.status), 1);
    EXPECT_EQ(end.said, "vmm: error: cannot use the guest's memory at 0x4001a234: the host has no page for it (free "
                        "memory, or enough huge pages)\n");
}

TEST(BrokenMemory, ThatAnotherThreadTouchesEndsLikewise) {
    const MissingMemory missing;
    const End end = end_of(missing, [&] { std::thread([&] { touch(missing.at(0)); }).join(); });
    ASSERT_TRUE(WIFEXITED(end.status)) << end.status;
    EXPECT_EQ(WEXITSTATUS(end.status), 1);
    EXPECT_TRUE(testing::mentions(end.said, "at 0x40000000:")) << end.said;
}

TEST(BrokenMemory, ThatIsNotTheGuestsEndsBySignal) {
    const MissingMemory missing;
    const MissingMemory other;
    const End end = end_of(missing, [&] { touch(other.at(0)); });
    ASSERT_TRUE(WIFSIGNALED(end.status)) << end.status;
    EXPECT_EQ(WTERMSIG(end.status), SIGBUS);
    EXPECT_EQ(end.said, "");
}

TEST(BrokenMemory, SignalThatSomebodySendsEndsBySignal) {
    const MissingMemory missing;
    const End end = end_of(missing, [] { ::kill(::getpid(), SIGBUS); });
    ASSERT_TRUE(WIFSIGNALED(end.status)) << end.status;
    EXPECT_EQ(WTERMSIG(end.status), SIGBUS);
}

TEST(BrokenMemory, ThatNobodyHasTouchedYetIsNoReasonToEnd) {
    const MissingMemory missing;
    const End end = end_of(missing, [&] {
        siginfo_t info{};
        info.si_signo = SIGBUS;
        info.si_code = BUS_MCEERR_AO;
        info.si_addr = missing.at(0);
        // Calls the handler directly, because no process may send a signal with a code of the kernel.
        struct sigaction action {};
        ::sigaction(SIGBUS, nullptr, &action);
        action.sa_sigaction(SIGBUS, &info, nullptr);
    });
    ASSERT_TRUE(WIFEXITED(end.status)) << end.status;
    EXPECT_EQ(WEXITSTATUS(end.status), 42);
}

TEST(BrokenMemory, ThatTheHardwareReportsIsCalledBroken) {
    const MissingMemory missing;
    const End end = end_of(missing, [&] {
        siginfo_t info{};
        info.si_signo = SIGBUS;
        info.si_code = BUS_MCEERR_AR;
        info.si_addr = missing.at(0x1fffff);
        struct sigaction action {};
        ::sigaction(SIGBUS, nullptr, &action);
        action.sa_sigaction(SIGBUS, &info, nullptr);
    });
    ASSERT_TRUE(WIFEXITED(end.status)) << end.status;
    EXPECT_EQ(WEXITSTATUS(end.status), 1);
    EXPECT_TRUE(testing::mentions(end.said, "0x401fffff: a page of this host's memory is broken")) << end.said;
}

TEST(BrokenMemory, LeavesTheDispositionAsItWas) {
    struct sigaction before {};
    struct sigaction after {};
    ::sigaction(SIGBUS, nullptr, &before);
    {
        const GuestMemory memory(std::array{GuestRange{GuestAddress{0}, 2 * kMiB}}, PageSize::k4K);
        const BrokenMemoryReport report(memory);
    }
    ::sigaction(SIGBUS, nullptr, &after);
    EXPECT_EQ(before.sa_handler, after.sa_handler);
    EXPECT_EQ(before.sa_flags & SA_SIGINFO, after.sa_flags & SA_SIGINFO);
}

} // namespace
} // namespace vmm
