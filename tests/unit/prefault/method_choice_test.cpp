#include "prefault/method_choice.hpp"

#include <gtest/gtest.h>

#include <optional>
#include <string>

#include "support/host_errors.hpp"

namespace vmm::prefault {
namespace {

using testing::error_of;
using testing::mentions;

constexpr SecondLevelHost kNestedPaging{SecondLevelKind::kNpt, true, true};
constexpr SecondLevelHost kExtendedPageTables{SecondLevelKind::kEpt, true, true};
constexpr SecondLevelHost kWithoutAccessedDirty{SecondLevelKind::kEpt, true, false};
constexpr SecondLevelHost kShadowPaging{SecondLevelKind::kShadow, false, false};
constexpr SecondLevelHost kUnknownPaging{SecondLevelKind::kUnknown, std::nullopt, std::nullopt};

/// The same host, but as a guest of another host.
constexpr SecondLevelHost as_guest(SecondLevelHost host) {
    host.nested = true;
    return host;
}

// What broke: `--prefault-method=ioctl` was refused with a false reason if /sys/module could not be read.
TEST(ChooseMethod, TriesTheIoctlWhereKvmHasItWhateverElseIsUnknown) {
    for (const SecondLevelHost& host :
         {kUnknownPaging, SecondLevelHost{SecondLevelKind::kEpt, std::nullopt, std::nullopt}}) {
        EXPECT_EQ(choose_method(Method::kAuto, host, true).method, Method::kIoctl);
        EXPECT_EQ(choose_method(Method::kIoctl, host, true).method, Method::kIoctl);
    }
    EXPECT_EQ(choose_method(Method::kAuto, kUnknownPaging, false).method, Method::kTouch);
    const std::string error = error_of([&] { return choose_method(Method::kIoctl, kUnknownPaging, false).reason; });
    EXPECT_FALSE(mentions(error, "shadow paging")) << error;
}

TEST(ChooseMethod, GrantsTouchOnEveryHost) {
    for (const SecondLevelHost& host : {kNestedPaging, kExtendedPageTables, kWithoutAccessedDirty, kShadowPaging}) {
        for (const bool has_ioctl : {false, true}) {
            const MethodChoice choice = choose_method(Method::kTouch, host, has_ioctl);
            EXPECT_EQ(choice.method, Method::kTouch);
            EXPECT_EQ(choice.reason, "asked for");
        }
    }
}

TEST(ChooseMethod, GrantsTheIoctlWhereThereIsOne) {
    for (const SecondLevelHost& host : {kNestedPaging, kExtendedPageTables, kWithoutAccessedDirty}) {
        for (const Method method : {Method::kIoctl, Method::kIoctlThenTouch}) {
            for (const SecondLevelHost& where : {host, as_guest(host)}) {
                const MethodChoice choice = choose_method(method, where, true);
                EXPECT_EQ(choice.method, method);
                EXPECT_EQ(choice.reason, "asked for");
            }
        }
    }
}

TEST(ChooseMethod, RefusesTheIoctlToAKernelWithoutIt) {
    for (const SecondLevelHost& host : {kNestedPaging, kExtendedPageTables, kWithoutAccessedDirty}) {
        for (const Method method : {Method::kIoctl, Method::kIoctlThenTouch}) {
            const std::string error = error_of([&] { return choose_method(method, host, false).reason; });
            EXPECT_TRUE(error.starts_with("cannot prefault by ioctl: ")) << error;
            EXPECT_TRUE(mentions(error, "Linux 6.11")) << error;
            EXPECT_TRUE(mentions(error, "Config::prefault.method=auto or touch")) << error;
        }
    }
}

TEST(ChooseMethod, RefusesTheIoctlToShadowPaging) {
    for (const bool has_ioctl : {false, true}) {
        const std::string error =
            error_of([&] { return choose_method(Method::kIoctl, kShadowPaging, has_ioctl).reason; });
        EXPECT_TRUE(mentions(error, "shadow paging")) << error;
        EXPECT_TRUE(mentions(error, "Config::prefault.method=auto or touch")) << error;
    }
}

TEST(ChooseMethod, TakesTheIoctlByItselfWhereItLeavesNothingToFault) {
    for (const SecondLevelHost& host : {kNestedPaging, kExtendedPageTables}) {
        const MethodChoice choice = choose_method(Method::kAuto, host, true);
        EXPECT_EQ(choice.method, Method::kIoctl);
        EXPECT_TRUE(mentions(choice.reason, "Accessed and Dirty")) << choice.reason;
    }
}

// What broke: in a host that is itself a guest, the ioctl left the outer host's table for this host's guests empty. The
// report said 0 faults, and the first pass took 91 times as long as a later one.
TEST(ChooseMethod, TouchesAfterTheIoctlWhereTheHostIsItselfAGuest) {
    const SecondLevelHost without_sysfs{SecondLevelKind::kEpt, std::nullopt, std::nullopt};
    for (const SecondLevelHost& host : {kNestedPaging, kExtendedPageTables, without_sysfs}) {
        const MethodChoice choice = choose_method(Method::kAuto, as_guest(host), true);
        EXPECT_EQ(choice.method, Method::kIoctlThenTouch);
        EXPECT_TRUE(mentions(choice.reason, "itself a guest")) << choice.reason;
    }
}

TEST(ChooseMethod, OnlyTouchesInAGuestWhereTheIoctlServesNothing) {
    for (const SecondLevelHost& host : {kWithoutAccessedDirty, kShadowPaging}) {
        EXPECT_EQ(choose_method(Method::kAuto, as_guest(host), true).method, Method::kTouch);
    }
    EXPECT_EQ(choose_method(Method::kAuto, as_guest(kNestedPaging), false).method, Method::kTouch);
}

TEST(ChooseMethod, TouchesWhereWhatIsMappedAheadWouldFaultAtItsFirstAccess) {
    const MethodChoice choice = choose_method(Method::kAuto, kWithoutAccessedDirty, true);
    EXPECT_EQ(choice.method, Method::kTouch);
    EXPECT_TRUE(mentions(choice.reason, "eptad=N")) << choice.reason;
}

TEST(ChooseMethod, TouchesWhereThereIsNoIoctl) {
    for (const SecondLevelHost& host : {kNestedPaging, kExtendedPageTables, kWithoutAccessedDirty}) {
        const MethodChoice choice = choose_method(Method::kAuto, host, false);
        EXPECT_EQ(choice.method, Method::kTouch);
        EXPECT_TRUE(mentions(choice.reason, "no KVM_PRE_FAULT_MEMORY")) << choice.reason;
    }
}

TEST(ChooseMethod, TouchesOnShadowPaging) {
    for (const bool has_ioctl : {false, true}) {
        const MethodChoice choice = choose_method(Method::kAuto, kShadowPaging, has_ioctl);
        EXPECT_EQ(choice.method, Method::kTouch);
        EXPECT_TRUE(mentions(choice.reason, "shadow paging")) << choice.reason;
    }
}

} // namespace
} // namespace vmm::prefault
