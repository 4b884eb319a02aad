// The registers that firmware would set.

#include "vmm/machine/x86/boot_state.hpp"

#include <gtest/gtest.h>

#include <cstdint>
#include <map>
#include <optional>

#include "vmm/machine/memory_map.hpp"

namespace vmm {
namespace {

constexpr unsigned kUncacheable = 0;
constexpr unsigned kWriteBack = 6;

/// The memory type at an address, by the rules of the manuals (Intel SDM volume 3, 12.11.4).
class MemoryTypes {
  public:
    explicit MemoryTypes(unsigned address_bits) {
        for (const MsrValue& each : memory_type_registers(address_bits)) {
            msrs_[each.index] = each.value;
        }
    }

    [[nodiscard]] unsigned at(std::uint64_t address) const {
        const std::uint64_t standard = msrs_.at(0x2ff);
        EXPECT_NE(standard & 0x800, 0U) << "they are switched on";
        if (address < 0x100000 && (standard & 0x400) != 0) {
            if (address < 0x80000) {
                return field(0x250, address / 0x10000);
            }
            if (address < 0xc0000) {
                return field(0x258 + (address - 0x80000) / 0x20000, (address - 0x80000) / 0x4000 % 8);
            }
            return field(0x268 + (address - 0xc0000) / 0x8000, address / 0x1000 % 8);
        }
        std::optional<unsigned> type;
        for (std::uint32_t range = 0; range < 8; ++range) {
            const auto base = msrs_.find(0x200 + 2 * range);
            const auto mask = msrs_.find(0x201 + 2 * range);
            if (base == msrs_.end() || (mask->second & 0x800) == 0) {
                continue;
            }
            const std::uint64_t bits = mask->second & ~std::uint64_t{0xfff};
            if ((address & bits) == (base->second & bits)) {
                EXPECT_FALSE(type) << "ranges overlap";
                type = base->second & 0xff;
            }
        }
        return type.value_or(standard & 0xff);
    }
    [[nodiscard]] const std::map<std::uint32_t, std::uint64_t>& msrs() const { return msrs_; }

  private:
    [[nodiscard]] unsigned field(std::uint64_t index, std::uint64_t number) const {
        return msrs_.at(static_cast<std::uint32_t>(index)) >> (8 * number) & 0xff;
    }

    std::map<std::uint32_t, std::uint64_t> msrs_;
};

// What broke: all of it was write-back, even the devices' hole.
TEST(MemoryTypeRegisters, CacheRamAndNotTheHole) {
    for (const unsigned bits : {36U, 40U, 48U, 52U}) {
        const MemoryTypes types(bits);
        for (const std::uint64_t ram :
             {std::uint64_t{0}, 0x9f000 + std::uint64_t{0}, std::uint64_t{0xc0000}, std::uint64_t{0xe0000},
              std::uint64_t{0xff000}, std::uint64_t{0x100000}, to_integer(memory_map::kHole.base) - 0x1000,
              to_integer(memory_map::kHole.end()), 8 * kGiB, (std::uint64_t{1} << bits) - 0x1000}) {
            EXPECT_EQ(types.at(ram), kWriteBack) << std::hex << ram << " of " << std::dec << bits << " bits";
        }
        for (const GuestAddress device :
             {memory_map::kHole.base, memory_map::kVirtioWindow.base, memory_map::kPowerRegisters, memory_map::kIoApic,
              memory_map::kLocalApic, GuestAddress{to_integer(memory_map::kHole.end()) - 0x1000}}) {
            EXPECT_EQ(types.at(to_integer(device)), kUncacheable) << to_string(device);
        }
        EXPECT_EQ(types.at(0xa0000), kUncacheable) << "a VGA adapter's window";
        EXPECT_EQ(types.at(0xbf000), kUncacheable);
    }
}

TEST(MemoryTypeRegisters, HaveNoBitsBeyondThePhysicalAddress) {
    for (const unsigned bits : {36U, 39U, 48U, 52U}) {
        const MemoryTypes types(bits);
        for (const auto& [index, value] : types.msrs()) {
            if (index >= 0x200 && index < 0x210) {
                EXPECT_EQ(value >> bits, 0U) << std::hex << index;
            }
        }
    }
}

TEST(MemoryTypeRegisters, AreSwitchedOnLast) {
    EXPECT_EQ(memory_type_registers(48).back().index, 0x2ffU);
}

} // namespace
} // namespace vmm
