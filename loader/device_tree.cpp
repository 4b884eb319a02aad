#include "loader/device_tree.hpp"

#include "kvm/host/format.hpp"

#include <libfdt.h>

#include <algorithm>
#include <cassert>
#include <concepts>
#include <cstdint>
#include <initializer_list>
#include <string>

namespace vmm::loader {
namespace {

using Cells = std::initializer_list<std::uint32_t>;

/// The nodes that other nodes refer to.
enum Phandle : std::uint32_t { kIoApicPhandle = 1, kPowerPhandle = 2 };

/// Writes a tree from its beginning to its end. The only possible error is a buffer that is too small, which would be
/// our own fault.
class TreeWriter {
  public:
    explicit TreeWriter(std::size_t room) : bytes_(room) {
        check(::fdt_create(bytes_.data(), static_cast<int>(room)));
        check(::fdt_finish_reservemap(bytes_.data()));
    }

    /// Writes a node; `fill` writes its content.
    template <std::invocable Fill>
    void node(const std::string& name, Fill fill) {
        check(::fdt_begin_node(bytes_.data(), name.c_str()));
        fill();
        check(::fdt_end_node(bytes_.data()));
    }
    void flag(const char* name) { check(::fdt_property(bytes_.data(), name, nullptr, 0)); }
    void text(const char* name, std::string_view value) { texts(name, {value}); }
    void texts(const char* name, std::initializer_list<std::string_view> values) {
        std::string all;
        for (const std::string_view value : values) {
            all.append(value).push_back('\0');
        }
        check(::fdt_property(bytes_.data(), name, all.data(), static_cast<int>(all.size())));
    }
    void cells(const char* name, Cells values) { cells(name, std::vector<std::uint32_t>(values)); }
    void cells(const char* name, std::vector<std::uint32_t> values) {
        std::ranges::transform(values, values.begin(), [](std::uint32_t cell) { return ::cpu_to_fdt32(cell); });
        const auto size = static_cast<int>(values.size() * sizeof(std::uint32_t));
        check(::fdt_property(bytes_.data(), name, values.data(), size));
    }

    [[nodiscard]] std::vector<std::byte> finish() && {
        check(::fdt_finish(bytes_.data()));
        // NOLINTNEXTLINE(bugprone-casting-through-void): the macro of libfdt makes a header of a pointer to anything.
        bytes_.resize(fdt_totalsize(static_cast<const void*>(bytes_.data())));
        return std::move(bytes_);
    }

  private:
    static void check([[maybe_unused]] int result) { assert(result == 0); }

    std::vector<std::byte> bytes_;
};

constexpr std::uint32_t high(std::uint64_t value) {
    return static_cast<std::uint32_t>(value >> 32U);
}
constexpr std::uint32_t low(std::uint64_t value) {
    return static_cast<std::uint32_t>(value);
}

void registers(TreeWriter& tree, GuestRange range) {
    const std::uint64_t base = to_integer(range.base);
    tree.cells("reg", {high(base), low(base), high(range.size), low(range.size)});
}

std::string unit(std::string_view name, std::uint64_t address) {
    return vmm::format("{}@{:x}", name, address);
}

/// Writes an interrupt. The second cell has the form that x86 Linux reads (of_ioapic_type in its
/// arch/x86/kernel/devicetree.c).
void interrupt(TreeWriter& tree, std::uint32_t gsi, InterruptTrigger trigger) {
    constexpr std::uint32_t kEdgeRising = 0;
    constexpr std::uint32_t kLevelHigh = 2;
    tree.cells("interrupts", {gsi, trigger == InterruptTrigger::kLevel ? kLevelHigh : kEdgeRising});
}

// ---- The root's children

constexpr const char* kIsaBus = "isa@1,0"; // Linux recognises the bus by the name before the @.

std::string serial_node(SerialPortHardware com1) {
    return unit("serial", com1.port);
}

void write_chosen(TreeWriter& tree, const Hardware& hardware, const DeviceTreeBoot& boot) {
    tree.node("chosen", [&] {
        tree.text("bootargs", boot.command_line);
        if (hardware.com1) {
            tree.text("stdout-path", vmm::format("/{}/{}", kIsaBus, serial_node(*hardware.com1)));
        }
        if (boot.initrd) {
            const std::uint64_t start = to_integer(boot.initrd->base);
            const std::uint64_t end = to_integer(boot.initrd->end());
            tree.cells("linux,initrd-start", {high(start), low(start)});
            tree.cells("linux,initrd-end", {high(end), low(end)});
        }
    });
}

void write_cpus(TreeWriter& tree, const Hardware& hardware) {
    tree.node("cpus", [&] {
        tree.cells("#address-cells", {1});
        tree.cells("#size-cells", {0});
        for (unsigned id = 0; id < hardware.vcpus; ++id) {
            tree.node(unit("cpu", id), [&] {
                tree.text("device_type", "cpu");
                tree.cells("reg", {id});
                if (hardware.numa) {
                    tree.cells("numa-node-id", {hardware.numa->vcpu_nodes[id]});
                }
            });
        }
    });
}

void write_memory_node(TreeWriter& tree, GuestRange range, const unsigned* numa_node) {
    tree.node(unit("memory", to_integer(range.base)), [&] {
        tree.text("device_type", "memory");
        registers(tree, range);
        if (numa_node != nullptr) {
            tree.cells("numa-node-id", {*numa_node});
        }
    });
}

GuestRange common_part(GuestRange a, GuestRange b) {
    const std::uint64_t begin = std::max(to_integer(a.base), to_integer(b.base));
    const std::uint64_t end = std::min(to_integer(a.end()), to_integer(b.end()));
    return {GuestAddress{begin}, end > begin ? end - begin : 0};
}

/// Writes a node for each piece of RAM. If there are NUMA nodes, each piece lies in one of them.
void write_memory(TreeWriter& tree, const Hardware& hardware, std::span<const MemoryMapEntry> map) {
    for (const MemoryMapEntry& entry : map) {
        if (entry.kind != MemoryKind::kRam) {
            continue;
        }
        if (!hardware.numa) {
            write_memory_node(tree, entry.range, nullptr);
            continue;
        }
        for (const AcpiNumaMemory& memory : hardware.numa->memory) {
            if (const GuestRange part = common_part(entry.range, memory.range); part.size != 0) {
                write_memory_node(tree, part, &memory.node);
            }
        }
    }
}

void write_distances(TreeWriter& tree, const AcpiNuma& numa) {
    const unsigned nodes = [&numa] {
        unsigned count = 0;
        while (std::size_t{count} * count < numa.distances.size()) {
            ++count;
        }
        return count;
    }();
    std::vector<std::uint32_t> matrix;
    for (unsigned from = 0; from < nodes; ++from) {
        for (unsigned to = 0; to < nodes; ++to) {
            matrix.insert(matrix.end(), {from, to, numa.distances[std::size_t{from} * nodes + to]});
        }
    }
    tree.node("distance-map", [&] {
        tree.text("compatible", "numa-distance-map-v1");
        tree.cells("distance-matrix", std::move(matrix));
    });
}

void write_interrupt_controller(TreeWriter& tree, GuestAddress address, const char* compatible,
                                std::uint32_t phandle = 0) {
    tree.node(unit("interrupt-controller", to_integer(address)), [&] {
        tree.text("compatible", compatible);
        registers(tree, {address, kSmallPageBytes});
        tree.flag("interrupt-controller");
        tree.cells("#address-cells", {0});
        tree.cells("#interrupt-cells", {2});
        if (phandle != 0) {
            tree.cells("phandle", {phandle});
        } else {
            // A local APIC: LINT0 passes on the interrupts of the 8259s, as with KVM's after a reset.
            tree.flag("intel,virtual-wire-mode");
        }
    });
}

/// Writes the devices in guest-physical memory. Older kernels look only at the children of the first name, and newer
/// kernels at those of the second.
void write_memory_mapped_devices(TreeWriter& tree, const Hardware& hardware) {
    tree.node("soc", [&] {
        tree.texts("compatible", {"intel,ce4100-cp", "simple-bus"});
        tree.cells("#address-cells", {2});
        tree.cells("#size-cells", {2});
        tree.flag("ranges");
        write_interrupt_controller(tree, hardware.io_apic, "intel,ce4100-ioapic", kIoApicPhandle);
        write_interrupt_controller(tree, hardware.local_apic, "intel,ce4100-lapic");
        if (hardware.power_registers) {
            tree.node(unit("syscon", to_integer(hardware.power_registers->base)), [&] {
                tree.texts("compatible", {"vmm,power", "syscon"});
                registers(tree, *hardware.power_registers);
                tree.cells("reg-io-width", {1});
                tree.cells("phandle", {kPowerPhandle});
            });
        }
        if (hardware.generation_id) {
            constexpr std::uint64_t kBytes = 16;
            tree.node(unit("rng", to_integer(hardware.generation_id->address)), [&] {
                tree.text("compatible", "microsoft,vmgenid");
                registers(tree, {hardware.generation_id->address, kBytes});
                interrupt(tree, hardware.generation_id->gsi, InterruptTrigger::kEdge);
            });
        }
        for (const VirtioMmioHardware& virtio : hardware.virtio_mmio) {
            tree.node(unit("virtio", to_integer(virtio.registers.base)), [&] {
                tree.text("compatible", "virtio,mmio");
                registers(tree, virtio.registers);
                interrupt(tree, virtio.gsi, virtio.trigger);
                tree.flag("dma-coherent");
            });
        }
    });
}

/// Writes the PCI bus. It has Devicetree's binding host-generic-pci, with the cells of IEEE 1275's PCI binding: the
/// first cell has the space (bits 24 and 25) and, for a device, its slot from bit 11 on.
void write_pci(TreeWriter& tree, const PciHardware& pci) {
    constexpr std::uint32_t kMemory32 = 0x02000000;
    constexpr std::uint32_t kLevelHigh = 2; // see interrupt()
    constexpr std::uint32_t kSlots = 4;     // slots with different lines; the mask takes slots modulo 4
    constexpr unsigned kSlotShift = 11;
    constexpr std::uint32_t kPinA = 1;
    const std::uint64_t base = to_integer(pci.window.base);
    tree.node(unit("pcie", to_integer(pci.ecam.base)), [&] {
        tree.text("compatible", "pci-host-ecam-generic");
        tree.text("device_type", "pci");
        registers(tree, pci.ecam);
        tree.cells("#address-cells", {3});
        tree.cells("#size-cells", {2});
        tree.cells("bus-range", {0, 0});
        tree.cells("ranges", {kMemory32, high(base), low(base), high(base), low(base), high(pci.window.size),
                              low(pci.window.size)});
        tree.flag("dma-coherent");
        tree.cells("#interrupt-cells", {1});
        tree.cells("interrupt-map-mask", {(kSlots - 1) << kSlotShift, 0, 0, 7});
        std::vector<std::uint32_t> map;
        for (std::uint32_t slot = 0; slot < kSlots; ++slot) {
            map.insert(map.end(), {slot << kSlotShift, 0, 0, kPinA, kIoApicPhandle, pci.pin_gsis.at(slot), kLevelHigh});
        }
        tree.cells("interrupt-map", std::move(map));
    });
}

/// Writes the devices at I/O ports. Bit 0 in the first cell of an ISA address is set for ports (IEEE 1275, ISA
/// binding).
void write_port_devices(TreeWriter& tree, const Hardware& hardware) {
    constexpr std::uint32_t kIo = 1;
    constexpr std::uint32_t kPorts = 0x10000;
    tree.node(kIsaBus, [&] {
        tree.text("compatible", "isa");
        tree.text("device_type", "isa");
        tree.cells("#address-cells", {2});
        tree.cells("#size-cells", {1});
        tree.cells("ranges", {kIo, 0, 0, 0, kPorts}); // Port n is "address" n above the bus.
        if (hardware.com1) {
            constexpr std::uint32_t kRegisters = 8;
            constexpr std::uint32_t kUsualClockHz = 1'843'200;
            tree.node(serial_node(*hardware.com1), [&] {
                tree.text("compatible", "ns16550a");
                tree.text("device_type", "serial");
                tree.cells("reg", {kIo, hardware.com1->port, kRegisters});
                tree.cells("clock-frequency", {kUsualClockHz});
                interrupt(tree, hardware.com1->gsi, InterruptTrigger::kEdge);
            });
        }
        if (hardware.cmos_rtc_port) {
            constexpr std::uint32_t kIndexAndData = 2;
            tree.node(unit("rtc", *hardware.cmos_rtc_port), [&] {
                tree.text("compatible", "motorola,mc146818");
                tree.cells("reg", {kIo, *hardware.cmos_rtc_port, kIndexAndData});
            });
        }
    });
}

void write_switch(TreeWriter& tree, const char* name, const char* compatible, std::uint32_t offset,
                  std::uint32_t value) {
    tree.node(name, [&] {
        tree.text("compatible", compatible);
        tree.cells("regmap", {kPowerPhandle});
        tree.cells("offset", {offset});
        tree.cells("value", {value});
    });
}

void write_power(TreeWriter& tree, const Hardware& hardware) {
    constexpr unsigned kSleepTypeShift = 2; // as in ACPI's sleep control register (6.4, 4.8.3.7)
    constexpr unsigned kSleepEnable = 0x20;
    assert(hardware.reset_port > hardware.sleep_control_port);
    write_switch(tree, "poweroff", "syscon-poweroff", 0,
                 unsigned{hardware.power_off_sleep_type} << kSleepTypeShift | kSleepEnable);
    write_switch(tree, "reboot", "syscon-reboot", std::uint32_t{hardware.reset_port} - hardware.sleep_control_port,
                 hardware.reset_value);
}

/// More bytes than the tree can take.
std::size_t room_for(const Hardware& hardware, const DeviceTreeBoot& boot) {
    std::size_t room = 8192 + boot.command_line.size() + 128 * (std::size_t{hardware.vcpus} + boot.memory_map.size()) +
                       256 * hardware.virtio_mmio.size();
    if (hardware.numa) {
        // The overlaps of two lists of ranges have at most as many pieces as both lists have ends.
        room += 128 * (boot.memory_map.size() + hardware.numa->memory.size()) + 12 * hardware.numa->distances.size();
    }
    return room;
}

} // namespace

std::vector<std::byte> build_device_tree(const Hardware& hardware, const DeviceTreeBoot& boot) {
    assert(hardware.vcpus >= 1 && hardware.vcpus <= kMaxVcpus);
    assert(hardware.virtio_mmio.size() <= kMaxVirtioMmio);
    assert(!hardware.numa || hardware.numa->vcpu_nodes.size() == hardware.vcpus);

    TreeWriter tree(room_for(hardware, boot));
    tree.node("", [&] {
        tree.text("compatible", "vmm,x86-64");
        tree.text("model", "vmm");
        tree.cells("#address-cells", {2});
        tree.cells("#size-cells", {2});
        tree.cells("interrupt-parent", {kIoApicPhandle});
        write_chosen(tree, hardware, boot);
        write_cpus(tree, hardware);
        write_memory(tree, hardware, boot.memory_map);
        if (hardware.numa && !hardware.numa->distances.empty()) {
            write_distances(tree, *hardware.numa);
        }
        write_memory_mapped_devices(tree, hardware);
        if (hardware.pci) {
            write_pci(tree, *hardware.pci);
        }
        write_port_devices(tree, hardware);
        if (hardware.power_registers) {
            write_power(tree, hardware);
        }
    });
    return std::move(tree).finish();
}

} // namespace vmm::loader
