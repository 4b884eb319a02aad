#include "prefault/host/numa.hpp"

#include <gtest/gtest.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <fstream>
#include <optional>
#include <span>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

#include "kvm/host/mapping.hpp"
#include "support/host_errors.hpp"
#include "support/host_page_size.hpp"
#include "support/host_process_facts.hpp"
#include "support/host_temporary_directory.hpp"

namespace vmm::prefault {
namespace {

using testing::error_of;
using testing::mentions;

constexpr NumaPolicy kDefault{};
constexpr NumaPolicy kInterleave{NumaPolicy::Kind::kInterleave};
constexpr NumaPolicy kSplit{NumaPolicy::Kind::kSplit};

constexpr NumaPolicy on_node(unsigned node) {
    return {NumaPolicy::Kind::kNode, node};
}

/// A folder like /sys/devices/system/node, and a file like /proc/self/status.
class FakeHost {
  public:
    explicit FakeHost(const std::string& online) { directory_.write("node/online", online + "\n"); }

    FakeHost& node(unsigned id, const std::string& cpus, std::uint64_t memory_kib, const std::string& distances) {
        const std::string name = std::to_string(id);
        write(id, "cpulist", cpus + "\n");
        write(id, "distance", distances + "\n");
        write(id, "meminfo",
              "\nNode " + name + " MemTotal:       " + std::to_string(memory_kib) + " kB\nNode " + name +
                  " MemFree:        1 kB\n");
        return *this;
    }
    FakeHost& write(unsigned id, const std::string& file, const std::string& content) {
        directory_.write("node/node" + std::to_string(id) + "/" + file, content);
        return *this;
    }
    /// Sets "Mems_allowed_list"; without this call the status does not have it.
    FakeHost& allow(const std::string& nodes) {
        directory_.write("status", "Name:\tvmm\nCpus_allowed_list:\t0\nMems_allowed:\t1\nMems_allowed_list:\t" + nodes +
                                       "\nvoluntary_ctxt_switches:\t1\n");
        return *this;
    }
    [[nodiscard]] NumaTopology read() const { return NumaTopology::read(directory_ / "node", directory_ / "status"); }

  private:
    testing::TemporaryDirectory directory_;
};

NumaNode make_node(unsigned id, std::uint64_t memory_bytes, bool allowed = true) {
    return {id, {id}, memory_bytes, allowed};
}

/// Makes so many nodes of 8 GiB each.
NumaTopology nodes_of_8_gib(unsigned count) {
    NumaTopology topology;
    for (unsigned id = 0; id < count; ++id) {
        topology.nodes.push_back(make_node(id, 8 * kGiB));
    }
    return topology;
}

GuestRange range(std::uint64_t base, std::uint64_t size) {
    return {GuestAddress{base}, size};
}

TEST(NumaTopologyOfSysfs, HasCpusMemoryAndDistancesOfEachNode) {
    FakeHost host("0-1");
    host.node(0, "0-3,8-11", 1024, "10 21").node(1, "4-7,12-15", 2048, "22 10").allow("0-1");
    const NumaTopology topology = host.read();
    ASSERT_EQ(topology.nodes.size(), 2U);
    EXPECT_EQ(topology.nodes[0].id, 0U);
    EXPECT_EQ(topology.nodes[0].cpus, (CpuList{0, 1, 2, 3, 8, 9, 10, 11}));
    EXPECT_EQ(topology.nodes[0].memory_bytes, kMiB);
    EXPECT_EQ(topology.nodes[1].id, 1U);
    EXPECT_EQ(topology.nodes[1].cpus, (CpuList{4, 5, 6, 7, 12, 13, 14, 15}));
    EXPECT_EQ(topology.nodes[1].memory_bytes, 2 * kMiB);
    EXPECT_EQ(topology.distance(0, 0), 10U);
    EXPECT_EQ(topology.distance(0, 1), 21U);
    EXPECT_EQ(topology.distance(1, 0), 22U);
    EXPECT_EQ(topology.distance(1, 1), 10U);
}

TEST(NumaTopologyOfSysfs, MayLackNumbers) {
    FakeHost host("0,2,7-8");
    host.node(0, "0", 1, "10 20 30 40")
        .node(2, "1", 1, "20 10 31 41")
        .node(7, "2", 1, "30 31 10 42")
        .node(8, "3", 1, "40 41 42 10");
    const NumaTopology topology = host.read();
    EXPECT_EQ(topology.memory_nodes(), (std::vector<unsigned>{0, 2, 7, 8}));
    EXPECT_EQ(topology.distance(2, 7), 31U);
    EXPECT_EQ(topology.distance(8, 7), 42U);
    EXPECT_EQ(topology.find(1), nullptr);
    ASSERT_NE(topology.find(7), nullptr);
    EXPECT_EQ(topology.find(7)->cpus, (CpuList{2}));
}

TEST(NumaTopologyOfSysfs, LeavesOutNodesThatAreNotOnline) {
    FakeHost host("1");
    host.node(0, "0", 1, "10 20").node(1, "1", 1, "20 10");
    ASSERT_EQ(host.read().nodes.size(), 1U);
    EXPECT_EQ(host.read().nodes[0].id, 1U);
}

TEST(NumaTopologyOfSysfs, KnowsNodesWithoutMemoryAndWithoutCpus) {
    FakeHost host("0-2");
    host.node(0, "0-1", 0, "10 20 20").node(1, "2-3", 4, "20 10 20").node(2, "", 8, "20 20 10");
    const NumaTopology topology = host.read();
    ASSERT_EQ(topology.nodes.size(), 3U);
    EXPECT_EQ(topology.nodes[0].memory_bytes, 0U);
    EXPECT_TRUE(topology.nodes[2].cpus.empty());
    EXPECT_EQ(topology.memory_nodes(), (std::vector<unsigned>{1, 2}));
}

TEST(NumaTopologyOfSysfs, KnowsWhatTheCpusetAllows) {
    FakeHost host("0-2");
    host.node(0, "0", 1, "").node(1, "1", 1, "").node(2, "2", 1, "").allow("1-2");
    EXPECT_FALSE(host.read().nodes[0].allowed);
    EXPECT_EQ(host.read().memory_nodes(), (std::vector<unsigned>{1, 2}));
}

TEST(NumaTopologyOfSysfs, AllowsAllWhereTheKernelHasNoCpusets) {
    FakeHost host("0-1");
    host.node(0, "0", 1, "").node(1, "1", 1, "");
    EXPECT_EQ(host.read().memory_nodes(), (std::vector<unsigned>{0, 1}));
}

TEST(NumaTopologyOfSysfs, TakesTheKernelsDistancesWhereNoneAreGiven) {
    FakeHost host("0-1");
    host.node(0, "0", 1, "").node(1, "1", 1, "junk");
    EXPECT_EQ(host.read().distance(0, 0), 10U);
    EXPECT_EQ(host.read().distance(0, 1), 20U);
    EXPECT_EQ(host.read().distance(1, 0), 20U);
    EXPECT_EQ(host.read().distance(5, 6), 20U);
    host.write(0, "distance", "10\n"); // A row that is too short says nothing.
    EXPECT_EQ(host.read().distance(0, 1), 20U);
    EXPECT_EQ(host.read().distance(5, 0), 20U);
}

void expect_one_node_host(const NumaTopology& topology) {
    ASSERT_EQ(topology.nodes.size(), 1U);
    EXPECT_EQ(topology.nodes[0].id, 0U);
    EXPECT_EQ(topology.nodes[0].cpus, usable_cpu_list());
    EXPECT_GT(topology.nodes[0].memory_bytes, 64 * kMiB);
    EXPECT_EQ(topology.memory_nodes(), (std::vector<unsigned>{0}));
    EXPECT_EQ(topology.distance(0, 0), 10U);
}

TEST(NumaTopologyWithoutSysfs, IsOneNodeWithEverything) {
    expect_one_node_host(NumaTopology::read("/nonexistent"));
    expect_one_node_host(NumaTopology::read("/nonexistent", "/nonexistent"));
}

TEST(NumaTopologyWithoutSysfs, IsOneNodeAlsoWhereItMakesNoSense) {
    expect_one_node_host(FakeHost("everything").read());
    expect_one_node_host(FakeHost("").read());
    expect_one_node_host(FakeHost("0-3").read()); // The file says online, but no folder describes its memory.
    expect_one_node_host(FakeHost("1024").node(1024, "0", 1, "10").read());
}

TEST(NumaTopologyOfThisHost, HasMemoryAndAllUsableCpus) {
    const NumaTopology topology = NumaTopology::read();
    ASSERT_FALSE(topology.memory_nodes().empty());
    for (const unsigned cpu : usable_cpu_list()) {
        EXPECT_TRUE(std::ranges::any_of(topology.nodes, [cpu](const NumaNode& node) {
            return std::ranges::find(node.cpus, cpu) != node.cpus.end();
        })) << cpu;
    }
}

TEST(NumaPolicyText, IsReadAsItIsWritten) {
    for (const char* text : {"default", "interleave", "split", "0", "1", "1023"}) {
        const auto policy = parse_numa_policy(text);
        ASSERT_TRUE(policy) << text;
        EXPECT_EQ(to_string(*policy), text);
    }
    EXPECT_EQ(parse_numa_policy("interleave"), kInterleave);
    EXPECT_EQ(parse_numa_policy("split"), kSplit);
    EXPECT_EQ(parse_numa_policy("7"), on_node(7));
    EXPECT_EQ(parse_numa_policy("default"), kDefault);
}

TEST(NumaPolicyText, IsRefusedWhereItIsNoPolicy) {
    for (const char* text : {"", " ", "1 ", " 1", "-1", "+1", "1024", "4294967296", "0-1", "1x", "Split", "spli"}) {
        EXPECT_EQ(parse_numa_policy(text), std::nullopt) << text;
    }
}

const std::array kOneRegion{range(0, 2 * kGiB)};
const std::array kTwoRegions{range(0, 3 * kGiB), range(4 * kGiB, 5 * kGiB)};

using Placed = std::vector<PlacedRange>;

TEST(Place, LeavesTheRangesAloneWithoutANode) {
    const Placed anywhere{{kTwoRegions[0], std::nullopt}, {kTwoRegions[1], std::nullopt}};
    EXPECT_EQ(place(kTwoRegions, kDefault, nodes_of_8_gib(2), 2 * kMiB), anywhere);
    EXPECT_EQ(place(kTwoRegions, kInterleave, nodes_of_8_gib(2), 2 * kMiB), anywhere);
}

TEST(Place, PutsAllOnOneNode) {
    EXPECT_EQ(place(kTwoRegions, on_node(1), nodes_of_8_gib(2), 2 * kMiB),
              (Placed{{kTwoRegions[0], 1}, {kTwoRegions[1], 1}}));
}

TEST(Place, OfNothingIsNothing) {
    for (const NumaPolicy& policy : {kDefault, kInterleave, kSplit, on_node(0)}) {
        EXPECT_TRUE(place({}, policy, nodes_of_8_gib(2), 2 * kMiB).empty());
    }
}

TEST(PlaceSplit, CutsIntoEqualParts) {
    EXPECT_EQ(place(kOneRegion, kSplit, nodes_of_8_gib(2), 2 * kMiB),
              (Placed{{range(0, kGiB), 0}, {range(kGiB, kGiB), 1}}));
}

TEST(PlaceSplit, CountsNoHoles) {
    EXPECT_EQ(place(kTwoRegions, kSplit, nodes_of_8_gib(2), 2 * kMiB),
              (Placed{{range(0, 3 * kGiB), 0}, {range(4 * kGiB, kGiB), 0}, {range(5 * kGiB, 4 * kGiB), 1}}));
}

TEST(PlaceSplit, MayCutExactlyAtTheHole) {
    const std::array ram{range(0, 3 * kGiB), range(4 * kGiB, 3 * kGiB)};
    EXPECT_EQ(place(ram, kSplit, nodes_of_8_gib(2), kGiB), (Placed{{ram[0], 0}, {ram[1], 1}}));
}

TEST(PlaceSplit, CutsOneRegionMoreThanOnce) {
    EXPECT_EQ(place(kTwoRegions, kSplit, nodes_of_8_gib(4), kGiB), (Placed{{range(0, 2 * kGiB), 0},
                                                                           {range(2 * kGiB, kGiB), 1},
                                                                           {range(4 * kGiB, kGiB), 1},
                                                                           {range(5 * kGiB, 2 * kGiB), 2},
                                                                           {range(7 * kGiB, 2 * kGiB), 3}}));
}

TEST(PlaceSplit, GivesWhatDoesNotComeOutEvenToTheFirstNodes) {
    const std::array ram{range(0, 5 * kGiB)};
    EXPECT_EQ(place(ram, kSplit, nodes_of_8_gib(3), kGiB),
              (Placed{{range(0, 2 * kGiB), 0}, {range(2 * kGiB, 2 * kGiB), 1}, {range(4 * kGiB, kGiB), 2}}));
}

TEST(PlaceSplit, GivesNothingToTheLastNodesWhereThereAreFewerGranules) {
    const std::array ram{range(0, 4 * kMiB)};
    EXPECT_EQ(place(ram, kSplit, nodes_of_8_gib(4), 2 * kMiB),
              (Placed{{range(0, 2 * kMiB), 0}, {range(2 * kMiB, 2 * kMiB), 1}}));
    const std::array tiny{range(0, 64 * kKiB)};
    EXPECT_EQ(place(tiny, kSplit, nodes_of_8_gib(4), 2 * kMiB), (Placed{{tiny[0], 0}}));
}

TEST(PlaceSplit, CutsAtMultiplesOfTheGranuleAlsoWhereTheEndsAreNone) {
    const std::array ram{range(kMiB, 4 * kMiB + 4 * kKiB)}; // Parts of granules 0, 1 and 2.
    EXPECT_EQ(place(ram, kSplit, nodes_of_8_gib(2), 2 * kMiB),
              (Placed{{range(kMiB, 3 * kMiB), 0}, {range(4 * kMiB, kMiB + 4 * kKiB), 1}}));
}

TEST(PlaceSplit, SkipsEmptyRanges) {
    const std::array ram{range(0, 0), range(4 * kGiB, 2 * kGiB), range(8 * kGiB, 0)};
    EXPECT_EQ(place(ram, kSplit, nodes_of_8_gib(2), kGiB),
              (Placed{{range(4 * kGiB, kGiB), 0}, {range(5 * kGiB, kGiB), 1}}));
}

TEST(PlaceSplit, UsesNodesWithMemoryThatMayBeUsed) {
    NumaTopology topology;
    topology.nodes = {make_node(0, 0), make_node(3, kGiB), make_node(4, kGiB, false), make_node(9, kGiB)};
    EXPECT_EQ(place(kOneRegion, kSplit, topology, 2 * kMiB), (Placed{{range(0, kGiB), 3}, {range(kGiB, kGiB), 9}}));
}

TEST(PlaceSplit, IsOnePartOnOneNode) {
    EXPECT_EQ(place(kTwoRegions, kSplit, nodes_of_8_gib(1), 2 * kMiB),
              (Placed{{kTwoRegions[0], 0}, {kTwoRegions[1], 0}}));
}

/// True if `placed` are non-empty parts that cover `ram` exactly, in order, on nodes in ascending order.
bool covers_in_order(const Placed& placed, std::span<const GuestRange> ram) {
    auto part = placed.begin();
    unsigned node = 0;
    for (const GuestRange& whole : ram) {
        GuestAddress covered_to = whole.base;
        for (; covered_to < whole.end() && part != placed.end(); ++part) {
            if (part->range.base != covered_to || part->range.size == 0 || !part->node || *part->node < node) {
                return false;
            }
            covered_to = part->range.end();
            node = *part->node;
        }
        if (covered_to != whole.end()) {
            return false;
        }
    }
    return part == placed.end();
}

TEST(PlaceSplit, CoversAllMemoryOnceWhateverItsSize) {
    for (unsigned nodes = 1; nodes <= 9; ++nodes) {
        for (std::uint64_t size = 4 * kKiB; size < 64 * kMiB; size += 3 * kMiB + 4 * kKiB) {
            const std::array ram{range(0, size), range(4 * kGiB, 2 * size)};
            EXPECT_TRUE(covers_in_order(place(ram, kSplit, nodes_of_8_gib(nodes), 2 * kMiB), ram))
                << nodes << ' ' << size;
        }
    }
}

std::string refusal(const NumaPolicy& policy, const NumaTopology& topology, std::uint64_t memory_bytes = kGiB) {
    return error_of([&]() -> int {
        check_numa_policy(policy, topology, memory_bytes);
        return 0;
    });
}

TEST(CheckNumaPolicy, TakesWhatFits) {
    for (const NumaPolicy& policy : {kDefault, kInterleave, kSplit, on_node(1)}) {
        EXPECT_EQ(refusal(policy, nodes_of_8_gib(2), 8 * kGiB), "");
    }
    EXPECT_EQ(refusal(kSplit, nodes_of_8_gib(2), 16 * kGiB), "");
}

TEST(CheckNumaPolicy, TakesSplitAndInterleaveOnOneNode) {
    EXPECT_EQ(refusal(kSplit, nodes_of_8_gib(1)), "");
    EXPECT_EQ(refusal(kInterleave, nodes_of_8_gib(1)), "");
}

TEST(CheckNumaPolicy, NamesTheNodesThatExist) {
    EXPECT_EQ(refusal(on_node(2), nodes_of_8_gib(2)),
              "cannot put guest memory on NUMA node 2: this host has nodes 0-1 (take one of these)");
    const std::string one = refusal(on_node(1), nodes_of_8_gib(1));
    EXPECT_TRUE(mentions(one, "this host has node 0 ")) << one;
}

TEST(CheckNumaPolicy, RefusesANodeWithoutMemory) {
    NumaTopology topology = nodes_of_8_gib(3);
    topology.nodes[1].memory_bytes = 0;
    EXPECT_EQ(refusal(on_node(1), topology),
              "cannot put guest memory on NUMA node 1: it has no memory (nodes 0,2 would do)");
}

TEST(CheckNumaPolicy, RefusesANodeThatTheCpusetForbids) {
    NumaTopology topology = nodes_of_8_gib(2);
    topology.nodes[0].allowed = false;
    const std::string error = refusal(on_node(0), topology);
    EXPECT_TRUE(mentions(error, "cpuset.mems")) << error;
    EXPECT_TRUE(mentions(error, "(node 1 would do)")) << error;
}

TEST(CheckNumaPolicy, RefusesMoreMemoryThanTheNodeHas) {
    const std::string error = refusal(on_node(1), nodes_of_8_gib(2), 8 * kGiB + 2 * kMiB);
    EXPECT_TRUE(mentions(error, "on NUMA node 1: it has 8 GiB in all")) << error;
    EXPECT_TRUE(mentions(error, "Config::memory_bytes")) << error;
}

TEST(CheckNumaPolicy, RefusesAPartThatIsLargerThanItsNode) {
    NumaTopology topology = nodes_of_8_gib(2);
    topology.nodes[1].memory_bytes = kGiB;
    const std::string error = refusal(kSplit, topology, 4 * kGiB);
    EXPECT_TRUE(mentions(error, "cannot split 4 GiB of guest memory over NUMA nodes 0-1")) << error;
    EXPECT_TRUE(mentions(error, "node 1 would hold 2 GiB and has 1 GiB in all")) << error;
    EXPECT_EQ(refusal(kInterleave, topology, 4 * kGiB), "") << "what is full is passed over";
}

TEST(CheckNumaPolicy, RefusesToSpreadOverNothing) {
    NumaTopology topology = nodes_of_8_gib(2);
    topology.nodes[0].allowed = topology.nodes[1].allowed = false;
    EXPECT_TRUE(mentions(refusal(kSplit, topology), "none of nodes 0-1"));
    EXPECT_TRUE(mentions(refusal(kInterleave, topology), "none of nodes 0-1"));
    EXPECT_EQ(refusal(kDefault, topology), "");
}

/// The policy of the mapping that begins at `address` (proc(5), numa_maps), e.g. "bind:0"; nothing if it cannot be
/// read, or if no mapping begins there.
std::optional<std::string> policy_at(const std::byte* address) {
    std::ifstream maps("/proc/self/numa_maps");
    for (std::string line; std::getline(maps, line);) {
        std::istringstream words(line);
        std::uintptr_t start = 0;
        std::string policy;
        if (words >> std::hex >> start >> policy && start == reinterpret_cast<std::uintptr_t>(address)) {
            return policy;
        }
    }
    return std::nullopt;
}

constexpr std::uint64_t kLowBytes = 8 * kMiB;
constexpr std::uint64_t kHighBytes = 4 * kMiB;
const std::array kLayout{range(0, kLowBytes), range(4 * kGiB, kHighBytes)};

/// Guest memory on this host, which has a node 0 with memory and may have others.
class BindMemory : public ::testing::TestWithParam<PageSize> {
  protected:
    void SetUp() override {
        if (!policy_at(memory_.regions()[0].host)) {
            GTEST_SKIP() << "this kernel does not tell a mapping's policy";
        }
    }
    [[nodiscard]] std::string bind_error(const NumaPolicy& policy, const NumaTopology& topology) const {
        return error_of([&]() -> int {
            bind_memory(memory_.regions(), place(kLayout, policy, topology, 2 * kMiB), policy, topology);
            return 0;
        });
    }
    void expect_policy(const std::string& policy) const {
        for (const MemoryRegion& region : memory_.regions()) {
            EXPECT_EQ(policy_at(region.host), policy);
        }
    }
    /// Writes to the first and the last page of each region.
    void touch() const {
        for (const MemoryRegion& region : memory_.regions()) {
            region.bytes().front() = region.bytes().back() = std::byte{1};
        }
    }
    GuestMemory memory_{kLayout, GetParam()};
};

TEST_P(BindMemory, ToANodePutsPagesThere) {
    EXPECT_EQ(bind_error(on_node(0), NumaTopology::read()), "");
    expect_policy("bind:0");
    touch();
    for (const MemoryRegion& region : memory_.regions()) {
        EXPECT_EQ(node_of_page(&region.bytes().front()), 0U);
        EXPECT_EQ(node_of_page(&region.bytes().back()), 0U);
    }
}

TEST_P(BindMemory, PopulatesNothing) {
    for (const NumaPolicy& policy : {kDefault, kInterleave, kSplit, on_node(0)}) {
        EXPECT_EQ(bind_error(policy, NumaTopology::read()), "");
        for (const MemoryRegion& region : memory_.regions()) {
            EXPECT_EQ(testing::count_resident_pages(region.bytes()), 0U);
        }
    }
}

TEST_P(BindMemory, InterleavesOverAllNodesWithMemory) {
    const NumaTopology topology = NumaTopology::read();
    EXPECT_EQ(bind_error(kInterleave, topology), "");
    expect_policy("interleave:" + format_cpu_list(topology.memory_nodes()));
    touch();
}

TEST_P(BindMemory, SplitBindsEachPartToItsNode) {
    const NumaTopology topology = NumaTopology::read();
    EXPECT_EQ(bind_error(kSplit, topology), "");
    for (const PlacedRange& part : place(kLayout, kSplit, topology, 2 * kMiB)) {
        EXPECT_EQ(policy_at(memory_.at(part.range)->data()), "bind:" + std::to_string(*part.node));
    }
    touch();
}

TEST_P(BindMemory, WorksOnPartsOfAMapping) {
    const Placed part{{range(2 * kMiB, 4 * kMiB), 0}};
    bind_memory(memory_.regions(), part, on_node(0), NumaTopology::read());
    const std::byte* const host = memory_.regions()[0].host;
    EXPECT_EQ(policy_at(host), "default");
    EXPECT_EQ(policy_at(host + 2 * kMiB), "bind:0");
    EXPECT_EQ(policy_at(host + 6 * kMiB), "default");
}

TEST_P(BindMemory, LeavesItAloneByDefaultOnOneNode) {
    EXPECT_EQ(bind_error(kDefault, nodes_of_8_gib(1)), "");
    expect_policy("default");
}

TEST_P(BindMemory, KeepsNumaBalancingAwayByDefaultOnSeveralNodes) {
    EXPECT_EQ(bind_error(kDefault, nodes_of_8_gib(2)), "");
    expect_policy("local");
}

TEST_P(BindMemory, LeavesAPolicyTheProcessHasAloneByDefault) {
    std::thread([&] {                      // a policy belongs to a thread: this thread's own
        constexpr int kInterleaveMode = 3; // MPOL_INTERLEAVE
        const unsigned long node_zero = 1;
        if (::syscall(SYS_set_mempolicy, kInterleaveMode, &node_zero, 64) != 0) {
            return;
        }
        EXPECT_EQ(bind_error(kDefault, nodes_of_8_gib(2)), "");
        expect_policy("default"); // It has no policy of its own: the main thread's is shown instead.
        EXPECT_EQ(bind_error(on_node(0), nodes_of_8_gib(2)), "");
        expect_policy("bind:0");
    })
        .join();
}

TEST_P(BindMemory, ToANodeThatIsNotThereIsAnError) {
    NumaTopology topology = nodes_of_8_gib(2); // as if node 1023 had disappeared after it was read
    topology.nodes[1].id = 1023;
    const std::string error = bind_error(on_node(1023), topology);
    EXPECT_TRUE(error.starts_with("cannot bind guest memory 0x0-0x7fffff to NUMA node 1023: ")) << error;
    EXPECT_TRUE(mentions(error, "cpuset.mems")) << error;
    expect_policy("default");
}

INSTANTIATE_TEST_SUITE_P(Backings, BindMemory, ::testing::Values(PageSize::k4K, PageSize::kThp),
                         [](const auto& backing) { return std::string(to_string(backing.param)); });

TEST(NodeOfVcpu, GivesNeighboursTheSameNode) {
    const std::vector<unsigned> nodes{0, 1};
    std::vector<unsigned> given;
    for (unsigned vcpu = 0; vcpu < 4; ++vcpu) {
        given.push_back(node_of_vcpu(vcpu, 4, nodes));
    }
    EXPECT_EQ(given, (std::vector<unsigned>{0, 0, 1, 1}));
}

TEST(NodeOfVcpu, UsesEveryNodeWhereThereAreEnough) {
    const std::vector<unsigned> nodes{2, 3, 7};
    for (unsigned vcpus = 3; vcpus < 40; ++vcpus) {
        std::vector<unsigned> count(8);
        unsigned last = 0;
        for (unsigned vcpu = 0; vcpu < vcpus; ++vcpu) {
            const unsigned node = node_of_vcpu(vcpu, vcpus, nodes);
            EXPECT_GE(node, last);
            last = node;
            ++count.at(node);
        }
        for (const unsigned node : nodes) {
            EXPECT_GE(count[node], vcpus / 3);
            EXPECT_LE(count[node], vcpus / 3 + 1);
        }
    }
}

TEST(NodeOfVcpu, TakesFewerVcpusThanNodesAndHugeNumbers) {
    const std::vector<unsigned> nodes{0, 1, 2, 3};
    EXPECT_EQ(node_of_vcpu(0, 1, nodes), 0U);
    EXPECT_EQ(node_of_vcpu(0, 2, nodes), 0U);
    EXPECT_EQ(node_of_vcpu(1, 2, nodes), 2U);
    EXPECT_EQ(node_of_vcpu(UINT32_MAX - 1, UINT32_MAX, nodes), 3U);
}

TEST(NodeOfPage, IsNothingWithoutAPageAndMakesNone) {
    const Mapping mapping = Mapping::anonymous(8 * kKiB, 4 * kKiB, 0, "a test");
    EXPECT_EQ(node_of_page(mapping.data()), std::nullopt);
    EXPECT_EQ(testing::count_resident_pages(mapping.bytes()), 0U);
    EXPECT_EQ(node_of_page(nullptr), std::nullopt);
}

TEST(NodeOfPage, IsANodeWithMemoryAlsoForAnAddressWithinThePage) {
    const Mapping mapping = Mapping::anonymous(8 * kKiB, 4 * kKiB, 0, "a test");
    mapping.bytes()[0] = std::byte{1};
    const auto node = node_of_page(mapping.data());
    ASSERT_TRUE(node);
    const auto nodes = NumaTopology::read().memory_nodes();
    EXPECT_NE(std::ranges::find(nodes, *node), nodes.end());
    EXPECT_EQ(node_of_page(mapping.data() + 17), node);
    EXPECT_EQ(node_of_page(mapping.data() + 4096), std::nullopt);
}

} // namespace
} // namespace vmm::prefault
