#include "vmm/guest/device_tree.hpp"

#include <gtest/gtest.h>

#include <initializer_list>
#include <map>
#include <random>
#include <string>
#include <vector>

namespace vmm::guest {
namespace {

constexpr std::uint64_t kAddress = 0xc0010;

/// Memory that holds only a tree.
class MemoryOfATree {
  public:
    explicit MemoryOfATree(std::vector<std::byte> bytes) : bytes_(std::move(bytes)) {}

    [[nodiscard]] std::span<const std::byte> view(std::uint64_t address, std::uint64_t size) const noexcept {
        const std::uint64_t offset = address - kAddress;
        if (offset > bytes_.size() || size > bytes_.size() - offset) {
            return {};
        }
        return std::span(bytes_).subspan(offset, size);
    }

  private:
    std::vector<std::byte> bytes_;
};

/// A handmade tree, correct until a test damages it.
class TreeMaker {
  public:
    TreeMaker& begin(const std::string& name) {
        token(1);
        text(structure_, name);
        return *this;
    }
    TreeMaker& end() { return token(2); }
    TreeMaker& nop() { return token(4); }
    TreeMaker& token(std::uint32_t value) {
        cell(structure_, value);
        return *this;
    }
    TreeMaker& cells(const std::string& name, std::initializer_list<std::uint32_t> values) {
        std::vector<std::byte> content;
        for (const std::uint32_t value : values) {
            cell(content, value);
        }
        return property(name, content);
    }
    TreeMaker& names(const std::string& name, std::initializer_list<std::string> values) {
        std::vector<std::byte> content;
        for (const std::string& value : values) {
            for (const char c : value) {
                content.push_back(static_cast<std::byte>(c));
            }
            content.push_back(std::byte{0});
        }
        return property(name, content);
    }
    TreeMaker& property(const std::string& name, const std::vector<std::byte>& content) {
        token(3);
        cell(structure_, static_cast<std::uint32_t>(content.size()));
        const auto [place, fresh] = names_.emplace(name, static_cast<std::uint32_t>(strings_.size()));
        if (fresh) {
            for (const char c : name) {
                strings_.push_back(static_cast<std::byte>(c));
            }
            strings_.push_back(std::byte{0});
        }
        cell(structure_, place->second);
        structure_.insert(structure_.end(), content.begin(), content.end());
        structure_.resize((structure_.size() + 3) / 4 * 4);
        return *this;
    }
    [[nodiscard]] std::vector<std::byte> bytes() const {
        constexpr std::size_t kHeaderBytes = 40;
        const auto size = [](const std::vector<std::byte>& block) { return static_cast<std::uint32_t>(block.size()); };
        std::vector<std::byte> all;
        for (const std::uint32_t field :
             {std::uint32_t{0xd00dfeed}, static_cast<std::uint32_t>(kHeaderBytes) + size(structure_) + size(strings_),
              static_cast<std::uint32_t>(kHeaderBytes), static_cast<std::uint32_t>(kHeaderBytes) + size(structure_),
              std::uint32_t{0}, std::uint32_t{17}, std::uint32_t{16}, std::uint32_t{0}, size(strings_),
              size(structure_)}) {
            cell(all, field);
        }
        all.insert(all.end(), structure_.begin(), structure_.end());
        all.insert(all.end(), strings_.begin(), strings_.end());
        return all;
    }

  private:
    static void cell(std::vector<std::byte>& bytes, std::uint32_t value) {
        for (int shift = 24; shift >= 0; shift -= 8) {
            bytes.push_back(static_cast<std::byte>(value >> shift));
        }
    }
    static void text(std::vector<std::byte>& bytes, const std::string& value) {
        for (const char c : value) {
            bytes.push_back(static_cast<std::byte>(c));
        }
        bytes.push_back(std::byte{0});
        bytes.resize((bytes.size() + 3) / 4 * 4);
    }

    std::vector<std::byte> structure_;
    std::vector<std::byte> strings_;
    std::map<std::string, std::uint32_t> names_;
};

TreeMaker root() {
    TreeMaker tree;
    tree.begin("").cells("#address-cells", {2}).cells("#size-cells", {2});
    return tree;
}

TreeMaker& add_cpus(TreeMaker& tree, std::initializer_list<std::uint32_t> ids) {
    tree.begin("cpus").cells("#address-cells", {1}).cells("#size-cells", {0});
    for (const std::uint32_t id : ids) {
        tree.begin("cpu@" + std::to_string(id)).names("device_type", {"cpu"}).cells("reg", {id}).end();
    }
    return tree.end();
}

std::vector<std::byte> finished(TreeMaker& tree) {
    return tree.end().token(9).bytes();
}

TreeMaker whole_tree() {
    TreeMaker tree = root();
    add_cpus(tree, {0, 1, 5});
    tree.begin("memory@0").names("device_type", {"memory"}).cells("reg", {0, 0, 0, 0x9fc00}).end();
    tree.begin("memory@1").names("device_type", {"memory"}).cells("reg", {0, 0x100000, 0, 0x1000, 1, 0, 2, 0}).end();
    tree.begin("poweroff").names("compatible", {"syscon-poweroff"}).cells("regmap", {7}).cells("offset", {2});
    tree.cells("value", {0x34}).end();
    tree.begin("soc").cells("#address-cells", {2}).cells("#size-cells", {2}).nop();
    tree.begin("syscon@d0020000").names("compatible", {"x", "syscon"}).cells("reg", {0, 0xd0020000, 0, 3});
    tree.cells("phandle", {7}).end();
    tree.begin("virtio@d0000000").names("compatible", {"virtio,mmio"}).cells("reg", {0, 0xd0000000, 0, 0x1000});
    tree.cells("interrupts", {5, 0}).end().end();
    tree.begin("isa@1,0").names("compatible", {"isa"}).cells("#address-cells", {2}).cells("#size-cells", {1});
    tree.begin("serial@3f8").names("compatible", {"ns16550a"}).cells("reg", {1, 0x3f8, 8}).cells("interrupts", {4, 0});
    tree.end();
    tree.begin("rtc@70").names("compatible", {"motorola,mc146818"}).cells("reg", {1, 0x70, 2}).end().end();
    return tree;
}

DeviceTree read(const std::vector<std::byte>& bytes) {
    DeviceTree tree;
    read_device_tree(MemoryOfATree(bytes), kAddress, tree);
    return tree;
}

DeviceTree read(TreeMaker tree) {
    return read(finished(tree));
}

std::vector<std::uint32_t> ids(const DeviceTree& tree) {
    return {tree.cpus.apic_ids.begin(), tree.cpus.apic_ids.begin() + static_cast<std::ptrdiff_t>(tree.cpus.count)};
}

TEST(GuestDeviceTree, CpusAreFound) {
    const DeviceTree tree = read(whole_tree());
    EXPECT_EQ(tree.problem, "");
    EXPECT_EQ(ids(tree), (std::vector<std::uint32_t>{0, 1, 5}));
}

TEST(GuestDeviceTree, MemoryIsFoundAlsoWhereOneNodeHasSeveralPieces) {
    const DeviceTree tree = read(whole_tree());
    ASSERT_EQ(tree.memory_count, 3U);
    EXPECT_EQ(tree.memory[0].size, 0x9fc00U);
    EXPECT_EQ(tree.memory[1].address, 0x100000U);
    EXPECT_EQ(tree.memory[2].address, std::uint64_t{1} << 32);
    EXPECT_EQ(tree.memory[2].size, std::uint64_t{2} << 32);
    EXPECT_EQ(tree.memory[2].type, kMemoryTypeRam);
}

TEST(GuestDeviceTree, DevicesAreFoundWithTheirLines) {
    const DeviceTree tree = read(whole_tree());
    ASSERT_EQ(tree.device_count, 3U);
    EXPECT_EQ(tree.devices[0].kind, FoundDevice::Kind::kVirtioMmio);
    EXPECT_EQ(tree.devices[0].address, 0xd0000000U);
    EXPECT_EQ(tree.devices[0].irq, 5U);
    EXPECT_FALSE(tree.devices[0].at_port);
    EXPECT_EQ(tree.devices[1].kind, FoundDevice::Kind::kSerial);
    EXPECT_EQ(tree.devices[1].address, 0x3f8U);
    EXPECT_TRUE(tree.devices[1].at_port);
    EXPECT_EQ(tree.devices[1].irq, 4U);
    EXPECT_EQ(tree.devices[2].kind, FoundDevice::Kind::kRtc);
    EXPECT_FALSE(tree.devices[2].irq);
}

TEST(GuestDeviceTree, PowerOffIsFoundThoughItsRegistersComeLater) {
    const DeviceTree tree = read(whole_tree());
    ASSERT_TRUE(tree.power_off);
    EXPECT_EQ(tree.power_off->registers[0].space, PowerRegister::Space::kMemory);
    EXPECT_EQ(tree.power_off->registers[0].address, 0xd0020002U);
    EXPECT_EQ(tree.power_off->plain_value, 0x34);
}

TEST(GuestDeviceTree, PowerOffWithoutItsRegistersIsNone) {
    TreeMaker tree = root();
    tree.begin("poweroff").names("compatible", {"syscon-poweroff"}).cells("regmap", {7}).cells("value", {1}).end();
    EXPECT_FALSE(read(tree).power_off);
}

TEST(GuestDeviceTree, WhatIsSwitchedOffIsNotFound) {
    TreeMaker tree = root();
    tree.begin("cpus").cells("#address-cells", {1}).cells("#size-cells", {0});
    tree.begin("cpu@0").names("device_type", {"cpu"}).cells("reg", {0}).names("status", {"okay"}).end();
    tree.begin("cpu@1").names("device_type", {"cpu"}).cells("reg", {1}).names("status", {"disabled"}).end().end();
    EXPECT_EQ(ids(read(tree)), std::vector<std::uint32_t>{0});
}

TEST(GuestDeviceTree, MoreThanFitsIsCounted) {
    TreeMaker tree = root();
    for (std::uint32_t i = 0; i < DeviceTree::kMostDevices + 3; ++i) {
        tree.begin("v").names("compatible", {"virtio,mmio"}).cells("reg", {0, i, 0, 1}).end();
    }
    const DeviceTree found = read(tree);
    EXPECT_EQ(found.device_count, DeviceTree::kMostDevices);
    EXPECT_EQ(found.left_out, 3U);
}

TEST(GuestDeviceTree, NumbersWithOddCellsAreNotRead) {
    TreeMaker tree = root();
    tree.begin("bus").cells("#address-cells", {0xffffffff}).cells("#size-cells", {1});
    tree.begin("a").names("compatible", {"virtio,mmio"}).cells("reg", {0, 0, 0, 0}).end().end();
    tree.begin("bus").cells("#address-cells", {0}).cells("#size-cells", {0});
    tree.begin("a").names("device_type", {"memory"}).cells("reg", {0, 0}).end().end();
    tree.begin("bus").cells("#address-cells", {1}).cells("#size-cells", {1});
    tree.begin("a").names("device_type", {"memory"}).cells("reg", {1}).end().end(); // cut off
    const DeviceTree found = read(tree);
    EXPECT_EQ(found.problem, "");
    EXPECT_EQ(found.device_count + found.memory_count, 0U);
}

TEST(GuestDeviceTree, NothingThereIsSaidSo) {
    EXPECT_EQ(read(std::vector<std::byte>{}).problem, "no-tree-there");
    EXPECT_EQ(read(std::vector<std::byte>(4096)).problem, "no-tree-there");
    for (const std::size_t field : {0U, 5U, 6U}) { // magic, version, the oldest version it is compatible with
        TreeMaker tree = whole_tree();
        auto bytes = finished(tree);
        bytes[field * 4 + 3] = std::byte{field == 6 ? std::uint8_t{18} : std::uint8_t{3}};
        EXPECT_EQ(read(bytes).problem, "no-tree-there") << field;
    }
}

TEST(GuestDeviceTree, EachWayToBreakTheStructureIsNamed) {
    EXPECT_EQ(read(root().end().end().token(9).bytes()).problem, "end-of-no-node");
    EXPECT_EQ(read(root().token(9).bytes()).problem, "cut-off");
    EXPECT_EQ(read(root().bytes()).problem, "cut-off");
    EXPECT_EQ(read(root().token(77).bytes()).problem, "unknown-token");
    EXPECT_EQ(read(root().token(3).token(0xfffffff0).token(0).bytes()).problem, "bad-property");
    EXPECT_EQ(read(root().token(3).token(0).token(0x7fffffff).token(2).bytes()).problem, "bad-property-name");
    EXPECT_EQ(read(root().token(1).token(0x41414141).bytes()).problem, "name-without-end");
    EXPECT_EQ(read(TreeMaker().cells("reg", {1}).bytes()).problem, "bad-property");
    TreeMaker deep = root();
    for (int i = 0; i < 8; ++i) {
        deep.begin("a");
    }
    EXPECT_EQ(read(deep.bytes()).problem, "nested-too-deep");
}

TEST(GuestDeviceTree, DamageAnywhereIsReadToAnEnd) {
    TreeMaker tree = whole_tree();
    const auto sound = finished(tree);
    for (std::size_t size = 0; size < sound.size(); ++size) {
        EXPECT_NE(read(std::vector(sound.begin(), sound.begin() + static_cast<std::ptrdiff_t>(size))).problem, "")
            << size;
    }
    std::mt19937 random(1); // NOLINT(cert-msc32-c,cert-msc51-cpp): the same each time
    for (std::size_t i = 0; i < sound.size(); ++i) {
        auto damaged = sound;
        damaged[i] = static_cast<std::byte>(random());
        const DeviceTree found = read(damaged);
        EXPECT_LE(found.cpus.count, kMaxCpus);
        EXPECT_LE(found.memory_count, DeviceTree::kMostMemory);
        EXPECT_LE(found.device_count, DeviceTree::kMostDevices);
    }
}

} // namespace
} // namespace vmm::guest
