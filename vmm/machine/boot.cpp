#include "vmm/machine/boot.hpp"

#include <utility>

#include "kvm/host/format.hpp"
#include "vmm/machine/generation_id.hpp"
#include "vmm/machine/x86/boot_state.hpp"

namespace vmm {

KernelBoot::KernelBoot(const Config& config, const StopRequest& stop)
    : config_(config), files_(GuestFiles::open(config, stop.fd())) {}

bool KernelBoot::adopts_page_tables(const prefault::SecondLevelHost& host) const {
    return files_.kernel.takes_page_tables() && config_.prefault.scope == prefault::Scope::kAll && host.may_be_shadow();
}

std::string KernelBoot::command_line(const Hardware& hardware) const {
    std::string line = Config::kDefaultCommandLine;
    if (config_.console) {
        line += " console=hvc0";
    }
    if (adopts_page_tables(hardware.second_level.host())) {
        line += " tables=" + to_string(hardware.second_level.page_tables());
    }
    if (config_.hardware != HardwareDescription::kAcpi &&
        files_.kernel.device_tree_hand_over() == loader::DeviceTreeHandOver::kCommandLine) {
        line += " fdt=" + to_string(kDeviceTreeAddress);
    }
    if (!config_.command_line.empty()) {
        line += " " + config_.command_line;
    }
    return line;
}

void KernelBoot::put_into(Hardware& hardware, Embedder& embedder) {
    const bool has_pci = hardware.pci != nullptr;
    const BootPlan plan(config_.memory_bytes, config_.hardware, has_pci);
    const std::string line = command_line(hardware);
    LoadedGuest loaded = load_guest(
        hardware.ram.memory(), files_, line,
        Board::describe(config_.vcpus, hardware.ram.describe_nodes(config_.vcpus), hardware.virtio.describe(), has_pci),
        plan.layout());
    device_tree_ = std::move(loaded.device_tree);
    write_new_generation_id(hardware.ram.memory(), memory_map::kGenerationId.base);
    const loader::BootEntry& entry = loaded.entry;
    set_boot_state(hardware.vcpus.front(), entry, plan.layout());
    embedder.log(LogLevel::kInfo,
                 vmm::format("kernel: {} ({}) at {}, entry {} by {}", files_.kernel.name(), files_.kernel.format_name(),
                             to_string(entry.kernel), to_string(entry.entry), to_string(entry.protocol)));
    if (entry.initrd) {
        embedder.log(LogLevel::kInfo, vmm::format("initrd: {} at {}", files_.initrd->name(), to_string(*entry.initrd)));
    }
    embedder.log(LogLevel::kInfo, "command line: " + line);
    files_.kernel.close_file(); // Guest memory now has the files' content.
    files_.initrd.reset();
    if (!device_tree_.empty()) {
        embedder.log(LogLevel::kInfo,
                     vmm::format("device tree: {} bytes at {}", device_tree_.size(), to_string(kDeviceTreeAddress)));
    }
}

} // namespace vmm
