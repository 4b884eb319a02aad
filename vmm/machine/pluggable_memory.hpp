// The memory that a guest can be given while it runs, besides the memory it boots with (Config::memory_max_bytes).
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <vector>

#include "devices/virtio/memory_device.hpp"
#include "prefault/host/numa.hpp"
#include "vmm/config.hpp"

namespace vmm {

/// One region of such memory. A device of its own gives it to the guest.
struct PluggablePart {
    devices::virtio::MemoryDevice::Settings device;
    std::optional<unsigned> host_node; ///< the node that it lies on; nothing: any
};

/// The size of a block in a region of `region_bytes`: at least 2 MiB, and at least a page of the backing. A region has
/// at most 8192 blocks, because each may take two mappings of the host.
[[nodiscard]] std::uint64_t pluggable_block_bytes(std::uint64_t region_bytes, PageSize page_size);

/// Returns the regions, in ascending order; none if the guest's memory cannot grow. If memory is split over nodes,
/// there is one region for each node. They have the same size, except for a remainder that cannot be divided.
[[nodiscard]] std::vector<PluggablePart> pluggable_parts(const Config& config, const prefault::NumaTopology& topology);

/// Throws Error if `config` asks for growing memory that no guest can have.
void validate_pluggable(const Config& config);

/// Returns how much each of `parts` gets if they get `bytes` in all: equal shares of whole blocks, as far as possible.
/// Throws Error if `bytes` is not whole blocks, or more than the parts have.
[[nodiscard]] std::vector<std::uint64_t> shares_of_request(const std::vector<PluggablePart>& parts,
                                                           std::uint64_t bytes);

} // namespace vmm
