// Memory that is added to a machine.

#include <gtest/gtest.h>

#include <cstdint>
#include <string>
#include <vector>

#include "support/host_errors.hpp"
#include "support/host_process_facts.hpp"
#include "support/kvm_huge_pages.hpp"
#include "support/kvm_machine.hpp"
#include "support/kvm_require.hpp"
#include "vmm/machine/memory_map.hpp"

namespace vmm {
namespace {

using prefault::Scope;
using prefault::SecondLevelKind;
using testing::error_of;
using testing::mentions;
using testing::run_beside;
using testing::TestKernel;
using testing::TouchingGuest;
namespace kernels = testing::kernels;

constexpr GuestRange kMore{GuestAddress{4 * kGiB}, 32 * kMiB};

bool is_shadow() {
    return prefault::detect_second_level().kind == SecondLevelKind::kShadow;
}

using AddMemory = testing::KvmTest;

TEST_F(AddMemory, ToARunningGuestLeavesItNoFaultThere) {
    const TouchingGuest guest;
    Machine machine(guest.config());
    EXPECT_TRUE(machine.prefault().complete);
    EXPECT_EQ(run_beside(machine,
                         [&] {
                             EXPECT_TRUE(machine.add_memory(kMore).complete);
                             EXPECT_TRUE(guest.touch(kMore));
                             guest.power_off();
                         }),
              ExitReason::kPowerOff);
    EXPECT_EQ(machine.report().second_level_faults_total(), 0U);
}

TEST_F(AddMemory, BeforeTheGuestRunsLeavesItNoFaultThere) {
    const TouchingGuest guest;
    Machine machine(guest.config());
    EXPECT_TRUE(machine.prefault().complete);
    EXPECT_TRUE(machine.add_memory(kMore).complete);
    EXPECT_EQ(run_beside(machine,
                         [&] {
                             EXPECT_TRUE(guest.touch(kMore));
                             guest.power_off();
                         }),
              ExitReason::kPowerOff);
    EXPECT_EQ(machine.report().second_level_faults_total(), 0U);
}

TEST_F(AddMemory, FarAboveAllOthersLeavesTheGuestNoFaultThere) {
    const GuestRange far{GuestAddress{500 * kGiB}, 8 * kMiB};
    const TouchingGuest guest;
    Machine machine(guest.config());
    EXPECT_TRUE(machine.prefault().complete);
    run_beside(machine, [&] {
        EXPECT_TRUE(machine.add_memory(far).complete);
        EXPECT_TRUE(guest.touch(far));
        guest.power_off();
    });
    EXPECT_EQ(machine.report().second_level_faults_total(), 0U);
}

TEST_F(AddMemory, ToAMachineThatPrefaultsNothingFillsItAllTheSame) {
    const TestKernel kernel(kernels::kPowerOff);
    Machine machine(kernel.config());
    const prefault::Report report = machine.add_memory(kMore);
    EXPECT_TRUE(report.complete) << report.problem;
    EXPECT_EQ(report.ranges, std::vector{kMore});
    EXPECT_GE(report.mapped.bytes(), kMore.size);
    EXPECT_EQ(machine.run(), ExitReason::kPowerOff);
}

TEST_F(AddMemory, IsPartOfTheNextPrefault) {
    const TestKernel kernel(kernels::kSpin);
    Config config = kernel.config();
    config.prefault = {.scope = Scope::kAll, .workers = 2};
    Machine machine(config);
    EXPECT_TRUE(machine.add_memory(kMore).complete);
    const prefault::Report report = machine.prefault();
    EXPECT_TRUE(report.complete) << report.problem;
    EXPECT_EQ(report.bytes, config.memory_bytes + kMore.size);
}

TEST_F(AddMemory, IsThereForTheGuestToUse) {
    // An address that was never added has no memory: the guest's write goes nowhere, and the guest goes on. Added
    // memory keeps the write.
    const TouchingGuest guest;
    Machine machine(guest.config());
    EXPECT_TRUE(machine.prefault().complete);
    run_beside(machine, [&] {
        EXPECT_TRUE(machine.add_memory(kMore).complete);
        machine.log_dirty_pages(true);
        EXPECT_TRUE(guest.touch(kMore));
        guest.power_off();
    });
    EXPECT_GT(machine.report().second_level_faults_total(), 0U) << "write-protected for the log, and so a memslot";
}

TEST_F(AddMemory, MayBePinned) {
    const TestKernel kernel(kernels::kSpin);
    Config config = kernel.config();
    config.prefault = {.scope = Scope::kAll, .workers = 2};
    config.pin = prefault::Pin::kMlock;
    Machine machine(config);
    EXPECT_TRUE(machine.prefault().complete);
    const std::uint64_t before = testing::mapped_address_space();
    EXPECT_TRUE(machine.add_memory(kMore).complete);
    EXPECT_GE(testing::mapped_address_space(), before + kMore.size);
    EXPECT_TRUE(machine.prefault().complete);
    EXPECT_EQ(machine.report().locked_bytes, config.memory_bytes + kMore.size);
}

TEST_F(AddMemory, WhereThereCannotBeAnyIsRefusedAndChangesNothing) {
    const TestKernel kernel(kernels::kSpin);
    Config config = kernel.config();
    config.prefault = {.scope = Scope::kAll, .workers = 2};
    Machine machine(config);
    EXPECT_TRUE(machine.prefault().complete);
    const std::uint64_t room = 4 * kGiB + memory_map::kRoomForMoreMemory;
    struct Case {
        const char* what;
        std::uint64_t base;
        std::uint64_t size;
        const char* says;
    };
    const std::vector<Case> cases{
        {"all of the guest's RAM", 0, config.memory_bytes, "there is memory at"},
        {"the end of the guest's RAM, and more", config.memory_bytes - 2 * kMiB, 4 * kMiB, "there is memory at"},
        {"the hole's first bytes", 3 * kGiB, 2 * kMiB, "devices are at"},
        {"the scratch slot", to_integer(memory_map::kScratchWindow.base), 2 * kMiB, "devices are at"},
        {"the hole's last bytes", 4 * kGiB - 2 * kMiB, 4 * kMiB, "devices are at"},
        {"across the hole", 2 * kGiB, 3 * kGiB, "devices are at"},
        {"a start that is not aligned", 4 * kGiB + 4 * kKiB, 2 * kMiB, "must begin at a multiple of"},
        {"half a page", 4 * kGiB, 2 * kMiB + 2 * kKiB, "must be a multiple of the page size"},
        {"nothing", 4 * kGiB, 0, "at least one page"},
        {"beyond all room", room, 2 * kMiB, "can have memory up to"},
        {"across the end of the room", room - 2 * kMiB, 4 * kMiB, "can have memory up to"},
        {"the end of all addresses", UINT64_MAX - 2 * kMiB + 1, 2 * kMiB, ""},
        {"around the end of all addresses", UINT64_MAX - 2 * kMiB + 1, 8 * kGiB, ""},
        {"more than this host has", 4 * kGiB, 400 * kGiB, "this host has"},
    };
    static_cast<void>(error_of([&] { return machine.add_memory({GuestAddress{0}, 4096}); })); // as the first of many
    for (const Case& bad : cases) {
        const std::size_t descriptors = testing::count_descriptors();
        const std::string error = error_of([&] { return machine.add_memory({GuestAddress{bad.base}, bad.size}); });
        EXPECT_TRUE(!error.empty() && mentions(error, bad.says)) << bad.what << ": " << error;
        EXPECT_EQ(testing::count_descriptors(), descriptors) << bad.what;
        EXPECT_EQ(machine.prefault().bytes, config.memory_bytes) << bad.what;
    }
    EXPECT_TRUE(machine.add_memory(kMore).complete) << "and what can be is not refused for it";
}

TEST_F(AddMemory, TwiceAtOnePlaceIsRefused) {
    const TestKernel kernel(kernels::kSpin);
    Machine machine(kernel.config());
    EXPECT_TRUE(machine.add_memory(kMore).complete);
    EXPECT_TRUE(mentions(error_of([&] { return machine.add_memory(kMore); }), "there is memory at"));
}

TEST_F(AddMemory, TakesSixteenRegionsInAllAndNoMore) {
    const TestKernel kernel(kernels::kSpin);
    Machine machine(kernel.config());
    const auto add = [&](std::uint64_t index) {
        return machine.add_memory({GuestAddress{4 * kGiB + index * 4 * kMiB}, 2 * kMiB});
    };
    for (std::uint64_t index = 0; index < 15; ++index) { // The first region is the one that the machine was made with.
        EXPECT_TRUE(add(index).complete) << index;
    }
    EXPECT_TRUE(mentions(error_of([&] { return add(15); }), "there are 16 regions already"));
    EXPECT_EQ(machine.prefault({.scope = Scope::kAll}).bytes, 16 * kMiB + 15 * 2 * kMiB);
}

TEST_F(AddMemory, OfTheHugePagePoolIsMappedInItsPages) {
    const testing::HugePages huge_pages((16 * kMiB + kMore.size) / (2 * kMiB));
    if (!huge_pages.why_not().empty()) {
        GTEST_SKIP() << huge_pages.why_not();
    }
    const TouchingGuest guest;
    Config config = guest.config();
    config.page_size = PageSize::k2M;
    Machine machine(config);
    EXPECT_TRUE(machine.prefault().complete);
    run_beside(machine, [&] {
        const prefault::Report report = machine.add_memory(kMore);
        EXPECT_TRUE(report.complete) << report.problem;
        if (!is_shadow()) { // On such a host neighbours of the scratch slot's page count, too.
            EXPECT_EQ(report.mapped.pages_2m, (config.memory_bytes + kMore.size) / (2 * kMiB));
        }
        EXPECT_TRUE(guest.touch(kMore));
        guest.power_off();
    });
    EXPECT_EQ(machine.report().second_level_faults_total(), 0U);
}

TEST_F(AddMemory, ThatTheHugePagePoolHasNotSaysSoAndChangesNothing) {
    const testing::HugePages huge_pages(16 * kMiB / (2 * kMiB));
    if (!huge_pages.why_not().empty()) {
        GTEST_SKIP() << huge_pages.why_not();
    }
    const TestKernel kernel(kernels::kSpin);
    Config config = kernel.config();
    config.page_size = PageSize::k2M;
    Machine machine(config);
    const auto before = prefault::read_huge_page_pool(2 * kMiB);
    const std::string error = error_of([&] { return machine.add_memory({GuestAddress{4 * kGiB}, 100 * kGiB}); });
    EXPECT_TRUE(mentions(error, "nr_hugepages")) << error;
    const auto after = prefault::read_huge_page_pool(2 * kMiB);
    EXPECT_EQ(after->available(), before->available());
    EXPECT_EQ(after->total, before->total);
}

} // namespace
} // namespace vmm
