#include "prefault/options.hpp"

#include <algorithm>
#include <cstddef>

namespace vmm::prefault {

Options resolved(Options options) {
    if (options.workers == kWorkerPerCpu) {
        const std::size_t cpus = options.cpus.empty() ? usable_cpu_list().size() : options.cpus.size();
        options.workers = static_cast<unsigned>(std::clamp<std::size_t>(cpus, 1, kMaxWorkers));
    }
    return options;
}

Pin resolved(Pin pin, Scope scope) noexcept {
    if (pin != Pin::kAuto) {
        return pin;
    }
    return scope == Scope::kNone ? Pin::kNone : Pin::kMlock;
}

} // namespace vmm::prefault
