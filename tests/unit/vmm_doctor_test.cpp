#include "vmm/doctor.hpp"

#include <gtest/gtest.h>

#include "support/host_errors.hpp"

namespace vmm {
namespace {

using testing::mentions;
using Verdict = Finding::Verdict;

TEST(Doctor, FindsThatAGuestCanRunUnlessSomethingIsFatal) {
    EXPECT_TRUE(can_run_guests({{Verdict::kGood, "KVM", "yes", ""}, {Verdict::kAdvice, "THP", "off", "switch it on"}}));
    EXPECT_FALSE(
        can_run_guests({{Verdict::kGood, "KVM", "yes", ""}, {Verdict::kFatal, "timer", "no", "newer kernel"}}));
}

TEST(Doctor, SaysEachFindingAndItsAdvice) {
    const std::string text =
        to_text({{Verdict::kGood, "memory", "8 GiB", ""}, {Verdict::kFatal, "KVM", "no", "load it"}});
    EXPECT_TRUE(mentions(text, "ok      memory: 8 GiB\n")) << text;
    EXPECT_TRUE(mentions(text, "FATAL   KVM: no\n        load it\n")) << text;
    EXPECT_TRUE(mentions(text, "A guest cannot run here.\n")) << text;
}

TEST(Doctor, AlwaysFindsSomething) {
    EXPECT_FALSE(examine_host().empty()); // Whether this host has KVM or not.
}

} // namespace
} // namespace vmm
