#include "vmm/machine/check_machine.hpp"

#include "kvm/host/error.hpp"
#include "kvm/host/format.hpp"

namespace vmm {

void check_machine_like(const MachineState& state, const Config& config, const std::string& tried) {
    if (state.boot_memory_bytes != config.memory_bytes) {
        throw Error(tried + "its guest has " + format_bytes(state.boot_memory_bytes) +
                    " of memory, and this machine is to have " + format_bytes(config.memory_bytes) +
                    " (Config::memory_bytes has to be the same)");
    }
    if (state.vcpus.size() != config.vcpus) {
        throw Error(tried + vmm::format("its guest has {} vCPUs, and this machine is to have {} (Config::vcpus has to "
                                        "be the same)",
                                        state.vcpus.size(), config.vcpus));
    }
    for (const GuestRange& range : state.memory) {
        if (!is_aligned(range.size, certain_page_bytes(config.page_size))) {
            throw Error(tried + "its memory at " + to_string(range) + " is not of whole pages of " +
                        std::string(to_string(config.page_size)) + " (Config::page_size: take smaller pages)");
        }
    }
}

} // namespace vmm
