#include "vmm/bench/warm.hpp"

#include <exception>

#include "prefault/host/cpu_list.hpp"
#include "prefault/host/populate.hpp"
#include "vmm/machine/guest_ram.hpp"
#include "vmm/machine/stop_bridge.hpp"

namespace vmm::bench {

void warm_memory(std::uint64_t bytes, PageSize page_size, const StopRequest& stop) noexcept {
    try {
        Config config;
        config.memory_bytes = bytes;
        config.page_size = page_size;
        config.prefault.workers = static_cast<unsigned>(prefault::usable_cpu_list().size());
        const StopBridge bridge(stop);
        const GuestRam ram(config, bridge.token());
        static_cast<void>(prefault::populate_host(ram.memory(), ram.placement().ranges,
                                                  {config.prefault.workers, {}, {}, false, {}}, bridge.token()));
    } catch (const std::exception&) {
        return; // The memory will be missing in the run, too, and the run reports it.
    }
}

} // namespace vmm::bench
