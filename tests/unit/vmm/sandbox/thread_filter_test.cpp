// What a thread's filter is when the host fails while it is made.

#include "vmm/sandbox/thread_filter.hpp"

#include <gtest/gtest.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <exception>

#include "kvm/host/error.hpp"
#include "support/host_errors.hpp"
#include "support/host_refused_call.hpp"

namespace vmm {
namespace {

// It was told as "cannot create std::vector larger than max_size()".
TEST(ThreadFilter, WhoseSizeIsNotKnownIsAnError) {
    constexpr int kSaid = 10;
    constexpr int kOtherwise = 11;
    constexpr int kCannotRefuse = 12;
    const pid_t process = ::fork(); // What is refused stays refused, so this is for a process of its own.
    if (process == 0) {
        constexpr unsigned kWhence = 2; // the argument of lseek() that says from where
        if (!testing::refuse_calls(SYS_lseek, kWhence, SEEK_END)) {
            ::_exit(kCannotRefuse);
        }
        try {
            static_cast<void>(make_thread_filter(ThreadKind::kVcpu, Refusal::kSignal));
        } catch (const Error& error) {
            ::_exit(testing::mentions(error.what(), "cannot make the filter") ? kSaid : kOtherwise);
        } catch (const std::exception&) {
            ::_exit(kOtherwise);
        }
        ::_exit(kOtherwise);
    }
    int status = 0;
    ASSERT_EQ(::waitpid(process, &status, 0), process);
    ASSERT_TRUE(WIFEXITED(status)) << "signal " << WTERMSIG(status);
    if (WEXITSTATUS(status) == kCannotRefuse) {
        GTEST_SKIP() << "this process may have no system calls of its own refused (seccomp)";
    }
    EXPECT_EQ(WEXITSTATUS(status), kSaid);
}

} // namespace
} // namespace vmm
