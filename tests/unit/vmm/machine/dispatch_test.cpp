#include "vmm/machine/dispatch.hpp"

#include <gtest/gtest.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <string_view>
#include <vector>

namespace vmm {
namespace {

using Next = AfterExit::Next;

/// Notes each access. It reads as a number that grows by one with each access.
class Recorder final : public devices::Device {
  public:
    struct Access {
        bool is_write;
        std::uint64_t offset;
        std::vector<std::byte> data;
        friend bool operator==(const Access&, const Access&) = default;
    };

    [[nodiscard]] std::string_view name() const noexcept override { return "recorder"; }
    void read(std::uint64_t offset, std::span<std::byte> data) noexcept override {
        for (std::byte& byte : data) {
            byte = static_cast<std::byte>(next_++);
        }
        accesses.push_back({false, offset, {data.begin(), data.end()}});
    }
    void write(std::uint64_t offset, std::span<const std::byte> data) noexcept override {
        accesses.push_back({true, offset, {data.begin(), data.end()}});
    }

    std::vector<Access> accesses;

  private:
    unsigned next_ = 1;
};

std::vector<std::byte> bytes(std::initializer_list<unsigned> values) {
    std::vector<std::byte> result;
    for (const unsigned value : values) {
        result.push_back(static_cast<std::byte>(value));
    }
    return result;
}

class Dispatch : public ::testing::Test {
  protected:
    static constexpr std::uint16_t kPort = 0x3f8;
    static constexpr std::uint64_t kAddress = 0xd0000000;

    Dispatch() {
        ports_.attach(kPort, 8, port_device_);
        mmio_.attach(kAddress, 0x1000, mmio_device_);
        ports_.freeze();
        mmio_.freeze();
    }
    AfterExit operator()(const kvm::Exit& exit) { return dispatch(exit, ports_, mmio_); }

    Recorder port_device_;
    Recorder mmio_device_;
    devices::Bus ports_{devices::AddressSpace::kPortIo};
    devices::Bus mmio_{devices::AddressSpace::kMmio};
};

TEST_F(Dispatch, PortWriteReachesTheDevice) {
    auto data = bytes({0x41});
    EXPECT_EQ((*this)(kvm::PioExit{kPort + 3, 1, true, data}), AfterExit{});
    ASSERT_EQ(port_device_.accesses.size(), 1U);
    EXPECT_EQ(port_device_.accesses[0], (Recorder::Access{true, 3, bytes({0x41})}));
}

TEST_F(Dispatch, PortReadIsFilledInByTheDevice) {
    auto data = bytes({0, 0});
    EXPECT_EQ((*this)(kvm::PioExit{kPort, 2, false, data}), AfterExit{});
    EXPECT_EQ(data, bytes({1, 2}));
}

TEST_F(Dispatch, StringWriteIsOneAccessForEachItemAtTheSamePort) {
    auto data = bytes({1, 2, 3, 4, 5, 6});
    EXPECT_EQ((*this)(kvm::PioExit{kPort, 2, true, data}), AfterExit{});
    EXPECT_EQ(
        port_device_.accesses,
        (std::vector<Recorder::Access>{{true, 0, bytes({1, 2})}, {true, 0, bytes({3, 4})}, {true, 0, bytes({5, 6})}}));
}

TEST_F(Dispatch, StringReadFillsEachItemFromTheSamePort) {
    auto data = bytes({0, 0, 0, 0});
    EXPECT_EQ((*this)(kvm::PioExit{kPort + 1, 1, false, data}), AfterExit{});
    EXPECT_EQ(data, bytes({1, 2, 3, 4}));
    ASSERT_EQ(port_device_.accesses.size(), 4U);
    EXPECT_EQ(port_device_.accesses[3].offset, 1U);
}

TEST_F(Dispatch, MemoryAccessesReachTheDevice) {
    auto data = bytes({1, 2, 3, 4});
    EXPECT_EQ((*this)(kvm::MmioExit{kAddress + 0x10, true, data}), AfterExit{});
    EXPECT_EQ((*this)(kvm::MmioExit{kAddress + 0x20, false, data}), AfterExit{});
    EXPECT_EQ(mmio_device_.accesses,
              (std::vector<Recorder::Access>{{true, 0x10, bytes({1, 2, 3, 4})}, {false, 0x20, bytes({1, 2, 3, 4})}}));
}

TEST_F(Dispatch, ReadsThatNobodyClaimsAreAllOnes) {
    auto port_data = bytes({0, 0, 0, 0});
    EXPECT_EQ((*this)(kvm::PioExit{0x80, 4, false, port_data}), AfterExit{});
    EXPECT_EQ(port_data, bytes({0xff, 0xff, 0xff, 0xff}));
    auto string_data = bytes({0, 0, 0});
    EXPECT_EQ((*this)(kvm::PioExit{0x80, 1, false, string_data}), AfterExit{});
    EXPECT_EQ(string_data, bytes({0xff, 0xff, 0xff}));
    auto mmio_data = bytes({0, 0, 0, 0, 0, 0, 0, 0});
    EXPECT_EQ((*this)(kvm::MmioExit{0xd1000000, false, mmio_data}), AfterExit{});
    EXPECT_EQ(mmio_data, std::vector<std::byte>(8, std::byte{0xff}));
}

TEST_F(Dispatch, WritesThatNobodyClaimsAreIgnored) {
    auto data = bytes({1});
    EXPECT_EQ((*this)(kvm::PioExit{0x80, 1, true, data}), AfterExit{});
    EXPECT_EQ((*this)(kvm::MmioExit{UINT64_MAX, true, data}), AfterExit{});
    EXPECT_TRUE(port_device_.accesses.empty());
    EXPECT_TRUE(mmio_device_.accesses.empty());
}

TEST_F(Dispatch, PortExitWithoutAWidthIsIgnored) {
    auto data = bytes({1, 2});
    EXPECT_EQ((*this)(kvm::PioExit{kPort, 0, true, data}), AfterExit{});
    EXPECT_TRUE(port_device_.accesses.empty());
}

TEST_F(Dispatch, PortExitWithHalfAnItemStaysWithinItsData) {
    auto data = bytes({1, 2, 3});
    EXPECT_EQ((*this)(kvm::PioExit{kPort, 2, true, data}), AfterExit{});
    ASSERT_EQ(port_device_.accesses.size(), 2U);
    EXPECT_EQ(port_device_.accesses[1].data, bytes({3}));
}

TEST_F(Dispatch, HaltGoesOn) {
    EXPECT_EQ((*this)(kvm::HaltExit{}), AfterExit{});
}

TEST_F(Dispatch, KickIsSeen) {
    EXPECT_EQ((*this)(kvm::KickedExit{}), AfterExit{});
}

TEST_F(Dispatch, TripleFaultIsACrash) {
    const AfterExit after = (*this)(kvm::ShutdownExit{});
    EXPECT_EQ(after.next, Next::kCrash);
    EXPECT_NE(after.why.find("triple fault"), std::string::npos);
}

TEST_F(Dispatch, FaultOfKvmIsACrashForItsReason) {
    EXPECT_EQ((*this)(kvm::FaultExit{"internal error 1"}), (AfterExit{Next::kCrash, "internal error 1"}));
}

} // namespace
} // namespace vmm
