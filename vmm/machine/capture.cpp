#include "vmm/machine/capture.hpp"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "kvm/host/error.hpp"
#include "kvm/x86/saved_vcpu.hpp"
#include "kvm/x86/saved_vm.hpp"
#include "vmm/machine/generation_id.hpp"

namespace vmm {

MachineState capture(Hardware& hardware, const Config& config, const FirstState& first) {
    if (!config.devices.empty()) {
        throw UsageError("cannot save the state of the machine: its device " + config.devices.front().name +
                         " is the embedding program's, which has no state (leave it out of Config::devices)");
    }
    MachineState state;
    const std::vector<std::uint32_t> indexes = kvm::saved_msr_indexes(hardware.system);
    for (const kvm::Vcpu& vcpu : hardware.vcpus) {
        state.vcpus.push_back(kvm::save_vcpu(vcpu, indexes));
    }
    state.vm = kvm::save_vm(hardware.vm);
    state.board = hardware.board.state();
    state.serial_input = hardware.serial_console.pending_input();
    state.virtio = hardware.virtio.states();
    for (const MemoryRegion& region : hardware.ram.memory().regions()) {
        state.memory.push_back(region.range);
    }
    std::ranges::sort(state.memory, {}, &GuestRange::base);
    state.boot_memory_bytes = config.memory_bytes;
    if (first.adopts_page_tables(hardware.second_level.host())) {
        state.adopted_page_tables = hardware.second_level.page_tables();
    }
    state.generation_id_at = first.generation_id_at();
    if (state.generation_id_at) {
        state.generation_id = generation_id_in(hardware.ram.memory(), *state.generation_id_at);
    }
    const std::span<const std::byte> device_tree = first.device_tree();
    state.device_tree.assign(device_tree.begin(), device_tree.end());
    return state;
}

} // namespace vmm
