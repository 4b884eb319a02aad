#include "loader/device_tree.hpp"

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
#include <vector>

#include "loader/x86/boot_params.hpp"
#include "support/loader_images.hpp"

namespace vmm::loader {
namespace {

using testing::mentions;
using Cells = std::vector<std::uint32_t>;
using Names = std::vector<std::string>;

constexpr std::array kSmallMap{
    MemoryMapEntry{{GuestAddress{0}, 0x9fc00}, MemoryKind::kRam},
    MemoryMapEntry{{GuestAddress{0x9fc00}, 0x60400}, MemoryKind::kReserved},
    MemoryMapEntry{{GuestAddress{0x100000}, 0x3f00000}, MemoryKind::kRam},
};
constexpr std::array kMapOnBothSidesOfTheHole{
    MemoryMapEntry{{GuestAddress{0}, 0x9fc00}, MemoryKind::kRam},
    MemoryMapEntry{{GuestAddress{0x9fc00}, 0x60400}, MemoryKind::kReserved},
    MemoryMapEntry{{GuestAddress{0x100000}, 0xbff00000}, MemoryKind::kRam},
    MemoryMapEntry{{GuestAddress{0x100000000}, 0x240000000}, MemoryKind::kRam},
};

Hardware hardware_with(unsigned vcpus, unsigned virtio_devices) {
    Hardware hardware;
    hardware.vcpus = vcpus;
    hardware.local_apic = GuestAddress{0xfee00000};
    hardware.io_apic = GuestAddress{0xfec00000};
    hardware.sleep_control_port = 0x600;
    hardware.sleep_status_port = 0x601;
    hardware.power_off_sleep_type = 5;
    hardware.reset_port = 0x602;
    hardware.reset_value = 6;
    hardware.power_registers = GuestRange{GuestAddress{0xd0020000}, 3};
    hardware.com1 = SerialPortHardware{.port = 0x3f8, .gsi = 4};
    hardware.generation_id = GenerationIdHardware{.address = GuestAddress{0x3000df010}, .gsi = 13};
    hardware.cmos_rtc_port = 0x70;
    hardware.cmos_century_index = 0x32;
    for (unsigned i = 0; i < virtio_devices; ++i) {
        hardware.virtio_mmio.push_back({{GuestAddress{0xd0000000 + std::uint64_t{i} * 0x1000}, 0x1000}, 5 + i, {}});
    }
    return hardware;
}

/// Two nodes and one vCPU in each; the first has memory on both sides of the hole below 4 GiB.
Hardware hardware_with_two_nodes() {
    Hardware hardware = hardware_with(2, 0);
    hardware.numa = AcpiNuma{
        .memory = {{{GuestAddress{0}, 0xc0000000}, 0},
                   {{GuestAddress{0x100000000}, 0x40000000}, 0},
                   {{GuestAddress{0x140000000}, 0x200000000}, 1}},
        .vcpu_nodes = {1, 0},
        .distances = {10, 21, 22, 10},
    };
    return hardware;
}

/// The maximum number of everything; four ranges of memory on each node.
Hardware largest_hardware() {
    Hardware hardware = hardware_with(kMaxVcpus, 17);
    AcpiNuma& numa = hardware.numa.emplace();
    for (unsigned i = 0; i < kMaxAcpiNumaMemory; ++i) {
        numa.memory.push_back({{GuestAddress{i * 64 * kMiB}, 64 * kMiB}, i % kMaxAcpiNodes});
    }
    for (unsigned i = 0; i < kMaxVcpus; ++i) {
        numa.vcpu_nodes.push_back(i % kMaxAcpiNodes);
    }
    for (unsigned i = 0; i < kMaxAcpiNodes * kMaxAcpiNodes; ++i) {
        numa.distances.push_back(i % (kMaxAcpiNodes + 1) == 0 ? kAcpiLocalDistance : 20);
    }
    return hardware;
}

/// A tree as a reader of the specification (Devicetree Specification 0.4, chapter 5) finds it, by paths. The test has
/// its own reader, because the library that wrote the tree would agree with itself.
class Tree {
  public:
    explicit Tree(std::vector<std::byte> bytes) : bytes_(std::move(bytes)) {
        EXPECT_EQ(cell(0), 0xd00dfeedU);
        EXPECT_EQ(cell(4), bytes_.size());
        EXPECT_EQ(cell(20), 17U);
        const std::size_t strings = cell(12);
        std::size_t at = cell(8);
        std::vector<std::string> path;
        for (std::uint32_t token = cell(at); token != 9; token = cell(at)) {
            at += 4;
            if (token == 1) {
                path.push_back(text(at));
                at += (path.back().size() + 4) / 4 * 4;
                EXPECT_TRUE(nodes_.emplace(joined(path), Properties{}).second) << joined(path) << " is there twice";
            } else if (token == 2) {
                path.pop_back();
            } else if (token == 3) {
                const std::size_t length = cell(at);
                nodes_[joined(path)][text(strings + cell(at + 4))] =
                    std::vector(bytes_.begin() + static_cast<std::ptrdiff_t>(at + 8),
                                bytes_.begin() + static_cast<std::ptrdiff_t>(at + 8 + length));
                at += 8 + (length + 3) / 4 * 4;
            } else {
                ADD_FAILURE() << "token " << token;
                return;
            }
        }
    }

    [[nodiscard]] bool has(const std::string& path) const { return nodes_.contains(path); }
    [[nodiscard]] bool has(const std::string& path, const std::string& property) const {
        return nodes_.at(path).contains(property);
    }
    [[nodiscard]] Cells cells(const std::string& path, const std::string& property) const {
        const auto& value = nodes_.at(path).at(property);
        Cells cells;
        for (std::size_t i = 0; i + 4 <= value.size(); i += 4) {
            cells.push_back(big_endian(value, i));
        }
        return cells;
    }
    /// The strings in a property, each without its NUL.
    [[nodiscard]] Names names(const std::string& path, const std::string& property) const {
        Names names(1);
        for (const std::byte byte : nodes_.at(path).at(property)) {
            if (byte == std::byte{0}) {
                names.emplace_back();
            } else {
                names.back() += static_cast<char>(byte);
            }
        }
        EXPECT_EQ(names.back(), "") << "no NUL at the end";
        names.pop_back();
        return names;
    }
    /// The paths that begin with `start`.
    [[nodiscard]] Names paths(const std::string& start) const {
        Names paths;
        for (const auto& [path, properties] : nodes_) {
            if (path.starts_with(start)) {
                paths.push_back(path);
            }
        }
        return paths;
    }
    [[nodiscard]] std::span<const std::byte> bytes() const { return bytes_; }

  private:
    using Properties = std::map<std::string, std::vector<std::byte>>;

    static std::uint32_t big_endian(std::span<const std::byte> bytes, std::size_t at) {
        std::uint32_t value = 0;
        for (const std::byte byte : bytes.subspan(at, 4)) {
            value = value << 8U | std::to_integer<std::uint32_t>(byte);
        }
        return value;
    }
    static std::string joined(const std::vector<std::string>& path) {
        std::string text;
        for (std::size_t i = 1; i < path.size(); ++i) {
            text += "/" + path[i];
        }
        return text.empty() ? "/" : text;
    }
    [[nodiscard]] std::uint32_t cell(std::size_t at) const { return big_endian(bytes_, at); }
    [[nodiscard]] std::string text(std::size_t at) const {
        std::string text;
        while (bytes_.at(at) != std::byte{0}) {
            text += static_cast<char>(bytes_[at++]);
        }
        return text;
    }

    std::vector<std::byte> bytes_;
    std::map<std::string, Properties> nodes_;
};

Tree tree_of(const Hardware& hardware, std::span<const MemoryMapEntry> map = kSmallMap) {
    return Tree{build_device_tree(hardware, {map, "console=ttyS0 quiet", std::nullopt})};
}

TEST(DeviceTree, ChosenSaysTheCommandLineAndWhereTheConsoleIs) {
    const Tree tree = tree_of(hardware_with(1, 0));
    EXPECT_EQ(tree.names("/chosen", "bootargs"), Names{"console=ttyS0 quiet"});
    EXPECT_EQ(tree.names("/chosen", "stdout-path"), Names{"/isa@1,0/serial@3f8"});
    EXPECT_TRUE(tree.has("/isa@1,0/serial@3f8"));
    EXPECT_FALSE(tree.has("/chosen", "linux,initrd-start"));
    EXPECT_FALSE(tree.has("/chosen", "linux,initrd-end"));
}

TEST(DeviceTree, ChosenSaysWhereTheInitrdIs) {
    const GuestRange initrd{GuestAddress{0xbfff1000}, 0xeabc};
    const Tree tree{build_device_tree(hardware_with(1, 0), {kSmallMap, "", initrd})};
    EXPECT_EQ(tree.cells("/chosen", "linux,initrd-start"), (Cells{0, 0xbfff1000}));
    EXPECT_EQ(tree.cells("/chosen", "linux,initrd-end"), (Cells{0, 0xbffffabc}));
    EXPECT_EQ(tree.names("/chosen", "bootargs"), Names{""});
}

TEST(DeviceTree, MemoryIsWhatTheMapCallsRam) {
    const Tree tree = tree_of(hardware_with(1, 0));
    EXPECT_EQ(tree.paths("/memory"), (Names{"/memory@0", "/memory@100000"}));
    EXPECT_EQ(tree.names("/memory@0", "device_type"), Names{"memory"});
    EXPECT_EQ(tree.cells("/memory@0", "reg"), (Cells{0, 0, 0, 0x9fc00}));
    EXPECT_EQ(tree.cells("/memory@100000", "reg"), (Cells{0, 0x100000, 0, 0x3f00000}));
}

TEST(DeviceTree, MemoryIsOnBothSidesOfTheHole) {
    const Tree tree = tree_of(hardware_with(1, 0), kMapOnBothSidesOfTheHole);
    EXPECT_EQ(tree.paths("/memory"), (Names{"/memory@0", "/memory@100000", "/memory@100000000"}));
    EXPECT_EQ(tree.cells("/memory@100000", "reg"), (Cells{0, 0x100000, 0, 0xbff00000}));
    EXPECT_EQ(tree.cells("/memory@100000000", "reg"), (Cells{1, 0, 2, 0x40000000}));
}

TEST(DeviceTree, EveryVcpuIsThereByItsLocalApicId) {
    const Tree tree = tree_of(hardware_with(254, 0));
    EXPECT_EQ(tree.cells("/cpus", "#address-cells"), Cells{1});
    EXPECT_EQ(tree.cells("/cpus", "#size-cells"), Cells{0});
    EXPECT_EQ(tree.paths("/cpus/").size(), 254U);
    for (const unsigned id : {0U, 1U, 0x7fU, 0xfdU}) {
        std::ostringstream path;
        path << "/cpus/cpu@" << std::hex << id;
        EXPECT_EQ(tree.cells(path.str(), "reg"), Cells{id});
        EXPECT_EQ(tree.names(path.str(), "device_type"), Names{"cpu"});
    }
}

TEST(DeviceTree, InterruptControllersAreThoseLinuxLooksFor) {
    const Tree tree = tree_of(hardware_with(1, 0));
    EXPECT_EQ(tree.names("/soc", "compatible"), (Names{"intel,ce4100-cp", "simple-bus"}));
    EXPECT_TRUE(tree.has("/soc", "ranges"));
    const std::string io_apic = "/soc/interrupt-controller@fec00000";
    EXPECT_EQ(tree.names(io_apic, "compatible"), Names{"intel,ce4100-ioapic"});
    EXPECT_EQ(tree.cells(io_apic, "reg"), (Cells{0, 0xfec00000, 0, 0x1000}));
    EXPECT_EQ(tree.cells(io_apic, "#interrupt-cells"), Cells{2});
    EXPECT_TRUE(tree.has(io_apic, "interrupt-controller"));
    EXPECT_EQ(tree.cells(io_apic, "phandle"), tree.cells("/", "interrupt-parent"));
    const std::string local_apic = "/soc/interrupt-controller@fee00000";
    EXPECT_EQ(tree.names(local_apic, "compatible"), Names{"intel,ce4100-lapic"});
    EXPECT_EQ(tree.cells(local_apic, "reg"), (Cells{0, 0xfee00000, 0, 0x1000}));
    EXPECT_TRUE(tree.has(local_apic, "intel,virtual-wire-mode"));
}

TEST(DeviceTree, SerialPortAndClockAreAtPorts) {
    const Tree tree = tree_of(hardware_with(1, 0));
    EXPECT_EQ(tree.names("/isa@1,0", "compatible"), Names{"isa"});
    EXPECT_EQ(tree.cells("/isa@1,0", "ranges"), (Cells{1, 0, 0, 0, 0x10000}));
    EXPECT_EQ(tree.names("/isa@1,0/serial@3f8", "compatible"), Names{"ns16550a"});
    EXPECT_EQ(tree.cells("/isa@1,0/serial@3f8", "reg"), (Cells{1, 0x3f8, 8}));
    EXPECT_EQ(tree.cells("/isa@1,0/serial@3f8", "interrupts"), (Cells{4, 0}));
    EXPECT_EQ(tree.cells("/isa@1,0/serial@3f8", "clock-frequency"), Cells{1843200});
    EXPECT_EQ(tree.names("/isa@1,0/rtc@70", "compatible"), Names{"motorola,mc146818"});
    EXPECT_EQ(tree.cells("/isa@1,0/rtc@70", "reg"), (Cells{1, 0x70, 2}));
}

TEST(DeviceTree, WhatIsNotThereIsNotToldOf) {
    Hardware hardware = hardware_with(1, 0);
    hardware.com1.reset();
    hardware.cmos_rtc_port.reset();
    hardware.power_registers.reset();
    hardware.generation_id.reset();
    const Tree tree = tree_of(hardware);
    EXPECT_EQ(tree.paths("/isa@1,0/"), Names{});
    EXPECT_FALSE(tree.has("/chosen", "stdout-path"));
    EXPECT_EQ(tree.paths("/soc/").size(), 2U) << "the interrupt controllers alone";
    EXPECT_FALSE(tree.has("/poweroff"));
    EXPECT_FALSE(tree.has("/reboot"));
    EXPECT_FALSE(tree.has("/distance-map"));
}

TEST(DeviceTree, PowerOffAndRebootWriteWhatAcpiWouldWrite) {
    const Tree tree = tree_of(hardware_with(1, 0));
    const std::string registers = "/soc/syscon@d0020000";
    EXPECT_EQ(tree.names(registers, "compatible").back(), "syscon");
    EXPECT_EQ(tree.cells(registers, "reg"), (Cells{0, 0xd0020000, 0, 3}));
    EXPECT_EQ(tree.cells(registers, "reg-io-width"), Cells{1});
    for (const char* const node : {"/poweroff", "/reboot"}) {
        EXPECT_EQ(tree.cells(node, "regmap"), tree.cells(registers, "phandle")) << node;
    }
    EXPECT_EQ(tree.names("/poweroff", "compatible"), Names{"syscon-poweroff"});
    EXPECT_EQ(tree.cells("/poweroff", "offset"), Cells{0});
    EXPECT_EQ(tree.cells("/poweroff", "value"), Cells{0x34});
    EXPECT_EQ(tree.names("/reboot", "compatible"), Names{"syscon-reboot"});
    EXPECT_EQ(tree.cells("/reboot", "offset"), Cells{2});
    EXPECT_EQ(tree.cells("/reboot", "value"), Cells{6});
}

TEST(DeviceTree, EveryVirtioDeviceHasItsRegistersAndItsLine) {
    EXPECT_EQ(tree_of(hardware_with(1, 0)).paths("/soc/virtio"), Names{});
    const Tree tree = tree_of(hardware_with(1, 17));
    EXPECT_EQ(tree.paths("/soc/virtio").size(), 17U);
    EXPECT_EQ(tree.names("/soc/virtio@d0000000", "compatible"), Names{"virtio,mmio"});
    EXPECT_EQ(tree.cells("/soc/virtio@d0000000", "reg"), (Cells{0, 0xd0000000, 0, 0x1000}));
    EXPECT_EQ(tree.cells("/soc/virtio@d0000000", "interrupts"), (Cells{5, 0}));
    EXPECT_TRUE(tree.has("/soc/virtio@d0000000", "dma-coherent"));
    EXPECT_EQ(tree.cells("/soc/virtio@d0010000", "reg"), (Cells{0, 0xd0010000, 0, 0x1000}));
    EXPECT_EQ(tree.cells("/soc/virtio@d0010000", "interrupts"), (Cells{21, 0}));
}

/// A PCI bus instead of virtio over MMIO.
Hardware hardware_with_pci() {
    Hardware hardware = hardware_with(1, 0);
    hardware.pci = PciHardware{.ecam = {GuestAddress{0xd0100000}, 0x100000},
                               .window = {GuestAddress{0xd1000000}, 0x1000000},
                               .config_ports = 0xcf8,
                               .pin_gsis = {20, 21, 22, 23},
                               .hotplug = PciHardware::Hotplug{.ports = 0x620, .gsi = 19}};
    return hardware;
}

// Devicetree's binding host-generic-pci, and IEEE 1275's of PCI.
TEST(DeviceTree, PciHasItsConfigurationSpacesItsWindowAndItsPins) {
    const std::string pci = "/pcie@d0100000";
    const Tree tree = tree_of(hardware_with_pci());
    EXPECT_EQ(tree.names(pci, "compatible"), Names{"pci-host-ecam-generic"});
    EXPECT_EQ(tree.names(pci, "device_type"), Names{"pci"});
    EXPECT_EQ(tree.cells(pci, "reg"), (Cells{0, 0xd0100000, 0, 0x100000}));
    EXPECT_EQ(tree.cells(pci, "#address-cells"), Cells{3});
    EXPECT_EQ(tree.cells(pci, "#size-cells"), Cells{2});
    EXPECT_EQ(tree.cells(pci, "bus-range"), (Cells{0, 0}));
    EXPECT_EQ(tree.cells(pci, "ranges"), (Cells{0x02000000, 0, 0xd1000000, 0, 0xd1000000, 0, 0x1000000}));
    EXPECT_TRUE(tree.has(pci, "dma-coherent"));
    EXPECT_EQ(tree.cells(pci, "#interrupt-cells"), Cells{1});
    EXPECT_EQ(tree.cells(pci, "interrupt-map-mask"), (Cells{0x1800, 0, 0, 7}));
    const Cells map = tree.cells(pci, "interrupt-map");
    ASSERT_EQ(map.size(), 4 * 7U);
    for (std::uint32_t slot = 0; slot < 4; ++slot) {
        const Cells entry(map.begin() + slot * 7, map.begin() + slot * 7 + 7);
        EXPECT_EQ(entry, (Cells{slot << 11U, 0, 0, 1, map[4], 20 + slot, 2})) << "level-triggered, active high";
    }
    EXPECT_EQ(tree.paths("/pcie").size(), 1U);
    EXPECT_EQ(tree_of(hardware_with(1, 1)).paths("/pcie"), Names{}) << "without PCI there is none";
}

TEST(DeviceTree, GenerationIdentifierHasItsPlaceAndItsLine) {
    const Tree tree = tree_of(hardware_with(1, 0));
    EXPECT_EQ(tree.names("/soc/rng@3000df010", "compatible"), Names{"microsoft,vmgenid"});
    EXPECT_EQ(tree.cells("/soc/rng@3000df010", "reg"), (Cells{3, 0xdf010, 0, 16}));
    EXPECT_EQ(tree.cells("/soc/rng@3000df010", "interrupts"), (Cells{13, 0}));
}

TEST(DeviceTree, LevelTriggeredLinesAreSo) {
    Hardware hardware = hardware_with(1, 1);
    hardware.virtio_mmio[0].trigger = InterruptTrigger::kLevel;
    EXPECT_EQ(tree_of(hardware).cells("/soc/virtio@d0000000", "interrupts"), (Cells{5, 2}));
}

TEST(DeviceTree, NodesAreThoseOfMemoryAndVcpus) {
    const Tree tree = tree_of(hardware_with_two_nodes(), kMapOnBothSidesOfTheHole);
    EXPECT_EQ(tree.paths("/memory"), (Names{"/memory@0", "/memory@100000", "/memory@100000000", "/memory@140000000"}));
    EXPECT_EQ(tree.cells("/memory@100000", "numa-node-id"), Cells{0});
    EXPECT_EQ(tree.cells("/memory@100000000", "reg"), (Cells{1, 0, 0, 0x40000000}));
    EXPECT_EQ(tree.cells("/memory@100000000", "numa-node-id"), Cells{0});
    EXPECT_EQ(tree.cells("/memory@140000000", "reg"), (Cells{1, 0x40000000, 2, 0}));
    EXPECT_EQ(tree.cells("/memory@140000000", "numa-node-id"), Cells{1});
    EXPECT_EQ(tree.cells("/cpus/cpu@0", "numa-node-id"), Cells{1});
    EXPECT_EQ(tree.cells("/cpus/cpu@1", "numa-node-id"), Cells{0});
    EXPECT_EQ(tree.names("/distance-map", "compatible"), Names{"numa-distance-map-v1"});
    EXPECT_EQ(tree.cells("/distance-map", "distance-matrix"), (Cells{0, 0, 10, 0, 1, 21, 1, 0, 22, 1, 1, 10}));
}

TEST(DeviceTree, OfTheLargestMachineFitsItsPlace) {
    constexpr std::size_t kRoom = 0x1f000; // memory_map::kDeviceTree
    const auto tree =
        build_device_tree(largest_hardware(), {kMapOnBothSidesOfTheHole, std::string(2047, 'x'), std::nullopt});
    EXPECT_LE(build_setup_dtb(tree).size(), kRoom);
}

// ---- The judgement of the compiler

/// The messages of dtc about a tree, besides its source; nothing if it has none.
std::string complaints(const Hardware& hardware, std::span<const MemoryMapEntry> map) {
    const Tree tree = tree_of(hardware, map);
    std::string directory = (std::filesystem::temp_directory_path() / "vmm-dtb-XXXXXX").string();
    EXPECT_NE(::mkdtemp(directory.data()), nullptr);
    std::ofstream out{directory + "/tree.dtb", std::ios::binary};
    for (const std::byte byte : tree.bytes()) {
        out.put(static_cast<char>(byte));
    }
    out.close();
    const std::string command =
        "cd '" + directory + "' && dtc -I dtb -O dts -o tree.dts tree.dtb >output 2>&1 </dev/null";
    const int status = std::system(command.c_str()); // NOLINT(concurrency-mt-unsafe,cert-env33-c): one thread
    std::ostringstream said;
    said << std::ifstream{directory + "/output"}.rdbuf();
    std::filesystem::remove_all(directory);
    EXPECT_EQ(status, 0) << said.str();
    return said.str();
}

class DeviceTreeSourceTest : public ::testing::Test {
  protected:
    void SetUp() override {
        ASSERT_EQ(std::system("command -v dtc >/dev/null"), 0) // NOLINT(concurrency-mt-unsafe,cert-env33-c)
            << "dtc is missing: install the package device-tree-compiler";
    }
};

TEST_F(DeviceTreeSourceTest, HasNothingToComplainOf) {
    EXPECT_EQ(complaints(hardware_with(1, 0), kSmallMap), "");
    EXPECT_EQ(complaints(hardware_with(2, 17), kMapOnBothSidesOfTheHole), "");
    EXPECT_EQ(complaints(hardware_with(254, 1), kMapOnBothSidesOfTheHole), "");
    EXPECT_EQ(complaints(hardware_with_two_nodes(), kMapOnBothSidesOfTheHole), "");
    EXPECT_EQ(complaints(hardware_with_pci(), kSmallMap), "");
    EXPECT_EQ(complaints(largest_hardware(), kMapOnBothSidesOfTheHole), "");
}

} // namespace
} // namespace vmm::loader
