// Samples of the second level, taken while the guest runs.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "kvm/host/export.hpp"
#include "prefault/mapped_pages.hpp"

VMM_API_BEGIN
namespace vmm {

/// The values that KVM counts at one moment.
struct WatchSample {
    double seconds = 0;                    ///< since the guest started
    prefault::MappedPages mapped;          ///< of guest memory
    std::vector<std::uint64_t> new_faults; ///< by real vCPU: second-level faults since the sample before
};

/// A function that is called with a sample each second, on the thread of Machine::run().
using WatchSink = std::function<void(const WatchSample&)>;

/// The sample as a line for people, without its newline.
[[nodiscard]] std::string to_line(const WatchSample& sample);

} // namespace vmm
VMM_API_END
