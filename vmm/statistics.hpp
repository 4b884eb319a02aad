// What a machine is doing, at one moment.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "kvm/host/export.hpp"
#include "prefault/mapped_pages.hpp"

VMM_API_BEGIN
namespace vmm {

/// How far the life of a machine has come.
enum class RunState {
    kReady,   ///< made, and not yet run
    kRunning, ///< in Machine::run()
    kPaused,  ///< in Machine::run(), held by Machine::pause()
    kEnded,   ///< run() has ended
};

/// All of them, in the order in which they follow each other.
inline constexpr std::array kRunStates{RunState::kReady, RunState::kRunning, RunState::kPaused, RunState::kEnded};

/// "ready", "running", "paused", "ended"
[[nodiscard]] std::string_view to_string(RunState state) noexcept;

/// One vCPU, by KVM's own counters, since run() began.
struct VcpuStatistics {
    std::uint64_t exits = 0;               ///< how often the guest was left; 0 if KVM does not count
    std::uint64_t second_level_faults = 0; ///< mappings that KVM made on the vCPU's behalf (pf_fixed)
};

/// One of a device's own counters.
struct DeviceCounter {
    std::string name; ///< "interrupts"; a name that ends in "_bytes" counts bytes
    std::uint64_t value = 0;
};

/// A virtio device, since it was made.
struct DeviceStatistics {
    std::string name; ///< "blk0", as its thread is called
    std::vector<DeviceCounter> counters;
};

/// How much memory the guest has, in bytes, without what add_memory() added.
struct MemorySize {
    std::uint64_t bytes = 0;           ///< the memory it began with, and the memory it has plugged
    std::uint64_t requested_bytes = 0; ///< how much it is asked to have (Machine::set_memory())
    std::uint64_t max_bytes = 0;       ///< how much it can be given
};

/// A machine's figures. They are read one after the other, not at one instant.
struct Statistics {
    RunState state = RunState::kReady;
    std::vector<VcpuStatistics> vcpus; ///< in order of their ids
    MemorySize memory;
    prefault::MappedPages mapped; ///< of guest memory
    std::vector<DeviceStatistics> devices;
};

} // namespace vmm
VMM_API_END
