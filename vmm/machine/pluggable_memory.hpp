// What memory a guest can be given while it runs, beside what it boots with (Config::memory_max_bytes).
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <vector>

#include "devices/virtio/memory_device.hpp"
#include "prefault/host/numa.hpp"
#include "vmm/config.hpp"

namespace vmm {

/// One region of it, which a device of its own gives to the guest.
struct PluggablePart {
    devices::virtio::MemoryDevice::Settings device;
    std::optional<unsigned> host_node; ///< the node that it lies on; nothing: any
};

/// How many bytes a block has if the region is of `region_bytes`: at least 2 MiB, and at least a page of the backing.
/// There are at most 8192 blocks in a region, because each may take two mappings of the host's.
[[nodiscard]] std::uint64_t pluggable_block_bytes(std::uint64_t region_bytes, PageSize page_size);

/// The regions, in ascending order; none if the guest has what it boots with. If memory is split over nodes, there is
/// one for each of them, all alike but for what cannot be divided.
[[nodiscard]] std::vector<PluggablePart> pluggable_parts(const Config& config, const prefault::NumaTopology& topology);

/// Throws Error if `config` asks for memory that no guest can be given while it runs.
void validate_pluggable(const Config& config);

/// How much each of `parts` is to have if they are to have `bytes` in all: equal shares of whole blocks, as far as they
/// go. Throws Error: that is not of whole blocks, or more than they have.
[[nodiscard]] std::vector<std::uint64_t> shares_of_request(const std::vector<PluggablePart>& parts,
                                                           std::uint64_t bytes);

} // namespace vmm
