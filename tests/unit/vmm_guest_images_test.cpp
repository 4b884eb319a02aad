// The guest that is built into the program, as the loader sees it.

#include <gtest/gtest.h>

#include "loader/image_file.hpp"
#include "loader/kernel.hpp"
#include "vmm/guest/guest_image.hpp"

namespace vmm {
namespace {

loader::Kernel built_in_kernel() {
    return loader::Kernel::parse(loader::ImageFile::from_bytes("the built-in guest", builtin_guest_image()));
}

TEST(BuiltInGuest, IsEnteredByPvh) {
    EXPECT_EQ(built_in_kernel().protocol(), loader::EntryProtocol::pvh);
}

TEST(BuiltInGuest, DeclaresThatItTakesPageTables) {
    EXPECT_TRUE(built_in_kernel().takes_page_tables());
}

TEST(BuiltInGuest, DeclaresThatItTakesADeviceTree) {
    EXPECT_EQ(built_in_kernel().device_tree_hand_over(), loader::DeviceTreeHandOver::command_line);
}

} // namespace
} // namespace vmm
