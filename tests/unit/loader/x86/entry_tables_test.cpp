#include "loader/x86/entry_tables.hpp"

#include <gtest/gtest.h>

#include <cstring>

#include "loader/x86/reset_vector.hpp"

namespace vmm::loader {
namespace {

constexpr std::uint64_t kTables = 0x9000;

/// Walks the tables as the CPU does.
class PageWalk {
  public:
    explicit PageWalk(std::uint64_t base) : base_(base), tables_(build_identity_map(GuestAddress{base})) {}

    /// The physical address of `address`, or nothing if it is not mapped by a writable 2 MiB page.
    [[nodiscard]] std::optional<std::uint64_t> translate(std::uint64_t address) const {
        const auto pointers = next_table(base_, address >> 39U & 511U);
        const auto directory = pointers ? next_table(*pointers, address >> 30U & 511U) : std::nullopt;
        if (!directory) {
            return std::nullopt;
        }
        const std::uint64_t entry = entry_at(*directory, address >> 21U & 511U);
        const std::uint64_t page = align_down(entry, 2 * kMiB);
        return (entry & 0x1fffffU) == kPresentWritableUsedLarge ? std::optional{page | (address & 0x1fffffU)}
                                                                : std::nullopt;
    }

  private:
    static constexpr std::uint64_t kPresentWritableUsedLarge = 0xe3;

    [[nodiscard]] std::uint64_t entry_at(std::uint64_t table, std::uint64_t index) const {
        std::uint64_t entry = 0;
        std::memcpy(&entry, tables_.data() + (table - base_) + index * sizeof entry, sizeof entry);
        return entry;
    }
    [[nodiscard]] std::optional<std::uint64_t> next_table(std::uint64_t table, std::uint64_t index) const {
        const std::uint64_t entry = entry_at(table, index);
        return (entry & 0x83U) == 0x03U ? std::optional{align_down(entry, 4096)} : std::nullopt;
    }

    std::uint64_t base_;
    std::vector<std::byte> tables_;
};

TEST(IdentityMap, TakesSixPages) {
    EXPECT_EQ(build_identity_map(GuestAddress{kTables}).size(), kIdentityMapBytes);
    EXPECT_EQ(kIdentityMapBytes, 6U * 4096);
}

TEST(IdentityMap, MapsEveryAddressBelow4GiBToItself) {
    const PageWalk walk{kTables};
    for (std::uint64_t address = 0; address < 4 * kGiB; address += 2 * kMiB) {
        ASSERT_EQ(walk.translate(address), address);
    }
    EXPECT_EQ(walk.translate(0x1234567), 0x1234567U);
    EXPECT_EQ(walk.translate(4 * kGiB - 1), 4 * kGiB - 1);
}

TEST(IdentityMap, MapsNothingFrom4GiBOn) {
    const PageWalk walk{kTables};
    EXPECT_EQ(walk.translate(4 * kGiB), std::nullopt);
    EXPECT_EQ(walk.translate(1ULL << 39U), std::nullopt);
    EXPECT_EQ(walk.translate(1ULL << 47U), std::nullopt);
}

TEST(BootGdt, HasFlatCodeAndDataWhereTheBootProtocolWantsThem) {
    const BootGdt gdt = build_boot_gdt(CodeSize::k64Bit);
    EXPECT_EQ(gdt[0], 0U);
    const auto limit = [](std::uint64_t d) { return (d & 0xffffU) | (d >> 32U & 0xf0000U); };
    const auto base = [](std::uint64_t d) { return (d >> 16U & 0xffffffU) | (d >> 32U & 0xff000000U); };
    const auto access = [](std::uint64_t d) { return d >> 40U & 0xffU; };
    const auto flags = [](std::uint64_t d) { return d >> 52U & 0xfU; };
    for (const std::uint64_t descriptor : {gdt[0x10 / 8], gdt[0x18 / 8]}) {
        EXPECT_EQ(limit(descriptor), 0xfffffU);
        EXPECT_EQ(base(descriptor), 0U);
    }
    EXPECT_EQ(access(gdt[2]), 0x9bU); // present, ring 0, code, readable, accessed
    EXPECT_EQ(flags(gdt[2]), 0xaU);   // granularity, long
    EXPECT_EQ(access(gdt[3]), 0x93U); // present, ring 0, data, writable, accessed
    EXPECT_EQ(flags(gdt[3]), 0xcU);   // granularity, 32 bits
}

TEST(BootGdt, CodeIs32BitWhereItIsAskedFor) {
    const BootGdt gdt64 = build_boot_gdt(CodeSize::k64Bit);
    BootGdt gdt32 = build_boot_gdt(CodeSize::k32Bit);
    EXPECT_EQ(gdt32[2] >> 52U & 0xfU, 0xcU); // granularity, 32 bits
    gdt32[2] ^= 6ULL << 52U;                 // D/B instead of L is all that differs
    EXPECT_EQ(gdt32, gdt64);
}

TEST(ResetVector, WritesTheValueToThePortForEver) {
    const auto code = build_reset_vector(0x602, 0x06);
    const std::array<unsigned char, 9> expected = {
        0xba, 0x02, 0x06, // mov dx, 0x602
        0xb0, 0x06,       // mov al, 6
        0xee,             // out dx, al
        0xf4,             // hlt
        0xeb, 0xfc,       // jmp to the out, four bytes before the end of this
    };
    EXPECT_EQ(std::memcmp(code.data(), expected.data(), expected.size()), 0);
    EXPECT_EQ(to_integer(kResetVector) + code.size(), kMiB);
}

} // namespace
} // namespace vmm::loader
