// Starts the other CPUs, and makes all of them do a step of work together.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "vmm/guest/acpi.hpp"
#include "vmm/guest/memory_ranges.hpp"

namespace vmm::guest {

/// The memory with which the CPUs start.
struct StartPlan {
    /// The APIC IDs of the CPUs to start, without the one that is running.
    std::span<const std::uint32_t> apic_ids;
    /// For CR3.
    std::uint64_t tables = 0;
    /// A free page below 1 MiB, other than page 0.
    std::uint64_t trampoline = 0;
    /// GUEST_STACK_BYTES for each CPU to start.
    std::uint64_t stacks = 0;
};

/// The local APIC ID of the CPU that calls.
[[nodiscard]] std::uint32_t this_apic_id() noexcept;

struct StartReport {
    /// How many CPUs came up.
    std::size_t started = 0;
    /// The IDs of the CPUs that did not. They take part in nothing, even if they come up later.
    CpuList failed;
};

/// Starts the CPUs of `plan`, all at once, and waits for them. It gives up the CPUs that are left if none of them has
/// come up for some 10 seconds. CPU 0 calls this once.
[[nodiscard]] StartReport start_cpus(const StartPlan& plan) noexcept;

/// The work of one CPU in a step. `cpu` is 0 for the CPU that runs the step. The CPUs that start_cpus() started have
/// the numbers 1, 2 and so on, in the order of the plan.
using Work = void (*)(std::size_t cpu) noexcept;

/// Runs `work` on all CPUs at the same time, and returns when all are done. The CPUs see what the caller wrote before,
/// and afterwards the caller sees what they wrote. Only CPU 0 calls this.
void run_on_all(Work work) noexcept;

/// Sends the other CPUs back to waiting for a start-up IPI, where they no longer use the host's time. Only CPU 0 calls
/// this, and no other function of this file afterwards.
void stop_others() noexcept;

} // namespace vmm::guest
