#include "devices/pci/root_bus.hpp"

#include <gtest/gtest.h>

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <random>
#include <span>
#include <thread>
#include <utility>
#include <vector>

#include "devices/pci/host_bridge.hpp"
#include "support/devices_guest_access.hpp"
#include "support/devices_pci_driver.hpp"
#include "support/devices_pci_function.hpp"

namespace vmm::devices::pci {
namespace {

namespace header = testing::header;
using testing::HostileGuest;
using testing::MemoryFunction;
using Access = MemoryFunction::Access;

constexpr GuestRange kWindow{GuestAddress{0xe0000000}, 0x1000000};
constexpr std::uint32_t kBytes = 0x1000;

constexpr std::uint64_t ecam(unsigned slot, unsigned offset = 0, unsigned function = 0) {
    return std::uint64_t{slot} << 15U | std::uint64_t{function} << 12U | offset;
}

class RootBusTest : public ::testing::Test {
  protected:
    using Move = std::pair<unsigned, std::optional<GuestRange>>;

    static std::vector<std::byte> read(Device& device, std::uint64_t offset, std::size_t length) {
        std::vector<std::byte> data(length, std::byte{0x5a});
        device.read(offset, data);
        return data;
    }
    template <typename T>
    T config(unsigned slot, unsigned offset) {
        T value{};
        bus.ecam().read(ecam(slot, offset), std::as_writable_bytes(std::span(&value, 1)));
        return value;
    }
    template <typename T>
    void set_config(unsigned slot, unsigned offset, T value) {
        bus.ecam().write(ecam(slot, offset), std::as_bytes(std::span(&value, 1)));
    }
    void set_base(unsigned slot, std::uint64_t base) {
        set_config(slot, header::kBaseAddress, static_cast<std::uint32_t>(base));
    }
    std::shared_ptr<MemoryFunction> insert(unsigned slot, std::uint64_t base, std::uint8_t fill,
                                           std::uint32_t bytes = kBytes) {
        auto function =
            std::make_shared<MemoryFunction>(static_cast<std::uint16_t>(0x100 + slot), bytes, GuestAddress{base}, fill);
        bus.insert(slot, function);
        return function;
    }
    std::uint8_t at(std::uint64_t address) {
        return std::to_integer<std::uint8_t>(read(bus.window(), address - to_integer(kWindow.base), 1)[0]);
    }
    std::vector<Move> take_moves() { return std::exchange(moves, {}); }

    std::vector<Move> moves;
    RootBus bus{kWindow, [this](unsigned slot, std::optional<GuestRange> to) { moves.emplace_back(slot, to); }};
};

// PCI Express Base 3.0, 7.2.2.
TEST_F(RootBusTest, EcamReachesEachSlot) {
    for (unsigned slot = 0; slot < RootBus::kSlots; ++slot) {
        insert(slot, to_integer(kWindow.base) + std::uint64_t{slot} * kBytes, 0);
    }
    for (unsigned slot = 0; slot < RootBus::kSlots; ++slot) {
        EXPECT_EQ(config<std::uint16_t>(slot, header::kDevice), 0x100U + slot);
        EXPECT_EQ(bus.function(slot)->name(), "memory");
        for (unsigned function = 1; function < 8; ++function) {
            EXPECT_EQ(read(bus.ecam(), ecam(slot, 0, function), 4), std::vector(4, std::byte{0xff}));
        }
    }
    EXPECT_FALSE(bus.function(RootBus::kSlots));
    EXPECT_FALSE(bus.function(UINT32_MAX));
}

TEST_F(RootBusTest, ASlotWithoutAFunctionReadsAsOnesAndTakesNothing) {
    EXPECT_EQ(config<std::uint32_t>(5, 0), UINT32_MAX);
    set_config(5, header::kCommand, std::uint16_t{0xffff});
    const auto function = insert(6, to_integer(kWindow.base), 0);
    bus.ecam().write(ecam(6, header::kCommand, 1), std::array{std::byte{0xff}});
    EXPECT_TRUE(function->take().empty());
    EXPECT_EQ(bus.remove(5), nullptr);
}

TEST_F(RootBusTest, AnAccessOfEcamIsCutAtDoubleWords) {
    const auto function = insert(3, to_integer(kWindow.base), 0);
    for (std::uint64_t offset = 0; offset < 8; ++offset) {
        for (std::size_t length = 0; length <= 8; ++length) {
            const auto whole = read(bus.ecam(), ecam(3) + offset, length);
            for (std::size_t i = 0; i < length; ++i) {
                EXPECT_EQ(whole[i], read(bus.ecam(), ecam(3) + offset + i, 1)[0]) << offset << " " << length;
            }
        }
    }
    (void)function->take();
    bus.ecam().write(ecam(3, 0x3a), std::vector(8, std::byte{0}));
    EXPECT_EQ(function->take(),
              (std::vector<Access>{{true, true, 0x3a, 2}, {true, true, 0x3c, 4}, {true, true, 0x40, 2}}));
    (void)read(bus.ecam(), ecam(4) - 2, 4); // from one slot's last function into the next slot
    EXPECT_FALSE(function->was_misused());
}

TEST_F(RootBusTest, BeyondTheEndOfEcamThereIsNothing) {
    const auto function = insert(0, to_integer(kWindow.base), 0);
    for (const std::uint64_t offset : {RootBus::kEcamBytes, RootBus::kEcamBytes * 2, std::uint64_t{1} << 32U,
                                       std::uint64_t{1} << 47U, UINT64_MAX - 3}) {
        EXPECT_EQ(read(bus.ecam(), offset, 4), std::vector(4, std::byte{0xff})) << offset;
        bus.ecam().write(offset, std::vector(4, std::byte{0xff}));
    }
    (void)read(bus.ecam(), RootBus::kEcamBytes - 2, 4);
    EXPECT_TRUE(function->take().empty());
}

TEST_F(RootBusTest, TheWindowReachesRegistersWhereTheyLie) {
    const auto function = insert(2, 0xe0003000, 0x22);
    EXPECT_EQ(take_moves(), (std::vector<Move>{{2, GuestRange{GuestAddress{0xe0003000}, kBytes}}}));
    EXPECT_EQ(at(0xe0002fff), 0xffU);
    EXPECT_EQ(at(0xe0003000), 0x22U);
    EXPECT_EQ(at(0xe0003fff), 0x22U);
    EXPECT_EQ(at(0xe0004000), 0xffU);
    bus.window().write(0x3010, std::array{std::byte{7}, std::byte{8}});
    EXPECT_EQ(at(0xe0003011), 8U);
    (void)function->take();
    EXPECT_EQ(read(bus.window(), 0x3010, 2), (std::vector{std::byte{7}, std::byte{8}}));
    EXPECT_EQ(function->take(), (std::vector<Access>{{false, false, 0x10, 2}}));
}

TEST_F(RootBusTest, AnAccessThatStraddlesRegistersIsThatOfEach) {
    const auto low = insert(1, 0xe0001000, 0x11);
    const auto high = insert(2, 0xe0002000, 0x22);
    EXPECT_EQ(read(bus.window(), 0x1ffc, 8),
              (std::vector{std::byte{0x11}, std::byte{0x11}, std::byte{0x11}, std::byte{0x11}, std::byte{0x22},
                           std::byte{0x22}, std::byte{0x22}, std::byte{0x22}}));
    EXPECT_EQ(read(bus.window(), 0xfff, 3), (std::vector{std::byte{0xff}, std::byte{0x11}, std::byte{0x11}}));
    EXPECT_EQ(read(bus.window(), 0x2ffe, 4),
              (std::vector{std::byte{0x22}, std::byte{0x22}, std::byte{0xff}, std::byte{0xff}}));
    bus.window().write(0x1fff, std::array{std::byte{1}, std::byte{2}});
    EXPECT_EQ(at(0xe0001fff), 1U);
    EXPECT_EQ(at(0xe0002000), 2U);
    EXPECT_EQ(read(bus.window(), 0x1000, 0), std::vector<std::byte>{});
    EXPECT_FALSE(low->was_misused() || high->was_misused());
}

TEST_F(RootBusTest, RegistersMoveWhereTheDriverSays) {
    insert(1, 0xe0001000, 0x11);
    (void)take_moves();
    set_base(1, 0xe0abc000);
    EXPECT_EQ(take_moves(), (std::vector<Move>{{1, GuestRange{GuestAddress{0xe0abc000}, kBytes}}}));
    EXPECT_EQ(at(0xe0001000), 0xffU);
    EXPECT_EQ(at(0xe0abc000), 0x11U);
    set_base(1, 0xe0abc000);
    EXPECT_TRUE(take_moves().empty()) << "it is where it was";
    set_config(1, header::kCommand, std::uint16_t{0});
    EXPECT_EQ(take_moves(), (std::vector<Move>{{1, std::nullopt}}));
    EXPECT_EQ(at(0xe0abc000), 0xffU);
    set_config(1, header::kCommand, std::uint16_t{header::kDecodesMemory});
    EXPECT_EQ(at(0xe0abc000), 0x11U);
}

TEST_F(RootBusTest, OutsideOfTheWindowRegistersAnswerNowhere) {
    insert(1, 0xe0001000, 0x11);
    (void)take_moves();
    for (const std::uint64_t base : {0x0ULL, 0x1000ULL, 0xdffff000ULL, 0xe1000000ULL, 0xfee00000ULL, 0xfffff000ULL}) {
        set_base(1, base);
        EXPECT_EQ(at(0xe0001000), 0xffU) << base;
        EXPECT_EQ(config<std::uint32_t>(1, header::kBaseAddress), base) << "the register holds it all the same";
    }
    EXPECT_EQ(take_moves(), (std::vector<Move>{{1, std::nullopt}}));
    set_base(1, 0xe0fff000);
    EXPECT_EQ(at(0xe0ffffff), 0x11U) << "the last place";
    insert(2, 0xe0000000, 0x22, 0x2000000);
    EXPECT_EQ(at(0xe0000000), 0xffU) << "what does not fit in it answers nowhere";
}

TEST_F(RootBusTest, OfTwoInOnePlaceTheOneWithTheLowerNumberAnswers) {
    insert(5, 0xe0000000, 0x55, 0x8000);
    insert(3, 0xe0001000, 0x33);
    insert(7, 0xe0004000, 0x77);
    EXPECT_EQ(at(0xe0000fff), 0x55U);
    EXPECT_EQ(at(0xe0001000), 0x33U);
    EXPECT_EQ(at(0xe0002000), 0x55U);
    EXPECT_EQ(at(0xe0004000), 0x55U);
    // The same if one access reaches both.
    EXPECT_EQ(read(bus.window(), 0xffe, 4),
              (std::vector{std::byte{0x55}, std::byte{0x55}, std::byte{0x33}, std::byte{0x33}}));
    EXPECT_EQ(read(bus.window(), 0x1ffe, 4),
              (std::vector{std::byte{0x33}, std::byte{0x33}, std::byte{0x55}, std::byte{0x55}}));
    set_base(5, 0xe0800000);
    EXPECT_EQ(at(0xe0004000), 0x77U);
}

TEST_F(RootBusTest, OfTwoInOnePlaceTheOneThatAnswersIsSaidToBeThere) {
    constexpr GuestRange kPlace{GuestAddress{0xe0000000}, kBytes};
    constexpr GuestRange kOther{GuestAddress{0xe0800000}, kBytes};
    insert(5, 0xe0000000, 0x55);
    insert(3, 0xe0800000, 0x33);
    EXPECT_EQ(take_moves(), (std::vector<Move>{{5, kPlace}, {3, kOther}}));
    set_base(3, 0xe0000000);
    EXPECT_EQ(take_moves(), (std::vector<Move>{{5, std::nullopt}, {3, kPlace}})) << "the last mover, which is lower";
    set_base(3, 0xe0800000);
    EXPECT_EQ(take_moves(), (std::vector<Move>{{3, kOther}, {5, kPlace}})) << "it is alone again";
    set_base(5, 0xe0800000);
    EXPECT_EQ(take_moves(), (std::vector<Move>{{5, std::nullopt}})) << "the last mover, which is higher, has nothing";
    set_config(3, header::kCommand, std::uint16_t{0});
    EXPECT_EQ(take_moves(), (std::vector<Move>{{3, std::nullopt}, {5, kOther}}));
    set_config(3, header::kCommand, std::uint16_t{header::kDecodesMemory});
    EXPECT_EQ(take_moves(), (std::vector<Move>{{5, std::nullopt}, {3, kOther}}));
    bus.remove(3);
    EXPECT_EQ(take_moves(), (std::vector<Move>{{3, std::nullopt}, {5, kOther}}));
    insert(4, 0xe07ff000, 0x44, 0x1000);
    EXPECT_EQ(take_moves(), (std::vector<Move>{{4, GuestRange{GuestAddress{0xe07ff000}, kBytes}}})) << "beside it";
    insert(2, 0xe0000000, 0x22, 0x1000000);
    EXPECT_EQ(take_moves(), (std::vector<Move>{{4, std::nullopt}, {5, std::nullopt}, {2, kWindow}})) << "around both";
}

TEST_F(RootBusTest, AFunctionThatWasRemovedAnswersNoMore) {
    const std::weak_ptr<Function> function = insert(4, 0xe0001000, 0x44);
    (void)take_moves();
    EXPECT_TRUE(bus.remove(4));
    EXPECT_TRUE(function.expired());
    EXPECT_EQ(take_moves(), (std::vector<Move>{{4, std::nullopt}}));
    EXPECT_EQ(at(0xe0001000), 0xffU);
    EXPECT_EQ(config<std::uint32_t>(4, 0), UINT32_MAX);
    insert(4, 0xe0002000, 0x45);
    EXPECT_EQ(at(0xe0002000), 0x45U);
}

TEST_F(RootBusTest, BeyondTheWindowThereIsNothing) {
    insert(1, 0xe0fff000, 0x11);
    for (const std::uint64_t offset : {kWindow.size, kWindow.size * 2, UINT64_MAX - to_integer(kWindow.base),
                                       UINT64_MAX - 7, UINT64_MAX - to_integer(kWindow.base) - 3}) {
        EXPECT_EQ(read(bus.window(), offset, 8), std::vector(8, std::byte{0xff})) << offset;
        bus.window().write(offset, std::vector(8, std::byte{0}));
    }
    EXPECT_EQ(read(bus.window(), kWindow.size - 1, 2), (std::vector{std::byte{0x11}, std::byte{0xff}}));
}

TEST_F(RootBusTest, SurvivesAccessesOfAnyKind) {
    const auto small = insert(1, 0xe0001000, 0x11);
    const auto large = insert(2, 0xe0008000, 0x22, 0x8000);
    HostileGuest guest{7};
    for (int i = 0; i < 50'000; ++i) {
        guest.access(bus.ecam(), ecam(3));
        guest.access(bus.window(), 0x10000);
    }
    EXPECT_FALSE(small->was_misused() || large->was_misused());
}

TEST(PciHostBridge, SaysThatItIsOneAndTakesNothing) {
    HostBridge bridge;
    testing::PciDriver driver{bridge};
    EXPECT_EQ(driver.config<std::uint32_t>(8), 0x06000000U) << "6.1, appendix D: a host bridge";
    EXPECT_NE(driver.config<std::uint16_t>(header::kVendor), 0xffffU);
    EXPECT_TRUE(driver.capabilities().empty());
    std::array<std::byte, 256> before{};
    for (std::uint16_t offset = 0; offset < 256; offset += 4) {
        bridge.read_config(offset, std::span(before).subspan(offset, 4));
        driver.set_config(offset, UINT32_MAX);
        driver.set_config(offset, std::uint32_t{0});
        std::array<std::byte, 4> after{};
        bridge.read_config(offset, after);
        EXPECT_TRUE(std::ranges::equal(after, std::span(before).subspan(offset, 4))) << offset;
    }
    EXPECT_EQ(driver.config<std::uint32_t>(0x100), UINT32_MAX) << "it has no extended configuration space";
    EXPECT_FALSE(bridge.decoded());
    EXPECT_EQ(driver.read<std::uint32_t>(0), UINT32_MAX) << "it has no registers";
    driver.write<std::uint32_t>(0, 0);
    EXPECT_EQ(bridge.name(), "host-bridge");
}

// ---- Several threads

TEST_F(RootBusTest, FunctionsComeAndGoWhileOthersAccessThem) {
    constexpr int kTurns = 300;
    std::atomic<bool> is_over = false;
    std::atomic<int> wrong = 0;
    std::vector<std::thread> guests;
    for (unsigned guest = 0; guest < 3; ++guest) {
        guests.emplace_back([&] {
            while (!is_over.load()) {
                // Either the function answers, or nobody.
                for (const std::uint64_t offset : {0x1000U, 0x1ff8U, 0x2000U}) {
                    for (const std::byte byte : read(bus.window(), offset, 8)) {
                        wrong += byte == std::byte{0x11} || byte == std::byte{0xff} ? 0 : 1;
                    }
                }
                const auto device = config<std::uint16_t>(1, header::kDevice);
                wrong += device == 0x101 || device == 0xffff ? 0 : 1;
                set_base(1, 0xe0002000);
                set_base(1, 0xe0001000);
            }
        });
    }
    for (int i = 0; i < kTurns; ++i) {
        const std::weak_ptr<MemoryFunction> function = insert(1, 0xe0001000, 0x11);
        std::this_thread::yield();
        std::shared_ptr<Function> removed = bus.remove(1);
        EXPECT_FALSE(static_cast<MemoryFunction&>(*removed).was_misused());
        removed.reset();
        // The last access destroys it, on whatever thread that is.
        EXPECT_TRUE(vmm::testing::eventually([&] { return function.expired(); }));
    }
    is_over = true;
    for (std::thread& guest : guests) {
        guest.join();
    }
    EXPECT_EQ(wrong, 0);
    EXPECT_EQ(at(0xe0001000), 0xffU);
    ASSERT_FALSE(moves.empty());
    EXPECT_FALSE(moves.back().second) << "the bus has said where it was last: nowhere";
}

TEST_F(RootBusTest, WhatIsSaidOfTheLastMoveIsWhereTheRegistersAre) {
    constexpr int kMoves = 400;
    const auto function = insert(1, 0xe0001000, 0x11);
    std::vector<std::thread> drivers;
    for (unsigned driver = 0; driver < 3; ++driver) {
        drivers.emplace_back([this, driver] {
            for (unsigned i = 0; i < kMoves; ++i) {
                set_base(1, 0xe0001000 + ((driver * 7 + i) % 16) * 0x1000);
            }
        });
    }
    for (std::thread& driver : drivers) {
        driver.join();
    }
    ASSERT_FALSE(moves.empty());
    EXPECT_EQ(moves.back().second, function->decoded());
    EXPECT_EQ(at(config<std::uint32_t>(1, header::kBaseAddress)), 0x11U);
}

} // namespace
} // namespace vmm::devices::pci
