// The identifier by which a guest finds out that it goes on from a snapshot.
#pragma once

#include <array>
#include <cstddef>
#include <optional>

#include "kvm/host/guest_address.hpp"
#include "kvm/host/guest_memory.hpp"
#include "vmm/machine/board.hpp"
#include "vmm/state/machine_state.hpp"

namespace vmm {

// Microsoft, "Virtual Machine Generation ID": 16 bytes of guest memory, which firmware names. A guest that sees other
// bytes than before knows that it may have a twin, and Linux makes new random numbers then.

using GenerationId = std::array<std::byte, 16>;

/// What becomes of the identifier when a guest goes on.
enum class GenerationPolicy {
    kNew,  ///< there may be another guest that goes on from the same state
    kSame, ///< this is the only one: it has moved
};

/// Writes 16 random bytes at `at`, which is in `memory`. Throws Error: the kernel gives no random bytes.
void write_new_generation_id(const GuestMemory& memory, GuestAddress at);

/// What the guest finds at `at`, which is in `memory`.
[[nodiscard]] GenerationId generation_id_in(const GuestMemory& memory, GuestAddress at);

/// Throws Error unless the identifier of `state`, if it has one, is in `memory` and at a multiple of 8.
void check_generation_id(const GuestMemory& memory, const MachineState& state);

/// For a guest that goes on from a state with its identifier at `at`, if it has one: writes it as `policy` says, and
/// interrupts, because an interrupt from before may have been lost. Its memory has its content, its interrupt
/// controllers have their state, and no vCPU runs. Throws Error.
void restore_generation_id(const GuestMemory& memory, Board& board, std::optional<GuestAddress> at,
                           GenerationPolicy policy);

} // namespace vmm
