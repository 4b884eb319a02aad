#include "vmm/machine/fault_counters.hpp"

#include <numeric>

#include "kvm/host/error.hpp"

namespace vmm {

FaultCounters::FaultCounters(const std::deque<kvm::Vcpu>& vcpus) {
    for (const kvm::Vcpu& vcpu : vcpus) {
        stats_.push_back(vcpu.stats());
    }
    reset();
}

std::uint64_t FaultCounters::read(const kvm::Stats& stats) {
    const auto value = stats.value("pf_fixed");
    if (!value) {
        throw Error("cannot count second-level faults: this host's KVM does not count pf_fixed (it came with Linux "
                    "5.14)");
    }
    return *value;
}

std::vector<std::uint64_t> FaultCounters::counts() const {
    std::vector<std::uint64_t> counts;
    counts.reserve(stats_.size());
    for (std::size_t vcpu = 0; vcpu < stats_.size(); ++vcpu) {
        counts.push_back(read(stats_[vcpu]) - before_[vcpu]);
    }
    return counts;
}

std::uint64_t FaultCounters::total() const {
    const std::vector<std::uint64_t> all = counts();
    return std::accumulate(all.begin(), all.end(), std::uint64_t{0});
}

std::vector<std::uint64_t> FaultCounters::exits() const {
    std::vector<std::uint64_t> exits;
    for (std::size_t vcpu = 0; vcpu < exits_before_.size(); ++vcpu) {
        exits.push_back(stats_[vcpu].value("exits").value_or(exits_before_[vcpu]) - exits_before_[vcpu]);
    }
    return exits;
}

void FaultCounters::reset() {
    before_.clear();
    exits_before_.clear();
    for (const kvm::Stats& stats : stats_) {
        before_.push_back(read(stats));
        if (const auto exits = stats.value("exits")) {
            exits_before_.push_back(*exits);
        }
    }
    if (exits_before_.size() != stats_.size()) {
        exits_before_.clear();
    }
}

} // namespace vmm
