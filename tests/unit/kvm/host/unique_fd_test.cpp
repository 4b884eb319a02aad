#include "kvm/host/unique_fd.hpp"

#include <fcntl.h>
#include <gtest/gtest.h>

#include <utility>

namespace vmm {
namespace {

int open_something() {
    return ::open("/dev/null", O_RDONLY | O_CLOEXEC);
}

bool is_open(int fd) {
    return ::fcntl(fd, F_GETFD) != -1;
}

TEST(UniqueFd, OwnsNothingAtFirst) {
    const UniqueFd fd;
    EXPECT_FALSE(fd);
    EXPECT_LT(fd.get(), 0);
}

TEST(UniqueFd, ClosesWhatItOwns) {
    const int raw = open_something();
    {
        const UniqueFd fd(raw);
        EXPECT_TRUE(fd);
        EXPECT_EQ(fd.get(), raw);
    }
    EXPECT_FALSE(is_open(raw));
}

TEST(UniqueFd, OwnsDescriptorZeroToo) {
    UniqueFd fd(0);
    EXPECT_TRUE(fd);
    UniqueFd kept(::dup(0)); // This test only borrows standard input: give it back.
    fd.reset();
    EXPECT_FALSE(is_open(0));
    if (kept) {
        EXPECT_EQ(::dup2(kept.get(), 0), 0);
    }
}

TEST(UniqueFd, MovedFromOwnsNothing) {
    UniqueFd first(open_something());
    const int raw = first.get();
    const UniqueFd second(std::move(first));
    EXPECT_FALSE(first); // NOLINT(bugprone-use-after-move): what is left of it is the point.
    EXPECT_EQ(second.get(), raw);
}

TEST(UniqueFd, AssignmentClosesWhatWasThere) {
    UniqueFd target(open_something());
    const int old = target.get();
    UniqueFd source(open_something());
    const int raw = source.get();
    target = std::move(source);
    EXPECT_FALSE(is_open(old));
    EXPECT_EQ(target.get(), raw);
    EXPECT_TRUE(is_open(raw));
}

TEST(UniqueFd, AssignmentToItselfKeepsIt) {
    UniqueFd fd(open_something());
    UniqueFd& same = fd;
    fd = std::move(same);
    EXPECT_TRUE(is_open(fd.get()));
}

TEST(UniqueFd, ResetClosesAndTakesAnother) {
    UniqueFd fd(open_something());
    const int old = fd.get();
    const int raw = open_something();
    fd.reset(raw);
    EXPECT_FALSE(is_open(old));
    EXPECT_EQ(fd.get(), raw);
}

} // namespace
} // namespace vmm
