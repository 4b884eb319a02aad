#include "prefault/huge_page_pool.hpp"

#include <gtest/gtest.h>

#include <string>

#include "support/host_errors.hpp"
#include "support/host_temporary_directory.hpp"

namespace vmm::prefault {
namespace {

using testing::error_of;
using testing::mentions;

/// A folder like /sys/kernel/mm with a pool of 2 MiB pages.
class FakePool {
  public:
    FakePool(const std::string& total, const std::string& free, const std::string& reserved,
             const std::string& overcommit = "0", const std::string& surplus = "0") {
        write("nr_hugepages", total);
        write("free_hugepages", free);
        write("resv_hugepages", reserved);
        write("nr_overcommit_hugepages", overcommit);
        write("surplus_hugepages", surplus);
    }
    [[nodiscard]] std::string path() const { return directory_.path(); }

  private:
    void write(const std::string& name, const std::string& value) const {
        directory_.write("hugepages/hugepages-2048kB/" + name, value + "\n");
    }
    testing::TemporaryDirectory directory_;
};

/// What checking for `bytes` in 2 MiB pages says.
std::string shortage(const FakePool& pool, std::uint64_t bytes, PageSize page_size = PageSize::k2M) {
    return error_of([&]() -> int {
        check_huge_page_pool(page_size, bytes, pool.path());
        return 0;
    });
}

TEST(HugePagePool, IsReadFromSysfs) {
    const FakePool fake("512", "40", "3", "10", "4");
    const auto pool = read_huge_page_pool(2 * kMiB, fake.path());
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
    EXPECT_EQ(read_huge_page_pool(2 * kMiB, fake.path())->available(), 0U);
}

TEST(HugePagePool, CannotOvercommitBelowItsSurplus) {
    const FakePool fake("8", "2", "0", "3", "5");
    EXPECT_EQ(read_huge_page_pool(2 * kMiB, fake.path())->overcommit, 0U);
}

TEST(HugePagePool, DoesNotExistForASizeTheHostHasNot) {
    const FakePool fake("1", "1", "0");
    EXPECT_FALSE(read_huge_page_pool(kGiB, fake.path()));
    EXPECT_FALSE(read_huge_page_pool(2 * kMiB, "/nonexistent"));
}

TEST(HugePagePool, WhoseFileIsNoNumberDoesNotExist) {
    const FakePool fake("many", "1", "0");
    EXPECT_FALSE(read_huge_page_pool(2 * kMiB, fake.path()));
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
    EXPECT_TRUE(mentions(error, "255 free of 300")) << error;
    EXPECT_TRUE(mentions(error, "echo 301 | sudo tee")) << error;
    EXPECT_TRUE(mentions(error, "hugepages/hugepages-2048kB/nr_hugepages")) << error;
    EXPECT_TRUE(mentions(error, "--page-size=thp")) << error;
}

TEST(HugePagePool, ThatDoesNotExistIsAnErrorThatSaysSo) {
    const FakePool fake("1", "1", "0");
    const std::string error = shortage(fake, kGiB, PageSize::k1G);
    EXPECT_TRUE(mentions(error, "no pages of that size")) << error;
}

TEST(HugePagePool, IsNotAskedForOrdinaryPages) {
    const FakePool fake("0", "0", "0");
    EXPECT_EQ(shortage(fake, kTiB, PageSize::kThp), "");
    EXPECT_EQ(shortage(fake, kTiB, PageSize::k4K), "");
}

} // namespace
} // namespace vmm::prefault
