#include "vmm/host/capabilities.hpp"

#include <algorithm>
#include <string>

#include "kvm/host/error.hpp"
#include "kvm/host/format.hpp"
#include "prefault/method_choice.hpp"
#include "prefault/plan.hpp"
#include "prefault/x86/second_level_host.hpp"
#include "vmm/machine/memory_map.hpp"
#include "vmm/machine/x86/cpu_model.hpp"
#include "vmm/machine/x86/cpuid.hpp"

namespace vmm {

unsigned prefault_vcpus(const Config& config) {
    return prefault::Plan::useful_workers(config.memory_bytes, config.prefault.workers,
                                          largest_page_bytes(config.page_size));
}

namespace {

void check_prefault(const kvm::System& system, const prefault::Options& options) {
    const prefault::SecondLevelHost host = prefault::detect_second_level();
    static_cast<void>(prefault::choose_method(options.method, host, system.extension(KVM_CAP_PRE_FAULT_MEMORY) != 0));
    if (!options.smm) {
        return;
    }
    if (host.kind == prefault::SecondLevelKind::kShadow) {
        throw Error("cannot fill the second level of system management mode: this host has shadow paging (leave out "
                    "Config::prefault.smm)");
    }
    if (system.extension(KVM_CAP_X86_SMM) == 0) {
        throw Error("cannot fill the second level of system management mode: this host's KVM has none "
                    "(KVM_CAP_X86_SMM; leave out Config::prefault.smm)");
    }
}

} // namespace

void check_host(const kvm::System& system, const Config& config) {
    for (const HostCapability& capability : kHostCapabilities) {
        if (capability.needed && system.extension(capability.number) == 0) {
            throw Error(std::string("cannot run a guest: this host's KVM lacks ") + capability.name);
        }
    }
    const auto supported = system.supported_cpuid();
    const bool tsc_deadline = system.extension(KVM_CAP_TSC_DEADLINE_TIMER) != 0;
    CpuModel::parse(config.cpu, config.nested).check_offered(guest_cpuid(supported, config.vcpus, 0, tsc_deadline));
    const unsigned address_bits = physical_address_bits(supported);
    if (!fits_address_bits(memory_map::whole_address_space_bytes(config.memory_bytes, config.memory_max_bytes),
                           address_bits)) {
        throw Error(vmm::format("cannot give the guest {} of memory: a guest of this host addresses {} bits",
                                format_bytes(std::max(config.memory_bytes, config.memory_max_bytes)), address_bits));
    }
    if (config.prefault.scope == prefault::Scope::kAll) {
        check_prefault(system, config.prefault);
    }
    const unsigned prefault_count = config.prefault.scope != prefault::Scope::kAll ? 0
                                    : config.prefault.smm                          ? 2 * prefault_vcpus(config)
                                                                                   : prefault_vcpus(config);
    const unsigned most = std::min(system.max_vcpus(), system.max_vcpu_ids());
    if (config.vcpus > most) {
        throw Error(
            vmm::format("cannot give the guest {} vCPUs: this host's KVM takes at most {}", config.vcpus, most));
    }
    if (prefault_count > most - config.vcpus) {
        throw Error(vmm::format("cannot use {} prefault vCPUs beside {} of the guest: this host's KVM takes at most {} "
                                "(fewer with Config::prefault.workers)",
                                prefault_count, config.vcpus, most));
    }
}

} // namespace vmm
