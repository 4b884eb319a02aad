#include "vmm/network/port_forward.hpp"

#include <gtest/gtest.h>

#include "support/host_errors.hpp"

namespace vmm {
namespace {

using testing::error_of;
using testing::mentions;

TEST(PortForwards, AreSeparatedByCommas) {
    EXPECT_TRUE(parse_port_forwards("", false).empty());
    EXPECT_EQ(parse_port_forwards("8080:80,192.0.2.1/22", true),
              (std::vector<PortForward>{{true, "127.0.0.1", 8080, 80}, {true, "192.0.2.1", 22, 22}}));
}

TEST(PortForwards, AreRefusedWhereTheyAreNoPorts) {
    for (const char* const text :
         {",", "80,", ",80", "80,,81", "0", "65536", "-1", "80:", ":80", "80:81:82", "1/", "x"}) {
        const std::string refusal = error_of([&] { static_cast<void>(parse_port_forwards(text, false)); });
        EXPECT_TRUE(mentions(refusal, "is no port, 1 to 65535") || mentions(refusal, "ends with a comma"))
            << text << ": " << refusal;
    }
}

} // namespace
} // namespace vmm
