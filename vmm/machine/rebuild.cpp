#include "vmm/machine/rebuild.hpp"

#include <algorithm>
#include <cstdint>
#include <limits>
#include <utility>
#include <variant>

#include "kvm/host/error.hpp"
#include "kvm/host/format.hpp"
#include "kvm/x86/saved_vcpu.hpp"
#include "vmm/machine/memory_map.hpp"
#include "vmm/state/x86/missing_features.hpp"

namespace vmm {

namespace {

/// How many ticks a counter of `khz` makes in `ns`.
std::uint64_t ticks_in(std::uint64_t ns, std::uint32_t khz) {
    constexpr std::uint64_t kNanosecondsForKhz = 1'000'000;
    const std::uint64_t whole = ns / kNanosecondsForKhz;
    if (khz != 0 && whole > std::numeric_limits<std::uint64_t>::max() / khz - khz) {
        return 0; // The host's clock was not right at one of these times.
    }
    return whole * khz + ns % kNanosecondsForKhz * khz / kNanosecondsForKhz;
}

/// The name of the maker in leaf 0; empty if there is no such leaf.
std::string vendor_of(const std::vector<kvm_cpuid_entry2>& cpuid) {
    const auto leaf = std::ranges::find(cpuid, 0U, &kvm_cpuid_entry2::function);
    std::string name;
    if (leaf != cpuid.end()) {
        for (const std::uint32_t part : {leaf->ebx, leaf->edx, leaf->ecx}) {
            for (unsigned shift = 0; shift < 32; shift += 8) {
                const char c = static_cast<char>(part >> shift & 0xffU);
                name += c >= ' ' && c <= '~' ? c : '?';
            }
        }
    }
    return name;
}

/// Gives `vcpu`, which is new, all features that a guest can have here, and compares them with the saved ones. Throws
/// Error if some are missing.
void check_processor(kvm::Vcpu& vcpu, std::span<const kvm_cpuid_entry2> all,
                     const std::vector<kvm_cpuid_entry2>& saved) {
    const std::string tried = "cannot go on from the saved state of the machine: ";
    vcpu.set_cpuid(all);
    const std::vector<kvm_cpuid_entry2> offered = kvm::cpuid_of(vcpu);
    if (vendor_of(saved) != vendor_of(offered)) {
        throw Error(tried + "its processor is of " + vendor_of(saved) + ", and this host's is of " +
                    vendor_of(offered) + " (use a host of the same kind)");
    }
    if (const auto missing = missing_features(saved, offered); !missing.empty()) {
        throw Error(tried + "this host's processor has not all that its guest was offered: it lacks " +
                    describe_missing_features(missing) +
                    " (use a host that has it, or run the guest with Config::cpu=x86-64-v2, say, before it is saved)");
    }
}

/// Whether `range` is a region of memory that the guest can be given.
bool is_pluggable(const GuestRam& ram, GuestRange range) {
    return std::ranges::any_of(ram.pluggable(), [&](const PluggablePart& part) { return part.device.region == range; });
}

} // namespace

void plug_saved_memory(GuestRam& ram, const MachineState& state) {
    auto part = ram.pluggable().begin();
    for (const VirtioDeviceState& device : state.virtio) {
        const auto* const memory = std::get_if<devices::virtio::MemoryState>(&device.device);
        if (memory == nullptr) {
            continue;
        }
        if (part == ram.pluggable().end() ||
            std::ranges::find(state.memory, part->device.region) == state.memory.end()) {
            throw Error("cannot go on from the saved state of the machine: its guest was given memory by the device " +
                        device.name + ", which this machine has not (Config::memory_max_bytes has to be the same)");
        }
        for (const GuestRange& range : devices::virtio::MemoryDevice::plugged_in(*memory, part->device)) {
            ram.plug(range, true);
        }
        ++part;
    }
    if (part != ram.pluggable().end()) {
        throw Error("cannot go on from the saved state of the machine: its guest can be given no more memory, and this "
                    "machine's can (Config::memory_max_bytes has to be the same)");
    }
}

bool have_same_plugged_memory(const MachineState& one, const MachineState& other) {
    const auto plugged = [](const MachineState& state) {
        std::vector<std::vector<std::byte>> all;
        for (const VirtioDeviceState& device : state.virtio) {
            if (const auto* const memory = std::get_if<devices::virtio::MemoryState>(&device.device)) {
                all.push_back(memory->plugged);
            }
        }
        return all;
    };
    return plugged(one) == plugged(other);
}

void map_added_memory(GuestRam& ram, const Config& config, const MachineState& state) {
    const std::string tried = "cannot go on from the saved state of the machine: ";
    const std::vector<GuestRange> boot = memory_map::ram_layout(config.memory_bytes);
    for (const GuestRange& range : boot) {
        if (std::ranges::find(state.memory, range) == state.memory.end()) {
            throw Error(tried + "its guest has " + format_bytes(state.boot_memory_bytes) +
                        " of memory, and this machine has " + format_bytes(config.memory_bytes) +
                        " (configure the memory of the machine whose state was saved)");
        }
    }
    const std::uint64_t end = memory_map::end_of_room(config.memory_bytes, config.memory_max_bytes);
    for (const GuestRange& range : state.memory) {
        if (std::ranges::find(boot, range) != boot.end() || is_pluggable(ram, range)) {
            continue;
        }
        if (range.size == 0 || to_integer(range.base) > end || range.size > end - to_integer(range.base) ||
            range.overlaps(memory_map::kHole)) {
            throw Error(tried + "its memory at " + to_string(range) +
                        " is where this machine can have none (take a snapshot that is whole)");
        }
        validate_more_memory(config, range.size);
        ram.add(ram.map(range));
    }
}

std::deque<kvm::Vcpu> make_vcpus(kvm::Vm& vm, const Config& config, std::span<const kvm_cpuid_entry2> offered,
                                 const MachineState& state, std::vector<std::string>& refused) {
    if (state.vcpus.size() != config.vcpus) {
        throw Error(vmm::format("cannot go on from the saved state of the machine: its guest has {} vCPUs, and this "
                                "machine has {} (configure as many as the machine had whose state was saved)",
                                state.vcpus.size(), config.vcpus));
    }
    std::deque<kvm::Vcpu> vcpus;
    for (unsigned id = 0; id < config.vcpus; ++id) {
        kvm::Vcpu& vcpu = vcpus.emplace_back(vm, id);
        if (id == 0) {
            check_processor(vcpu, offered, state.vcpus.front().cpuid);
        }
        for (std::string& line : kvm::restore_vcpu(vcpu, state.vcpus[id])) {
            refused.push_back(std::move(line));
        }
    }
    return vcpus;
}

void restore_clocks_and_interrupts(Hardware& hardware, const MachineState& state, const GoingOn& how) {
    const std::uint64_t elapsed_ns = kvm::elapsed_ns(state.vm, how.clock);
    std::vector<kvm::Vcpu*> vcpus;
    for (kvm::Vcpu& vcpu : hardware.vcpus) {
        vcpus.push_back(&vcpu);
    }
    kvm::restore_tsc(vcpus, state.vcpus, ticks_in(elapsed_ns, state.vcpus.front().tsc_khz));
    kvm::restore_interrupts(hardware.vm, state.vm);
    kvm::restore_clock(hardware.vm, state.vm, elapsed_ns);
    for (const kvm::Vcpu* const vcpu : vcpus) {
        kvm::note_paused(*vcpu);
    }
    hardware.board.repeat_interrupts();
    hardware.virtio.go_on();
    restore_generation_id(hardware.ram.memory(), hardware.board, state.generation_id_at, how.generation);
}

} // namespace vmm
