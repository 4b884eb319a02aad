#include "prefault/host/huge_page_pool.hpp"

#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <csignal>
#include <filesystem>
#include <fstream>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "support/host_child_process.hpp"
#include "support/host_errors.hpp"
#include "support/host_pipe.hpp"
#include "support/host_temporary_directory.hpp"
#include "support/host_waiting.hpp"
#include "support/prefault_stop.hpp"

namespace vmm::prefault {
namespace {

using testing::error_of;
using testing::mentions;

/// A folder like /sys and /proc with a pool of 2 MiB pages, without nodes and control groups.
class FakePool {
  public:
    FakePool(const std::string& total, const std::string& free, const std::string& reserved,
             const std::string& overcommit = "0", const std::string& surplus = "0") {
        write(pool_file("nr_hugepages"), total);
        write(pool_file("free_hugepages"), free);
        write(pool_file("resv_hugepages"), reserved);
        write(pool_file("nr_overcommit_hugepages"), overcommit);
        write(pool_file("surplus_hugepages"), surplus);
    }

    void add_node(unsigned node, const std::string& total, const std::string& free,
                  const std::string& surplus = "0") const {
        write(node_file(node, "nr_hugepages"), total);
        write(node_file(node, "free_hugepages"), free);
        write(node_file(node, "surplus_hugepages"), surplus);
    }

    [[nodiscard]] HugePageRoots roots() const {
        HugePageRoots roots;
        roots.mm = directory_ / "mm";
        roots.nodes = directory_ / "node";
        roots.meminfo = directory_ / "meminfo";
        roots.cgroups = {directory_ / "cgroup-of-self", directory_ / "cgroup"};
        return roots;
    }
    /// Lets processes of other users read it.
    void open_to_all() const { std::filesystem::permissions(directory_.path(), std::filesystem::perms(0755)); }

    void write(const std::string& name, const std::string& value) const { directory_.write(name, value + "\n"); }
    [[nodiscard]] std::uint64_t read(const std::string& name) const {
        return std::stoull(testing::content_of(directory_ / name));
    }
    [[nodiscard]] std::string path_of(const std::string& name) const { return directory_ / name; }

    static std::string pool_file(const std::string& name) { return "mm/hugepages/hugepages-2048kB/" + name; }
    static std::string node_file(unsigned node, const std::string& name) {
        return "node/node" + std::to_string(node) + "/hugepages/hugepages-2048kB/" + name;
    }

  private:
    testing::TemporaryDirectory directory_;
};

/// Acts as the kernel for a fake pool of all nodes: it makes and frees pages, as far as it has memory for them.
class FakeKernel {
  public:
    FakeKernel(const FakePool& pool, std::uint64_t largest_total) : pool_(pool), largest_total_(largest_total) {}

    [[nodiscard]] HugePageRoots roots() {
        HugePageRoots roots = pool_.roots();
        roots.write_count = [this](const std::string& /*file*/, std::uint64_t pages) { set_lasting(pages); };
        return roots;
    }
    [[nodiscard]] const std::vector<std::uint64_t>& written() const { return written_; }
    /// Called after each write.
    std::function<void()> after_write;

  private:
    [[nodiscard]] std::uint64_t get(const std::string& name) const { return pool_.read(FakePool::pool_file(name)); }
    void set(const std::string& name, std::uint64_t value) const {
        pool_.write(FakePool::pool_file(name), std::to_string(value));
    }
    void set_lasting(std::uint64_t pages) {
        written_.push_back(pages);
        const std::uint64_t used = get("nr_hugepages") - get("free_hugepages");
        const std::uint64_t lasting = std::min(pages, largest_total_);
        const std::uint64_t total = std::max(lasting, used); // What is in use stays, as surplus.
        set("nr_hugepages", total);
        set("free_hugepages", total - used);
        set("surplus_hugepages", total - lasting);
        if (after_write) {
            after_write();
        }
    }
    const FakePool& pool_;
    std::uint64_t largest_total_;
    std::vector<std::uint64_t> written_;
};

constexpr std::uint64_t kPage = 2 * kMiB;

HugePageRoots nowhere() {
    HugePageRoots roots;
    roots.mm = "/nonexistent";
    return roots;
}

HugePageDemand from_any_node(std::uint64_t pages) {
    return {PageSize::k2M, {{std::nullopt, pages * kPage}}, false};
}
HugePageDemand from_node(unsigned node, std::uint64_t pages) {
    return {PageSize::k2M, {{node, pages * kPage}}, false};
}

/// The message of a check for `bytes` in 2 MiB pages.
std::string shortage(const FakePool& pool, std::uint64_t bytes, PageSize page_size = PageSize::k2M) {
    return error_of([&]() -> int {
        check_huge_page_pool(page_size, bytes, pool.roots());
        return 0;
    });
}

std::string shortage_of(const FakePool& pool, const HugePageDemand& demand) {
    return error_of([&]() -> int {
        check_huge_page_pool(demand, pool.roots());
        return 0;
    });
}

std::string refusal_to_raise(const HugePageDemand& demand, const HugePageRoots& roots) {
    return error_of([&]() -> int {
        const HugePageReservation reservation(demand, roots, std::chrono::milliseconds(50));
        return 0;
    });
}

TEST(HugePagePool, IsReadFromSysfs) {
    const FakePool fake("512", "40", "3", "10", "4");
    const auto pool = read_huge_page_pool(2 * kMiB, fake.roots());
    ASSERT_TRUE(pool);
    EXPECT_EQ(pool->page_bytes, 2 * kMiB);
    EXPECT_EQ(pool->total, 512U);
    EXPECT_EQ(pool->free, 40U);
    EXPECT_EQ(pool->reserved, 3U);
    EXPECT_EQ(pool->available(), 37U);
    EXPECT_EQ(pool->overcommit, 6U);
}

TEST(HugePagePool, HasNothingAvailableWhereMoreIsReservedThanFree) {
    const FakePool fake("8", "2", "3");
    EXPECT_EQ(read_huge_page_pool(2 * kMiB, fake.roots())->available(), 0U);
}

TEST(HugePagePool, CannotOvercommitBelowItsSurplus) {
    const FakePool fake("8", "2", "0", "3", "5");
    EXPECT_EQ(read_huge_page_pool(2 * kMiB, fake.roots())->overcommit, 0U);
}

TEST(HugePagePool, DoesNotExistForASizeTheHostHasNot) {
    const FakePool fake("1", "1", "0");
    EXPECT_FALSE(read_huge_page_pool(kGiB, fake.roots()));
    EXPECT_FALSE(read_huge_page_pool(2 * kMiB, nowhere()));
}

TEST(HugePagePool, WhoseFileIsNoNumberDoesNotExist) {
    const FakePool fake("many", "1", "0");
    EXPECT_FALSE(read_huge_page_pool(2 * kMiB, fake.roots()));
}

TEST(HugePagePool, ThatSufficesIsNoError) {
    const FakePool fake("512", "256", "0");
    EXPECT_EQ(shortage(fake, 512 * kMiB), "");
}

TEST(HugePagePool, ThatMayGrowOnDemandIsNoError) {
    const FakePool fake("0", "0", "0", "256", "0");
    EXPECT_EQ(shortage(fake, 512 * kMiB), "");
}

TEST(HugePagePool, OnePageShortSaysWhatIsFreeAndNeededAndHowToRaiseIt) {
    const FakePool fake("300", "260", "5");
    const std::string error = shortage(fake, 512 * kMiB);
    EXPECT_TRUE(mentions(error, "256 huge pages of 2 MiB")) << error;
    EXPECT_TRUE(mentions(error, "255 free of 300, besides 5 that others have reserved")) << error;
    EXPECT_TRUE(mentions(error, "echo 301 | sudo tee")) << error;
    EXPECT_TRUE(mentions(error, "hugepages/hugepages-2048kB/nr_hugepages")) << error;
    EXPECT_TRUE(mentions(error, "Config::page_size=thp")) << error;
}

TEST(HugePagePool, ThatDoesNotExistIsAnErrorThatSaysSo) {
    const FakePool fake("1", "1", "0");
    const std::string error = shortage(fake, kGiB, PageSize::k1G);
    EXPECT_TRUE(mentions(error, "no pages of that size")) << error;
}

// What broke: "This host has no pages of that size" was printed if /sys could not be read.
TEST(HugePagePool, ThatCannotBeSeenIsNoReasonToRefuse) {
    EXPECT_NO_THROW(check_huge_page_pool(from_any_node(8), nowhere()));
    HugePageDemand raised = from_any_node(8);
    raised.will_be_raised = true;
    const std::string refusal = error_of([&]() -> int {
        check_huge_page_pool(raised, nowhere());
        return 0;
    });
    EXPECT_TRUE(mentions(refusal, "/nonexistent is not there")) << refusal;
    EXPECT_FALSE(may_raise_huge_page_pool(kPage, nowhere()));
}

TEST(HugePagePool, IsNotAskedForOrdinaryPages) {
    const FakePool fake("0", "0", "0");
    EXPECT_EQ(shortage(fake, kTiB, PageSize::kThp), "");
    EXPECT_EQ(shortage(fake, kTiB, PageSize::k4K), "");
}

TEST(HugePagePool, SaysWhatEachNodeHasInAscendingOrder) {
    const FakePool fake("30", "12", "0");
    fake.add_node(10, "10", "2", "1");
    fake.add_node(2, "20", "10");
    fake.write("node/possible", "0-10");
    const auto pool = read_huge_page_pool(kPage, fake.roots());
    ASSERT_EQ(pool->nodes.size(), 2U);
    EXPECT_EQ(pool->nodes[0].node, 2U);
    EXPECT_EQ(pool->nodes[1].node, 10U);
    EXPECT_EQ(pool->nodes[1].total, 10U);
    EXPECT_EQ(pool->nodes[1].free, 2U);
    EXPECT_EQ(pool->nodes[1].surplus, 1U);
    EXPECT_EQ(pool->find_node(3), nullptr);
    EXPECT_EQ(pool->available_on(3), 0U);
}

TEST(HugePagePool, CountsAgainstANodeOnlyTheReservedPagesThatOthersHaveNoRoomFor) {
    const FakePool fake("30", "12", "11");
    fake.add_node(0, "20", "10");
    fake.add_node(1, "10", "2");
    const auto pool = read_huge_page_pool(kPage, fake.roots());
    EXPECT_EQ(pool->available_on(0), 1U);
    EXPECT_EQ(pool->available_on(1), 1U);
    EXPECT_EQ(pool->available(), 1U);
}

TEST(HugePagePool, OfEverySizeIsListedSmallestFirst) {
    const FakePool fake("5", "5", "0");
    fake.write("mm/hugepages/hugepages-1048576kB/nr_hugepages", "1");
    fake.write("mm/hugepages/hugepages-64kB/nr_hugepages", "7");
    fake.write("mm/hugepages/hugepages-kB/nr_hugepages", "7");
    const auto pools = read_huge_page_pools(fake.roots());
    ASSERT_EQ(pools.size(), 3U);
    EXPECT_EQ(pools[0].page_bytes, 64 * kKiB);
    EXPECT_EQ(pools[1].total, 5U);
    EXPECT_EQ(pools[2].page_bytes, kGiB);
    EXPECT_TRUE(read_huge_page_pools(nowhere()).empty());
}

TEST(HugePagePool, OfANodeThatIsShortNamesTheNodeAndItsFile) {
    const FakePool fake("300", "260", "0");
    fake.add_node(0, "270", "250");
    fake.add_node(1, "30", "10");
    EXPECT_EQ(shortage_of(fake, from_node(0, 250)), "");
    const std::string error = shortage_of(fake, from_node(1, 11));
    EXPECT_TRUE(mentions(error, "11 huge pages of 2 MiB on node 1: the node has 10 free of 30;")) << error;
    EXPECT_TRUE(mentions(error, "260 free of 300")) << error;
    EXPECT_TRUE(mentions(error, "echo 31 | sudo tee " + fake.path_of(FakePool::node_file(1, "nr_hugepages")) + "`"));
    EXPECT_TRUE(mentions(error, "Config::reserve_huge_pages")) << error;
}

TEST(HugePagePool, IsNotCountedTwiceForTwoSharesOfADemand) {
    const FakePool fake("30", "20", "0");
    fake.add_node(0, "15", "10");
    fake.add_node(1, "15", "10");
    HugePageDemand demand{PageSize::k2M, {{0, 6 * kPage}, {std::nullopt, 9 * kPage}, {0, 4 * kPage}}, false};
    EXPECT_EQ(shortage_of(fake, demand), "");
    demand.shares.push_back({std::nullopt, kPage});
    EXPECT_EQ(shortage_of(fake, demand), "");
    demand.shares.push_back({std::nullopt, 1});
    EXPECT_TRUE(mentions(shortage_of(fake, demand), "cannot reserve 11 huge pages")) << shortage_of(fake, demand);
}

TEST(HugePagePool, OfANodeThatIsNotThereIsAnErrorThatSaysWhichAre) {
    const FakePool fake("30", "20", "0");
    fake.add_node(0, "15", "10");
    fake.add_node(3, "15", "10");
    const std::string error = shortage_of(fake, from_node(1, 1));
    EXPECT_TRUE(mentions(error, "on node 1: this host has no such node with huge pages (it has 0, 3)")) << error;
}

/// A pool that is large enough, below control groups.
class HugePageCgroup : public ::testing::Test {
  protected:
    [[nodiscard]] auto limit() const { return read_huge_page_cgroup_limit(kPage, fake_.roots()); }
    FakePool fake_{"1000", "1000", "0"};
};

TEST_F(HugePageCgroup, WithoutLimitIsNoError) {
    fake_.write("cgroup-of-self", "0::/a/b");
    fake_.write("cgroup/a/b/hugetlb.2MB.max", "max");
    EXPECT_FALSE(limit());
    EXPECT_EQ(shortage_of(fake_, from_any_node(1000)), "");
}

TEST_F(HugePageCgroup, OfVersion2LimitsByTheTightestOfItsAncestors) {
    fake_.write("cgroup-of-self", "0::/a/b");
    fake_.write("cgroup/a/b/hugetlb.2MB.max", std::to_string(100 * kPage));
    fake_.write("cgroup/a/b/hugetlb.2MB.current", "0");
    fake_.write("cgroup/a/hugetlb.2MB.rsvd.max", std::to_string(200 * kPage));
    fake_.write("cgroup/a/hugetlb.2MB.rsvd.current", std::to_string(190 * kPage));
    ASSERT_TRUE(limit());
    EXPECT_EQ(limit()->remaining_bytes(), 10 * kPage);
    EXPECT_EQ(limit()->file, fake_.path_of("cgroup/a/hugetlb.2MB.rsvd.max"));
    EXPECT_EQ(shortage_of(fake_, from_any_node(10)), "");
    const std::string error = shortage_of(fake_, from_any_node(11));
    EXPECT_TRUE(mentions(error, "control group of this process may take 20 MiB more")) << error;
    EXPECT_TRUE(mentions(error, "1000 free of 1000")) << error;
    EXPECT_TRUE(mentions(error, "echo " + std::to_string(201 * kPage) + " | sudo tee " + limit()->file)) << error;
}

TEST_F(HugePageCgroup, OfVersion1IsReadBelowItsController) {
    fake_.write("cgroup-of-self", "5:memory:/x\n4:cpu,hugetlb:/a\n0::/");
    fake_.write("cgroup/hugetlb/a/hugetlb.2MB.limit_in_bytes", std::to_string(3 * kPage));
    fake_.write("cgroup/hugetlb/a/hugetlb.2MB.usage_in_bytes", std::to_string(kPage));
    fake_.write("cgroup/hugetlb/hugetlb.2MB.limit_in_bytes", "9223372036854771712");
    ASSERT_TRUE(limit());
    EXPECT_EQ(limit()->remaining_bytes(), 2 * kPage);
}

TEST_F(HugePageCgroup, BesideVersion1IsReadFromItsOwnFolder) {
    fake_.write("cgroup-of-self", "0::/a");
    fake_.write("cgroup/unified/cgroup.controllers", "hugetlb");
    fake_.write("cgroup/unified/a/hugetlb.2MB.max", std::to_string(kPage));
    ASSERT_TRUE(limit());
    EXPECT_EQ(limit()->remaining_bytes(), kPage);
}

TEST_F(HugePageCgroup, WhoseFolderIsTheMountItselfIsRead) {
    fake_.write("cgroup-of-self", "0::/outer/container");
    fake_.write("cgroup/hugetlb.2MB.max", std::to_string(kPage));
    EXPECT_TRUE(limit());
}

TEST_F(HugePageCgroup, OutsideOfTheNamespaceLeavesTheMount) {
    fake_.write("cgroup-of-self", "0::/../cgroup-of-others");
    fake_.write("cgroup-of-others/hugetlb.2MB.max", "0");
    EXPECT_FALSE(limit());
}

TEST_F(HugePageCgroup, LimitsAlsoWhatWillBeRaised) {
    fake_.write("cgroup-of-self", "0::/");
    fake_.write("cgroup/hugetlb.2MB.max", "0");
    EXPECT_TRUE(mentions(refusal_to_raise(from_any_node(1), fake_.roots()), "control group"));
}

TEST(HugePageReservation, RaisesByWhatIsMissingAndGivesItBack) {
    const FakePool fake("10", "5", "2");
    FakeKernel kernel(fake, 1000);
    {
        const HugePageReservation reservation(from_any_node(8), kernel.roots());
        ASSERT_EQ(reservation.added().size(), 1U);
        EXPECT_EQ(reservation.added()[0].pages, 5U);
        EXPECT_FALSE(reservation.added()[0].node);
        EXPECT_EQ(read_huge_page_pool(kPage, fake.roots())->available(), 8U);
    }
    EXPECT_EQ(fake.read(FakePool::pool_file("nr_hugepages")), 10U);
}

TEST(HugePageReservation, ChangesNothingWhereEnoughIsThere) {
    const FakePool fake("10", "8", "0");
    FakeKernel kernel(fake, 1000);
    {
        const HugePageReservation reservation(from_any_node(8), kernel.roots());
        EXPECT_TRUE(reservation.added().empty());
        const HugePageReservation ordinary({PageSize::kThp, {{std::nullopt, kTiB}}, false}, nowhere());
        EXPECT_TRUE(ordinary.added().empty());
    }
    EXPECT_TRUE(kernel.written().empty());
}

TEST(HugePageReservation, GivesBackRelativeToWhatThePoolIsThen) {
    const FakePool fake("10", "10", "0");
    FakeKernel kernel(fake, 1000);
    {
        const HugePageReservation reservation(from_any_node(14), kernel.roots());
        fake.write(FakePool::pool_file("nr_hugepages"), "114");
        fake.write(FakePool::pool_file("free_hugepages"), "114");
    }
    EXPECT_EQ(fake.read(FakePool::pool_file("nr_hugepages")), 110U);
    {
        const HugePageReservation reservation(from_any_node(114), kernel.roots());
        fake.write(FakePool::pool_file("nr_hugepages"), "3");
        fake.write(FakePool::pool_file("free_hugepages"), "3");
    }
    EXPECT_EQ(fake.read(FakePool::pool_file("nr_hugepages")), 0U);
}

TEST(HugePageReservation, GivesBackTheSurplusThatRaisingMadeLasting) {
    const FakePool fake("10", "0", "0", "8", "4"); // six lasting ones, four on demand, all in use
    FakeKernel kernel(fake, 1000);
    {
        const HugePageReservation reservation(from_any_node(3), kernel.roots());
        EXPECT_EQ(reservation.added()[0].pages, 7U);
        EXPECT_EQ(read_huge_page_pool(kPage, fake.roots())->available(), 3U);
        EXPECT_EQ(fake.read(FakePool::pool_file("surplus_hugepages")), 0U);
    }
    EXPECT_EQ(fake.read(FakePool::pool_file("nr_hugepages")), 10U);
    EXPECT_EQ(fake.read(FakePool::pool_file("surplus_hugepages")), 4U);
}

TEST(HugePageReservation, GivesBackEverythingWhereTheKernelGivesFewer) {
    const FakePool fake("10", "5", "0");
    FakeKernel kernel(fake, 17);
    const std::string error = refusal_to_raise(from_any_node(25), kernel.roots());
    EXPECT_TRUE(mentions(error, "cannot raise the pool by 20 huge pages of 2 MiB: the kernel gave 7,")) << error;
    EXPECT_TRUE(mentions(error, "compact_memory")) << error;
    EXPECT_TRUE(mentions(error, "hugepagesz=2M hugepages=25")) << error;
    EXPECT_EQ(fake.read(FakePool::pool_file("nr_hugepages")), 10U);
}

TEST(HugePageReservation, GoesOnWhereTheKernelStoppedEarlyOnce) {
    const FakePool fake("10", "10", "0");
    FakeKernel fewer(fake, 12);
    FakeKernel kernel(fake, 1000);
    HugePageRoots roots = fewer.roots();
    unsigned writes = 0;
    roots.write_count = [&, all = kernel.roots().write_count, some = fewer.roots().write_count](
                            const std::string& file, std::uint64_t pages) { (writes++ < 2 ? some : all)(file, pages); };
    const HugePageReservation reservation(from_any_node(16), roots);
    EXPECT_EQ(reservation.added()[0].pages, 6U);
}

TEST(HugePageReservation, RaisesInStepsBetweenWhichAStopIsHeard) {
    const FakePool fake("0", "0", "0");
    FakeKernel kernel(fake, 100000);
    const auto source = std::make_unique<std::stop_source>();
    kernel.after_write = [&] { kernel.written().size() == 2 ? static_cast<void>(source->request_stop()) : void(); };
    EXPECT_FALSE(HugePageReservation::unless_stopped(source->get_token(), from_any_node(2000), kernel.roots()));
    EXPECT_EQ(kernel.written(), (std::vector<std::uint64_t>{512, 1024, 0}));
}

TEST(HugePageReservation, IsNotMadeWhereAStopCameFirst) {
    const FakePool fake("0", "0", "0");
    FakeKernel kernel(fake, 1000);
    EXPECT_FALSE(
        HugePageReservation::unless_stopped(testing::stop_requested_already(), from_any_node(2), kernel.roots()));
    EXPECT_TRUE(kernel.written().empty());
    EXPECT_TRUE(HugePageReservation::unless_stopped({}, from_any_node(2), kernel.roots()));
}

TEST(HugePageReservation, RaisesTheNodesOwnFile) {
    const FakePool fake("8", "8", "0");
    fake.add_node(0, "5", "5");
    fake.add_node(1, "3", "3");
    const HugePageDemand demand{PageSize::k2M, {{std::nullopt, 2 * kPage}, {1, 7 * kPage}}, false};
    {
        const HugePageReservation reservation(demand, fake.roots());
        ASSERT_EQ(reservation.added().size(), 1U);
        EXPECT_EQ(reservation.added()[0].node, 1U);
        EXPECT_EQ(reservation.added()[0].pages, 4U);
        EXPECT_EQ(fake.read(FakePool::node_file(1, "nr_hugepages")), 7U);
        EXPECT_EQ(fake.read(FakePool::pool_file("nr_hugepages")), 8U);
    }
    EXPECT_EQ(fake.read(FakePool::node_file(1, "nr_hugepages")), 3U);
}

TEST(HugePageReservation, GivesBackOnceAfterItWasMoved) {
    const FakePool fake("0", "0", "0");
    FakeKernel kernel(fake, 1000);
    {
        HugePageReservation first(from_any_node(4), kernel.roots());
        HugePageReservation second(std::move(first));
        second.release_turn();
        HugePageReservation third(from_any_node(6), kernel.roots());
        EXPECT_EQ(fake.read(FakePool::pool_file("nr_hugepages")), 6U);
        third = std::move(second);
        EXPECT_EQ(fake.read(FakePool::pool_file("nr_hugepages")), 4U);
    }
    EXPECT_EQ(fake.read(FakePool::pool_file("nr_hugepages")), 0U);
}

TEST(HugePageReservation, IsRefusedBeforeItTakesWhatOthersLiveOn) {
    const FakePool fake("0", "0", "0");
    fake.write("meminfo", "MemTotal:       1000000 kB\nMemAvailable:      8192 kB");
    FakeKernel kernel(fake, 1000);
    EXPECT_EQ(refusal_to_raise(from_any_node(4), kernel.roots()), "");
    const std::string error = refusal_to_raise(from_any_node(5), kernel.roots());
    EXPECT_TRUE(mentions(error, "8 MiB of memory available")) << error;
}

TEST(HugePageReservation, MakesOthersWaitUntilTheMemoryIsMapped) {
    const FakePool fake("0", "0", "0");
    FakeKernel kernel(fake, 1000);
    HugePageReservation first(from_any_node(4), kernel.roots());
    EXPECT_TRUE(mentions(refusal_to_raise(from_any_node(4), kernel.roots()), "another process is reserving"));
    first.release_turn();
    EXPECT_EQ(refusal_to_raise(from_any_node(4), kernel.roots()), "");
}

TEST(HugePageReservation, WaitingForAnotherHearsAStop) {
    const FakePool fake("0", "0", "0");
    FakeKernel kernel(fake, 1000);
    const HugePageReservation first(from_any_node(4), kernel.roots());
    const auto source = std::make_unique<std::stop_source>();
    const std::jthread stopper([&] {
        std::this_thread::sleep_for(std::chrono::milliseconds(30));
        source->request_stop();
    });
    EXPECT_FALSE(HugePageReservation::unless_stopped(source->get_token(), from_any_node(4), kernel.roots()));
}

TEST(HugePageReservation, OfAProcessThatWasKilledIsNotWaitedFor) {
    const FakePool fake("0", "0", "0");
    testing::Pipe ready;
    const pid_t child = ::fork();
    if (child == 0) {
        const HugePageReservation reservation(from_any_node(4), fake.roots());
        testing::write_text(ready.writer.get(), "x");
        ::pause();
        ::_exit(0);
    }
    ready.writer.reset();
    char said = 0;
    EXPECT_EQ(::read(ready.reader.get(), &said, 1), 1);
    ::kill(child, SIGKILL);
    ::waitpid(child, nullptr, 0);
    EXPECT_EQ(refusal_to_raise(from_any_node(8), fake.roots()), "");
    // The added pages are still there, because nobody was left to give them back.
    EXPECT_EQ(fake.read(FakePool::pool_file("nr_hugepages")), 4U);
}

TEST(HugePageReservation, OfSeveralProcessesLosesNoUpdate) {
    const FakePool fake("7", "0", "0");
    HugePageRoots roots = fake.roots();
    roots.write_count = [](const std::string& file, std::uint64_t pages) {
        std::this_thread::sleep_for(std::chrono::milliseconds(2)); // so that others can act between reading and writing
        std::fstream(file, std::ios::in | std::ios::out) << pages << '\n';
    };
    std::vector<pid_t> children;
    for (unsigned pages = 1; pages <= 4; ++pages) {
        const pid_t child = ::fork();
        if (child == 0) {
            try {
                for (unsigned turn = 0; turn < 20; ++turn) {
                    HugePageReservation reservation(from_any_node(pages), roots, testing::kPatience);
                    reservation.release_turn();
                }
                ::_exit(0);
            } catch (const Error&) {
                ::_exit(1);
            }
        }
        children.push_back(child);
    }
    for (const pid_t child : children) {
        int status = 1;
        ::waitpid(child, &status, 0);
        EXPECT_EQ(status, 0);
    }
    EXPECT_EQ(fake.read(FakePool::pool_file("nr_hugepages")), 7U);
}

/// A user that may not raise a pool.
constexpr uid_t kNobody = 65534;

TEST(HugePageReservation, WithoutTheRightToRaiseSaysSo) {
    const FakePool fake("0", "0", "0");
    fake.open_to_all();
    std::filesystem::permissions(fake.path_of(FakePool::pool_file("nr_hugepages")), std::filesystem::perms(0444));
    const std::string error = testing::in_child_process([&]() -> std::string {
        if (::geteuid() == 0 && ::setuid(kNobody) != 0) {
            return "cannot change the user";
        }
        return refusal_to_raise(from_any_node(4), fake.roots());
    });
    EXPECT_TRUE(mentions(error, "nr_hugepages: Permission denied (Config::reserve_huge_pages needs root")) << error;
}

TEST(HugePageReservation, IsGivenBackAfterPrivilegesWereDropped) {
    if (::geteuid() != 0) {
        GTEST_SKIP() << "only root has privileges to drop";
    }
    const FakePool fake("3", "0", "0");
    fake.open_to_all();
    const std::string result = testing::in_child_process([&]() -> std::string {
        const HugePageReservation reservation(from_any_node(4), fake.roots());
        return ::setuid(kNobody) == 0 ? std::to_string(fake.read(FakePool::pool_file("nr_hugepages"))) : "not dropped";
    });
    EXPECT_EQ(result, "7");
    EXPECT_EQ(fake.read(FakePool::pool_file("nr_hugepages")), 3U);
}

// This host's own pool. Others may use it meanwhile. So the test takes few pages, compares differences, and repeats
// that if necessary.

/// How many pages of this host a test may map.
constexpr std::uint64_t kMostHostPages = 64;

/// Why this host's pool of 2 MiB pages cannot be raised; empty if it can.
std::string why_no_host_pool() {
    if (!read_huge_page_pool(kPage)) {
        return "this host has no pool of 2 MiB pages";
    }
    if (::geteuid() != 0) {
        return "only root may raise the pool";
    }
    return error_of([]() -> int {
        const HugePageReservation probe(from_any_node(read_huge_page_pool(kPage)->available() + 1));
        return 0;
    });
}

#define VMM_NEEDS_HOST_POOL()                                                                                          \
    if (const std::string reason = why_no_host_pool(); !reason.empty()) {                                              \
        GTEST_SKIP() << reason;                                                                                        \
    }

std::uint64_t host_total() {
    return read_huge_page_pool(kPage)->total;
}

TEST(HugePageReservation, RaisesThePoolOfThisHostAndGivesItBack) {
    VMM_NEEDS_HOST_POOL();
    EXPECT_TRUE(testing::eventually([] {
        const auto before = read_huge_page_pool(kPage);
        std::uint64_t during = 0;
        std::uint64_t added = 0;
        {
            const HugePageReservation reservation(from_any_node(before->available() + 4));
            during = host_total();
            added = reservation.added().empty() ? 0 : reservation.added()[0].pages;
        }
        return added == 4 && during == before->total + 4 && host_total() == before->total;
    }));
}

TEST(HugePageReservation, RaisesOneNodeOfThisHost) {
    VMM_NEEDS_HOST_POOL();
    if (read_huge_page_pool(kPage)->nodes.empty()) {
        GTEST_SKIP() << "this host does not count huge pages by node";
    }
    EXPECT_TRUE(testing::eventually([] {
        const auto before = read_huge_page_pool(kPage);
        const NodeHugePages& node = before->nodes.front();
        std::uint64_t during = 0;
        {
            const HugePageReservation reservation(from_node(node.node, before->available_on(node.node) + 2));
            during = read_huge_page_pool(kPage)->nodes.front().total;
        }
        return during == node.total + 2 && read_huge_page_pool(kPage)->nodes.front().total == node.total;
    }));
}

TEST(HugePageReservation, GivenBackWhilePagesAreMappedLeavesThemToTheirUser) {
    VMM_NEEDS_HOST_POOL();
    EXPECT_TRUE(testing::eventually([] {
        constexpr std::uint64_t kPages = 4;
        const auto before = read_huge_page_pool(kPage);
        if (before->available() > kMostHostPages) {
            return false; // Somebody has raised the pool. Those pages are not ours, so try later.
        }
        std::uint64_t surplus = 0;
        bool kept = true;
        {
            std::optional<HugePageReservation> reservation(from_any_node(before->available() + kPages));
            const Mapping memory = Mapping::anonymous((before->available() + kPages) * kPage, kPage,
                                                      MAP_HUGETLB | (21 << MAP_HUGE_SHIFT), "a test");
            reservation->release_turn();
            std::ranges::fill(memory.bytes(), std::byte{7});
            reservation.reset();
            surplus = read_huge_page_pool(kPage)->surplus;
            kept = std::ranges::all_of(memory.bytes(), [](std::byte byte) { return byte == std::byte{7}; });
        }
        EXPECT_TRUE(kept);
        return surplus == before->surplus + kPages && host_total() == before->total;
    }));
}

TEST(HugePageReservation, OfTwoProcessesHasPagesForBoth) {
    VMM_NEEDS_HOST_POOL();
    EXPECT_TRUE(testing::eventually([] {
        const std::uint64_t before = host_total();
        const std::uint64_t pages = read_huge_page_pool(kPage)->available() + 3;
        if (pages > kMostHostPages) {
            return false;
        }
        std::vector<pid_t> children;
        for (int process = 0; process < 2; ++process) {
            const pid_t child = ::fork();
            if (child == 0) {
                try {
                    for (int turn = 0; turn < 5; ++turn) {
                        HugePageReservation reservation(from_any_node(pages));
                        const Mapping memory =
                            Mapping::anonymous(pages * kPage, kPage, MAP_HUGETLB | (21 << MAP_HUGE_SHIFT), "a test");
                        reservation.release_turn();
                        std::ranges::fill(memory.bytes(), std::byte{1});
                    }
                    ::_exit(0);
                } catch (const Error&) {
                    ::_exit(1);
                }
            }
            children.push_back(child);
        }
        bool good = true;
        for (const pid_t child : children) {
            int status = 1;
            ::waitpid(child, &status, 0);
            good = good && status == 0;
        }
        return good && host_total() == before;
    }));
}

} // namespace
} // namespace vmm::prefault
