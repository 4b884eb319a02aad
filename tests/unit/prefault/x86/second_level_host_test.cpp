#include "prefault/x86/second_level_host.hpp"

#include <gtest/gtest.h>

#include <string>

#include "support/host_temporary_directory.hpp"

namespace vmm::prefault {
namespace {

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
    for (const char* const off : {"N\n", "0\n"}) {
        const TemporaryDirectory sysfs;
        sysfs.write("kvm_amd/parameters/npt", off);
        sysfs.write("kvm_intel/parameters/ept", off);
        EXPECT_EQ(detect(sysfs).kind, SecondLevelKind::kShadow) << off;
    }
}

// What broke: without /sys/module NPT was taken for shadow paging, because an unreadable file was taken for a feature
// that is off.
TEST(DetectSecondLevel, DoesNotTakeWhatCannotBeReadForShadowPaging) {
    const TemporaryDirectory empty;
    TemporaryDirectory malformed;
    malformed.write("kvm_amd/parameters/npt", "");
    malformed.write("kvm_intel/parameters/ept", "perhaps\n");
    for (const TemporaryDirectory* sysfs : {&empty, static_cast<const TemporaryDirectory*>(&malformed)}) {
        EXPECT_EQ(detect(*sysfs).kind, SecondLevelKind::kUnknown);
        EXPECT_FALSE(detect(*sysfs).tdp_mmu.has_value());
        EXPECT_FALSE(detect(*sysfs).accessed_dirty.has_value());
        EXPECT_TRUE(detect(*sysfs).may_be_shadow());
    }
}

/// KVM's answers on Linux 6.11 and later, and on 5.14 to 6.10.
constexpr PagingAnswers new_kernel(bool nested, bool amd) {
    return {nested, true, !nested, amd};
}
constexpr PagingAnswers old_kernel(bool nested, bool amd) {
    return {false, false, !nested, amd};
}

TEST(DetectSecondLevel, IsToldByKvmItselfWithoutSysfs) {
    const std::string nowhere = "/nonexistent";
    for (const bool amd : {false, true}) {
        const SecondLevelKind nested = amd ? SecondLevelKind::kNpt : SecondLevelKind::kEpt;
        EXPECT_EQ(detect_second_level(new_kernel(true, amd), nowhere).kind, nested);
        EXPECT_EQ(detect_second_level(old_kernel(true, amd), nowhere).kind, nested);
        EXPECT_EQ(detect_second_level(new_kernel(false, amd), nowhere).kind, SecondLevelKind::kShadow);
    }
    EXPECT_EQ(detect_second_level(old_kernel(false, true), nowhere).kind, SecondLevelKind::kShadow);
    // kvm_intel has a parameter of its own for that capability. So before Linux 6.11 the capability does not decide.
    EXPECT_EQ(detect_second_level(old_kernel(false, false), nowhere).kind, SecondLevelKind::kUnknown);
    EXPECT_EQ(detect_second_level(PagingAnswers{true, true, true, false}, nowhere).kind, SecondLevelKind::kEpt);
}

TEST(DetectSecondLevel, AsksTheParametersWhereKvmLeavesItOpen) {
    const TemporaryDirectory sysfs;
    sysfs.write("kvm_intel/parameters/ept", "Y\n");
    EXPECT_EQ(detect_second_level(old_kernel(false, false), sysfs.path().native()).kind, SecondLevelKind::kEpt);
    sysfs.write("kvm_intel/parameters/ept", "N\n");
    EXPECT_EQ(detect_second_level(old_kernel(false, false), sysfs.path().native()).kind, SecondLevelKind::kShadow);
}

TEST(DetectSecondLevel, KnowsNothingOfTheRestWithoutSysfsButWhatTheProcessorSays) {
    const SecondLevelHost npt = detect_second_level(new_kernel(true, true), "/nonexistent");
    EXPECT_FALSE(npt.tdp_mmu.has_value());
    EXPECT_EQ(npt.accessed_dirty, true);
    const SecondLevelHost ept = detect_second_level(new_kernel(true, false), "/nonexistent");
    EXPECT_FALSE(ept.accessed_dirty.has_value());
}

TEST(DetectSecondLevel, ReadsWhetherFaultsAreHandledInParallel) {
    const TemporaryDirectory sysfs;
    sysfs.write("kvm_amd/parameters/npt", "Y\n");
    EXPECT_FALSE(detect(sysfs).tdp_mmu.has_value());
    sysfs.write("kvm/parameters/tdp_mmu", "N\n");
    EXPECT_EQ(detect(sysfs).tdp_mmu, false);
    sysfs.write("kvm/parameters/tdp_mmu", "Y\n");
    EXPECT_EQ(detect(sysfs).tdp_mmu, true);
}

TEST(DetectSecondLevel, HasNoParallelFaultsWithoutASecondLevel) {
    const TemporaryDirectory sysfs;
    sysfs.write("kvm_amd/parameters/npt", "N\n");
    sysfs.write("kvm/parameters/tdp_mmu", "Y\n");
    EXPECT_EQ(detect(sysfs).tdp_mmu, false);
}

TEST(DetectSecondLevel, KnowsThatNestedPagingKeepsAccessedAndDirtyBits) {
    const TemporaryDirectory sysfs;
    sysfs.write("kvm_amd/parameters/npt", "Y\n");
    EXPECT_EQ(detect(sysfs).accessed_dirty, true);
}

TEST(DetectSecondLevel, ReadsWhetherExtendedPageTablesKeepAccessedAndDirtyBits) {
    const TemporaryDirectory sysfs;
    sysfs.write("kvm_intel/parameters/ept", "Y\n");
    EXPECT_FALSE(detect(sysfs).accessed_dirty.has_value()) << "the parameter is not there";
    sysfs.write("kvm_intel/parameters/eptad", "N\n");
    EXPECT_EQ(detect(sysfs).accessed_dirty, false);
    sysfs.write("kvm_intel/parameters/eptad", "Y\n");
    EXPECT_EQ(detect(sysfs).accessed_dirty, true);
}

TEST(DetectSecondLevel, HasNoAccessedAndDirtyBitsWithoutASecondLevel) {
    const TemporaryDirectory sysfs;
    sysfs.write("kvm_intel/parameters/ept", "N\n");
    sysfs.write("kvm_intel/parameters/eptad", "Y\n");
    EXPECT_EQ(detect(sysfs).accessed_dirty, false);
}

TEST(DetectSecondLevel, KnowsAHostThatIsItselfAGuest) {
    const TemporaryDirectory sysfs;
    sysfs.write("kvm_amd/parameters/npt", "Y\n");
    for (const bool is_guest : {false, true}) {
        EXPECT_EQ(detect_second_level(sysfs.path().native(), is_guest).nested, is_guest);
        for (PagingAnswers answers : {new_kernel(true, true), new_kernel(false, true), old_kernel(false, false)}) {
            answers.is_guest = is_guest;
            EXPECT_EQ(detect_second_level(answers, sysfs.path().native()).nested, is_guest);
        }
    }
}

TEST(SecondLevelKind, HasTheNamesOfTheReport) {
    EXPECT_EQ(to_string(SecondLevelKind::kNpt), "npt");
    EXPECT_EQ(to_string(SecondLevelKind::kEpt), "ept");
    EXPECT_EQ(to_string(SecondLevelKind::kShadow), "shadow");
    EXPECT_EQ(to_string(SecondLevelKind::kUnknown), "unknown");
}

} // namespace
} // namespace vmm::prefault
