#include "devices/bus.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "kvm/host/error.hpp"

namespace vmm::devices {
namespace {

/// Each address within it reads as the address's low byte plus `first`. Remembers the written values.
class Probe final : public Device {
  public:
    explicit Probe(std::string name, unsigned first = 0) : name_(std::move(name)), first_(first) {}

    [[nodiscard]] std::string_view name() const noexcept override { return name_; }
    void read(std::uint64_t offset, std::span<std::byte> data) noexcept override {
        for (std::byte& byte : data) {
            byte = static_cast<std::byte>(first_ + offset++);
        }
    }
    void write(std::uint64_t offset, std::span<const std::byte> data) noexcept override {
        offset_written = offset;
        written.assign(data.begin(), data.end());
    }

    std::uint64_t offset_written = 0;
    std::vector<std::byte> written;

  private:
    std::string name_;
    unsigned first_;
};

std::vector<unsigned> read(Bus& bus, std::uint64_t address, std::size_t width) {
    std::vector<std::byte> data(width, std::byte{0x55});
    bus.read(address, data);
    std::vector<unsigned> values(width);
    std::ranges::transform(data, values.begin(), [](std::byte byte) { return std::to_integer<unsigned>(byte); });
    return values;
}

using Values = std::vector<unsigned>;
using Bytes = std::vector<std::byte>;

template <typename Function>
std::string error_of(Function function) {
    try {
        function();
    } catch (const Error& error) {
        return error.what();
    }
    return "no error";
}

TEST(Bus, EachDeviceAnswersInItsOwnRange) {
    Probe a("a", 0x10);
    Probe b("b", 0x20);
    Bus bus(AddressSpace::kPortIo);
    bus.attach(0x3f8, 8, a);
    bus.attach(0x60, 5, b);
    bus.freeze();
    EXPECT_EQ(read(bus, 0x3f8, 1), Values{0x10});
    EXPECT_EQ(read(bus, 0x3ff, 1), Values{0x17});
    EXPECT_EQ(read(bus, 0x60, 1), Values{0x20});
    EXPECT_EQ(read(bus, 0x64, 1), Values{0x24});
    EXPECT_EQ(bus.unclaimed_reads(), 0U);
}

TEST(Bus, EveryWidthReachesTheDeviceWhole) {
    Probe device("device");
    Bus bus(AddressSpace::kMmio);
    bus.attach(0xd0000000, 0x1000, device);
    for (const std::size_t width : {1U, 2U, 4U, 8U}) {
        const Bytes data(width, std::byte{0x42});
        bus.write(0xd0000100, data);
        EXPECT_EQ(device.offset_written, 0x100U);
        EXPECT_EQ(device.written, data);
    }
    EXPECT_EQ(read(bus, 0xd0000008, 4), (Values{8, 9, 10, 11}));
}

TEST(Bus, NobodyReadsAsOnesAndIsCounted) {
    Probe device("device");
    Bus bus(AddressSpace::kPortIo);
    bus.attach(0x70, 2, device);
    EXPECT_EQ(read(bus, 0x80, 4), (Values{0xff, 0xff, 0xff, 0xff}));
    EXPECT_EQ(read(bus, 0x6f, 1), Values{0xff});
    bus.write(0x72, Bytes(1));
    EXPECT_EQ(bus.unclaimed_reads(), 2U);
    EXPECT_EQ(bus.unclaimed_writes(), 1U);
    EXPECT_TRUE(device.written.empty());
}

TEST(Bus, AnEmptyBusAnswersEverythingWithOnes) {
    Bus bus(AddressSpace::kMmio);
    EXPECT_EQ(read(bus, 0, 2), (Values{0xff, 0xff}));
    EXPECT_EQ(read(bus, UINT64_MAX, 8), Values(8, 0xff));
}

TEST(Bus, AccessOverTheEndOfADeviceIsCutThere) {
    Probe device("device");
    Bus bus(AddressSpace::kPortIo);
    bus.attach(0x70, 2, device);
    EXPECT_EQ(read(bus, 0x71, 4), (Values{1, 0xff, 0xff, 0xff}));
    bus.write(0x71, std::array{std::byte{0xaa}, std::byte{0xbb}});
    EXPECT_EQ(device.offset_written, 1U);
    EXPECT_EQ(device.written, Bytes{std::byte{0xaa}});
    EXPECT_EQ(bus.unclaimed_reads(), 1U);
    EXPECT_EQ(bus.unclaimed_writes(), 1U);
}

TEST(Bus, AccessOverTheStartOfADeviceReachesIt) {
    Probe device("device");
    Bus bus(AddressSpace::kPortIo);
    bus.attach(0x70, 2, device);
    EXPECT_EQ(read(bus, 0x6e, 4), (Values{0xff, 0xff, 0, 1}));
}

TEST(Bus, AccessOverTwoNeighboursReachesBoth) {
    Probe a("a", 0x10);
    Probe b("b", 0x20);
    Bus bus(AddressSpace::kPortIo);
    bus.attach(0x100, 2, a);
    bus.attach(0x102, 4, b);
    EXPECT_EQ(read(bus, 0x101, 4), (Values{0x11, 0x20, 0x21, 0x22}));
    EXPECT_EQ(bus.unclaimed_reads(), 0U);
}

TEST(Bus, AccessOffTheEndOfTheAddressSpaceDoesNotComeBackAtZero) {
    Probe bottom("bottom", 0x10);
    Probe top("top", 0x20);
    Bus bus(AddressSpace::kMmio);
    bus.attach(0, 8, bottom);
    bus.attach(UINT64_MAX - 1, 2, top);
    EXPECT_EQ(read(bus, UINT64_MAX - 2, 8), (Values{0xff, 0x20, 0x21, 0xff, 0xff, 0xff, 0xff, 0xff}));
    bus.write(UINT64_MAX, Bytes(4));
    EXPECT_TRUE(bottom.written.empty());
    EXPECT_EQ(top.offset_written, 1U);
    EXPECT_EQ(top.written.size(), 1U);
}

TEST(Bus, OverlapIsRefusedAndNamesBoth) {
    Probe serial("serial");
    Probe rtc("rtc");
    Bus bus(AddressSpace::kPortIo);
    bus.attach(0x3f8, 8, serial);
    EXPECT_EQ(error_of([&] { bus.attach(0x3ff, 1, rtc); }),
              "cannot attach rtc to the I/O port bus: rtc at 0x3ff-0x3ff would overlap serial at 0x3f8-0x3ff");
    EXPECT_NE(error_of([&] { bus.attach(0x3f0, 9, rtc); }), "no error");
    EXPECT_NE(error_of([&] { bus.attach(0x3f0, 0x100, rtc); }), "no error");
    EXPECT_NE(error_of([&] { bus.attach(0x3fa, 2, rtc); }), "no error");
    bus.attach(0x3f0, 8, rtc);
    bus.attach(0x400, 1, rtc);
}

TEST(Bus, RefusedDeviceIsNotAttached) {
    Probe a("a", 1);
    Probe b("b", 2);
    Bus bus(AddressSpace::kPortIo);
    bus.attach(4, 1, a);
    EXPECT_THROW(bus.attach(3, 2, b), Error);
    EXPECT_EQ(read(bus, 3, 2), (Values{0xff, 1}));
}

TEST(Bus, RangesThatAreEmptyOrLeaveTheAddressSpaceAreRefused) {
    Probe device("device");
    Bus ports(AddressSpace::kPortIo);
    EXPECT_THROW(ports.attach(0x60, 0, device), Error);
    EXPECT_THROW(ports.attach(0xffff, 2, device), Error);
    EXPECT_THROW(ports.attach(0x10000, 1, device), Error);
    ports.attach(0xffff, 1, device);

    Bus mmio(AddressSpace::kMmio);
    EXPECT_THROW(mmio.attach(UINT64_MAX, 2, device), Error);
    EXPECT_THROW(mmio.attach(2, UINT64_MAX, device), Error);
    mmio.attach(1, UINT64_MAX, device);
}

TEST(Bus, AttachingToAFrozenBusIsOurBug) {
    Probe device("device");
    Bus bus(AddressSpace::kPortIo);
    bus.freeze();
    EXPECT_TRUE(bus.is_frozen());
    EXPECT_DEATH(bus.attach(0, 1, device), "frozen");
}

TEST(Bus, RandomAccessesMatchAByteByByteModel) {
    std::mt19937_64 random(7);
    for (int round = 0; round < 50; ++round) {
        std::vector<std::unique_ptr<Probe>> devices;
        std::array<unsigned, 256> model{};
        model.fill(0xff);
        Bus bus(AddressSpace::kPortIo);
        for (unsigned i = 0; i < 12; ++i) {
            const std::uint64_t base = random() % 240;
            const std::uint64_t size = 1 + random() % 16;
            auto device = std::make_unique<Probe>("probe", i * 16);
            if (error_of([&] { bus.attach(base, size, *device); }) == "no error") {
                for (unsigned j = 0; j < size; ++j) {
                    model.at(base + j) = (i * 16 + j) & 0xffU;
                }
                devices.push_back(std::move(device));
            }
        }
        bus.freeze();
        for (int step = 0; step < 1000; ++step) {
            const std::uint64_t address = random() % 248;
            const std::size_t width = random() % 9;
            const auto first = model.begin() + static_cast<std::ptrdiff_t>(address);
            ASSERT_EQ(read(bus, address, width), Values(first, first + static_cast<std::ptrdiff_t>(width)));
        }
    }
}

TEST(Bus, ManyVcpusCountEveryUnclaimedAccess) {
    Bus bus(AddressSpace::kPortIo);
    bus.freeze();
    {
        std::vector<std::jthread> vcpus;
        for (int i = 0; i < 4; ++i) {
            vcpus.emplace_back([&bus] {
                std::array<std::byte, 1> data{};
                for (int step = 0; step < 10'000; ++step) {
                    bus.read(0x80, data);
                    bus.write(0x80, data);
                }
            });
        }
    }
    EXPECT_EQ(bus.unclaimed_reads(), 40'000U);
    EXPECT_EQ(bus.unclaimed_writes(), 40'000U);
}

} // namespace
} // namespace vmm::devices
