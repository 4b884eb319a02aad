#include "vmm/machine/generation_id.hpp"

#include <cassert>

#include "devices/virtio/rng.hpp"
#include "kvm/host/error.hpp"

namespace vmm {

void write_new_generation_id(const GuestMemory& memory, GuestAddress at) {
    GenerationId id{};
    if (!devices::virtio::Rng::host_entropy()(id)) {
        throw Error("cannot make a new generation identifier for the guest: the kernel gives no random bytes "
                    "(see whether a seccomp filter forbids getrandom)");
    }
    [[maybe_unused]] const bool written = memory.store(at, id);
    assert(written);
}

GenerationId generation_id_in(const GuestMemory& memory, GuestAddress at) {
    const auto id = memory.load<GenerationId>(at);
    assert(id);
    return *id;
}

void check_generation_id(const GuestMemory& memory, const MachineState& state) {
    constexpr std::uint64_t kAlignment = 8;
    if (!state.generation_id_at) {
        return;
    }
    const GuestAddress at = *state.generation_id_at;
    if (!is_aligned(to_integer(at), kAlignment) || !memory.at({at, sizeof(GenerationId)})) {
        throw Error("cannot go on from the saved state of the machine: its generation identifier is at " +
                    to_string(at) + ", which is not a place for one in its memory (take a snapshot that is whole)");
    }
}

void restore_generation_id(const GuestMemory& memory, Board& board, std::optional<GuestAddress> at,
                           GenerationPolicy policy) {
    if (!at) {
        return;
    }
    if (policy == GenerationPolicy::kNew) {
        write_new_generation_id(memory, *at);
    }
    board.tell_of_generation_id();
}

} // namespace vmm
