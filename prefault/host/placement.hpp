// Where guest memory lies on the host.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <span>
#include <vector>

#include "kvm/host/guest_address.hpp"
#include "prefault/host/cpu_list.hpp"

namespace vmm::prefault {

/// A range of guest memory and the node that it should lie on; no node means any.
struct PlacedRange {
    GuestRange range;
    std::optional<unsigned> node;

    friend bool operator==(const PlacedRange&, const PlacedRange&) = default;
};

/// All memory of a guest, and the CPUs that are near it.
struct Placement {
    std::vector<PlacedRange> ranges;       ///< not overlapping, those of each node in ascending order
    std::map<unsigned, CpuList> node_cpus; ///< the CPUs of each node that `ranges` name
};

/// Sum of the sizes, in bytes.
[[nodiscard]] std::uint64_t total_bytes(std::span<const PlacedRange> ranges) noexcept;

/// Those parts of `placed` that lie in one of `wanted`, in the order of `placed`.
[[nodiscard]] std::vector<PlacedRange> intersection(std::span<const PlacedRange> placed,
                                                    std::span<const GuestRange> wanted);

} // namespace vmm::prefault
