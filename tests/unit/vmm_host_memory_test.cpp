#include "vmm/host_memory.hpp"

#include <gtest/gtest.h>

#include <string>

#include "support/host_temporary_directory.hpp"

namespace vmm {
namespace {

class MemoryCgroup : public ::testing::Test {
  protected:
    [[nodiscard]] auto limit() const {
        return read_memory_cgroup_limit({directory_ / "cgroup-of-self", directory_ / "cgroup"});
    }
    void write(const std::string& name, const std::string& content) const { directory_.write(name, content + "\n"); }

  private:
    testing::TemporaryDirectory directory_;
};

TEST_F(MemoryCgroup, ThatCannotBeReadSetsNoLimit) {
    EXPECT_FALSE(limit());
}

TEST_F(MemoryCgroup, OfVersion2SetsTheSmallestLimitOfItsAncestors) {
    write("cgroup-of-self", "0::/a/b");
    write("cgroup/a/b/memory.max", "max");
    write("cgroup/a/memory.max", "4096");
    write("cgroup/memory.max", "8192");
    EXPECT_EQ(limit(), 4096U);
}

TEST_F(MemoryCgroup, OfVersion1IsReadBelowItsController) {
    write("cgroup-of-self", "5:memory:/a\n4:cpu:/b");
    write("cgroup/memory/a/memory.limit_in_bytes", "12288");
    write("cgroup/memory/memory.limit_in_bytes", "9223372036854771712");
    write("cgroup/cpu/b/memory.limit_in_bytes", "1");
    EXPECT_EQ(limit(), 12288U);
}

} // namespace
} // namespace vmm
