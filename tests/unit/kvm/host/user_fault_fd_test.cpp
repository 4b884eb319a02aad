#include "kvm/host/user_fault_fd.hpp"

#include <gtest/gtest.h>

#include <poll.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <future>
#include <string>
#include <vector>

#include "kvm/host/error.hpp"
#include "kvm/host/mapping.hpp"
#include "kvm/host/unique_fd.hpp"

namespace vmm {
namespace {

constexpr std::size_t kTestPage = 4096;
constexpr std::size_t kTestPages = 4;

struct UserFaultFdTest : ::testing::Test {
    Mapping memory = Mapping::anonymous(kTestPages * kTestPage, kTestPage, 0, "a test");
    Mapping content = Mapping::anonymous(kTestPages * kTestPage, kTestPage, 0, "a test");

    std::uint32_t thread = 0; ///< of the last fault

    void SetUp() override {
        if (const std::string problem = UserFaultFd::problem(); !problem.empty()) {
            GTEST_SKIP() << problem;
        }
        ::madvise(memory.data(), memory.size(), MADV_NOHUGEPAGE);
        ::madvise(content.data(), content.size(), MADV_NOHUGEPAGE);
        for (std::size_t page = 0; page < kTestPages; ++page) {
            std::memset(content.data() + page * kTestPage, static_cast<int>('a' + page), kTestPage);
        }
    }
    [[nodiscard]] std::span<std::byte> page(std::size_t index) const {
        return memory.bytes().subspan(index * kTestPage, kTestPage);
    }
    /// Reads the first byte of a page on another thread.
    [[nodiscard]] std::future<char> read(std::size_t index) const {
        return std::async(std::launch::async, [first = page(index).data()] {
            return static_cast<char>(*const_cast<const volatile std::byte*>(first));
        });
    }
    std::byte* wait_for_fault(UserFaultFd& faults) {
        for (;;) {
            pollfd ready{faults.fd(), POLLIN, 0};
            ::poll(&ready, 1, -1);
            if (const auto page = faults.take_fault()) {
                thread = page->thread;
                return page->page;
            }
        }
    }
};

TEST_F(UserFaultFdTest, WhoTouchesAPageWaitsUntilItIsProvided) {
    UserFaultFd faults(kTestPage);
    faults.watch(memory.bytes());
    EXPECT_EQ(faults.take_fault(), std::nullopt);
    std::future<char> found = read(2);
    EXPECT_EQ(wait_for_fault(faults), page(2).data());
    faults.provide(page(2), content.bytes().subspan(2 * kTestPage, kTestPage));
    faults.wake(page(2));
    EXPECT_EQ(found.get(), 'c');
}

TEST_F(UserFaultFdTest, TellsTheProgramFromTheKernel) {
    UserFaultFd faults(kTestPage);
    faults.watch(memory.bytes());
    std::future<char> found = read(2);
    wait_for_fault(faults);
    EXPECT_EQ(UserFaultFd::accessor(thread), UserFaultFd::Accessor::kProgram);
    faults.provide(page(2), content.bytes().subspan(0, kTestPage));
    faults.wake(page(2));
    found.get();

    const UniqueFd file(::memfd_create("a test", MFD_CLOEXEC));
    std::future<ssize_t> written =
        std::async(std::launch::async, [&] { return ::write(file.get(), page(1).data(), 1); });
    wait_for_fault(faults);
    EXPECT_EQ(UserFaultFd::accessor(thread), UserFaultFd::Accessor::kKernel);
    faults.provide(page(1), content.bytes().subspan(0, kTestPage));
    faults.wake(page(1));
    EXPECT_EQ(written.get(), 1);
}

TEST_F(UserFaultFdTest, WhatIsThereStays) {
    page(1)[0] = std::byte{'X'};
    UserFaultFd faults(kTestPage);
    faults.watch(memory.bytes());
    faults.provide(memory.bytes(), content.bytes());
    EXPECT_EQ(page(0)[0], std::byte{'a'});
    EXPECT_EQ(page(1)[0], std::byte{'X'});
    EXPECT_EQ(page(3)[0], std::byte{'d'});
}

TEST_F(UserFaultFdTest, PagesThatAreMovedAreGoneWhereTheyWere) {
    UserFaultFd faults(kTestPage);
    if (!faults.can_move()) {
        GTEST_SKIP() << "this kernel cannot move pages (Linux 6.8 is the first that can)";
    }
    faults.watch(memory.bytes());
    ASSERT_TRUE(faults.provide_by_moving(memory.bytes(), content.bytes()));
    EXPECT_EQ(page(3)[kTestPage - 1], std::byte{'d'});
    EXPECT_TRUE(std::ranges::all_of(content.bytes(), [](std::byte byte) { return byte == std::byte{0}; }));
}

/// Then a caller copies the rest, and the pages that were moved stay.
TEST_F(UserFaultFdTest, MovingOverAPageThatIsThereIsRefused) {
    page(1)[0] = std::byte{'X'};
    UserFaultFd faults(kTestPage);
    faults.watch(memory.bytes());
    EXPECT_FALSE(faults.provide_by_moving(memory.bytes(), content.bytes()));
    faults.provide(memory.bytes(), content.bytes());
    EXPECT_EQ(page(0)[0], std::byte{'a'});
    EXPECT_EQ(page(1)[0], std::byte{'X'});
    EXPECT_EQ(page(2)[0], std::byte{'c'});
}

TEST_F(UserFaultFdTest, WhoWaitsGoesOnWithZerosWhenNobodyWatchesAnyMore) {
    UserFaultFd faults(kTestPage);
    faults.watch(memory.bytes());
    std::future<char> found = read(0);
    EXPECT_EQ(wait_for_fault(faults), page(0).data());
    faults.unwatch(memory.bytes());
    EXPECT_EQ(found.get(), '\0');
}

TEST_F(UserFaultFdTest, MemoryThatCannotBeWatchedIsRefused) {
    UserFaultFd faults(kTestPage);
    EXPECT_THROW(faults.watch({memory.data() + 1, kTestPage}), Error);
}

} // namespace
} // namespace vmm
