#include "prefault/pin.hpp"

#include <gtest/gtest.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <array>
#include <string>

#include "support/host_child_process.hpp"
#include "support/host_errors.hpp"
#include "support/host_process_facts.hpp"

namespace vmm::prefault {
namespace {

using testing::error_of;
using testing::mentions;

std::string pin_refusal(Pin pin, std::uint64_t bytes) {
    return error_of([&]() -> int {
        check_may_pin(pin, bytes);
        return 0;
    });
}

/// What `action` returns in a process that may lock `limit_bytes` and no more.
template <typename Action>
std::string with_locked_memory_limit(std::uint64_t limit_bytes, Action action) {
    return testing::in_child_process([&]() -> std::string {
        testing::drop_capabilities();
        testing::set_limit(RLIMIT_MEMLOCK, limit_bytes);
        return action();
    });
}

GuestMemory small_memory() {
    const std::array layout{GuestRange{GuestAddress{0}, 4 * kMiB}};
    return {layout, PageSize::k4K};
}

const std::array kAllOfIt{GuestRange{GuestAddress{0}, 4 * kMiB}};

TEST(PinLimit, TooLowSaysLimitNeedAndRemedy) {
    const std::string error = with_locked_memory_limit(64 * kKiB, [] { return pin_refusal(Pin::kMlock, 512 * kMiB); });
    EXPECT_TRUE(mentions(error, "cannot lock 512 MiB")) << error;
    EXPECT_TRUE(mentions(error, "RLIMIT_MEMLOCK")) << error;
    EXPECT_TRUE(mentions(error, "64 KiB")) << error;
    EXPECT_TRUE(mentions(error, "ulimit -l")) << error;
    EXPECT_TRUE(mentions(error, "--pin=none")) << error;
}

TEST(PinLimit, ThatJustSufficesIsNoError) {
    EXPECT_EQ(with_locked_memory_limit(2 * kMiB, [] { return pin_refusal(Pin::kMlock, 2 * kMiB); }), "");
}

TEST(PinLimit, CountsWhatIsLockedAlready) {
    const std::string error = with_locked_memory_limit(2 * kMiB, []() -> std::string {
        const Mapping locked = Mapping::anonymous(kMiB + 512 * kKiB, 4 * kKiB, 0, "a test");
        // Not by mlock(), which sanitizers make do nothing.
        if (::syscall(SYS_mlock, locked.data(), locked.size()) != 0) {
            return "could not lock at all";
        }
        return pin_refusal(Pin::kMlock, kMiB);
    });
    EXPECT_TRUE(mentions(error, "RLIMIT_MEMLOCK"))
        << "1.5 of 2 MiB are locked, and 1 MiB more passed the check" << error;
}

TEST(PinLimit, DoesNotMatterWithoutPinning) {
    EXPECT_EQ(with_locked_memory_limit(0, [] { return pin_refusal(Pin::kNone, 512 * kMiB); }), "");
}

TEST(PinMemory, LocksWithoutPopulating) {
    const GuestMemory memory = small_memory();
    try {
        pin_memory(memory, kAllOfIt, Pin::kMlock);
    } catch (const Error& error) {
        GTEST_SKIP() << "this process may not lock 4 MiB: " << error.what();
    }
    EXPECT_TRUE(testing::has_flag(memory.regions()[0].host, "lo"));
    EXPECT_EQ(testing::count_resident_pages(memory.regions()[0].bytes()), 0U);
}

TEST(PinMemory, DoesNothingWhereNothingIsAsked) {
    const GuestMemory memory = small_memory();
    pin_memory(memory, kAllOfIt, Pin::kNone);
    EXPECT_FALSE(testing::has_flag(memory.regions()[0].host, "lo"));
}

TEST(PinMemory, ThatTheKernelRefusesIsAnErrorThatNamesTheLimit) {
    const std::string error = with_locked_memory_limit(64 * kKiB, [] {
        const GuestMemory memory = small_memory();
        return error_of([&]() -> int {
            pin_memory(memory, kAllOfIt, Pin::kMlock);
            return 0;
        });
    });
    EXPECT_TRUE(mentions(error, "cannot lock guest memory 0x0-0x3fffff")) << error;
    EXPECT_TRUE(mentions(error, "RLIMIT_MEMLOCK")) << error;
}

TEST(Pin, HasTheNamesOfTheCommandLine) {
    EXPECT_EQ(to_string(Pin::kNone), "none");
    EXPECT_EQ(to_string(Pin::kMlock), "mlock");
}

} // namespace
} // namespace vmm::prefault
