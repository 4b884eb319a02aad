#include "devices/pci/config_ports.hpp"

#include <gtest/gtest.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "devices/pci/root_bus.hpp"
#include "devices/reset_register.hpp"
#include "support/devices_guest_access.hpp"
#include "support/devices_pci_driver.hpp"
#include "support/devices_pci_function.hpp"

namespace vmm::devices::pci {
namespace {

namespace header = testing::header;
using testing::HostileGuest;
using testing::inb;
using testing::MemoryFunction;
using testing::outb;

constexpr std::uint64_t kAddress = 0; // port 0xcf8
constexpr std::uint64_t kData = 4;    // port 0xcfc
constexpr std::uint64_t kReset = 1;   // port 0xcf9
constexpr std::uint32_t kEnable = 0x80000000;

/// The other device at these ports: it notes its accesses.
class OtherDevice final : public Device {
  public:
    [[nodiscard]] std::string_view name() const noexcept override { return "other"; }
    void read(std::uint64_t offset, std::span<std::byte> data) noexcept override {
        std::ranges::fill(data, std::byte{0xa0} | static_cast<std::byte>(offset));
    }
    void write(std::uint64_t offset, std::span<const std::byte> data) noexcept override {
        for (std::size_t i = 0; i < data.size(); ++i) {
            written.emplace_back(offset + i, std::to_integer<unsigned>(data[i]));
        }
    }
    std::vector<std::pair<std::uint64_t, unsigned>> written;
};

class ConfigPortsTest : public ::testing::Test {
  protected:
    static constexpr unsigned kSlot = 3;

    ConfigPortsTest() { bus.insert(kSlot, function); }

    template <typename T>
    T in(std::uint64_t offset) {
        T value{};
        ports.read(offset, std::as_writable_bytes(std::span(&value, 1)));
        return value;
    }
    template <typename T>
    void out(std::uint64_t offset, T value) {
        ports.write(offset, std::as_bytes(std::span(&value, 1)));
    }
    static constexpr std::uint32_t address(unsigned slot, unsigned offset) {
        return kEnable | slot << 11U | (offset & 0xfcU);
    }

    RootBus bus{GuestRange{GuestAddress{0xe0000000}, 0x100000}, {}};
    std::shared_ptr<MemoryFunction> function =
        std::make_shared<MemoryFunction>(std::uint16_t{0x1234}, 0x1000U, GuestAddress{0xe0000000});
    OtherDevice other;
    ConfigPorts ports{bus, other, {}};
};

// PCI Local Bus 3.0, 3.2.2.3.2.
TEST_F(ConfigPortsTest, TheAddressRegisterHoldsTheBitsThatThereAre) {
    EXPECT_EQ(in<std::uint32_t>(kAddress), 0U);
    out(kAddress, UINT32_MAX);
    EXPECT_EQ(in<std::uint32_t>(kAddress), 0x80fffffcU);
    out(kAddress, std::uint32_t{0});
    EXPECT_EQ(in<std::uint32_t>(kAddress), 0U);
    EXPECT_TRUE(other.written.empty());
}

TEST_F(ConfigPortsTest, DataIsThatOfTheRegisterAtEveryWidth) {
    out(kAddress, address(kSlot, header::kVendor));
    EXPECT_EQ(in<std::uint32_t>(kData), 0x12341b36U);
    EXPECT_EQ(in<std::uint16_t>(kData), 0x1b36U);
    EXPECT_EQ(in<std::uint16_t>(kData + 2), 0x1234U);
    EXPECT_EQ(in<std::uint16_t>(kData + 1), 0x341bU);
    EXPECT_EQ(in<std::uint8_t>(kData + 3), 0x12U);
    out(kAddress, address(kSlot, header::kInterruptLine));
    out(kData, std::uint8_t{9});
    EXPECT_EQ(in<std::uint32_t>(kData), 9U);
    out(kAddress, address(kSlot, header::kBaseAddress));
    out(kData + 2, std::uint16_t{0xe005});
    EXPECT_EQ(in<std::uint32_t>(kData), 0xe0050000U);
    EXPECT_EQ(function->decoded()->base, GuestAddress{0xe0050000});
    EXPECT_FALSE(function->was_misused());
}

TEST_F(ConfigPortsTest, AnAccessDoesNotReachTheNextRegister) {
    out(kAddress, address(kSlot, header::kVendor));
    EXPECT_EQ(in<std::uint32_t>(kData + 2), 0xffff1234U);
    (void)function->take();
    out(kData + 3, UINT32_MAX);
    EXPECT_EQ(function->take(), (std::vector<MemoryFunction::Access>{{true, true, 3, 1}}));
}

TEST_F(ConfigPortsTest, WithoutTheEnableBitThereIsNobody) {
    out(kAddress, address(kSlot, 0) & ~kEnable);
    EXPECT_EQ(in<std::uint32_t>(kData), UINT32_MAX);
    out(kData, UINT32_MAX);
    EXPECT_TRUE(function->take().empty());
}

TEST_F(ConfigPortsTest, OnOtherBusesFunctionsAndSlotsThereIsNobody) {
    for (const std::uint32_t other_bits :
         {1U << 16U, 0x80U << 16U, 0xffU << 16U, 1U << 8U, 7U << 8U, 1U << 11U << 3U}) {
        out(kAddress, address(kSlot, 0) ^ other_bits);
        EXPECT_EQ(in<std::uint32_t>(kData), UINT32_MAX) << other_bits;
        out(kData, UINT32_MAX);
    }
    EXPECT_TRUE(function->take().empty());
}

// An access at 0xcf8 that is not a double word does not go to the address register.
TEST_F(ConfigPortsTest, TheOtherDeviceAnswersForTheRestOfThePorts) {
    out(kAddress, address(kSlot, 0));
    EXPECT_EQ(in<std::uint8_t>(0), 0xa0U);
    EXPECT_EQ(in<std::uint8_t>(kReset), 0xa1U);
    EXPECT_EQ(in<std::uint16_t>(2), 0xa2a2U);
    out(0, std::uint8_t{1});
    out(kReset, std::uint8_t{2});
    out(2, std::uint16_t{0x0403});
    EXPECT_EQ(other.written, (std::vector<std::pair<std::uint64_t, unsigned>>{{0, 1}, {kReset, 2}, {2, 3}, {3, 4}}));
    EXPECT_EQ(in<std::uint32_t>(kAddress), address(kSlot, 0)) << "it is as it was";
    EXPECT_EQ(in<std::uint16_t>(3), 0x36a3U) << "each byte is that of its port";
}

// A PC's reset control register is at 0xcf9.
TEST_F(ConfigPortsTest, TheResetRegisterStillWorks) {
    int resets = 0;
    ResetRegister reset(reset_control::kLayout, [&resets] { ++resets; });
    ConfigPorts with_reset{bus, reset, {}};
    outb(with_reset, kReset, 0x06);
    EXPECT_EQ(resets, 1);
    const std::uint32_t value = kEnable | 0x0600;
    with_reset.write(kAddress, std::as_bytes(std::span(&value, 1)));
    EXPECT_EQ(resets, 1) << "a double word is an address";
}

TEST_F(ConfigPortsTest, GoesOnFromItsState) {
    out(kAddress, address(kSlot, header::kDevice & ~3U));
    ConfigPorts restored{bus, other, ports.state()};
    EXPECT_EQ(restored.state(), ports.state());
    std::uint16_t value = 0;
    restored.read(kData + 2, std::as_writable_bytes(std::span(&value, 1)));
    EXPECT_EQ(value, 0x1234U);
    EXPECT_EQ((ConfigPorts{bus, other, {UINT32_MAX}}.state().address), 0x80fffffcU);
}

TEST_F(ConfigPortsTest, BeyondTheirEndThereIsNothing) {
    out(kAddress, address(kSlot, 0));
    for (const std::uint64_t offset : {std::uint64_t{8}, std::uint64_t{9}, std::uint64_t{1} << 32U, UINT64_MAX}) {
        EXPECT_EQ(in<std::uint8_t>(offset), 0xffU) << offset;
        out(offset, std::uint8_t{0});
    }
    EXPECT_TRUE(function->take().empty());
}

TEST_F(ConfigPortsTest, SurvivesAccessesOfAnyKind) {
    HostileGuest guest{3};
    for (int i = 0; i < 50'000; ++i) {
        guest.access(ports, ConfigPorts::kSize);
    }
    EXPECT_FALSE(function->was_misused());
}

} // namespace
} // namespace vmm::devices::pci
