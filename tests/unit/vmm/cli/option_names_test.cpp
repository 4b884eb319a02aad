#include "vmm/cli/option_names.hpp"

#include <gtest/gtest.h>

namespace vmm {
namespace {

TEST(OptionNames, StandInPlaceOfMembersOfConfig) {
    EXPECT_EQ(with_option_names("take Config::pin=none, or less with Config::memory_bytes"),
              "take --pin=none, or less with -m");
    EXPECT_EQ(with_option_names("Config::prefault.scope=all with Config::prefault.smm"),
              "--prefault=all with --prefault-smm");
    EXPECT_EQ(with_option_names("(Config::numa=interleave or Config::numa.node)"),
              "(--numa=interleave or --numa-node)");
    EXPECT_EQ(with_option_names("by Config::nested=true: why"), "by --nested on: why");
    EXPECT_EQ(with_option_names("with Config::nets.user."), "with --net user.");
}

TEST(OptionNames, OfPoolsStandInPlaceOfMembersOfMemoryPoolConfig) {
    EXPECT_EQ(with_option_names("(MemoryPoolConfig::size_bytes, MemoryPoolConfig::piece_bytes)"), "(--size, --piece)");
    EXPECT_EQ(with_option_names("start it with MemoryPoolConfig::split_over_nodes=true, or take another Config::numa"),
              "start it with --numa split, or take another --numa");
    EXPECT_EQ(with_option_names("MemoryPoolConfig::path, MemoryPoolConfig::workers, MemoryPoolConfig::page_size=2M"),
              "--socket, --workers, --page-size=2M");
}

TEST(OptionNames, AreOfWholeNamesOnly) {
    EXPECT_EQ(with_option_names("see Config::pin."), "see --pin.");
    for (const char* const text :
         {"", "Config::", "Config::pinned", "Config::numa.kind", "(Config::devices[2])", "(Config::cpu)",
          "MemoryPoolConfig::refills", "Config::workers", "MemoryPoolConfig::pin", "text without a member"}) {
        EXPECT_EQ(with_option_names(text), text);
    }
}

} // namespace
} // namespace vmm
