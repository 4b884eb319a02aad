#include "vmm/host/memory_need.hpp"

#include <gtest/gtest.h>

namespace vmm {
namespace {

Config guest_of(std::uint64_t bytes, PageSize page_size, prefault::Scope scope) {
    Config config;
    config.memory_bytes = bytes;
    config.page_size = page_size;
    config.prefault.scope = scope;
    config.prefault.workers = 2;
    return config;
}

TEST(TableBytes, OfSmallPagesAreAPageForEachHugeOneOnEachSide) {
    EXPECT_GE(table_bytes(kGiB, PageSize::k4K, false), 4 * kMiB);
    EXPECT_GE(table_bytes(kGiB, PageSize::k4K, true), 6 * kMiB);
    EXPECT_EQ(table_bytes(kGiB, PageSize::kThp, false), table_bytes(kGiB, PageSize::k4K, false));
}

TEST(TableBytes, OfPagesOfAPoolAreNextToNothing) {
    EXPECT_LT(table_bytes(kGiB, PageSize::k2M, true), 64 * kKiB);
}

// What broke: `-m 253M --page-size=4K` in a group of 256M was killed without a message: tables and vmm itself were not
// counted.
TEST(MemoryNeed, OfAPrefaultedGuestCountsTablesAndTheProgram) {
    const MemoryNeed need = memory_need(guest_of(253 * kMiB, PageSize::k4K, prefault::Scope::kAll), {}, false);
    EXPECT_EQ(need.guest_ahead, 253 * kMiB);
    EXPECT_GT(need.ahead(), 256 * kMiB);
    EXPECT_LT(need.ahead(), 264 * kMiB) << "no more than is needed is asked for";
    EXPECT_GT(memory_need(guest_of(253 * kMiB, PageSize::k4K, prefault::Scope::kAll), {}, true).ahead(), need.ahead());
}

TEST(MemoryNeed, OfALazyGuestIsNothingAhead) {
    const MemoryNeed need = memory_need(guest_of(kGiB, PageSize::k4K, prefault::Scope::kNone), {}, false);
    EXPECT_EQ(need.guest_ahead, 0U);
    EXPECT_EQ(need.guest, kGiB);
    EXPECT_GT(need.beside_all, need.beside);
}

TEST(MemoryNeed, OfALongtermPinIsAllMemory) {
    Config config = guest_of(kGiB, PageSize::kThp, prefault::Scope::kNone);
    config.pin = prefault::Pin::kMlock;
    EXPECT_EQ(memory_need(config, {}, false).guest_ahead, 0U) << "pages are locked when they come to exist";
    EXPECT_TRUE(memory_need(config, {}, false).locked);
    config.pin = prefault::Pin::kLongterm;
    EXPECT_EQ(memory_need(config, {}, false).guest_ahead, kGiB);
}

TEST(MemoryNeed, OfRangesIsTheirs) {
    Config config = guest_of(kGiB, PageSize::k4K, prefault::Scope::kHost);
    config.prefault.ranges = {{GuestAddress{0}, 16 * kMiB}, {GuestAddress{64 * kMiB}, 16 * kMiB}};
    EXPECT_EQ(memory_need(config, {}, false).guest_ahead, 32 * kMiB);
}

TEST(MemoryNeed, LeavesOutPagesOfAPoolAndStillMapsThem) {
    const MemoryNeed need = memory_need(guest_of(kGiB, PageSize::k2M, prefault::Scope::kAll), {}, false);
    EXPECT_EQ(need.guest, 0U);
    EXPECT_EQ(need.guest_ahead, 0U);
    EXPECT_GT(need.mapped, kGiB);
    EXPECT_EQ(need.pool, kGiB);
    EXPECT_EQ(need.pool_ahead, kGiB);
    EXPECT_EQ(memory_need(guest_of(kGiB, PageSize::k2M, prefault::Scope::kNone), {}, false).pool_ahead, 0U);
    EXPECT_EQ(memory_need(guest_of(kGiB, PageSize::k4K, prefault::Scope::kAll), {}, false).pool, 0U);
}

TEST(MemoryNeed, OfMemoryThatComesLaterIsItsAddresses) {
    Config config;
    const MemoryNeed before = memory_need(config, {}, false);
    config.memory_max_bytes = config.memory_bytes + 64 * kGiB;
    const MemoryNeed need = memory_need(config, {}, false);
    EXPECT_GE(need.mapped, before.mapped + 64 * kGiB);
    EXPECT_EQ(need.guest, before.guest);
    EXPECT_EQ(need.guest_ahead, before.guest_ahead);
    EXPECT_LT(need.beside - before.beside, 16 * kMiB);
}

TEST(MemoryNeed, GrowsWithVcpusAndWorkers) {
    Config config = guest_of(kGiB, PageSize::k4K, prefault::Scope::kAll);
    const std::uint64_t with_one = memory_need(config, {}, false).ahead();
    config.vcpus = 64;
    const std::uint64_t with_64 = memory_need(config, {}, false).ahead();
    EXPECT_GT(with_64, with_one);
    config.prefault.workers = 64;
    EXPECT_GT(memory_need(config, {}, false).ahead(), with_64);
}

// What broke: 254 vCPUs with 254 workers ran out of descriptors at `ulimit -n 1024`.
TEST(ProcessNeed, CountsTwoDescriptorsForEachVcpu) {
    Config config = guest_of(64 * kGiB, PageSize::k4K, prefault::Scope::kAll);
    config.vcpus = 254;
    config.prefault.workers = 254;
    EXPECT_GT(process_need(config, {}).descriptors, 1024U);
    EXPECT_LT(process_need(config, {}).descriptors, 1100U);
    config.prefault.scope = prefault::Scope::kNone;
    EXPECT_LT(process_need(config, {}).descriptors, 600U);
}

TEST(ProcessNeed, CountsDevicesRingsAndPrograms) {
    Config config = guest_of(8 * kGiB, PageSize::k4K, prefault::Scope::kNone);
    const ProcessNeed bare = process_need(config, {});
    config.disks.push_back({.path = "disk", .queues = 16});
    const ProcessNeed with_disk = process_need(config, {});
    EXPECT_GE(with_disk.descriptors, bare.descriptors + 18);
    EXPECT_EQ(with_disk.threads, bare.threads + 1);
    NetConfig net;
    net.user = true;
    config.nets.push_back(net);
    EXPECT_EQ(process_need(config, {}).threads, with_disk.threads + 2) << "the device's, and passt";
    config.pin = prefault::Pin::kLongterm;
    EXPECT_GE(process_need(config, {}).descriptors, with_disk.descriptors + 8) << "a ring for each GiB";
}

TEST(ProcessNeed, HasWorkersBesideTheGuestOnlyInTheBackground) {
    Config config = guest_of(8 * kGiB, PageSize::k4K, prefault::Scope::kAll);
    config.vcpus = 4;
    config.prefault.workers = 4;
    const std::uint64_t before = process_need(config, {}).threads;
    config.prefault_when = PrefaultWhen::kBackground;
    EXPECT_EQ(before, 1U + 5U) << "KVM's, the workers, and one that hears a stop";
    EXPECT_EQ(process_need(config, {}).threads, 1U + 4U + 5U);
}

} // namespace
} // namespace vmm
