#include "prefault/second_level.hpp"

#include <gtest/gtest.h>

#include <string>

#include "prefault/prefault.hpp"
#include "prefault/second_level_filler.hpp"
#include "support/host_errors.hpp"
#include "support/host_temporary_directory.hpp"

namespace vmm::prefault {
namespace {

using testing::error_of;
using testing::mentions;
using testing::TemporaryDirectory;

SecondLevelHost detect(const TemporaryDirectory& sysfs) {
    return detect_second_level(sysfs.path().native());
}

TEST(DetectSecondLevel, FindsNestedPagingInBothSpellings) {
    for (const char* const on : {"Y\n", "1\n"}) {
        const TemporaryDirectory sysfs;
        sysfs.write("kvm_amd/parameters/npt", on);
        EXPECT_EQ(detect(sysfs).kind, SecondLevelKind::kNpt) << on;
    }
}

TEST(DetectSecondLevel, FindsExtendedPageTables) {
    const TemporaryDirectory sysfs;
    sysfs.write("kvm_intel/parameters/ept", "Y\n");
    EXPECT_EQ(detect(sysfs).kind, SecondLevelKind::kEpt);
}

TEST(DetectSecondLevel, TakesWhatIsSwitchedOffForShadowPaging) {
    for (const char* const off : {"N\n", "0\n", ""}) {
        const TemporaryDirectory sysfs;
        sysfs.write("kvm_amd/parameters/npt", off);
        sysfs.write("kvm_intel/parameters/ept", off);
        EXPECT_EQ(detect(sysfs).kind, SecondLevelKind::kShadow) << off;
    }
}

TEST(DetectSecondLevel, TakesNoModuleForShadowPaging) {
    EXPECT_EQ(detect(TemporaryDirectory()).kind, SecondLevelKind::kShadow);
    EXPECT_FALSE(detect(TemporaryDirectory()).tdp_mmu);
}

TEST(DetectSecondLevel, ReadsWhetherFaultsAreHandledInParallel) {
    const TemporaryDirectory sysfs;
    sysfs.write("kvm_amd/parameters/npt", "Y\n");
    EXPECT_FALSE(detect(sysfs).tdp_mmu);
    sysfs.write("kvm/parameters/tdp_mmu", "Y\n");
    EXPECT_TRUE(detect(sysfs).tdp_mmu);
}

TEST(DetectSecondLevel, HasNoParallelFaultsWithoutASecondLevel) {
    const TemporaryDirectory sysfs;
    sysfs.write("kvm/parameters/tdp_mmu", "Y\n");
    EXPECT_FALSE(detect(sysfs).tdp_mmu);
}

TEST(DetectSecondLevel, KnowsThatNestedPagingKeepsAccessedAndDirtyBits) {
    const TemporaryDirectory sysfs;
    sysfs.write("kvm_amd/parameters/npt", "Y\n");
    EXPECT_TRUE(detect(sysfs).accessed_dirty);
}

TEST(DetectSecondLevel, ReadsWhetherExtendedPageTablesKeepAccessedAndDirtyBits) {
    const TemporaryDirectory sysfs;
    sysfs.write("kvm_intel/parameters/ept", "Y\n");
    EXPECT_FALSE(detect(sysfs).accessed_dirty) << "the parameter is not there";
    sysfs.write("kvm_intel/parameters/eptad", "N\n");
    EXPECT_FALSE(detect(sysfs).accessed_dirty);
    sysfs.write("kvm_intel/parameters/eptad", "Y\n");
    EXPECT_TRUE(detect(sysfs).accessed_dirty);
}

TEST(DetectSecondLevel, HasNoAccessedAndDirtyBitsWithoutASecondLevel) {
    const TemporaryDirectory sysfs;
    sysfs.write("kvm_intel/parameters/ept", "N\n");
    sysfs.write("kvm_intel/parameters/eptad", "Y\n");
    EXPECT_FALSE(detect(sysfs).accessed_dirty);
}

constexpr SecondLevelHost kNestedPaging{SecondLevelKind::kNpt, true, true};
constexpr SecondLevelHost kExtendedPageTables{SecondLevelKind::kEpt, true, true};
constexpr SecondLevelHost kWithoutAccessedDirty{SecondLevelKind::kEpt, true, false};
constexpr SecondLevelHost kShadowPaging{SecondLevelKind::kShadow, false, false};

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
        const MethodChoice choice = choose_method(Method::kIoctl, host, true);
        EXPECT_EQ(choice.method, Method::kIoctl);
        EXPECT_EQ(choice.reason, "asked for");
    }
}

TEST(ChooseMethod, RefusesTheIoctlToAKernelWithoutIt) {
    for (const SecondLevelHost& host : {kNestedPaging, kExtendedPageTables, kWithoutAccessedDirty}) {
        const std::string error = error_of([&] { return choose_method(Method::kIoctl, host, false).reason; });
        EXPECT_TRUE(error.starts_with("cannot prefault by ioctl: ")) << error;
        EXPECT_TRUE(mentions(error, "Linux 6.11")) << error;
        EXPECT_TRUE(mentions(error, "--prefault-method=auto or touch")) << error;
    }
}

TEST(ChooseMethod, RefusesTheIoctlToShadowPaging) {
    for (const bool has_ioctl : {false, true}) {
        const std::string error =
            error_of([&] { return choose_method(Method::kIoctl, kShadowPaging, has_ioctl).reason; });
        EXPECT_TRUE(mentions(error, "shadow paging")) << error;
        EXPECT_TRUE(mentions(error, "--prefault-method=auto or touch")) << error;
    }
}

TEST(ChooseMethod, TakesTheIoctlByItselfWhereItLeavesNothingToFault) {
    for (const SecondLevelHost& host : {kNestedPaging, kExtendedPageTables}) {
        const MethodChoice choice = choose_method(Method::kAuto, host, true);
        EXPECT_EQ(choice.method, Method::kIoctl);
        EXPECT_TRUE(mentions(choice.reason, "Accessed and Dirty")) << choice.reason;
    }
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

TEST(PrefaultNames, AreThoseOfTheCommandLineAndTheReport) {
    EXPECT_EQ(to_string(Method::kNone), "none");
    EXPECT_EQ(to_string(Method::kAuto), "auto");
    EXPECT_EQ(to_string(Method::kTouch), "touch");
    EXPECT_EQ(to_string(Method::kIoctl), "ioctl");
    EXPECT_EQ(to_string(Proof::kNone), "none");
    EXPECT_EQ(to_string(Proof::kCounters), "counters");
    EXPECT_EQ(to_string(Proof::kTouch), "touch");
    EXPECT_EQ(to_string(Scope::kNone), "none");
    EXPECT_EQ(to_string(Scope::kHost), "host");
    EXPECT_EQ(to_string(Scope::kAll), "all");
}

TEST(SecondLevelKind, HasTheNamesOfTheReport) {
    EXPECT_EQ(to_string(SecondLevelKind::kNpt), "npt");
    EXPECT_EQ(to_string(SecondLevelKind::kEpt), "ept");
    EXPECT_EQ(to_string(SecondLevelKind::kShadow), "shadow");
}

TEST(MappedPages, AddUpToBytes) {
    EXPECT_EQ((MappedPages{3, 2, 1}.bytes()), 3 * 4096 + 2 * 2097152 + 1073741824ULL);
}

} // namespace
} // namespace vmm::prefault
