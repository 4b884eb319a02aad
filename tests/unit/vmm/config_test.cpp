#include "vmm/config.hpp"

#include <gtest/gtest.h>

#include <cstdint>
#include <limits>
#include <memory>
#include <optional>
#include <ostream>
#include <string>
#include <utility>
#include <vector>

#include "prefault/host/cpu_list.hpp"
#include "prefault/host/huge_page_pool.hpp"
#include "prefault/host/numa.hpp"
#include "support/host_child_process.hpp"
#include "support/host_errors.hpp"
#include "support/host_guest_range.hpp"
#include "vmm/host/host_facts.hpp"
#include "vmm/host/memory_facts.hpp"
#include "vmm/machine/memory_map.hpp"

namespace vmm {
namespace {

using testing::error_of;
using testing::mentions;
using testing::range;

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

TEST(Config, HasAWorkerForEachCpuTheyMayUse) {
    Config config;
    EXPECT_EQ(resolved(config).prefault.workers, prefault::usable_cpu_list().size());
    config.prefault.cpus = {0, 1, 2, 3, 4, 5, 6};
    EXPECT_EQ(resolved(config).prefault.workers, 7U);
    config.prefault.workers = 2;
    EXPECT_EQ(resolved(config).prefault.workers, 2U) << "a choice stays what it is";
}

TEST(Config, PinsWithMlockIfItPrefaults) {
    using prefault::Pin;
    using prefault::Scope;
    const auto pin_of = [](Scope scope, std::optional<Pin> choice) {
        Config config;
        config.prefault.scope = scope;
        config.pin = choice.value_or(config.pin);
        return resolved(config).pin;
    };
    EXPECT_EQ(pin_of(Scope::kNone, {}), Pin::kNone);
    EXPECT_EQ(pin_of(Scope::kHost, {}), Pin::kMlock);
    EXPECT_EQ(pin_of(Scope::kAll, {}), Pin::kMlock);
    EXPECT_EQ(pin_of(Scope::kAll, Pin::kNone), Pin::kNone) << "a choice stays what it is";
    EXPECT_EQ(pin_of(Scope::kNone, Pin::kLongterm), Pin::kLongterm);
}

/// The message of check_values(), which does not look at the host.
std::string refusal_of_values(const Config& config) {
    return error_of([&]() -> int {
        check_values(config);
        return 0;
    });
}

TEST(ConfigValues, AreCheckedWithoutAHost) {
    Config config;
    config.memory_bytes = memory_map::kMaxMemoryBytes; // more than any host has
    config.page_size = PageSize::k1G;
    config.prefault.scope = prefault::Scope::kAll;
    config.prefault.cpus = {prefault::kMaxCpus - 1};
    config.numa = {prefault::NumaPolicy::Kind::kNode, prefault::kMaxNodes - 1};
    config.nets.push_back({.user = true, .forwards = {{false, "192.0.2.1", 80, 80}}}); // no host of ours has it
    EXPECT_EQ(refusal_of_values(config), "");
    EXPECT_NE(refusal(config), "");
    config.memory_bytes += 1;
    EXPECT_TRUE(mentions(refusal_of_values(config), "a multiple of the page size")) << refusal_of_values(config);
}

TEST(DiskConfig, ChecksItself) {
    EXPECT_EQ(error_of([] { return DiskConfig{.path = "a.img"}.check(), 0; }), "");
    EXPECT_TRUE(mentions(error_of([] { return DiskConfig{.path = "a.img", .queues = 17}.check(), 0; }), "1 to 16"));
    EXPECT_TRUE(mentions(error_of([] { return DiskConfig{.path = "a.img", .id = "a b"}.check(), 0; }), "id 'a b'"));
    EXPECT_TRUE(mentions(error_of([] { return DiskConfig{.path = "a.img", .sector_bytes = 513}.check(), 0; }),
                         "sectors of 513"));
}

TEST(NetConfig, ChecksItself) {
    EXPECT_EQ(error_of([] { return NetConfig{.tap = "tap0"}.check(), 0; }), "");
    EXPECT_TRUE(mentions(error_of([] { return NetConfig{.tap = "a/b"}.check(), 0; }), "tap interface 'a/b'"));
    EXPECT_TRUE(mentions(error_of([] { return NetConfig{.tap = "tap0", .mac = "1:2"}.check(), 0; }), "MAC address"));
    EXPECT_EQ(error_of([] { return NetConfig{.tap = "tap0", .queues = 16}.check(), 0; }), "");
    for (const unsigned queues : {0U, 17U}) {
        EXPECT_TRUE(
            mentions(error_of([&] { return NetConfig{.tap = "tap0", .queues = queues}.check(), 0; }), "1 to 16"));
    }
    EXPECT_TRUE(mentions(error_of([] { return NetConfig{.user = true, .queues = 2}.check(), 0; }), "passt has one"));
    const NetConfig forwarding{.user = true, .forwards = {{false, "localhost", 80, 80}}};
    EXPECT_TRUE(mentions(error_of([&] { return forwarding.check(), 0; }), "no IPv4 address"));
}

TEST(VsockConfig, ChecksItself) {
    EXPECT_EQ(error_of([] { return VsockConfig{.path = "/tmp/vsock"}.check(), 0; }), "");
    EXPECT_TRUE(mentions(error_of([] { return VsockConfig{}.check(), 0; }), "the path must have 1 to"));
}

TEST(ConfigMemory, GrowsByWholeBlocksAndToNoLess) {
    const auto refusal = [](std::uint64_t bytes, std::uint64_t most, PageSize page_size = PageSize::kThp) {
        Config config;
        config.memory_bytes = bytes;
        config.memory_max_bytes = most;
        config.page_size = page_size;
        return error_of([&] { return check_values(config), 0; });
    };
    EXPECT_EQ(refusal(256 * kMiB, 258 * kMiB), "");
    EXPECT_EQ(refusal(256 * kMiB, 256 * kMiB), "") << "it does not grow";
    EXPECT_TRUE(mentions(refusal(256 * kMiB, 128 * kMiB), "which is more"));
    EXPECT_TRUE(mentions(refusal(256 * kMiB, 257 * kMiB), "blocks of 2 MiB"));
    EXPECT_TRUE(mentions(refusal(256 * kMiB, 32 * kGiB + 258 * kMiB), "blocks of 8 MiB"));
    EXPECT_TRUE(mentions(refusal(kGiB, kGiB + 512 * kMiB, PageSize::k1G), "blocks of 1 GiB"));
    EXPECT_TRUE(mentions(refusal(256 * kMiB, 17 * kTiB), "the most"));
}

TEST(BalloonConfig, ChecksItself) {
    EXPECT_EQ(error_of([] { return BalloonConfig{4096}.check(8192), 0; }), "");
    EXPECT_TRUE(mentions(error_of([] { return BalloonConfig{4097}.check(8192), 0; }), "a multiple of 4 KiB"));
    EXPECT_TRUE(mentions(error_of([] { return BalloonConfig{8192}.check(8192), 0; }), "needs some of it"));
}

TEST(DeviceConfig, ChecksItself) {
    DeviceConfig device;
    EXPECT_TRUE(mentions(error_of([&] { return device.check(3), 0; }), "(Config::devices[3]): it needs a name"));
    device.name = "probe";
    device.make = [](const DeviceHost&) { return std::shared_ptr<CustomDevice>(); };
    EXPECT_TRUE(mentions(error_of([&] { return device.check(3), 0; }), "its size is 0"));
    device.base = 0x510;
    device.size = 2;
    EXPECT_EQ(error_of([&] { return device.check(3), 0; }), "");
}

TEST(ConfigAgainstHost, IsJudgedByTheFactsThatItIsGiven) {
    HostFacts facts = HostFacts::read();
    facts.memory = {};
    facts.memory.host = {.total_bytes = kGiB, .available_bytes = kGiB, .free_swap_bytes = 0};
    Config config = small_config();
    const auto refusal_here = [&] {
        return error_of([&]() -> int {
            check_against_host(config, facts);
            return 0;
        });
    };
    EXPECT_EQ(refusal_here(), "");
    config.memory_bytes = 2 * kGiB;
    EXPECT_TRUE(mentions(refusal_here(), "this host has 1 GiB")) << refusal_here();
    facts.memory.host = {.total_bytes = 4 * kGiB, .available_bytes = 4 * kGiB, .free_swap_bytes = 0};
    EXPECT_EQ(refusal_here(), "");
    facts.nodes = {{{0, {0}, 8 * kGiB}}, {}};
    config.numa = {prefault::NumaPolicy::Kind::kNode, 1};
    EXPECT_TRUE(mentions(refusal_here(), "node 1")) << refusal_here();
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
    const std::uint64_t more = align_down(read_host_memory().total_bytes.value(), 4096) + 4096;
    if (more > memory_map::kMaxMemoryBytes) {
        GTEST_SKIP() << "this host has more memory than a guest can have";
    }
    EXPECT_TRUE(mentions(refusal_of_memory(more), "this host has ")) << refusal_of_memory(more);
}

TEST(Config, RefusesMoreMemoryThanIsAvailableOnlyWhenPopulatingIt) {
    const HostMemory host = read_host_memory();
    const std::uint64_t total = host.total_bytes.value();
    const std::uint64_t available = host.available_bytes.value();
    // Halfway between available and all memory, so that other processes do not matter.
    const std::uint64_t bytes = align_down(available + (total - available) / 2, 4096) + 4096;
    if (total - available < 64 * kMiB || bytes > memory_map::kMaxMemoryBytes) {
        GTEST_SKIP() << "nearly all memory of this host is available, so the two cannot be told apart";
    }
    Config config;
    config.memory_bytes = bytes;
    EXPECT_EQ(refusal(config), "");
    config.prefault.scope = prefault::Scope::kHost;
    EXPECT_TRUE(mentions(refusal(config), "Config::prefault.scope=none")) << refusal(config);
}

TEST(Config, RefusesMoreHugePagesThanThePoolHas) {
    const std::string error = refusal_of_memory(memory_map::kMaxMemoryBytes, PageSize::k2M);
    EXPECT_TRUE(mentions(error, "cannot reserve 8388608 huge pages of 2 MiB")) << error;
}

// What broke: EBUSY of our own second use was reported as "another process has it".
TEST(Config, RefusesOneTapTwice) {
    Config config = small_config();
    NetConfig net;
    net.tap = "tap7";
    config.nets = {net, net};
    EXPECT_TRUE(mentions(refusal(config), "two networks")) << refusal(config);
    EXPECT_TRUE(mentions(refusal(config), "tap7")) << refusal(config);
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
        config.pin = prefault::Pin::kMlock;
        return refusal(config);
    });
    EXPECT_TRUE(mentions(error, "RLIMIT_MEMLOCK")) << error;
}

TEST(Config, CountsOnlyWhatIsPrefaultedAgainstTheLimitOfPinnedMemory) {
    const std::string error = testing::in_child_process([]() -> std::string {
        testing::drop_capabilities();
        testing::set_limit(RLIMIT_MEMLOCK, 4 * kMiB);
        Config config = small_config();
        config.pin = prefault::Pin::kMlock;
        config.prefault.scope = prefault::Scope::kAll;
        config.prefault.ranges = {{GuestAddress{0}, 2 * kMiB}};
        return refusal(config);
    });
    EXPECT_EQ(error, "");
}

TEST(Config, ChecksTheRangesAgainstItsMemory) {
    Config config = small_config();
    config.prefault.scope = prefault::Scope::kAll;
    config.prefault.ranges = {range(0, 16 * kMiB)};
    EXPECT_EQ(refusal(config), "");
    config.prefault.ranges = {range(16 * kMiB, 4096)};
    EXPECT_TRUE(mentions(refusal(config), "it is not all RAM")) << refusal(config);
}

TEST(Config, RefusesRangesWithoutAPrefault) {
    Config config = small_config();
    config.prefault.ranges = {range(0, 4096)};
    EXPECT_TRUE(mentions(refusal(config), "Config::prefault.scope=none")) << refusal(config);
}

TEST(Config, RefusesToPrefaultNothingInTheBackground) {
    Config config = small_config();
    config.prefault_when = PrefaultWhen::kBackground;
    EXPECT_TRUE(mentions(refusal(config), "Config::prefault_when=background")) << refusal(config);
    config.prefault.scope = prefault::Scope::kAll;
    EXPECT_EQ(refusal(config), "");
}

TEST(Config, RefusesSystemManagementModeWithoutASecondLevel) {
    Config config = small_config();
    config.prefault.smm = true;
    for (const prefault::Scope scope : {prefault::Scope::kNone, prefault::Scope::kHost}) {
        config.prefault.scope = scope;
        EXPECT_TRUE(mentions(refusal(config), "Config::prefault.scope=all with Config::prefault.smm"))
            << refusal(config);
    }
    config.prefault.scope = prefault::Scope::kAll;
    EXPECT_EQ(refusal(config), "");
}

TEST(Config, RefusesCpusThatThisProcessMayNotUse) {
    const prefault::CpuList usable = prefault::usable_cpu_list();
    if (usable.back() == prefault::kMaxCpus - 1) {
        GTEST_SKIP() << "this host has every CPU there can be";
    }
    Config for_workers = small_config();
    for_workers.prefault.cpus = {usable.front(), prefault::kMaxCpus - 1};
    EXPECT_TRUE(mentions(refusal(for_workers), "Config::prefault.cpus")) << refusal(for_workers);
    Config for_vcpus = small_config();
    for_vcpus.vcpu_cpus = {prefault::kMaxCpus - 1};
    EXPECT_TRUE(mentions(refusal(for_vcpus), "Config::vcpu_cpus")) << refusal(for_vcpus);
    Config for_devices = small_config();
    for_devices.device_cpus = {prefault::kMaxCpus - 1};
    EXPECT_TRUE(mentions(refusal(for_devices), "Config::device_cpus")) << refusal(for_devices);
}

TEST(Config, TakesCpusThatThisProcessMayUse) {
    Config config = small_config();
    config.prefault.cpus = prefault::usable_cpu_list();
    config.vcpu_cpus = {prefault::usable_cpu_list().back()};
    config.device_cpus = config.vcpu_cpus;
    EXPECT_EQ(refusal(config), "");
}

TEST(Config, RefusesANodeThatDoesNotExist) {
    if (prefault::NumaTopology::read().find(prefault::kMaxNodes - 1) != nullptr) {
        GTEST_SKIP() << "this host has the highest node there can be";
    }
    Config config = small_config();
    config.numa = {prefault::NumaPolicy::Kind::kNode, prefault::kMaxNodes - 1};
    EXPECT_TRUE(mentions(refusal(config), "node 1023")) << refusal(config);
}

TEST(Config, TakesEveryPlacementThatThisHostHas) {
    Config config = small_config();
    const unsigned node = prefault::NumaTopology::read().memory_nodes().front();
    for (const prefault::NumaPolicy& policy : {prefault::NumaPolicy{prefault::NumaPolicy::Kind::kNode, node},
                                               prefault::NumaPolicy{prefault::NumaPolicy::Kind::kInterleave},
                                               prefault::NumaPolicy{prefault::NumaPolicy::Kind::kSplit}}) {
        config.numa = policy;
        EXPECT_EQ(refusal(config), "") << to_string(policy);
    }
}

TEST(Config, RefusesToReserveHugePagesThatComeFromNoPool) {
    Config config = small_config();
    config.reserve_huge_pages = true;
    for (const PageSize page_size : {PageSize::k4K, PageSize::kThp}) {
        config.page_size = page_size;
        EXPECT_TRUE(mentions(refusal(config), "only 2M and 1G come from a pool")) << refusal(config);
    }
}

TEST(PrefaultWhen, HasTheNamesOfTheCommandLine) {
    EXPECT_EQ(to_string(PrefaultWhen::kBefore), "before");
    EXPECT_EQ(to_string(PrefaultWhen::kBackground), "background");
}

prefault::NumaTopology two_nodes() {
    return {{{0, {0}, 8 * kGiB}, {3, {1}, 8 * kGiB}}, {}};
}

TEST(HugePageDemand, OfMemoryThatMayLieAnywhereNamesNoNode) {
    Config config = small_config();
    config.memory_bytes = 4 * kGiB;
    config.page_size = PageSize::k2M;
    const prefault::HugePageDemand demand = huge_page_demand(config, two_nodes());
    EXPECT_EQ(demand.page_size, PageSize::k2M);
    EXPECT_FALSE(demand.will_be_raised);
    ASSERT_EQ(demand.shares.size(), 1U);
    EXPECT_EQ(demand.shares[0].node, std::nullopt);
    EXPECT_EQ(demand.shares[0].bytes, 4 * kGiB);
}

TEST(HugePageDemand, OfSplitMemoryNamesEachNodesShare) {
    Config config = small_config();
    config.memory_bytes = 4 * kGiB;
    config.page_size = PageSize::k1G;
    config.numa.kind = prefault::NumaPolicy::Kind::kSplit;
    config.reserve_huge_pages = true;
    const prefault::HugePageDemand demand = huge_page_demand(config, two_nodes());
    EXPECT_TRUE(demand.will_be_raised);
    ASSERT_EQ(demand.shares.size(), 2U);
    EXPECT_EQ(demand.shares[0].node, 0U);
    EXPECT_EQ(demand.shares[0].bytes, 2 * kGiB);
    EXPECT_EQ(demand.shares[1].node, 3U);
    EXPECT_EQ(demand.shares[1].bytes, 2 * kGiB);
}

TEST(ConfigDevices, OverMmioAreAsManyAsThereAreInterruptLines) {
    Config config;
    config.transport = VirtioTransport::kMmio;
    config.disks.resize(20, {.path = "a.img"});
    EXPECT_EQ(testing::error_of([&] { validate(config); }),
              "cannot give the guest 20 virtio devices: there are interrupt lines for 17, and 31 slots on a PCI bus "
              "(take Config::transport=pci)");
    config.disks.resize(16);
    config.rng = true;
    EXPECT_NO_THROW(validate(config));
    config.console.emplace();
    EXPECT_TRUE(testing::mentions(testing::error_of([&] { validate(config); }), "18 virtio devices"))
        << "a console is one of them";
}

// check_values() read the host's nodes to count them.
TEST(ConfigDevices, OfMemoryThatIsSplitAreCountedByTheNodesOfTheHost) {
    Config config;
    config.memory_max_bytes = config.memory_bytes + 4 * kMiB;
    config.numa.kind = prefault::NumaPolicy::Kind::kSplit;
    config.transport = VirtioTransport::kMmio;
    config.disks.resize(15, {.path = "a.img"});
    config.rng = true;
    EXPECT_NO_THROW(check_values(config));
    HostFacts facts = HostFacts::read();
    facts.nodes = {{{0, {0}, 8 * kGiB}}, {}};
    EXPECT_NO_THROW(check_against_host(config, facts));
    facts.nodes.nodes.push_back({1, {0}, 8 * kGiB});
    EXPECT_TRUE(testing::mentions(testing::error_of([&] { check_against_host(config, facts); }), "18 virtio devices"));
}

TEST(ConfigDevices, OnPciAreAsManyAsThereAreSlots) {
    Config config;
    config.transport = VirtioTransport::kPci;
    config.disks.resize(31, {.path = "a.img"});
    EXPECT_NO_THROW(validate(config));
    config.disks.resize(32, {.path = "a.img"});
    EXPECT_EQ(testing::error_of([&] { validate(config); }),
              "cannot give the guest 32 virtio devices: its PCI bus has slots for 31");
}

TEST(ConfigDevices, OfTheEmbedderAreNotWherePciIs) {
    const auto refusal = [](DeviceSpace space, std::uint64_t base, VirtioTransport transport,
                            std::optional<std::uint32_t> interrupt = {}) {
        Config config;
        config.transport = transport;
        config.devices.push_back({.name = "mine",
                                  .space = space,
                                  .base = base,
                                  .size = 4,
                                  .interrupt = interrupt,
                                  .make = [](const DeviceHost&) { return std::shared_ptr<CustomDevice>(); }});
        return testing::error_of([&] { validate(config); });
    };
    for (const std::uint64_t port : {0xcf8U, 0xcffU, 0x620U, 0x62bU}) {
        EXPECT_TRUE(testing::mentions(refusal(DeviceSpace::kPortIo, port, VirtioTransport::kPci), "belongs to PCI"));
        EXPECT_EQ(refusal(DeviceSpace::kPortIo, port, VirtioTransport::kMmio), "");
    }
    for (const std::uint64_t address : {0xd0100000U, 0xd1ffffffU}) {
        EXPECT_TRUE(testing::mentions(refusal(DeviceSpace::kMmio, address, VirtioTransport::kPci), "belongs to PCI"));
        EXPECT_EQ(refusal(DeviceSpace::kMmio, address, VirtioTransport::kMmio), "");
    }
    for (const std::uint32_t line : {15U, 16U, 19U}) {
        EXPECT_TRUE(testing::mentions(refusal(DeviceSpace::kPortIo, 0x500, VirtioTransport::kPci, line),
                                      "not one of those that are free"));
        EXPECT_EQ(refusal(DeviceSpace::kPortIo, 0x500, VirtioTransport::kMmio, line), "");
    }
    for (const std::uint32_t line : {5U, 20U, 23U}) {
        EXPECT_EQ(refusal(DeviceSpace::kPortIo, 0x500, VirtioTransport::kPci, line), "");
    }
}

TEST(ConfigDevices, WithABalloonOfMemoryThatIsToStayAreRefused) {
    Config config;
    config.balloon = BalloonConfig{16 * kMiB, true};
    EXPECT_NO_THROW(validate(config));
    config.prefault.scope = prefault::Scope::kHost;
    EXPECT_TRUE(testing::mentions(testing::error_of([&] { validate(config); }), "balloon with Config::prefault.scope"));
}

TEST(ConfigKeep, NeedsASecondLevelThatIsFilledWhole) {
    Config config;
    config.prefault_keep = true;
    const auto error = [&config] { return testing::error_of([&] { check_values(config); }); };
    for (const auto scope : {prefault::Scope::kNone, prefault::Scope::kHost}) {
        config.prefault.scope = scope;
        EXPECT_TRUE(testing::mentions(error(), "cannot keep the second level full")) << error();
        EXPECT_TRUE(testing::mentions(error(), "take Config::prefault.scope=all")) << error();
    }
    config.prefault.scope = prefault::Scope::kAll;
    EXPECT_NO_THROW(check_values(config));
    config.prefault.ranges = {{GuestAddress{0}, 2 * kMiB}};
    EXPECT_TRUE(testing::mentions(error(), "only in part")) << error();
}

TEST(ConfigKeep, LooksAtATimeThatMakesSense) {
    Config config;
    config.prefault_keep = true;
    config.prefault.scope = prefault::Scope::kAll;
    for (const unsigned good : {Config::kMinKeepEveryMs, Config::kMaxKeepEveryMs}) {
        config.keep_every_ms = good;
        EXPECT_NO_THROW(check_values(config));
    }
    for (const unsigned bad : {0U, Config::kMinKeepEveryMs - 1, Config::kMaxKeepEveryMs + 1, UINT_MAX}) {
        config.keep_every_ms = bad;
        EXPECT_TRUE(testing::mentions(testing::error_of([&] { check_values(config); }),
                                      "every " + std::to_string(bad) + " ms (Config::keep_every_ms): 10 to 60000"));
    }
}

TEST(Config, WithANulInAnyOfItsTextsIsRefused) {
    using namespace std::string_literals;
    const std::string nul = "a\0b"s;
    const std::vector<std::pair<const char*, void (*)(Config&, const std::string&)>> cases{
        {"path of the kernel", [](Config& config, const std::string& text) { config.kernel_path = text; }},
        {"path of the initrd", [](Config& config, const std::string& text) { config.initrd_path = text; }},
        {"command line", [](Config& config, const std::string& text) { config.command_line = text; }},
        {"guest's processor", [](Config& config, const std::string& text) { config.cpu = text; }},
        {"path of a disk", [](Config& config, const std::string& text) { config.disks.push_back({.path = text}); }},
        {"id of a disk",
         [](Config& config, const std::string& text) { config.disks.push_back({.path = "p", .id = text}); }},
        {"tap interface", [](Config& config, const std::string& text) { config.nets.push_back({.tap = text}); }},
        {"MAC address",
         [](Config& config, const std::string& text) { config.nets.push_back({.tap = "tap0", .mac = text}); }},
        {"forwarded port",
         [](Config& config, const std::string& text) {
             NetConfig net;
             net.user = true;
             net.forwards.push_back({.host_address = text, .host_port = 1, .guest_port = 1});
             config.nets.push_back(net);
         }},
        {"path of the vsock", [](Config& config, const std::string& text) { config.vsock.emplace().path = text; }},
        {"name of a device",
         [](Config& config, const std::string& text) { config.devices.emplace_back().name = text; }},
    };
    for (const auto& [what, set] : cases) {
        Config config = small_config();
        set(config, nul);
        const std::string error = refusal(config);
        EXPECT_TRUE(mentions(error, "NUL")) << what << ": " << error;
        EXPECT_TRUE(mentions(error, what)) << error;
    }
}

TEST(Config, HasOneKernelAndOneInitrd) {
    const auto bytes = std::make_shared<const std::vector<std::byte>>(10);
    Config config = small_config();
    config.kernel_image = bytes;
    config.initrd_image = bytes;
    EXPECT_EQ(refusal(config), "");
    config.kernel_path = "vmlinuz";
    EXPECT_TRUE(mentions(refusal(config), "cannot use vmlinuz as the kernel: there is one in memory, too"));
    config.kernel_path.clear();
    config.initrd_path = "initrd";
    EXPECT_TRUE(mentions(refusal(config), "cannot use initrd as the initrd"));
    config.initrd_path.clear();
    config.initrd_image = std::make_shared<const std::vector<std::byte>>();
    EXPECT_TRUE(mentions(refusal(config), "the initrd in memory: it is empty"));
}

} // namespace
} // namespace vmm
