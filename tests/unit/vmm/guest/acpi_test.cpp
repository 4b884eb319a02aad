#include "vmm/guest/acpi.hpp"

#include <gtest/gtest.h>

#include <map>
#include <string>
#include <vector>

namespace vmm::guest {
namespace {

/// Memory that holds only the pieces put into it.
class MemoryOfTables {
  public:
    [[nodiscard]] std::span<const std::byte> view(std::uint64_t address, std::uint64_t size) const noexcept {
        auto piece = pieces_.upper_bound(address);
        if (piece == pieces_.begin()) {
            return {};
        }
        --piece;
        const std::uint64_t offset = address - piece->first;
        if (offset > piece->second.size() || size > piece->second.size() - offset) {
            return {};
        }
        return std::span(piece->second).subspan(offset, size);
    }
    void put(std::uint64_t address, std::vector<std::byte> bytes) { pieces_[address] = std::move(bytes); }
    std::vector<std::byte>& at(std::uint64_t address) { return pieces_.at(address); }

  private:
    std::map<std::uint64_t, std::vector<std::byte>> pieces_;
};

/// Bytes that are appended little-endian or set at their place.
class Table {
  public:
    Table() = default;
    explicit Table(std::string_view signature) { text(signature).zeros(36 - signature.size()); }

    Table& integer(std::uint64_t value, std::size_t size) {
        for (std::size_t i = 0; i < size; ++i) {
            bytes_.push_back(static_cast<std::byte>(value >> (8 * i)));
        }
        return *this;
    }
    Table& zeros(std::size_t count) {
        bytes_.resize(bytes_.size() + count);
        return *this;
    }
    Table& text(std::string_view text) {
        for (const char c : text) {
            bytes_.push_back(static_cast<std::byte>(c));
        }
        return *this;
    }
    Table& set(std::size_t offset, std::uint64_t value, std::size_t size) {
        for (std::size_t i = 0; i < size; ++i) {
            bytes_.at(offset + i) = static_cast<std::byte>(value >> (8 * i));
        }
        return *this;
    }
    /// Makes the first `size` bytes add up to 0 by setting the byte at `offset`.
    Table& checksum(std::size_t offset, std::size_t size) {
        bytes_.at(offset) = std::byte{0};
        unsigned sum = 0;
        for (std::size_t i = 0; i < size; ++i) {
            sum += std::to_integer<unsigned>(bytes_.at(i));
        }
        return set(offset, 256 - (sum % 256), 1);
    }
    /// Sets length and checksum of a table with a standard header.
    [[nodiscard]] std::vector<std::byte> finished() {
        return set(4, bytes_.size(), 4).checksum(9, bytes_.size()).bytes_;
    }
    [[nodiscard]] std::vector<std::byte> bytes() const { return bytes_; }

  private:
    std::vector<std::byte> bytes_;
};

constexpr std::uint64_t kRsdp = 0xe0010;
constexpr std::uint64_t kRsdt = 0xe1000;
constexpr std::uint64_t kXsdt = 0xe2000;
constexpr std::uint64_t kMadt = 0xe3000;
constexpr std::uint64_t kFadt = 0xe4000;
constexpr std::uint64_t kDsdt = 0xe5000;

Table local_apics(std::initializer_list<unsigned> ids) {
    Table madt("APIC");
    madt.integer(0xfee00000, 4).integer(1, 4);
    for (const unsigned id : ids) {
        madt.integer(0, 1).integer(8, 1).integer(id, 1).integer(id, 1).integer(1, 4);
    }
    return madt;
}

Table reduced_fadt() {
    return Table("FACP").zeros(276 - 36).set(112, 1U << 20, 4).set(140, kDsdt, 8).set(244, 1, 1).set(248, 0x600, 8);
}

Table pc_fadt() {
    return Table("FACP").zeros(276 - 36).set(40, kDsdt, 4).set(64, 0x604, 4).set(172, 1, 1).set(176, 0x604, 8);
}

/// Name (\_S5, Package (0x04) {a, b, 0, 0}) among other bytes.
Table dsdt_with_s5(std::string_view name, unsigned a, unsigned b) {
    return Table("DSDT")
        .text("....")
        .integer(0x08, 1)
        .text(name)
        .text("_S5_")
        .integer(0x12, 1)
        .integer(0x08, 1)
        .integer(0x04, 1)
        .integer(0x0a, 1)
        .integer(a, 1)
        .integer(0x0a, 1)
        .integer(b, 1)
        .integer(0, 2);
}

Table rsdp(unsigned revision) {
    Table table;
    table.text("RSD PTR ").zeros(1).text("OEMID ").integer(revision, 1).integer(kRsdt, 4).checksum(8, 20);
    if (revision >= 2) {
        table.integer(36, 4).integer(kXsdt, 8).zeros(4).checksum(32, 36);
    }
    return table;
}

MemoryOfTables machine(Table madt, Table fadt, Table dsdt) {
    MemoryOfTables memory;
    memory.put(kRsdp, rsdp(2).bytes());
    memory.put(kRsdt, Table("RSDT").integer(kFadt, 4).integer(kMadt, 4).finished());
    memory.put(kXsdt, Table("XSDT").integer(kFadt, 8).integer(kMadt, 8).finished());
    memory.put(kMadt, madt.finished());
    memory.put(kFadt, fadt.finished());
    memory.put(kDsdt, dsdt.finished());
    return memory;
}

MemoryOfTables reduced_machine() {
    return machine(local_apics({0, 1, 2}), reduced_fadt(), dsdt_with_s5("\\", 5, 0));
}

std::vector<std::uint32_t> ids(const Acpi& acpi) {
    return {acpi.cpus.apic_ids.begin(), acpi.cpus.apic_ids.begin() + static_cast<std::ptrdiff_t>(acpi.cpus.count)};
}

TEST(GuestAcpi, CpusAndSleepControlAreFound) {
    const Acpi acpi = read_acpi(reduced_machine(), kRsdp);
    EXPECT_EQ(ids(acpi), (std::vector<std::uint32_t>{0, 1, 2}));
    EXPECT_TRUE(acpi.power_off.hardware_reduced);
    EXPECT_EQ(acpi.power_off.registers[0].space, PowerRegister::Space::kPort);
    EXPECT_EQ(acpi.power_off.registers[0].address, 0x600U);
    EXPECT_EQ(acpi.power_off.sleep_types[0], 5U);
    EXPECT_EQ(acpi.cpus_missing, "");
}

TEST(GuestAcpi, SleepControlMayLieInMemory) {
    const MemoryOfTables memory =
        machine(local_apics({0}), reduced_fadt().set(244, 0, 1).set(248, 0xfea00000, 8), dsdt_with_s5("", 5, 0));
    const Acpi acpi = read_acpi(memory, kRsdp);
    EXPECT_EQ(acpi.power_off.registers[0].space, PowerRegister::Space::kMemory);
    EXPECT_EQ(acpi.power_off.registers[0].address, 0xfea00000U);
}

TEST(GuestAcpi, PcHasPm1ControlAndItsOwnSleepType) {
    const Acpi acpi = read_acpi(machine(local_apics({0}), pc_fadt(), dsdt_with_s5("", 7, 3)), kRsdp);
    EXPECT_FALSE(acpi.power_off.hardware_reduced);
    EXPECT_EQ(acpi.power_off.registers[0].address, 0x604U);
    EXPECT_EQ(acpi.power_off.registers[1].space, PowerRegister::Space::kNone);
    EXPECT_EQ(acpi.power_off.sleep_types[0], 7U);
    EXPECT_EQ(acpi.power_off.sleep_types[1], 3U);
}

TEST(GuestAcpi, OlderPm1FieldCounts) {
    const Acpi acpi = read_acpi(machine(local_apics({0}), pc_fadt().set(176, 0, 8), Table("DSDT")), kRsdp);
    EXPECT_EQ(acpi.power_off.registers[0].space, PowerRegister::Space::kPort);
    EXPECT_EQ(acpi.power_off.registers[0].address, 0x604U);
}

TEST(GuestAcpi, WithoutS5TheUsualSleepTypesAreTaken) {
    EXPECT_EQ(read_acpi(machine(local_apics({0}), reduced_fadt(), Table("DSDT")), kRsdp).power_off.sleep_types[0], 5U);
    EXPECT_EQ(read_acpi(machine(local_apics({0}), pc_fadt(), Table("DSDT")), kRsdp).power_off.sleep_types[0], 0U);
}

TEST(GuestAcpi, S5ThatIsNoPackageOrIsCutOffIsNotRead) {
    for (const std::size_t size : {4U, 5U, 6U, 7U, 8U}) {
        Table cut("DSDT");
        const auto whole = dsdt_with_s5("", 7, 7).bytes();
        for (std::size_t i = 36; i < 36 + 5 + size && i < whole.size(); ++i) {
            cut.integer(std::to_integer<unsigned>(whole[i]), 1);
        }
        const Acpi acpi = read_acpi(machine(local_apics({0}), reduced_fadt(), cut), kRsdp);
        EXPECT_EQ(acpi.power_off.sleep_types[0], 5U) << size;
    }
    const Acpi method = read_acpi(machine(local_apics({0}), reduced_fadt(), Table("DSDT").text(".._S5_....")), kRsdp);
    EXPECT_EQ(method.power_off.sleep_types[0], 5U);
}

TEST(GuestAcpi, RsdpIsSearchedForIfTheLoaderNamesNone) {
    EXPECT_EQ(read_acpi(reduced_machine(), 0).cpus.count, 3U);
}

TEST(GuestAcpi, RevisionZeroHasAnRsdt) {
    MemoryOfTables memory = reduced_machine();
    memory.put(kRsdp, rsdp(0).bytes());
    memory.put(kXsdt, {});
    EXPECT_EQ(read_acpi(memory, kRsdp).cpus.count, 3U);
}

TEST(GuestAcpi, BadExtendedChecksumFallsBackToTheRsdt) {
    MemoryOfTables memory = reduced_machine();
    memory.at(kRsdp)[33] = std::byte{1};
    memory.put(kXsdt, {});
    EXPECT_EQ(read_acpi(memory, kRsdp).cpus.count, 3U);
}

TEST(GuestAcpi, EachBadChecksumIsNoticed) {
    for (const std::uint64_t address : {kRsdp, kXsdt, kMadt}) {
        MemoryOfTables memory = reduced_machine();
        memory.at(address)[10] ^= std::byte{1};
        const Acpi acpi = read_acpi(memory, kRsdp);
        EXPECT_EQ(acpi.cpus.count, 0U) << address;
        EXPECT_NE(acpi.cpus_missing, "") << address;
    }
    MemoryOfTables memory = reduced_machine();
    memory.at(kFadt)[10] ^= std::byte{1};
    EXPECT_NE(read_acpi(memory, kRsdp).power_off_missing, "");
}

TEST(GuestAcpi, LengthsThatCannotBeAreRefused) {
    for (const std::uint32_t length : {0U, 35U, 0x200000U, UINT32_MAX}) {
        MemoryOfTables memory = reduced_machine();
        for (std::size_t i = 0; i < 4; ++i) {
            memory.at(kMadt)[4 + i] = static_cast<std::byte>(length >> (8 * i));
        }
        EXPECT_EQ(read_acpi(memory, kRsdp).cpus.count, 0U) << length;
    }
}

TEST(GuestAcpi, NothingThereIsSaidSo) {
    EXPECT_EQ(read_acpi(MemoryOfTables(), 0).cpus_missing, "no-rsdp");
    EXPECT_EQ(read_acpi(MemoryOfTables(), kRsdp).cpus_missing, "bad-rsdp-or-root-table");
}

TEST(GuestAcpi, OnlyEnabledCpusCountAndEachOnce) {
    Table madt = local_apics({4, 4});
    madt.integer(0, 1).integer(8, 1).integer(0, 1).integer(5, 1).integer(2, 4); // Online capable, not enabled.
    madt.integer(1, 1).integer(12, 1).zeros(10);                                // An I/O APIC.
    madt.integer(9, 1).integer(16, 1).zeros(2).integer(300, 4).integer(1, 4).zeros(4);
    madt.integer(9, 1).integer(16, 1).zeros(2).integer(301, 4).integer(0, 4).zeros(4);
    EXPECT_EQ(ids(read_acpi(machine(madt, reduced_fadt(), Table("DSDT")), kRsdp)),
              (std::vector<std::uint32_t>{4, 300}));
}

TEST(GuestAcpi, MadtEntryWithBadLengthEndsTheList) {
    for (const unsigned length : {0U, 1U, 200U}) {
        Table madt = local_apics({0});
        madt.integer(0, 1).integer(length, 1).integer(1, 1).integer(1, 1).integer(1, 4);
        EXPECT_EQ(ids(read_acpi(machine(madt, reduced_fadt(), Table("DSDT")), kRsdp)), (std::vector<std::uint32_t>{0}));
    }
    Table shorter = local_apics({0});
    shorter.integer(0, 1).integer(4, 1).integer(1, 1).integer(1, 1); // Too short to have flags.
    EXPECT_EQ(ids(read_acpi(machine(shorter, reduced_fadt(), Table("DSDT")), kRsdp)), (std::vector<std::uint32_t>{0}));
}

TEST(GuestAcpi, MoreCpusThanFitAreCounted) {
    Table madt = local_apics({});
    for (unsigned id = 0; id < 300; ++id) {
        madt.integer(9, 1).integer(16, 1).zeros(2).integer(id, 4).integer(1, 4).zeros(4);
    }
    const Acpi acpi = read_acpi(machine(madt, reduced_fadt(), Table("DSDT")), kRsdp);
    EXPECT_EQ(acpi.cpus.count, kMaxCpus);
    EXPECT_EQ(acpi.cpus.left_out, 300 - kMaxCpus);
}

} // namespace
} // namespace vmm::guest
