#include "loader/acpi.hpp"

#include <gtest/gtest.h>

#include <array>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <map>
#include <sstream>
#include <string>
#include <utility>

#include "support/loader_images.hpp"

namespace vmm::loader {
namespace {

using testing::mentions;

constexpr std::uint64_t kTablesBase = 0xe0000;

Hardware full_config(unsigned vcpus) {
    Hardware config;
    config.vcpus = vcpus;
    config.local_apic = GuestAddress{0xfee00000};
    config.io_apic = GuestAddress{0xfec00000};
    config.sleep_control_port = 0x600;
    config.sleep_status_port = 0x601;
    config.power_off_sleep_type = 5;
    config.reset_port = 0x602;
    config.reset_value = 6;
    config.com1 = SerialPortHardware{.port = 0x3f8, .gsi = 4};
    config.power_button_gsi = 9;
    config.generation_id = GenerationIdHardware{.address = GuestAddress{0x3000df010}, .gsi = 13};
    config.cmos_rtc_port = 0x70;
    config.cmos_century_index = 0x32;
    config.virtio_mmio = {
        {{GuestAddress{0xc0000000}, 0x1000}, 5, InterruptTrigger::kEdge},
        {{GuestAddress{0xc0001000}, 0x1000}, 16, InterruptTrigger::kLevel},
    };
    return config;
}

/// Two nodes and one vCPU in each; the first has memory on both sides of the hole below 4 GiB.
AcpiNuma two_nodes() {
    return {
        .memory = {{{GuestAddress{0}, 0xc0000000}, 0},
                   {{GuestAddress{0x100000000}, 0x40000000}, 0},
                   {{GuestAddress{0x140000000}, 0x180000000}, 1}},
        .vcpu_nodes = {1, 0},
        .distances = {10, 21, 22, 10},
    };
}

Hardware config_with(AcpiNuma numa) {
    Hardware config = full_config(2);
    config.numa = std::move(numa);
    return config;
}

Hardware config_with_pci(bool hotplug = true) {
    Hardware config = full_config(2);
    config.virtio_mmio.clear();
    config.pci = PciHardware{.ecam = {GuestAddress{0xd0100000}, 0x100000},
                             .window = {GuestAddress{0xd1000000}, 0x1000000},
                             .config_ports = 0xcf8,
                             .pin_gsis = {20, 21, 22, 23},
                             .hotplug = {}};
    if (hotplug) {
        config.pci->hotplug = PciHardware::Hotplug{.ports = 0x620, .gsi = 19};
    }
    return config;
}

/// The maximum number of everything.
Hardware largest_config() {
    Hardware config = full_config(kMaxVcpus);
    config.virtio_mmio.assign(kMaxVirtioMmio, {{GuestAddress{0xfeb00000}, 0xfffff}, 0xffffff, {}});
    config.pci = config_with_pci().pci;
    AcpiNuma& numa = config.numa.emplace();
    for (unsigned i = 0; i < kMaxAcpiNumaMemory; ++i) {
        numa.memory.push_back({{GuestAddress{i * kGiB}, kGiB}, i % kMaxAcpiNodes});
    }
    for (unsigned i = 0; i < kMaxVcpus; ++i) {
        numa.vcpu_nodes.push_back(i % kMaxAcpiNodes);
    }
    for (unsigned i = 0; i < kMaxAcpiNodes * kMaxAcpiNodes; ++i) {
        numa.distances.push_back(i % (kMaxAcpiNodes + 1) == 0 ? kAcpiLocalDistance : 20);
    }
    return config;
}

/// Finds the tables as a guest does: from the RSDP on, by address.
class Guest {
  public:
    explicit Guest(const Hardware& config) : bytes_(build_acpi_tables(config, GuestAddress{kTablesBase})) {
        const auto xsdt = at<std::uint64_t>(kTablesBase + 24);
        add(xsdt);
        for (std::uint64_t entry = xsdt + 36; entry < xsdt + at<std::uint32_t>(xsdt + 4); entry += 8) {
            add(at<std::uint64_t>(entry));
        }
        add(field<std::uint64_t>("FACP", 140));
    }

    template <typename T>
    [[nodiscard]] T at(std::uint64_t address) const {
        T value{};
        EXPECT_LE(address - kTablesBase + sizeof value, bytes_.size());
        std::memcpy(&value, bytes_.data() + (address - kTablesBase), sizeof value);
        return value;
    }
    template <typename T>
    [[nodiscard]] T field(const std::string& signature, std::uint64_t offset) const {
        return at<T>(tables_.at(signature) + offset);
    }
    [[nodiscard]] std::span<const std::byte> table(const std::string& signature) const {
        return std::span{bytes_}.subspan(tables_.at(signature) - kTablesBase, field<std::uint32_t>(signature, 4));
    }
    [[nodiscard]] const std::map<std::string, std::uint64_t>& tables() const { return tables_; }
    [[nodiscard]] std::span<const std::byte> bytes() const { return bytes_; }

  private:
    void add(std::uint64_t address) {
        const auto signature = at<std::array<char, 4>>(address);
        tables_[{signature.data(), signature.size()}] = address;
    }

    std::vector<std::byte> bytes_;
    std::map<std::string, std::uint64_t> tables_;
};

unsigned sum(std::span<const std::byte> bytes) {
    unsigned total = 0;
    for (const std::byte byte : bytes) {
        total += std::to_integer<unsigned>(byte);
    }
    return total & 0xffU;
}

TEST(Acpi, RootPointerComesFirstWithBothChecksumsRight) {
    const Guest guest{full_config(2)};
    EXPECT_EQ(std::memcmp(guest.bytes().data(), "RSD PTR ", 8), 0);
    EXPECT_EQ(guest.at<std::uint8_t>(kTablesBase + 15), 2); // revision
    EXPECT_EQ(sum(guest.bytes().first(20)), 0U);
    EXPECT_EQ(sum(guest.bytes().first(36)), 0U);
}

TEST(Acpi, EveryTableIsReachableAlignedAndSumsToZero) {
    const Guest guest{full_config(2)};
    ASSERT_EQ(guest.tables().size(), 4U); // XSDT, FACP, APIC, DSDT
    for (const auto& [signature, address] : guest.tables()) {
        EXPECT_EQ(address % 16, 0U) << signature;
        EXPECT_EQ(sum(guest.table(signature)), 0U) << signature;
    }
}

TEST(Acpi, FixedTableDescribesAHardwareReducedMachine) {
    const Guest guest{full_config(2)};
    EXPECT_EQ(guest.table("FACP").size(), 276U);
    const auto flags = guest.field<std::uint32_t>("FACP", 112);
    EXPECT_NE(flags & 1U << 20U, 0U);                                                           // HW_REDUCED_ACPI
    EXPECT_NE(flags & 1U << 10U, 0U);                                                           // RESET_REG_SUP
    EXPECT_EQ(guest.field<std::uint32_t>("FACP", 40), guest.field<std::uint64_t>("FACP", 140)); // DSDT and X_DSDT
}

TEST(Acpi, FixedTableTellsGuestsNotToProbeForAKeyboardController) {
    const Guest guest{full_config(2)};
    const auto boot_architecture = guest.field<std::uint16_t>("FACP", 109);
    EXPECT_EQ(boot_architecture & 1U << 1U, 0U); // 8042
    EXPECT_NE(boot_architecture & 1U << 2U, 0U); // VGA not present
    EXPECT_EQ(boot_architecture & 1U << 5U, 0U); // CMOS RTC not present
    EXPECT_EQ(guest.field<std::uint8_t>("FACP", 108), 0x32);
}

TEST(Acpi, WithoutClockTheFixedTableSaysSo) {
    Hardware config = full_config(2);
    config.cmos_rtc_port.reset();
    EXPECT_NE(Guest{config}.field<std::uint16_t>("FACP", 109) & 1U << 5U, 0U);
}

TEST(Acpi, PowerAndResetRegistersAreBytesAtIoPorts) {
    const Guest guest{full_config(2)};
    const auto expect_port = [&guest](std::uint64_t offset, std::uint64_t port) {
        EXPECT_EQ(guest.field<std::uint8_t>("FACP", offset), 1);     // system I/O
        EXPECT_EQ(guest.field<std::uint8_t>("FACP", offset + 1), 8); // bits
        EXPECT_EQ(guest.field<std::uint64_t>("FACP", offset + 4), port);
    };
    expect_port(116, 0x602);
    expect_port(244, 0x600);
    expect_port(256, 0x601);
    EXPECT_EQ(guest.field<std::uint8_t>("FACP", 128), 6);
}

TEST(Acpi, EveryVcpuHasItsLocalApic) {
    const Guest guest{full_config(kMaxVcpus)};
    EXPECT_EQ(guest.field<std::uint32_t>("APIC", 36), 0xfee00000U);
    std::uint64_t entry = 44;
    for (unsigned i = 0; i < kMaxVcpus; ++i, entry += 8) {
        EXPECT_EQ(guest.field<std::uint8_t>("APIC", entry), 0);
        EXPECT_EQ(guest.field<std::uint8_t>("APIC", entry + 2), i); // processor
        EXPECT_EQ(guest.field<std::uint8_t>("APIC", entry + 3), i); // local APIC
        EXPECT_EQ(guest.field<std::uint32_t>("APIC", entry + 4), 1U);
    }
    EXPECT_EQ(guest.field<std::uint8_t>("APIC", entry), 1); // I/O APIC
    EXPECT_EQ(guest.field<std::uint32_t>("APIC", entry + 4), 0xfec00000U);
    EXPECT_EQ(guest.field<std::uint32_t>("APIC", entry + 8), 0U);
    EXPECT_EQ(guest.table("APIC").size(), entry + 12 + 6);
}

// Without this entry Linux leaves LINT1 masked, and no external NMI ever arrives.
TEST(Acpi, TheNmiOfEveryLocalApicIsLint1) {
    for (const unsigned vcpus : {1U, 3U, 254U}) {
        const Guest guest{full_config(vcpus)};
        const std::size_t entry = 44 + 8 * vcpus + 12;
        EXPECT_EQ(guest.field<std::uint8_t>("APIC", entry), 4); // local APIC NMI (ACPI 6.3, 5.2.12.7)
        EXPECT_EQ(guest.field<std::uint8_t>("APIC", entry + 1), 6);
        EXPECT_EQ(guest.field<std::uint8_t>("APIC", entry + 2), 0xff) << "all processors";
        EXPECT_EQ(guest.field<std::uint16_t>("APIC", entry + 3), 0) << "polarity and trigger of the bus";
        EXPECT_EQ(guest.field<std::uint8_t>("APIC", entry + 5), 1) << "LINT1";
    }
}

TEST(Acpi, LargestMachineFitsBelowTheResetVector) {
    EXPECT_LT(build_acpi_tables(largest_config(), GuestAddress{kTablesBase}).size(), 0x1f000U);
    EXPECT_LT(kTablesBase + build_acpi_tables(largest_config(), GuestAddress{kTablesBase}).size(), 0xffff0U);
}

TEST(Acpi, NodesAddTwoTablesToTheOthers) {
    const Guest guest{config_with(two_nodes())};
    ASSERT_EQ(guest.tables().size(), 6U); // XSDT, FACP, APIC, SRAT, SLIT, DSDT
    for (const std::string signature : {"SRAT", "SLIT"}) {
        EXPECT_EQ(guest.tables().at(signature) % 16, 0U) << signature;
        EXPECT_EQ(sum(guest.table(signature)), 0U) << signature;
    }
    EXPECT_EQ(guest.field<std::uint8_t>("SRAT", 8), 3);    // revision
    EXPECT_EQ(guest.field<std::uint32_t>("SRAT", 36), 1U); // reserved, but 1
    EXPECT_EQ(guest.field<std::uint64_t>("SRAT", 40), 0U);
}

TEST(Acpi, WithoutNodesNoTableMentionsAny) {
    const Guest guest{full_config(2)};
    EXPECT_FALSE(guest.tables().contains("SRAT"));
    EXPECT_FALSE(guest.tables().contains("SLIT"));
}

TEST(Acpi, NodesWithoutDistancesHaveNoDistanceTable) {
    AcpiNuma numa = two_nodes();
    numa.distances.clear();
    const Guest guest{config_with(numa)};
    EXPECT_TRUE(guest.tables().contains("SRAT"));
    EXPECT_FALSE(guest.tables().contains("SLIT"));
}

TEST(Acpi, EveryVcpuIsInItsNode) {
    const Guest guest{largest_config()};
    std::uint64_t entry = 48;
    for (unsigned i = 0; i < kMaxVcpus; ++i, entry += 16) {
        using Entry = std::array<std::uint8_t, 16>;
        const auto node = static_cast<std::uint8_t>(i % kMaxAcpiNodes);
        const auto local_apic = static_cast<std::uint8_t>(i);
        const Entry enabled = {0, 16, node, local_apic, 1};
        EXPECT_EQ(guest.field<Entry>("SRAT", entry), enabled);
    }
    EXPECT_EQ(guest.field<std::uint8_t>("SRAT", entry), 1); // memory
}

TEST(Acpi, EveryRangeOfMemoryIsInItsNode) {
    const Guest guest{config_with(two_nodes())};
    std::uint64_t entry = 48 + (2 * 16);
    for (const AcpiNumaMemory& memory : two_nodes().memory) {
        EXPECT_EQ(guest.field<std::uint32_t>("SRAT", entry + 2), memory.node);
        EXPECT_EQ(guest.field<GuestAddress>("SRAT", entry + 8), memory.range.base);
        EXPECT_EQ(guest.field<std::uint64_t>("SRAT", entry + 16), memory.range.size);
        entry += 40;
    }
    EXPECT_EQ(guest.table("SRAT").size(), entry);
}

TEST(Acpi, MemoryIsEnabledAndNotHotPluggable) {
    using Entry = std::array<std::uint8_t, 40>;
    const Entry expected = {
        1, 40,                      // type and length
        1, 0,  0, 0,    0, 0,       // node, reserved
        0, 0,  0, 0x40, 1, 0, 0, 0, // base
        0, 0,  0, 0x80, 1, 0, 0, 0, // size
        0, 0,  0, 0,    1, 0, 0, 0, // reserved, flags
        0, 0,  0, 0,    0, 0, 0, 0, // reserved
    };
    const Guest guest{config_with(two_nodes())};
    EXPECT_EQ(guest.field<Entry>("SRAT", guest.table("SRAT").size() - expected.size()), expected);
}

TEST(Acpi, DistancesAreRowByRow) {
    const Guest guest{config_with(two_nodes())};
    EXPECT_EQ(guest.field<std::uint64_t>("SLIT", 36), 2U);
    const auto from_to = [&guest](unsigned from, unsigned to) {
        return guest.field<std::uint8_t>("SLIT", 44 + (2 * from) + to);
    };
    EXPECT_EQ(from_to(0, 0), 10);
    EXPECT_EQ(from_to(0, 1), 21);
    EXPECT_EQ(from_to(1, 0), 22);
    EXPECT_EQ(from_to(1, 1), 10);
    EXPECT_EQ(guest.table("SLIT").size(), 48U);
}

TEST(Acpi, NodeWithoutVcpusCounts) {
    AcpiNuma numa = two_nodes();
    numa.vcpu_nodes = {0, 0};
    EXPECT_EQ(Guest{config_with(numa)}.field<std::uint64_t>("SLIT", 36), 2U);
}

TEST(Acpi, NodeWithoutMemoryCounts) {
    AcpiNuma numa = two_nodes();
    numa.memory.pop_back();
    EXPECT_EQ(Guest{config_with(numa)}.field<std::uint64_t>("SLIT", 36), 2U);
}

// PCI Firmware 3.0, 4.1.2.
TEST(Acpi, PciHasATableOfItsConfigurationSpaces) {
    for (const bool hotplug : {false, true}) {
        const Guest guest{config_with_pci(hotplug)};
        ASSERT_EQ(guest.tables().size(), 5U); // XSDT, FACP, APIC, MCFG, DSDT
        EXPECT_EQ(guest.table("MCFG").size(), 60U);
        EXPECT_EQ(sum(guest.table("MCFG")), 0U);
        EXPECT_EQ(guest.field<std::uint8_t>("MCFG", 8), 1); // revision
        EXPECT_EQ(guest.field<std::uint64_t>("MCFG", 36), 0U);
        EXPECT_EQ(guest.field<std::uint64_t>("MCFG", 44), 0xd0100000U);
        EXPECT_EQ(guest.field<std::uint16_t>("MCFG", 52), 0U) << "segment";
        EXPECT_EQ(guest.field<std::uint8_t>("MCFG", 54), 0U) << "first bus";
        EXPECT_EQ(guest.field<std::uint8_t>("MCFG", 55), 0U) << "last bus";
        EXPECT_EQ(guest.field<std::uint32_t>("MCFG", 56), 0U);
    }
    EXPECT_FALSE(Guest{full_config(2)}.tables().contains("MCFG"));
}

/// Runs the ACPICA compiler over a guest's tables, in a directory of its own.
class Iasl {
  public:
    explicit Iasl(const Guest& guest) {
        std::string name = (std::filesystem::temp_directory_path() / "vmm-acpi-XXXXXX").string();
        directory_ = ::mkdtemp(name.data());
        for (const auto& [signature, address] : guest.tables()) {
            std::ofstream out{directory_ / (signature + ".aml"), std::ios::binary};
            for (const std::byte byte : guest.table(signature)) {
                out.put(static_cast<char>(byte));
            }
        }
    }
    Iasl(const Iasl&) = delete;
    Iasl& operator=(const Iasl&) = delete;
    ~Iasl() { std::filesystem::remove_all(directory_); }

    static bool is_installed() { return shell("command -v iasl >/dev/null") == 0; }

    /// The source of one table. Fails the test if iasl finds an error in the table.
    [[nodiscard]] std::string disassemble(const std::string& signature) const {
        const std::string output = run("-d " + signature + ".aml");
        for (const std::string_view complaint : {"Error", "Warning", "hecksum", "nvalid"}) {
            EXPECT_FALSE(mentions(output, complaint)) << output;
        }
        return read(signature + ".dsl");
    }
    /// The output of iasl when it compiles its own disassembly.
    [[nodiscard]] std::string compile(const std::string& signature) const { return run(signature + ".dsl"); }

  private:
    static int shell(const std::string& command) {
        return std::system(command.c_str()); // NOLINT(concurrency-mt-unsafe,cert-env33-c): one thread, fixed commands
    }
    [[nodiscard]] std::string run(const std::string& arguments) const {
        const int status = shell("cd '" + directory_.string() + "' && iasl " + arguments + " >output 2>&1 </dev/null");
        const std::string output = read("output");
        EXPECT_EQ(status, 0) << "iasl " << arguments << ":\n" << output;
        return output;
    }
    [[nodiscard]] std::string read(const std::string& name) const {
        std::ostringstream content;
        content << std::ifstream{directory_ / name}.rdbuf();
        return content.str();
    }

    std::filesystem::path directory_;
};

class AcpiSourceTest : public ::testing::Test {
  protected:
    void SetUp() override { ASSERT_TRUE(Iasl::is_installed()) << "iasl is missing: install the package acpica-tools"; }
};

TEST_F(AcpiSourceTest, DevicesAreInTheDsdt) {
    const Guest guest{full_config(2)};
    const std::string source = Iasl{guest}.disassemble("DSDT");
    for (const std::string_view part : {"Device (C000)",
                                        "Device (C001)",
                                        "\"ACPI0007\"",
                                        "EisaId (\"PNP0501\")",
                                        "0x03F8",
                                        "EisaId (\"PNP0B00\")",
                                        "Device (V000)",
                                        "Device (V001)",
                                        "\"LNRO0005\"",
                                        "0xC0001000",
                                        "Interrupt (ResourceConsumer, Edge, ActiveHigh, Exclusive",
                                        "Interrupt (ResourceConsumer, Level, ActiveHigh, Exclusive",
                                        "Name (\\_S5",
                                        "EisaId (\"PNP0C0C\")",
                                        "\"ACPI0013\"",
                                        "Method (_EVT, 1, NotSerialized)",
                                        "Notify (PWRB, 0x80)",
                                        "\"VMGENCTR\"",
                                        "Name (_CID, Package (0x02)",
                                        "Name (_DDN, \"VM_Gen_Counter\")",
                                        "Notify (VGEN, 0x80)"}) {
        EXPECT_TRUE(mentions(source, part)) << part << " is not in\n" << source;
    }
    const std::string place = source.substr(source.find("Name (ADDR, Package (0x02)"), 200);
    EXPECT_LT(place.find("0x000DF010"), place.find("0x03")) << "the low half comes first:\n" << place;
    EXPECT_TRUE(mentions(place, "0x03")) << place;
    EXPECT_FALSE(mentions(source, "Device (C002)"));
    EXPECT_FALSE(mentions(source, "Device (V002)"));
}

/// The text between the braces that follow `head`.
std::string block_of(const std::string& source, const std::string& head) {
    const std::size_t begin = source.find(head);
    if (begin == std::string::npos) {
        return {};
    }
    std::size_t at = source.find('{', begin);
    const std::size_t first = at;
    int depth = 0;
    for (; at < source.size(); ++at) {
        depth += source[at] == '{' ? 1 : source[at] == '}' ? -1 : 0;
        if (depth == 0) {
            break;
        }
    }
    return source.substr(first, at - first);
}

TEST_F(AcpiSourceTest, PciIsInTheDsdt) {
    const Guest guest{config_with_pci()};
    const Iasl iasl{guest};
    const std::string source = iasl.disassemble("DSDT");
    for (const std::string_view part :
         {"Device (PCI0)", "EisaId (\"PNP0A08\")", "EisaId (\"PNP0A03\")", "Name (_SEG, Zero)", "Name (_BBN, Zero)",
          "Name (_CCA, One)", "WordBusNumber (ResourceProducer, MinFixed, MaxFixed, PosDecode",
          "DWordMemory (ResourceProducer, PosDecode, MinFixed, MaxFixed, NonCacheable, ReadWrite", "0xD1000000",
          "0xD1FFFFFF", "0x0CF8", "Method (_OSC, 4, NotSerialized)",
          "ToUUID (\"33db4d5b-1ff7-401c-9657-7441c03dd766\")", "CreateDWordField (Arg3, 0x08, CTRL)",
          "OperationRegion (HPRG, SystemIO, 0x0620, 0x0C)", "Field (HPRG, DWordAcc, NoLock, Preserve)", "Device (GED2)",
          "\\_SB.PCI0.HPCK ()"}) {
        EXPECT_TRUE(mentions(source, part)) << part << " is not in\n" << source;
    }
    const std::string slot = block_of(source, "Device (S1F)");
    for (const std::string_view part :
         {"Name (_ADR, 0x001F0000)", "Name (_SUN, 0x1F)", "Method (_EJ0, 1, NotSerialized)", "EJCT = 0x80000000"}) {
        EXPECT_TRUE(mentions(slot, part)) << part << " is not in\n" << slot;
    }
    EXPECT_FALSE(mentions(source, "Device (S00)")) << "the host bridge stays";
    const std::string check = block_of(source, "Method (HPCK");
    const std::size_t gone = check.find("Local0 = GONE");
    ASSERT_NE(gone, std::string::npos) << check;
    EXPECT_LT(check.find("Local0 = COME"), check.find("Notify (S01, One)"));
    EXPECT_LT(check.find("Notify (S1F, One)"), gone);
    EXPECT_LT(gone, check.find("Notify (S01, 0x03)"));
    EXPECT_TRUE(mentions(check, "Notify (S01, 0x03)") && mentions(check, "Notify (S1F, 0x03)"));
    EXPECT_FALSE(mentions(check, "S00"));
    const std::string output = iasl.compile("DSDT");
    EXPECT_TRUE(mentions(output, "0 Errors, 0 Warnings")) << output;
    EXPECT_TRUE(mentions(iasl.disassemble("MCFG"), "Base Address : 00000000D0100000"));
}

// ACPI 6.3, 6.2.13.
TEST_F(AcpiSourceTest, EachSlotOfPciHasItsPinOnOneOfFourLines) {
    const Guest guest{config_with_pci()};
    std::string pins = block_of(Iasl{guest}.disassemble("DSDT"), "Name (_PRT");
    std::erase_if(pins, [](char c) { return c == ' ' || c == '\n'; });
    EXPECT_TRUE(mentions(pins, "{0xFFFF,Zero,Zero,0x14}")) << pins;
    EXPECT_TRUE(mentions(pins, "{0x0001FFFF,Zero,Zero,0x15}")) << pins;
    EXPECT_TRUE(mentions(pins, "{0x0004FFFF,Zero,Zero,0x14}")) << pins;
    EXPECT_TRUE(mentions(pins, "{0x001FFFFF,Zero,Zero,0x17}")) << pins;
}

TEST_F(AcpiSourceTest, PciWithoutHotplugTellsOfNone) {
    const Guest guest{config_with_pci(false)};
    const std::string source = Iasl{guest}.disassemble("DSDT");
    EXPECT_TRUE(mentions(source, "Device (PCI0)"));
    for (const std::string_view part : {"HPRG", "Device (S01)", "HPCK", "Device (GED2)", "_EJ0"}) {
        EXPECT_FALSE(mentions(source, part)) << part;
    }
}

TEST_F(AcpiSourceTest, DsdtOfTheLargestMachineCompilesWithoutComplaint) {
    const Guest guest{full_config(kMaxVcpus)};
    const Iasl iasl{guest};
    EXPECT_TRUE(mentions(iasl.disassemble("DSDT"), "Device (C0FD)"));
    const std::string output = iasl.compile("DSDT");
    EXPECT_TRUE(mentions(output, "0 Errors, 0 Warnings, 0 Remarks")) << output;
}

TEST_F(AcpiSourceTest, DataTablesAreWellFormed) {
    const Guest guest{full_config(3)};
    const Iasl iasl{guest};
    EXPECT_TRUE(mentions(iasl.disassemble("FACP"), "Hardware Reduced (V5) : 1"));
    EXPECT_TRUE(mentions(iasl.disassemble("APIC"), "Local Apic ID : 02"));
    EXPECT_TRUE(mentions(iasl.disassemble("XSDT"), "ACPI Table Address   1"));
}

TEST_F(AcpiSourceTest, NodeTablesAreWellFormed) {
    const Guest guest{config_with(two_nodes())};
    const Iasl iasl{guest};
    const std::string resources = iasl.disassemble("SRAT");
    for (const std::string_view part :
         {"[Processor Local APIC/SAPIC Affinity]", "Apic ID : 01", "[Memory Affinity]",
          "Base Address : 0000000140000000", "Address Length : 0000000180000000", "Hot Pluggable : 0"}) {
        EXPECT_TRUE(mentions(resources, part)) << part << " is not in\n" << resources;
    }
    const std::string localities = iasl.disassemble("SLIT");
    EXPECT_TRUE(mentions(localities, "Locality   1 : 16 0A")) << localities;
}

TEST_F(AcpiSourceTest, NodeTablesOfTheLargestMachineAreWellFormed) {
    const Guest guest{largest_config()};
    const Iasl iasl{guest};
    EXPECT_TRUE(mentions(iasl.disassemble("SRAT"), "Apic ID : FD"));
    EXPECT_TRUE(mentions(iasl.disassemble("SLIT"), "Localities : 0000000000000040"));
}

} // namespace
} // namespace vmm::loader
