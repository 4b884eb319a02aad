#include "vmm/watch.hpp"

#include "kvm/host/format.hpp"

#include <numeric>

namespace vmm {

std::string to_line(const WatchSample& sample) {
    std::string line =
        vmm::format("watch: {:.0f} s, mapped {} x 1G + {} x 2M + {} x 4K, new faults {}", sample.seconds,
                    sample.mapped.pages_1g, sample.mapped.pages_2m, sample.mapped.pages_4k,
                    std::accumulate(sample.new_faults.begin(), sample.new_faults.end(), std::uint64_t{0}));
    for (std::size_t vcpu = 0; vcpu < sample.new_faults.size(); ++vcpu) {
        line += vmm::format("{}vcpu{} {}", vcpu == 0 ? " (" : ", ", vcpu, sample.new_faults[vcpu]);
    }
    return line + (sample.new_faults.empty() ? "" : ")");
}

} // namespace vmm
