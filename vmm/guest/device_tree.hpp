// What the guest reads from a flattened device tree (Devicetree Specification 0.4, chapter 5): memory, CPUs, devices,
// and how to power off.
//
// Nothing in the tree is trusted: offsets and lengths are checked against its size, nesting is bounded, and each step
// goes forward. Addresses are not translated by `ranges`: the buses must map one to one. An ISA bus is an exception;
// its I/O ports are ports.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <optional>
#include <span>
#include <string_view>

#include "vmm/guest/acpi.hpp"
#include "vmm/guest/memory_ranges.hpp"

namespace vmm::guest {

/// A device, and its interrupt line.
struct FoundDevice {
    enum class Kind : std::uint8_t { kSerial, kRtc, kVirtioMmio };
    Kind kind = Kind::kSerial;
    bool at_port = false;
    std::uint64_t address = 0;
    std::optional<std::uint32_t> irq;
};

struct DeviceTree {
    static constexpr std::size_t kMostDevices = 64;
    static constexpr std::size_t kMostMemory = MemoryRanges::kCapacity;

    /// Why the members below are empty; nothing if they are not.
    std::string_view problem;
    CpuList cpus;
    std::array<MemoryMapEntry, kMostMemory> memory{};
    std::size_t memory_count = 0;
    std::array<FoundDevice, kMostDevices> devices{};
    std::size_t device_count = 0;
    /// How many pieces of memory and devices did not fit.
    std::size_t left_out = 0;
    std::optional<PowerOff> power_off;
};

namespace detail {

[[nodiscard]] inline std::optional<std::uint32_t> load_big_endian(Bytes bytes, std::size_t offset) noexcept {
    if (offset > bytes.size() || bytes.size() - offset < sizeof(std::uint32_t)) {
        return std::nullopt;
    }
    std::uint32_t value = 0;
    for (std::size_t i = 0; i < sizeof value; ++i) {
        value = value << 8 | std::to_integer<std::uint32_t>(bytes[offset + i]);
    }
    return value;
}

/// The characters before the first NUL; nothing if there is none.
[[nodiscard]] inline std::optional<std::string_view> text_at(Bytes bytes, std::size_t offset) noexcept {
    for (std::size_t end = offset; end < bytes.size(); ++end) {
        if (bytes[end] == std::byte{0}) {
            // chars may alias bytes.
            return std::string_view(reinterpret_cast<const char*>(bytes.data()) + offset, end - offset);
        }
    }
    return std::nullopt;
}

/// Whether `text` is one of the strings, each with its NUL, in a property.
[[nodiscard]] inline bool has_string(Bytes property, std::string_view text) noexcept {
    for (std::size_t offset = 0; offset < property.size();) {
        const auto one = text_at(property, offset);
        if (!one) {
            return false;
        }
        if (*one == text) {
            return true;
        }
        offset += one->size() + 1;
    }
    return false;
}

/// The parts of a tree: its structure and its strings.
struct TreeBlocks {
    Bytes structure;
    Bytes strings;
};

/// The blocks of the tree at `address`, if its header is right.
template <typename Memory>
[[nodiscard]] TreeBlocks tree_blocks(const Memory& memory, std::uint64_t address) noexcept {
    constexpr std::uint32_t kMagic = 0xd00dfeed;
    constexpr std::size_t kHeaderBytes = 40;
    constexpr std::uint32_t kMostBytes = 2U << 20; // what the specification lets boot programs rely on
    constexpr std::uint32_t kVersion = 17;
    const Bytes header = memory.view(address, kHeaderBytes);
    const auto field = [header](std::size_t index) { return load_big_endian(header, index * 4).value_or(0); };
    const std::uint32_t total = field(1);
    if (field(0) != kMagic || total < kHeaderBytes || total > kMostBytes || field(5) < kVersion ||
        field(6) > kVersion) {
        return {};
    }
    const Bytes all = memory.view(address, total);
    const auto block = [all](std::uint32_t offset, std::uint32_t size) {
        return offset <= all.size() && size <= all.size() - offset ? all.subspan(offset, size) : Bytes{};
    };
    return {block(field(2), field(9)), block(field(3), field(8))};
}

/// The properties of a node that have been read until its end.
struct TreeNode {
    // How many cells its children's `reg` have.
    std::uint32_t address_cells = 2;
    std::uint32_t size_cells = 1;
    Bytes compatible;
    Bytes device_type;
    Bytes status;
    Bytes reg;
    Bytes interrupts;
    std::uint32_t phandle = 0;
    std::optional<std::uint32_t> regmap;
    std::uint32_t offset = 0;
    std::optional<std::uint32_t> value;

    [[nodiscard]] bool is(std::string_view name) const noexcept { return has_string(compatible, name); }
    [[nodiscard]] bool is_enabled() const noexcept {
        return status.empty() || has_string(status, "okay") || has_string(status, "ok");
    }
    void take(std::string_view name, Bytes content) noexcept {
        const auto cell = load_big_endian(content, 0);
        if (name == "#address-cells") {
            address_cells = cell.value_or(0);
        } else if (name == "#size-cells") {
            size_cells = cell.value_or(0);
        } else if (name == "compatible") {
            compatible = content;
        } else if (name == "device_type") {
            device_type = content;
        } else if (name == "status") {
            status = content;
        } else if (name == "reg") {
            reg = content;
        } else if (name == "interrupts") {
            interrupts = content;
        } else if (name == "phandle") {
            phandle = cell.value_or(0);
        } else if (name == "regmap") {
            regmap = cell;
        } else if (name == "offset") {
            offset = cell.value_or(0);
        } else if (name == "value") {
            value = cell;
        }
    }
};

/// One element of `reg`; nothing if there is no such element, or if its numbers have more than two cells.
struct TreeReg {
    std::uint64_t address = 0;
    std::uint64_t size = 0;
};
[[nodiscard]] inline std::optional<TreeReg> reg_at(const TreeNode& parent, Bytes reg, std::size_t index) noexcept {
    const std::size_t cells = std::size_t{parent.address_cells} + parent.size_cells;
    if (parent.address_cells < 1 || parent.address_cells > 2 || parent.size_cells > 2 ||
        reg.size() / 4 / cells <= index) {
        return std::nullopt;
    }
    const auto number = [reg](std::size_t first, std::size_t count) {
        std::uint64_t value = 0;
        for (std::size_t i = first; i < first + count; ++i) {
            value = value << 32 | load_big_endian(reg, i * 4).value_or(0);
        }
        return value;
    };
    const std::size_t first = index * cells;
    return TreeReg{number(first, parent.address_cells), number(first + parent.address_cells, parent.size_cells)};
}

/// Collects the content of a tree, node by node.
class TreeFinder {
  public:
    explicit TreeFinder(DeviceTree& found) noexcept : found_(found) {}

    /// `node`, a child of `parent`, is complete.
    void add(const TreeNode& parent, const TreeNode& node) noexcept {
        if (!node.is_enabled()) {
            return;
        }
        if (node.is("syscon-poweroff")) {
            switch_ = node;
        }
        const auto reg = reg_at(parent, node.reg, 0);
        if (!reg) {
            return;
        }
        if (has_string(node.device_type, "cpu")) {
            found_.cpus.add(static_cast<std::uint32_t>(reg->address));
        } else if (has_string(node.device_type, "memory")) {
            add_memory(parent, node);
        } else if (node.is("syscon") && syscon_count_ < syscons_.size()) {
            syscons_[syscon_count_] = {node.phandle, reg->address};
            ++syscon_count_;
        } else if (node.is("virtio,mmio")) {
            add_device(FoundDevice::Kind::kVirtioMmio, parent, node, *reg);
        } else if (node.is("ns16550a")) {
            add_device(FoundDevice::Kind::kSerial, parent, node, *reg);
        } else if (node.is("motorola,mc146818")) {
            add_device(FoundDevice::Kind::kRtc, parent, node, *reg);
        }
    }

    /// Called at the end of the tree. Only now does the power switch look for its register, which may come later in the
    /// tree than the switch.
    void finish() noexcept {
        if (!switch_ || !switch_->regmap || !switch_->value || *switch_->value > UINT8_MAX) {
            return;
        }
        for (std::size_t i = 0; i < syscon_count_; ++i) {
            if (syscons_[i].phandle == *switch_->regmap) {
                PowerOff how;
                how.registers[0] = {PowerRegister::Space::kMemory, syscons_[i].address + switch_->offset};
                how.plain_value = static_cast<std::uint8_t>(*switch_->value);
                found_.power_off = how;
                return;
            }
        }
    }

  private:
    struct Syscon {
        std::uint32_t phandle = 0;
        std::uint64_t address = 0;
    };

    void add_memory(const TreeNode& parent, const TreeNode& node) noexcept {
        for (std::size_t i = 0;; ++i) {
            const auto piece = reg_at(parent, node.reg, i);
            if (!piece) {
                return;
            }
            if (found_.memory_count == found_.memory.size()) {
                ++found_.left_out;
                return;
            }
            found_.memory[found_.memory_count] = {piece->address, piece->size, kMemoryTypeRam, 0};
            ++found_.memory_count;
        }
    }
    void add_device(FoundDevice::Kind kind, const TreeNode& parent, const TreeNode& node, TreeReg reg) noexcept {
        if (found_.device_count == found_.devices.size()) {
            ++found_.left_out;
            return;
        }
        FoundDevice& device = found_.devices[found_.device_count];
        device.kind = kind;
        device.at_port = parent.is("isa") && (reg.address >> 32 & 1) != 0;
        device.address = device.at_port ? reg.address & UINT32_MAX : reg.address;
        device.irq = load_big_endian(node.interrupts, 0);
        ++found_.device_count;
    }

    DeviceTree& found_;
    std::optional<TreeNode> switch_;
    std::array<Syscon, 8> syscons_{};
    std::size_t syscon_count_ = 0;
};

/// Walks the structure block; returns what is wrong with it, or an empty text.
[[nodiscard]] inline std::string_view walk_tree(TreeBlocks blocks, TreeFinder& finder) noexcept {
    constexpr std::uint32_t kBeginNode = 1;
    constexpr std::uint32_t kEndNode = 2;
    constexpr std::uint32_t kProperty = 3;
    constexpr std::uint32_t kNop = 4;
    constexpr std::uint32_t kEnd = 9;
    constexpr std::size_t kMostDepth = 8;
    constexpr auto kPadded = [](std::size_t size) { return (size + 3) / 4 * 4; };

    std::array<TreeNode, kMostDepth> open{};
    std::size_t depth = 0;
    std::size_t at = 0;
    while (const auto token = load_big_endian(blocks.structure, at)) {
        at += 4; // Each turn goes forward, so the walk ends with the block.
        if (*token == kBeginNode) {
            const auto name = text_at(blocks.structure, at);
            if (!name) {
                return "name-without-end";
            }
            if (depth == kMostDepth) {
                return "nested-too-deep";
            }
            at += kPadded(name->size() + 1);
            open[depth] = TreeNode{};
            ++depth;
        } else if (*token == kEndNode) {
            if (depth == 0) {
                return "end-of-no-node";
            }
            --depth;
            if (depth != 0) {
                finder.add(open[depth - 1], open[depth]);
            }
        } else if (*token == kProperty) {
            const auto length = load_big_endian(blocks.structure, at);
            const auto name_offset = load_big_endian(blocks.structure, at + 4);
            at += 8;
            if (!length || !name_offset || depth == 0 || at > blocks.structure.size() ||
                *length > blocks.structure.size() - at) {
                return "bad-property";
            }
            const auto name = text_at(blocks.strings, *name_offset);
            if (!name) {
                return "bad-property-name";
            }
            open[depth - 1].take(*name, blocks.structure.subspan(at, *length));
            at += kPadded(*length);
        } else if (*token == kEnd) {
            return depth == 0 ? std::string_view() : "cut-off";
        } else if (*token != kNop) {
            return "unknown-token";
        }
    }
    return "cut-off";
}

} // namespace detail

/// Reads the tree at `address`. `memory` is as for read_acpi().
template <typename Memory>
void read_device_tree(const Memory& memory, std::uint64_t address, DeviceTree& found) noexcept {
    const detail::TreeBlocks blocks = detail::tree_blocks(memory, address);
    if (blocks.structure.empty()) {
        found.problem = "no-tree-there";
        return;
    }
    detail::TreeFinder finder(found);
    found.problem = detail::walk_tree(blocks, finder);
    finder.finish();
}

} // namespace vmm::guest
