#include "devices/pci/config_space.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "support/host_errors.hpp"

namespace vmm::devices::pci {
namespace {

using vmm::testing::error_of;
using vmm::testing::mentions;

constexpr std::uint32_t kBytesOfMemory = 0x8000;
constexpr std::uint64_t kBase = 0xe0010000;
constexpr Identity kIdentity{.vendor = 0x1af4,
                             .device = 0x1044,
                             .revision = 1,
                             .class_code = 0x123456,
                             .subsystem_vendor = 0x1234,
                             .subsystem = 0x5678,
                             .interrupt_pin = 1};

ConfigSpace make_space() {
    ConfigSpace space(kIdentity);
    space.add_memory(kBytesOfMemory, GuestAddress{kBase});
    const std::array body{std::byte{0xa1}, std::byte{0xa2}, std::byte{0xa3}, std::byte{0xa4}, std::byte{0xa5}};
    const std::array writable{std::byte{0x0f}, std::byte{0xf0}};
    EXPECT_EQ(space.add_capability(9, body, writable), 0x40U);
    EXPECT_EQ(space.add_capability(0x11, std::array{std::byte{0x77}, std::byte{0x88}}, {}), 0x48U);
    return space;
}

std::vector<std::byte> read(const ConfigSpace& space, std::size_t offset, std::size_t length) {
    std::vector<std::byte> data(length, std::byte{0x5a});
    space.read(offset, data);
    return data;
}

template <typename T>
void write(ConfigSpace& space, std::size_t offset, T value) {
    space.write(offset, std::as_bytes(std::span(&value, 1)));
}

// PCI Local Bus 3.0, 6.1 and 6.2.1.
TEST(ConfigSpace, SaysWhoItIs) {
    const ConfigSpace space = make_space();
    EXPECT_EQ(space.word(0x00), 0x1af4U);
    EXPECT_EQ(space.word(0x02), 0x1044U);
    EXPECT_EQ(space.double_word(0x08), 0x12345601U);
    EXPECT_EQ(read(space, 0x0e, 1), (std::vector{std::byte{0}})) << "header type 0, one function";
    EXPECT_EQ(space.word(0x2c), 0x1234U);
    EXPECT_EQ(space.word(0x2e), 0x5678U);
    EXPECT_EQ(read(space, 0x3d, 1), (std::vector{std::byte{1}}));
    EXPECT_EQ(space.command(), kCommandMemory) << "it decodes from the start";
    EXPECT_EQ(space.word(0x06), 1U << 4U) << "it has capabilities, and nothing else";
}

TEST(ConfigSpace, WithoutMemoryOrCapabilitiesShowsNeither) {
    ConfigSpace space(Identity{.vendor = 1, .device = 2});
    EXPECT_EQ(space.word(0x06), 0U);
    EXPECT_EQ(space.double_word(0x34), 0U);
    write(space, 0x04, std::uint16_t{0xffff});
    EXPECT_EQ(space.command(), kCommandBusMaster | kCommandNoPin) << "there is no memory to decode";
    write(space, 0x10, UINT32_MAX);
    EXPECT_EQ(space.double_word(0x10), 0U);
    EXPECT_FALSE(space.decoded());
}

// Each bit of the 256 bytes alone, set and cleared.
TEST(ConfigSpace, EveryBitThatADriverMayWriteIsWrittenAndNoOther) {
    std::array<std::uint8_t, ConfigSpace::kBytes> may{};
    may[0x04] = 0x06; // memory, bus master
    may[0x05] = 0x04; // Interrupt Disable
    may[0x0c] = 0xff; // cache line size
    may[0x11] = 0x80; // 32 KiB: bits 15 to 31
    may[0x12] = 0xff;
    may[0x13] = 0xff;
    may[0x3c] = 0xff; // interrupt line
    may[0x42] = 0x0f; // those of the capability
    may[0x43] = 0xf0;
    ConfigSpace space = make_space();
    for (std::size_t offset = 0; offset < ConfigSpace::kBytes; ++offset) {
        for (unsigned bit = 0; bit < 8; ++bit) {
            const ConfigSpace::State before = space.state();
            const auto flipped = before[offset] ^ std::byte{1} << bit;
            write(space, offset, flipped);
            const bool is_written = space.state()[offset] == flipped;
            EXPECT_EQ(is_written, (may[offset] >> bit & 1) != 0) << offset << " bit " << bit;
            ConfigSpace::State expected = before;
            expected[offset] = is_written ? flipped : before[offset];
            EXPECT_EQ(space.state(), expected) << offset << " bit " << bit;
            write(space, offset, before[offset]);
            EXPECT_EQ(space.state(), before) << offset << " bit " << bit;
        }
    }
}

TEST(ConfigSpace, AWriteOfSeveralBytesIsThatOfEach) {
    for (std::size_t length = 1; length <= 8; ++length) {
        for (std::size_t offset = 0; offset < ConfigSpace::kBytes + 8; ++offset) {
            ConfigSpace together = make_space();
            ConfigSpace single = make_space();
            const std::vector<std::byte> data(length, std::byte{0xff});
            together.write(offset, data);
            for (std::size_t i = 0; i < length; ++i) {
                single.write(offset + i, std::array{std::byte{0xff}});
            }
            ASSERT_EQ(together.state(), single.state()) << offset << " " << length;
        }
    }
}

TEST(ConfigSpace, ReadsAsOnesBeyondItsEnd) {
    const ConfigSpace space = make_space();
    for (const std::size_t offset : {std::size_t{256}, std::size_t{257}, std::size_t{4095}, SIZE_MAX - 8, SIZE_MAX}) {
        EXPECT_EQ(read(space, offset, 4), std::vector(4, std::byte{0xff})) << offset;
    }
    EXPECT_EQ(read(space, 254, 4), (std::vector{std::byte{0}, std::byte{0}, std::byte{0xff}, std::byte{0xff}}));
    EXPECT_EQ(read(space, 0, 0), std::vector<std::byte>{});
    ConfigSpace written = make_space();
    for (const std::size_t offset : {std::size_t{256}, SIZE_MAX - 3, SIZE_MAX}) {
        write(written, offset, UINT32_MAX);
        EXPECT_EQ(written.state(), space.state()) << offset;
    }
}

// 6.2.5.1: how software finds out the size.
TEST(ConfigSpace, TheBaseAddressRegisterSaysItsSize) {
    ConfigSpace space = make_space();
    EXPECT_EQ(space.double_word(0x10), kBase) << "memory, anywhere in 32 bits, not prefetchable";
    write(space, 0x10, UINT32_MAX);
    EXPECT_EQ(space.double_word(0x10), ~(kBytesOfMemory - 1));
    write(space, 0x10, static_cast<std::uint32_t>(kBase));
    EXPECT_EQ(space.decoded(), (GuestRange{GuestAddress{kBase}, kBytesOfMemory}));
    for (std::size_t other = 0x14; other <= 0x28; other += 4) { // The other registers, and CardBus.
        write(space, other, UINT32_MAX);
        EXPECT_EQ(space.double_word(other), 0U) << other;
    }
    write(space, 0x30, UINT32_MAX);
    EXPECT_EQ(space.double_word(0x30), 0U) << "it has no expansion ROM";
}

TEST(ConfigSpace, DecodesWhereAndWhenTheDriverSays) {
    ConfigSpace space = make_space();
    write(space, 0x10, std::uint32_t{0x12345678});
    EXPECT_EQ(space.decoded(), (GuestRange{GuestAddress{0x12340000}, kBytesOfMemory}));
    write(space, 0x04, std::uint16_t{kCommandBusMaster});
    EXPECT_FALSE(space.decoded());
    write(space, 0x04, std::uint16_t{kCommandMemory});
    EXPECT_TRUE(space.decoded());
}

TEST(ConfigSpace, OfTheSmallestMemoryKeepsItsKindOfRegister) {
    ConfigSpace space(kIdentity);
    space.add_memory(16, GuestAddress{0xfffffff0});
    EXPECT_EQ(space.decoded(), (GuestRange{GuestAddress{0xfffffff0}, 16}));
    write(space, 0x10, UINT32_MAX);
    EXPECT_EQ(space.double_word(0x10), 0xfffffff0U);
}

// 6.7.
TEST(ConfigSpace, TheListOfCapabilitiesLeadsToEachOfThem) {
    const ConfigSpace space = make_space();
    const std::vector<std::byte> pointer = read(space, 0x34, 1);
    ASSERT_EQ(pointer[0], std::byte{0x40});
    EXPECT_EQ(read(space, 0x40, 7), (std::vector{std::byte{9}, std::byte{0x48}, std::byte{0xa1}, std::byte{0xa2},
                                                 std::byte{0xa3}, std::byte{0xa4}, std::byte{0xa5}}));
    EXPECT_EQ(read(space, 0x48, 4), (std::vector{std::byte{0x11}, std::byte{0}, std::byte{0x77}, std::byte{0x88}}));
}

// 6.2.3.
TEST(ConfigSpace, ShowsAnInterruptAndNothingElseOfItsStatusChanges) {
    ConfigSpace space = make_space();
    space.show_interrupt(true);
    EXPECT_EQ(space.word(0x06), 1U << 4U | 1U << 3U);
    write(space, 0x06, std::uint16_t{0xffff});
    EXPECT_EQ(space.word(0x06), 1U << 4U | 1U << 3U);
    space.show_interrupt(true);
    space.show_interrupt(false);
    EXPECT_EQ(space.word(0x06), 1U << 4U);
}

TEST(ConfigSpace, GoesOnFromItsState) {
    ConfigSpace space = make_space();
    write(space, 0x04, std::uint16_t{0xffff});
    write(space, 0x10, std::uint32_t{0xabcd8000});
    write(space, 0x3c, std::uint8_t{11});
    write(space, 0x42, std::uint16_t{0xffff});
    ConfigSpace restored = make_space();
    restored.restore(space.state(), "blk0");
    EXPECT_EQ(restored.state(), space.state());
    EXPECT_EQ(restored.decoded(), (GuestRange{GuestAddress{0xabcd8000}, kBytesOfMemory}));
    write(restored, 0x10, std::uint32_t{0});
    EXPECT_EQ(restored.decoded(), (GuestRange{GuestAddress{0}, kBytesOfMemory})) << "it is written as before";
}

TEST(ConfigSpace, AnInterruptThatWasShownIsNoPartOfWhatItGoesOnFrom) {
    ConfigSpace space = make_space();
    space.show_interrupt(true);
    ConfigSpace restored = make_space();
    restored.restore(space.state(), "blk0");
    EXPECT_EQ(restored.word(0x06), 1U << 4U);
}

// Each bit that a driver cannot have written, alone.
TEST(ConfigSpace, AStateOfAnotherFunctionIsRefused) {
    const ConfigSpace space = make_space();
    ConfigSpace all_written = make_space();
    all_written.write(0, std::vector(ConfigSpace::kBytes, std::byte{0xff}));
    ConfigSpace none_written = make_space();
    none_written.write(0, std::vector(ConfigSpace::kBytes, std::byte{0}));
    for (std::size_t offset = 0; offset < ConfigSpace::kBytes; ++offset) {
        const std::byte writable = all_written.state()[offset] ^ none_written.state()[offset];
        for (unsigned bit = 0; bit < 8; ++bit) {
            const std::byte mask = std::byte{1} << bit;
            ConfigSpace::State state = space.state();
            state[offset] ^= mask;
            const bool is_taken = (writable & mask) != std::byte{0} || (offset == 0x06 && bit == 3);
            ConfigSpace restored = make_space();
            const std::string error = error_of([&] { restored.restore(state, "blk0"); });
            EXPECT_EQ(error.empty(), is_taken) << offset << " bit " << bit << ": " << error;
            if (!is_taken) {
                EXPECT_TRUE(mentions(error, "blk0") && mentions(error, "byte " + std::to_string(offset) + " of"))
                    << error;
                EXPECT_EQ(restored.state(), space.state()) << "what was refused has changed nothing";
            }
        }
    }
}

} // namespace
} // namespace vmm::devices::pci
