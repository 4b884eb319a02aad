#include "vmm/machine/hardware.hpp"

#include <algorithm>
#include <cassert>
#include <exception>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "devices/disk_io.hpp"
#include "prefault/host/numa.hpp"
#include "vmm/host/capabilities.hpp"
#include "vmm/machine/first_state.hpp"
#include "vmm/machine/generation_id.hpp"
#include "vmm/machine/memory_map.hpp"
#include "vmm/machine/pluggable_memory.hpp"
#include "vmm/machine/rebuild.hpp"
#include "vmm/machine/stop_bridge.hpp"
#include "vmm/machine/x86/boot_state.hpp"
#include "vmm/machine/x86/cpuid.hpp"

namespace vmm {

namespace {

std::unique_ptr<CharacterConsole> make_virtio_console(const Config& config, StopRequest& stop) {
    return config.console
               ? std::make_unique<CharacterConsole>(*config.console, [&stop] { stop.request(ExitReason::kStopped); })
               : nullptr;
}

/// Guest memory in pieces that can each be one buffer of an io_uring. Memory that is plugged and unplugged is left out,
/// because the ring would keep pages that the guest has given back.
std::vector<std::span<std::byte>> buffers_of(const GuestRam& ram) {
    constexpr std::uint64_t kMostBytes = devices::DiskIo::kMostBufferBytes;
    std::vector<std::span<std::byte>> pieces;
    for (const MemoryRegion& region : ram.memory().regions()) {
        if (ram.is_pluggable(region)) {
            continue;
        }
        for (std::uint64_t offset = 0; offset < region.range.size; offset += kMostBytes) {
            pieces.push_back(region.bytes().subspan(offset, std::min(kMostBytes, region.range.size - offset)));
        }
    }
    return pieces;
}

kvm::System open_checked_system(const Config& config) {
    kvm::System system;
    check_host(system, config);
    return system;
}

GuestRam create_ram(const Config& config, const StopRequest& stop, const FirstState& first) {
    if (is_from_pool(config.page_size) || config.memory_from) {
        // The following may take long: a pool of huge pages is raised, memory is populated, or a pool of warm memory
        // does not answer.
        const StopBridge bridge(stop);
        return {config, bridge.token(), first.memory_files()};
    }
    return {config, {}, first.memory_files()};
}

kvm::Vm create_vm(const kvm::System& system, const GuestMemory& memory) {
    kvm::Vm vm(system);
    std::uint32_t slot = 0;
    for (const MemoryRegion& region : memory.regions()) {
        vm.add_memslot(slot++, region.range, region.host);
    }
    assert(slot <= memory_map::kScratchMemslot);
    vm.reserve_real_mode_pages(memory_map::kRealModePages);
    return vm;
}

/// Guest memory, including the memory that was added before its state was saved.
const GuestMemory& whole_memory(GuestRam& ram, const Config& config, FirstState& first, Embedder& embedder) {
    if (first.state() != nullptr) {
        map_added_memory(ram, config, *first.state());
        plug_saved_memory(ram, *first.state());
        check_generation_id(ram.memory(), *first.state());
    }
    first.note_memory(ram, embedder); // KVM touches it as soon as it has the registers of vCPUs.
    return ram.memory();
}

std::deque<kvm::Vcpu> create_vcpus(kvm::Vm& vm, const Config& config, const GuestCpuid& guest_cpuid,
                                   std::uint64_t machine_check_capabilities) {
    std::deque<kvm::Vcpu> vcpus;
    for (unsigned id = 0; id < config.vcpus; ++id) {
        kvm::Vcpu& vcpu = vcpus.emplace_back(vm, id);
        const auto cpuid = guest_cpuid.of(id);
        vcpu.set_cpuid(cpuid);
        set_reset_state(vcpu, cpuid, machine_check_capabilities);
    }
    return vcpus;
}

VirtioSet make_devices(Hardware& hardware, const Config& config, Embedder& embedder, const MachineState* state) {
    // The guest's RAM, which knows these parts, may not be there yet.
    const std::vector<PluggablePart> memory = pluggable_parts(config, prefault::NumaTopology::read());
    return make_virtio_devices(config, memory,
                               device_services(config, hardware.virtio_console.get(), hardware.ram, embedder),
                               state != nullptr ? &state->virtio : nullptr);
}

std::unique_ptr<PciRoot> make_pci(kvm::Vm& vm, const Config& config, const MachineState* state) {
    const bool has_pci = state != nullptr ? state->board.pci.has_value() : config.transport == VirtioTransport::kPci;
    return has_pci ? std::make_unique<PciRoot>(vm) : nullptr;
}

/// Returns the devices, when everything before them is there. If a guest arrives, they are made only now, because until
/// now another process used their disks and networks.
std::vector<std::unique_ptr<devices::virtio::Device>> take_devices(Hardware& hardware, const Config& config,
                                                                   Embedder& embedder, FirstState& first) {
    if (first.comes_later()) {
        first.wait_for_state(hardware.second_level, hardware.vcpus);
        hardware.virtio_devices = make_devices(hardware, config, embedder, first.state());
    }
    return std::move(hardware.virtio_devices.devices);
}

} // namespace

DeviceServices device_services(const Config& config, CharacterConsole* console, const GuestRam& ram,
                               Embedder& embedder) {
    DeviceServices services;
    services.warn = [&embedder](const std::string& line) { embedder.warn(line); };
    if (console != nullptr) {
        services.console = console->callbacks();
    }
    if (config.pin == prefault::Pin::kLongterm && !restores_lazily(config)) { // All pages of a buffer must be there.
        services.pinned_memory = [&ram] { return buffers_of(ram); };
    }
    return services;
}

GuestCpuid::GuestCpuid(const Config& config, const kvm::System& system)
    : config_(config), model_(CpuModel::parse(config.cpu, config.nested)),
      supported_(with_cpu_brand(system.supported_cpuid(), host_cpu_brand())),
      tsc_deadline_(system.extension(KVM_CAP_TSC_DEADLINE_TIMER) != 0) {}

std::vector<kvm_cpuid_entry2> GuestCpuid::of(unsigned id) const {
    return model_.applied_to(guest_cpuid(supported_, config_.vcpus, id, tsc_deadline_));
}

std::vector<kvm_cpuid_entry2> GuestCpuid::most() const {
    return guest_cpuid(supported_, config_.vcpus, 0, tsc_deadline_);
}

Hardware::KernelChips::KernelChips(kvm::Vm& vm) {
    vm.create_irqchip();
    set_up_pics(vm);
    vm.create_pit();
}

Hardware::Hardware(const Config& config, StopRequest& stop, Embedder& embedder, FirstState& first)
    : Hardware(config, stop, embedder, first, first.state()) {}

Hardware::Hardware(const Config& config, StopRequest& stop, Embedder& embedder, FirstState& first,
                   const MachineState* state)
    : virtio_console(make_virtio_console(config, stop)),
      virtio_devices(first.comes_later() ? VirtioSet{} : make_devices(*this, config, embedder, state)),
      system(open_checked_system(config)), ram(create_ram(config, stop, first)), memory_use{first},
      vm(create_vm(system, whole_memory(ram, config, first, embedder))), cpuid(config, system),
      second_level(vm, ram, config, state != nullptr ? state->vcpus.front().cpuid : cpuid.of(0)), kernel_chips(vm),
      vcpus(state != nullptr ? make_vcpus(vm, config, cpuid.most(), *state, refused_registers)
                             : create_vcpus(vm, config, cpuid, system.machine_check_capabilities())),
      faults(vcpus), serial_console(config.serial, [&stop] { stop.request(ExitReason::kStopped); }),
      pci(make_pci(vm, config, state)),
      virtio(vm, ram.memory(), take_devices(*this, config, embedder, first), pci.get(), config.device_cpus,
             state != nullptr ? &state->virtio : nullptr),
      custom(vm, ram.memory(), config.devices,
             [&embedder](std::exception_ptr thrown) { embedder.note_failure(std::move(thrown)); }),
      board(vm, serial_console.callbacks(), virtio, custom, pci.get(), stop,
            state != nullptr ? state->board : BoardState{}) {
    if (state != nullptr) {
        serial_console.add_input(state->serial_input);
    }
    for (const std::string& line : refused_registers) {
        embedder.log(LogLevel::kWarning, line);
    }
    if (!ram.warm_short_because().empty()) {
        embedder.log(LogLevel::kWarning, ram.warm_short_because() + "; " +
                                             format_bytes(config.memory_bytes - ram.warm_bytes()) +
                                             " of the guest's memory are ordinary memory");
    }
}

} // namespace vmm
