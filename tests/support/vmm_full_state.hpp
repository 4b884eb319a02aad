// A machine's state in which no field has its default value, and no two fields are equal, as far as their sizes allow
// it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <optional>
#include <span>
#include <string>
#include <type_traits>
#include <vector>

#include "vmm/state/snapshot_state.hpp"

namespace vmm::testing {

/// Gives a different number each time.
class FullState {
  public:
    /// A state with `vcpus` vCPUs, and one device of each kind.
    [[nodiscard]] static SnapshotState make(std::size_t vcpus = 2) { return FullState().all(vcpus); }
    /// The same for a machine whose devices are on a PCI bus.
    [[nodiscard]] static SnapshotState make_with_pci(std::size_t vcpus = 2) {
        FullState full;
        SnapshotState state = full.all(vcpus);
        state.machine.board.pci =
            PciRootState{.ports = {full.next()}, .hotplug = {.come = full.next(), .gone = full.next()}};
        std::uint32_t slot = 1;
        for (VirtioDeviceState& device : state.machine.virtio) {
            device.transport = full.pci_transport();
            device.pci_slot = slot;
            slot += 3;
        }
        return state;
    }

  private:
    std::uint32_t next() {
        last_ = last_ * 1103515245U + 12345U;
        return last_ >> 8U;
    }
    /// 1 to 255
    std::uint8_t byte() { return static_cast<std::uint8_t>(next() % 255 + 1); }

    std::vector<std::byte> bytes(std::size_t count) {
        std::vector<std::byte> all(count);
        for (std::byte& one : all) {
            one = std::byte{byte()};
        }
        return all;
    }

    /// Every byte of it, including the kernel's padding.
    template <typename Value>
    void fill(Value& value) {
        static_assert(std::is_trivially_copyable_v<Value>);
        const std::vector<std::byte> all = bytes(sizeof value);
        std::memcpy(&value, all.data(), all.size());
    }

    template <typename Value>
    Value number() {
        Value value{};
        fill(value);
        return value;
    }

    kvm_segment segment() {
        auto value = number<kvm_segment>();
        value.padding = 0;
        return value;
    }

    kvm_dtable descriptor_table() {
        auto value = number<kvm_dtable>();
        std::memset(&value.padding, 0, sizeof value.padding);
        return value;
    }

    kvm_sregs2 special() {
        auto value = number<kvm_sregs2>();
        for (kvm_segment* one :
             {&value.cs, &value.ds, &value.es, &value.fs, &value.gs, &value.ss, &value.tr, &value.ldt}) {
            *one = segment();
        }
        value.gdt = descriptor_table();
        value.idt = descriptor_table();
        return value;
    }

    kvm_vcpu_events events() {
        auto value = number<kvm_vcpu_events>();
        value.nmi.pad = 0;
        std::memset(&value.reserved, 0, sizeof value.reserved);
        return value;
    }

    kvm_xcrs xcrs() {
        kvm_xcrs value{};
        value.nr_xcrs = 3;
        value.flags = next();
        for (std::size_t i = 0; i < 3; ++i) {
            value.xcrs[i].xcr = next();
            value.xcrs[i].value = number<std::uint64_t>();
        }
        return value;
    }

    kvm_debugregs debug() {
        auto value = number<kvm_debugregs>();
        std::memset(&value.reserved, 0, sizeof value.reserved);
        return value;
    }

    kvm::VcpuState vcpu() {
        kvm::VcpuState vcpu;
        vcpu.mp_state = next();
        fill(vcpu.registers);
        vcpu.special = special();
        vcpu.xsave = bytes(sizeof(kvm_xsave) + 64);
        vcpu.xcrs = xcrs();
        vcpu.debug = debug();
        fill(vcpu.local_apic);
        vcpu.tsc_khz = next();
        vcpu.tsc_offset = -std::int64_t{next()};
        for (int i = 0; i < 5; ++i) {
            auto entry = number<kvm_cpuid_entry2>();
            std::memset(&entry.padding, 0, sizeof entry.padding);
            vcpu.cpuid.push_back(entry);
            vcpu.msrs.push_back({next(), number<std::uint64_t>()});
        }
        vcpu.nested = bytes(300);
        vcpu.events = events();
        return vcpu;
    }

    kvm::VmState vm() {
        kvm::VmState vm;
        fill(vm.interrupt_controllers[0].chip.pic);
        fill(vm.interrupt_controllers[1].chip.pic);
        fill(vm.interrupt_controllers[2].chip.ioapic);
        vm.interrupt_controllers[2].chip.ioapic.pad = 0;
        vm.interrupt_controllers[1].chip_id = 1;
        vm.interrupt_controllers[2].chip_id = 2;
        fill(vm.timer);
        std::memset(&vm.timer.reserved, 0, sizeof vm.timer.reserved);
        fill(vm.clock);
        vm.clock.pad0 = 0;
        std::memset(&vm.clock.pad, 0, sizeof vm.clock.pad);
        vm.realtime_ns = number<std::uint64_t>();
        return vm;
    }

    BoardState board() {
        BoardState board;
        board.serial = {.divisor = number<std::uint16_t>(),
                        .ier = byte(),
                        .lcr = byte(),
                        .mcr = byte(),
                        .msr_changes = byte(),
                        .scr = byte(),
                        .fifo_enabled = true,
                        .receive_trigger = 14,
                        .overrun = true,
                        .transmit_interrupt = true,
                        .received_bytes = byte(),
                        .received = number<std::array<std::uint8_t, 16>>()};
        board.system_control.value = byte();
        board.reset_control.value = byte();
        board.power.sleep_type = byte();
        board.rtc.offset = std::chrono::microseconds(-std::int64_t{next()});
        board.rtc.index = byte();
        fill(board.rtc.memory);
        return board;
    }

    devices::virtio::QueueGeometry geometry() {
        return {.size = number<std::uint16_t>(),
                .descriptors = number<GuestAddress>(),
                .driver_area = number<GuestAddress>(),
                .device_area = number<GuestAddress>()};
    }

    devices::virtio::Negotiation::State negotiation() {
        devices::virtio::Negotiation::State negotiation;
        negotiation.status = next();
        negotiation.driver_features = number<std::uint64_t>();
        negotiation.accepts_unknown = true;
        negotiation.queues.push_back({.geometry = geometry(),
                                      .is_enabled = true,
                                      .in_device = devices::virtio::Queue::State{.geometry = geometry(),
                                                                                 .event_idx = true,
                                                                                 .indirect = true,
                                                                                 .next_available = byte(),
                                                                                 .next_used = byte(),
                                                                                 .signalled_used = byte(),
                                                                                 .signalled_valid = true}});
        negotiation.queues.push_back({.geometry = geometry(), .is_enabled = false, .in_device = std::nullopt});
        negotiation.config_generation = next();
        negotiation.config = bytes(24);
        negotiation.reset_config = bytes(25);
        negotiation.failure = "queue 0: \xff\n is no text";
        return negotiation;
    }

    devices::virtio::MmioState transport() {
        devices::virtio::MmioState transport;
        transport.negotiation = negotiation();
        transport.device_features_select = next();
        transport.driver_features_select = next();
        transport.queue_select = next();
        transport.interrupt_status = next();
        return transport;
    }

    devices::virtio::PciState pci_transport() {
        devices::virtio::PciState transport;
        transport.negotiation = negotiation();
        transport.device_features_select = next();
        transport.driver_features_select = next();
        transport.queue_select = number<std::uint16_t>();
        transport.interrupt_status = byte();
        transport.config_vector = number<std::uint16_t>();
        transport.queue_vectors = {number<std::uint16_t>(), number<std::uint16_t>()};
        fill(transport.config_space);
        for (int i = 0; i < 3; ++i) {
            transport.msix.entries.push_back({{number<std::uint64_t>(), next()}, next()});
            transport.msix.pending.push_back(byte());
        }
        return transport;
    }

    std::vector<VirtioDeviceState> virtio() {
        using namespace devices::virtio;
        return {
            {"blk0", DeviceId::kBlock, transport(),
             BlockState{.sectors = next(), .data_lost = true, .unflushed_begin = next(), .unflushed_end = next()}},
            {"net0", DeviceId::kNet, transport(), NetState{.frame = bytes(70), .link_up = false}},
            {"rng0", DeviceId::kEntropy, transport(), RngState{}},
            {"console0", DeviceId::kConsole, transport(),
             ConsoleState{.output = bytes(9),
                          .input = bytes(8),
                          .dropped_output_bytes = next(),
                          .told_size = ConsoleSize{.columns = byte(), .rows = byte()}}},
            {"vsock0", DeviceId::kVsock, transport(),
             VsockState{.has_driver = true, .guest_cid = next(), .next_host_port = next()}},
            {"balloon0", DeviceId::kBalloon, transport(),
             BalloonState{.target_pages = next(), .told_pages = next(), .done = {next(), next()}}},
            {"other0", DeviceId{77}, transport(), std::monostate{}},
        };
    }

    SnapshotState all(std::size_t vcpus) {
        SnapshotState state;
        state.origin = {.created_at = 1'700'000'000,
                        .vmm_version = "0.1.0",
                        .kernel_release = "6.12.5",
                        .cpu_vendor = "GenuineIntel",
                        .cpu_model = "A processor"};
        for (std::size_t i = 0; i < vcpus; ++i) {
            state.machine.vcpus.push_back(vcpu());
        }
        state.machine.vm = vm();
        state.machine.board = board();
        state.machine.serial_input = bytes(5);
        state.machine.virtio = virtio();
        state.machine.memory = {{GuestAddress{0}, 5 * kMiB}, {GuestAddress{4 * kGiB}, 2 * kMiB}};
        state.machine.boot_memory_bytes = 5 * kMiB;
        state.machine.adopted_page_tables = GuestAddress{0x12345000};
        state.machine.device_tree = bytes(40);
        state.machine.generation_id_at = GuestAddress{0xe1230};
        fill(state.machine.generation_id);
        state.memory = MemoryIndex{{false, next()}, {true, 0}, {false, next()}, {false, next()}};
        return state;
    }

    std::uint32_t last_ = 1;
};

} // namespace vmm::testing
