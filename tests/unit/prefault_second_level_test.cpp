#include "prefault/second_level.hpp"

#include <gtest/gtest.h>

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
