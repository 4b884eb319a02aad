#include "vmm/config.hpp"

#include <gtest/gtest.h>

#include <limits>
#include <string>

#include "support/host_child_process.hpp"
#include "support/host_errors.hpp"
#include "vmm/host_memory.hpp"
#include "vmm/memory_map.hpp"

namespace vmm {
namespace {

using testing::error_of;
using testing::mentions;

Config small_config() {
    Config config;
    config.memory_bytes = 16 * kMiB;
    return config;
}

std::string refusal(const Config& config) {
    return error_of([&]() -> int {
        validate(config);
        return 0;
    });
}

std::string refusal_of_memory(std::uint64_t bytes, PageSize page_size = PageSize::kThp) {
    Config config;
    config.memory_bytes = bytes;
    config.page_size = page_size;
    return refusal(config);
}

TEST(Config, OfDefaultsIsValid) {
    EXPECT_EQ(refusal(Config{}), "");
}

TEST(Config, TakesTheLeastMemory) {
    EXPECT_EQ(refusal_of_memory(Config::kMinMemoryBytes), "");
}

TEST(Config, RefusesTooLittleMemory) {
    EXPECT_TRUE(mentions(refusal_of_memory(0), "at least 2 MiB"));
    EXPECT_TRUE(mentions(refusal_of_memory(Config::kMinMemoryBytes - 4096), "at least 2 MiB"));
}

TEST(Config, SuggestsAUnitForABareNumber) {
    EXPECT_TRUE(mentions(refusal_of_memory(512), "write e.g. 512M")) << refusal_of_memory(512);
}

TEST(Config, RefusesMemoryThatIsNoMultipleOfThePage) {
    EXPECT_TRUE(mentions(refusal_of_memory(16 * kMiB + 1), "a multiple of the page size, 4 KiB"));
    EXPECT_TRUE(mentions(refusal_of_memory(15 * kMiB, PageSize::k2M), "a multiple of the page size, 2 MiB"));
    EXPECT_TRUE(mentions(refusal_of_memory(1536 * kMiB, PageSize::k1G), "a multiple of the page size, 1 GiB"));
}

TEST(Config, RefusesMoreMemoryThanTheMachineCanHave) {
    EXPECT_TRUE(mentions(refusal_of_memory(memory_map::kMaxMemoryBytes + 4096), "16 TiB"));
    EXPECT_TRUE(mentions(refusal_of_memory(UINT64_MAX - 4095), "16 TiB"));
}

TEST(Config, RefusesMoreMemoryThanTheHostHas) {
    const std::uint64_t more = align_down(read_host_memory().total_bytes, 4096) + 4096;
    if (more > memory_map::kMaxMemoryBytes) {
        GTEST_SKIP() << "this host has more memory than a guest can have";
    }
    EXPECT_TRUE(mentions(refusal_of_memory(more), "this host has ")) << refusal_of_memory(more);
}

TEST(Config, RefusesMoreMemoryThanIsAvailableOnlyWhenPopulatingIt) {
    const HostMemory host = read_host_memory();
    // In the middle between available and all, so that what others do meanwhile does not matter.
    const std::uint64_t bytes =
        align_down(host.available_bytes + (host.total_bytes - host.available_bytes) / 2, 4096) + 4096;
    if (host.total_bytes - host.available_bytes < 64 * kMiB || bytes > memory_map::kMaxMemoryBytes) {
        GTEST_SKIP() << "nearly all memory of this host is available, so the two cannot be told apart";
    }
    Config config;
    config.memory_bytes = bytes;
    EXPECT_EQ(refusal(config), "");
    config.prefault.scope = prefault::Scope::kHost;
    EXPECT_TRUE(mentions(refusal(config), "--prefault=none")) << refusal(config);
}

TEST(Config, RefusesMoreHugePagesThanThePoolHas) {
    const std::string error = refusal_of_memory(memory_map::kMaxMemoryBytes, PageSize::k2M);
    EXPECT_TRUE(mentions(error, "cannot reserve 8388608 huge pages of 2 MiB")) << error;
}

TEST(Config, RefusesImpossibleNumbersOfVcpus) {
    Config config = small_config();
    for (const unsigned vcpus : {0U, 255U, std::numeric_limits<unsigned>::max()}) {
        config.vcpus = vcpus;
        EXPECT_TRUE(mentions(refusal(config), "1 to 254")) << refusal(config);
    }
    config.vcpus = 254;
    EXPECT_EQ(refusal(config), "");
}

TEST(Config, RefusesImpossibleNumbersOfWorkers) {
    Config config = small_config();
    for (const unsigned workers : {0U, Config::kMaxPrefaultWorkers + 1}) {
        config.prefault.workers = workers;
        EXPECT_TRUE(mentions(refusal(config), "prefault workers: 1 to 512")) << refusal(config);
    }
    config.prefault.workers = Config::kMaxPrefaultWorkers;
    EXPECT_EQ(refusal(config), "");
}

TEST(Config, RefusesToPinMoreThanTheLimit) {
    const std::string error = testing::in_child_process([]() -> std::string {
        testing::drop_capabilities();
        testing::set_limit(RLIMIT_MEMLOCK, kMiB);
        Config config = small_config();
        config.prefault.pin = prefault::Pin::kMlock;
        return refusal(config);
    });
    EXPECT_TRUE(mentions(error, "RLIMIT_MEMLOCK")) << error;
}

} // namespace
} // namespace vmm
