#include "prefault/report.hpp"

#include <gtest/gtest.h>

namespace vmm::prefault {
namespace {

TEST(PrefaultNames, AreThoseOfTheCommandLineAndTheReport) {
    EXPECT_EQ(to_string(Method::kNone), "none");
    EXPECT_EQ(to_string(Method::kAuto), "auto");
    EXPECT_EQ(to_string(Method::kTouch), "touch");
    EXPECT_EQ(to_string(Method::kIoctl), "ioctl");
    EXPECT_EQ(to_string(Method::kIoctlThenTouch), "ioctl+touch");
    EXPECT_EQ(to_string(Proof::kNone), "none");
    EXPECT_EQ(to_string(Proof::kCounters), "counters");
    EXPECT_EQ(to_string(Proof::kTouch), "touch");
    EXPECT_EQ(to_string(Scope::kNone), "none");
    EXPECT_EQ(to_string(Scope::kHost), "host");
    EXPECT_EQ(to_string(Scope::kAll), "all");
}

TEST(MappedPages, AddUpToBytes) {
    EXPECT_EQ((MappedPages{3, 2, 1}.bytes()), 3 * 4096 + 2 * 2097152 + 1073741824ULL);
}

} // namespace
} // namespace vmm::prefault
