#include "vmm/machine/pluggable_memory.hpp"

#include <algorithm>
#include <bit>
#include <numeric>
#include <string>

#include "kvm/host/error.hpp"
#include "vmm/machine/memory_map.hpp"

namespace vmm {

namespace {

constexpr std::uint64_t kLeastBlockBytes = 2 * kMiB;
constexpr std::uint64_t kMostBlocks = 8192;
static_assert(kMostBlocks <= devices::virtio::MemoryDevice::kMostBlocks);

bool is_split(const Config& config) {
    return config.numa.kind == prefault::NumaPolicy::Kind::kSplit;
}

/// The nodes of the host that hold a guest's memory if it is split.
std::vector<unsigned> nodes_of(const Config& config, const prefault::NumaTopology& topology) {
    std::vector<unsigned> nodes;
    const std::uint64_t granule = std::max(kLeastBlockBytes, largest_page_bytes(config.page_size));
    for (const prefault::PlacedRange& placed :
         prefault::place(memory_map::ram_layout(config.memory_bytes), config.numa, topology, granule)) {
        if (placed.node && std::ranges::find(nodes, *placed.node) == nodes.end()) {
            nodes.push_back(*placed.node);
        }
    }
    std::ranges::sort(nodes);
    return nodes;
}

std::uint64_t pluggable_bytes(const Config& config) {
    return config.memory_max_bytes > config.memory_bytes ? config.memory_max_bytes - config.memory_bytes : 0;
}

} // namespace

std::uint64_t pluggable_block_bytes(std::uint64_t region_bytes, PageSize page_size) {
    const std::uint64_t for_the_number = std::bit_ceil((region_bytes + kMostBlocks - 1) / kMostBlocks);
    return std::max({kLeastBlockBytes, certain_page_bytes(page_size), for_the_number});
}

std::vector<PluggablePart> pluggable_parts(const Config& config, const prefault::NumaTopology& topology) {
    const std::uint64_t bytes = pluggable_bytes(config);
    std::vector<PluggablePart> parts;
    if (bytes == 0) {
        return parts;
    }
    const bool tells_of_nodes = config.hardware != HardwareDescription::kFdt; // only ACPI has a table of nodes
    const std::vector<unsigned> nodes = is_split(config) ? nodes_of(config, topology) : std::vector<unsigned>{};
    const std::uint64_t count = std::max<std::uint64_t>(nodes.size(), 1);
    // The size of a block follows from that of a whole region, so that regions begin and end at blocks.
    const std::uint64_t block_bytes = pluggable_block_bytes((bytes + count - 1) / count, config.page_size);
    GuestAddress base = memory_map::pluggable_range(config.memory_bytes, bytes).base;
    std::uint64_t left = bytes;
    for (std::uint64_t i = 0; i < count && left != 0; ++i) {
        const std::uint64_t share = align_down((left + count - i - 1) / (count - i) + block_bytes - 1, block_bytes);
        PluggablePart part;
        part.device.region = {base, std::min(left, share)};
        part.device.block_bytes = block_bytes;
        if (tells_of_nodes) {
            part.device.node = static_cast<std::uint16_t>(i);
        }
        if (!nodes.empty()) {
            part.host_node = nodes[i];
        } else if (config.numa.kind == prefault::NumaPolicy::Kind::kNode) {
            part.host_node = config.numa.node;
        }
        base = part.device.region.end();
        left -= part.device.region.size;
        parts.push_back(part);
    }
    return parts;
}

void validate_pluggable(const Config& config) {
    if (config.memory_max_bytes == 0) {
        return;
    }
    const std::string tried = "cannot let the guest's memory grow to " + format_bytes(config.memory_max_bytes) +
                              " (Config::memory_max_bytes)";
    if (config.memory_max_bytes < config.memory_bytes) {
        throw Error(tried + ": it begins with " + format_bytes(config.memory_bytes) + ", which is more");
    }
    if (config.memory_max_bytes > memory_map::kMaxMemoryBytes) {
        throw Error(tried + ": the most this program can give is " + format_bytes(memory_map::kMaxMemoryBytes));
    }
    const std::uint64_t bytes = pluggable_bytes(config);
    const std::uint64_t block_bytes = pluggable_block_bytes(bytes, config.page_size);
    if (!is_aligned(bytes, block_bytes)) {
        throw Error(tried + ": what it grows by is given in blocks of " + format_bytes(block_bytes) +
                    ", and has to be a multiple of that");
    }
}

std::vector<std::uint64_t> shares_of_request(const std::vector<PluggablePart>& parts, std::uint64_t bytes) {
    const std::uint64_t most =
        std::accumulate(parts.begin(), parts.end(), std::uint64_t{0},
                        [](std::uint64_t sum, const PluggablePart& part) { return sum + part.device.region.size; });
    const std::uint64_t block_bytes = parts.empty() ? kLeastBlockBytes : parts.front().device.block_bytes;
    if (bytes > most) {
        throw Error("cannot give the guest " + format_bytes(bytes) + " more of memory: it can have " +
                    format_bytes(most) + " more than it began with");
    }
    if (!is_aligned(bytes, block_bytes)) {
        throw Error("cannot give the guest " + format_bytes(bytes) + " more of memory: that is given in blocks of " +
                    format_bytes(block_bytes) + ", and has to be a multiple of that");
    }
    std::vector<std::uint64_t> shares(parts.size(), 0);
    std::uint64_t left = bytes;
    // Several rounds are needed, because a region may be full before it has its share.
    while (left != 0) {
        for (std::size_t i = 0; i < parts.size() && left != 0; ++i) {
            const std::uint64_t fair = std::max(align_down(left / (parts.size() - i), block_bytes), block_bytes);
            const std::uint64_t now = std::min({fair, parts[i].device.region.size - shares[i], left});
            shares[i] += now;
            left -= now;
        }
    }
    return shares;
}

} // namespace vmm
