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

// Microsoft, "Virtual Machine Generation ID": 16 bytes of guest memory, at an address that firmware tells. If the bytes
// have changed, the guest knows that it may have a twin; Linux then makes new random numbers.

using GenerationId = std::array<std::byte, 16>;

/// What is done with the identifier when a guest goes on.
enum class GenerationPolicy {
    kNew,  ///< there may be another guest that goes on from the same state
    kSame, ///< this is the only one: it has moved
};

/// Writes 16 random bytes at `at`, which is in `memory`. Throws Error if the kernel gives no random bytes.
void write_new_generation_id(const GuestMemory& memory, GuestAddress at);

/// Reads the identifier at `at`, which is in `memory`.
[[nodiscard]] GenerationId generation_id_in(const GuestMemory& memory, GuestAddress at);

/// Throws Error if `state` has an identifier that is not in `memory` or not at a multiple of 8.
void check_generation_id(const GuestMemory& memory, const MachineState& state);

/// Writes the identifier at `at`, if there is one, as `policy` says, and interrupts the guest. It interrupts in any
/// case, because an interrupt from before may have been lost. It is called for a guest that goes on from a state, when
/// its memory has its content, its interrupt controllers have their state, and no vCPU runs. Throws Error.
void restore_generation_id(const GuestMemory& memory, Board& board, std::optional<GuestAddress> at,
                           GenerationPolicy policy);

} // namespace vmm
