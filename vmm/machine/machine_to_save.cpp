#include "vmm/machine/machine_to_save.hpp"

#include "prefault/options.hpp"

namespace vmm {

bool fill_again(const MachineToSave& machine, const std::stop_token& stop) {
    MachineSecondLevel& level = machine.hardware.second_level;
    if (level.full_bytes() == 0 || machine.config.prefault.scope != prefault::Scope::kAll) {
        return false;
    }
    prefault::Options again = machine.config.prefault;
    again.progress = {};
    again.background = false;
    return level.fill(again, stop).complete;
}

} // namespace vmm
