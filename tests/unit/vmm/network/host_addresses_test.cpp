// The addresses that count as the host itself, for a guest that must be kept from the host.

#include "vmm/network/host_addresses.hpp"

#include <gtest/gtest.h>

#include <cstdint>

#include "support/host_network_namespace.hpp"

namespace vmm {
namespace {

constexpr std::uint32_t number(unsigned a, unsigned b, unsigned c, unsigned d) {
    return a << 24 | b << 16 | c << 8 | d;
}

class HostAddressesOfItsOwn : public ::testing::Test {
  protected:
    void SetUp() override {
        if (!network_.why().empty()) {
            GTEST_SKIP() << network_.why();
        }
    }
    testing::NetworkNamespace network_;
};

TEST(HostAddressesTest, HaveTheLoopbackInterfaceAndNobodyElses) {
    HostAddresses addresses;
    EXPECT_TRUE(addresses.contains(number(127, 0, 0, 1)));
    EXPECT_FALSE(addresses.contains(number(203, 0, 113, 77)));
    EXPECT_EQ(addresses.readings(), 1U) << "nothing has changed";
}

TEST_F(HostAddressesOfItsOwn, HaveAnAddressThatWasThereBefore) {
    ASSERT_TRUE(network_.add_address(1, "198.51.100.7"));
    HostAddresses addresses;
    EXPECT_TRUE(addresses.contains(number(198, 51, 100, 7)));
    EXPECT_FALSE(addresses.contains(number(203, 0, 113, 5)));
}

TEST_F(HostAddressesOfItsOwn, FollowWhatChanges) {
    HostAddresses addresses;
    EXPECT_FALSE(addresses.contains(number(198, 51, 100, 7)));
    ASSERT_TRUE(network_.add_address(1, "198.51.100.7"));
    EXPECT_TRUE(addresses.contains(number(198, 51, 100, 7)));
    ASSERT_TRUE(network_.remove_address(1));
    EXPECT_FALSE(addresses.contains(number(198, 51, 100, 7)));
}

TEST_F(HostAddressesOfItsOwn, HaveWhateverTheRoutesCallLocal) {
    // On the loopback interface a whole network is local, as with `ip route add local`.
    ASSERT_TRUE(network_.add_address(1, "198.51.100.7"));
    HostAddresses addresses;
    EXPECT_TRUE(addresses.contains(number(198, 51, 100, 200)));
    EXPECT_TRUE(addresses.contains(number(198, 51, 100, 255))) << "the broadcast address";
}

TEST_F(HostAddressesOfItsOwn, OutliveAFloodOfChanges) {
    HostAddresses addresses;
    for (int round = 0; round < 300; ++round) {
        ASSERT_TRUE(network_.add_address(1, "198.51.100.7"));
        ASSERT_TRUE(network_.remove_address(1));
    }
    ASSERT_TRUE(network_.add_address(2, "203.0.113.5"));
    EXPECT_TRUE(addresses.contains(number(203, 0, 113, 5)));
    EXPECT_FALSE(addresses.contains(number(198, 51, 100, 7)));
}

} // namespace
} // namespace vmm
