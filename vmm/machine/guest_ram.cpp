#include "vmm/machine/guest_ram.hpp"

#include <fcntl.h>

#include <algorithm>
#include <cassert>
#include <cerrno>
#include <utility>

#include "kvm/host/error.hpp"
#include "kvm/host/format.hpp"
#include "prefault/host/memory_file.hpp"
#include "prefault/host/populate.hpp"
#include "prefault/host/warm_memory.hpp"
#include "vmm/machine/memory_map.hpp"

namespace vmm {

namespace {

using prefault::NumaPolicy;

bool binds_to_nodes(const NumaPolicy& policy) {
    return policy.kind == NumaPolicy::Kind::kNode || policy.kind == NumaPolicy::Kind::kSplit;
}

/// A distance that is valid in ACPI, whatever the host's firmware says: 10 to itself, more to others, 255 if there is
/// no way.
std::uint8_t acpi_distance(bool same, unsigned distance) {
    constexpr unsigned kNearest = loader::kAcpiLocalDistance + 1;
    return same ? loader::kAcpiLocalDistance : static_cast<std::uint8_t>(std::clamp(distance, kNearest, 255U));
}

std::optional<prefault::HugePageReservation>
reserve_huge_pages(const Config& config, const prefault::NumaTopology& topology, const std::stop_token& stop) {
    if (!config.reserve_huge_pages) {
        return std::nullopt;
    }
    auto reservation = prefault::HugePageReservation::unless_stopped(stop, huge_page_demand(config, topology));
    if (!reservation) {
        throw Error("cannot raise the pool of huge pages: a stop was requested");
    }
    return reservation;
}

/// What a pool is asked for. Neighbouring ranges on one node are one share, so that a piece may be used on both sides
/// of the hole between two regions.
std::vector<prefault::WarmShare> shares_of(std::span<const prefault::PlacedRange> placed) {
    std::vector<prefault::WarmShare> shares;
    for (const prefault::PlacedRange& part : placed) {
        if (shares.empty() || shares.back().node != part.node) {
            shares.push_back({part.node, 0});
        }
        shares.back().bytes += part.range.size;
    }
    return shares;
}

/// Assigns the memory that a pool gave to the ranges for which it was asked. A piece begins at a multiple of the
/// largest page, and so does every range, so addresses and offsets have the same alignment.
std::vector<FileRange> lay_out(const prefault::WarmMemory& warm, std::span<const prefault::PlacedRange> placed) {
    std::vector<FileRange> ranges;
    auto part = warm.parts.begin();
    std::uint64_t used_of_part = 0;
    std::size_t share = 0;
    for (std::size_t i = 0; i < placed.size(); ++i) {
        share += i != 0 && placed[i].node != placed[i - 1].node ? 1 : 0;
        GuestRange left = placed[i].range;
        while (left.size != 0 && part != warm.parts.end() && part->share == share) {
            const std::uint64_t bytes = std::min(left.size, part->bytes - used_of_part);
            ranges.push_back({{left.base, bytes}, part->piece.fd(), used_of_part, Sharing::kShared});
            left = {GuestAddress{to_integer(left.base) + bytes}, left.size - bytes};
            used_of_part += bytes;
            if (used_of_part == part->bytes) {
                ++part;
                used_of_part = 0;
            }
        }
    }
    return ranges;
}

/// Returns the parts of `files` that are in `region`.
std::vector<FilePart> file_parts(GuestRange region, std::span<const FileRange> files) {
    std::vector<FilePart> parts;
    for (const FileRange& part : files) {
        if (region.contains(part.range)) {
            parts.push_back({to_integer(part.range.base) - to_integer(region.base), part.range.size, part.fd,
                             part.file_offset, part.sharing});
        }
    }
    return parts;
}

} // namespace

GuestRam::PageRelease::~PageRelease() {
    // If there are few pages (of a pool, or of little memory), one munmap() is as fast.
    constexpr std::uint64_t kLittle = 256 * kMiB;
    if (!is_from_pool(memory_.page_size()) && memory_.size_bytes() > kLittle) {
        prefault::release_host(memory_, workers_);
    }
}

GuestRam::GuestRam(const Config& config, const std::stop_token& stop, std::vector<FileRange> files)
    : files_(std::move(files)), is_shared_(config.memory_shared || is_handed_over(config)), policy_(config.numa),
      topology_(prefault::NumaTopology::read()), reservation_(reserve_huge_pages(config, topology_, stop)),
      pluggable_(pluggable_parts(config, topology_)), memory_(config.page_size),
      release_(memory_, config.prefault.workers), pins_(config.pin) {
    const std::vector<GuestRange> ranges = memory_map::ram_layout(config.memory_bytes);
    placement_.ranges = place(ranges);
    map_all(config, ranges, stop);
    prefault::bind_memory(memory_.regions(), placement_.ranges, policy_, topology_);
    for (const prefault::NumaNode& node : topology_.nodes) {
        placement_.node_cpus[node.id] = node.cpus;
    }
    // The kernel reserves pages of the pool for a mapping, but neither on one node nor in a control group. A process
    // that is confined to some nodes from outside (numactl, cpuset) has the same problem as one that binds its memory.
    // With a lazy restore each page is requested by itself, and the code that does this gets an error if pages are
    // short.
    if (is_from_pool(config.page_size) && !restores_lazily(config) &&
        (binds_to_nodes(policy_) || prefault::is_confined(topology_) ||
         prefault::read_huge_page_cgroup_limit(certain_page_bytes(config.page_size)).has_value())) {
        prefault::Workforce workforce;
        workforce.workers = config.prefault.workers;
        workforce.cpus = config.prefault.cpus;
        workforce.node_cpus = placement_.node_cpus;
        if (!prefault::populate_host(memory_, placement_.ranges, workforce, stop)) {
            throw Error("cannot populate guest memory: a stop was requested");
        }
    }
    if (reservation_) {
        reservation_->release_turn();
    }
    map_pluggable();
}

void GuestRam::map_all(const Config& config, std::span<const GuestRange> ranges, const std::stop_token& stop) {
    prefault::WarmMemory warm;
    if (config.memory_from) {
        prefault::WarmRequest request{.path = config.memory_from->path, .page_size = config.page_size};
        request.may_be_less = config.memory_from->fallback;
        request.shares = shares_of(placement_.ranges);
        warm = prefault::take_warm_memory(request, stop);
        if (warm.bytes < config.memory_bytes) {
            validate_more_memory(config, config.memory_bytes - warm.bytes);
        }
    }
    if (config.memory_from) {
        files_ = lay_out(warm, placement_.ranges);
    }
    for (const GuestRange& range : ranges) {
        memory_.add(memory_.map(range, parts_for(range)));
    }
    for (prefault::WarmMemory::Part& part : warm.parts) {
        try {
            part.piece.claim();
        } catch (const Error& error) {
            throw Error("cannot use a piece from the pool at " + config.memory_from->path + ": " + error.what());
        }
    }
    warm_bytes_ = warm.bytes;
    warm_short_because_ = std::move(warm.short_because);
}

void GuestRam::map_pluggable() {
    if (pluggable_.empty()) {
        return;
    }
    // An unplugged region needs one mapping of the spare file for each piece of the file's size, and this is the most
    // mappings.
    constexpr std::uint64_t kMappings = 256;
    std::uint64_t largest = 0;
    for (const PluggablePart& part : pluggable_) {
        largest = std::max(largest, part.device.region.size);
    }
    const std::uint64_t spare_bytes = *align_up((largest + kMappings - 1) / kMappings, 2 * kMiB);
    spare_file_ = prefault::make_memory_file("vmm-spare", spare_bytes, PageSize::k4K, F_SEAL_SHRINK | F_SEAL_GROW);
    if (!spare_file_) {
        throw_errno(errno, "make a file in memory that stands where the guest has none",
                    {{ENOMEM, "free memory"}, {EMFILE, "raise `ulimit -n`"}, {ENFILE, "raise fs.file-max"}});
    }
    for (const PluggablePart& part : pluggable_) {
        memory_.add(memory_.map_pluggable(part.device.region, {spare_file_.get(), spare_bytes}));
        if (is_shared_) {
            static_cast<void>(parts_for(part.device.region)); // makes the file; plugged parts of it are mapped
        }
    }
}

bool GuestRam::is_pluggable(const MemoryRegion& region) const noexcept {
    return std::ranges::any_of(pluggable_,
                               [&](const PluggablePart& part) { return part.device.region == region.range; });
}

const PluggablePart& GuestRam::pluggable_part(GuestRange range) const noexcept {
    const auto part =
        std::ranges::find_if(pluggable_, [&](const PluggablePart& one) { return one.device.region.contains(range); });
    assert(part != pluggable_.end());
    return *part;
}

std::optional<FilePart> GuestRam::file_for(GuestRange range) const noexcept {
    for (const SharedFile& shared : shared_files_) {
        if (shared.range.contains(range)) {
            return FilePart{0, range.size, shared.file.get(),
                            shared.offset + (to_integer(range.base) - to_integer(shared.range.base)), Sharing::kShared};
        }
    }
    return std::nullopt;
}

/// Maps plugged memory. Saved memory may lie in several files; each plugged block gets its part of one.
void GuestRam::map_plugged(GuestRange range, bool is_saved) {
    memory_.plug(range, file_for(range));
    for (const FileRange& file :
         is_saved && !is_shared_ ? std::span<const FileRange>(files_) : std::span<const FileRange>{}) {
        const std::uint64_t begin = std::max(to_integer(range.base), to_integer(file.range.base));
        const std::uint64_t end = std::min(to_integer(range.end()), to_integer(file.range.end()));
        if (begin < end) {
            memory_.plug({GuestAddress{begin}, end - begin},
                         FilePart{0, end - begin, file.fd, file.file_offset + begin - to_integer(file.range.base),
                                  file.sharing});
        }
    }
}

void GuestRam::plug(GuestRange range, bool is_saved) {
    map_plugged(range, is_saved);
    try {
        const prefault::PlacedRange placed{range, pluggable_part(range).host_node};
        const MemoryRegion region{range, memory_.at(range).value().data()};
        prefault::bind_memory(std::span(&region, 1), std::span(&placed, 1), policy_, topology_);
        place_plugged(range, true);
    } catch (...) {
        memory_.unplug(range);
        throw;
    }
}

std::vector<GuestRange> GuestRam::unplug(GuestRange range) {
    place_plugged(range, false);
    std::vector<GuestRange> unpinned = pins_.remove(range);
    try {
        memory_.unplug(range);
    } catch (...) {
        map_plugged(range, false);
        place_plugged(range, true);
        throw;
    }
    // The file still has the pages after the unmapping, so they are removed from it.
    if (const std::optional<FilePart> file = file_for(range)) {
        static_cast<void>(::fallocate(file->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
                                      static_cast<off_t>(file->file_offset), static_cast<off_t>(file->size)));
    }
    return unpinned;
}

/// Notes whether plugged memory is there. Neighbouring blocks become one part, so that there are few parts.
void GuestRam::place_plugged(GuestRange range, bool is_there) {
    const PluggablePart& part = pluggable_part(range);
    std::vector<prefault::PlacedRange> others;
    std::vector<GuestRange> plugged;
    for (const prefault::PlacedRange& placed : placement_.ranges) {
        if (!part.device.region.contains(placed.range)) {
            others.push_back(placed);
        } else if (is_there || !placed.range.overlaps(range)) {
            plugged.push_back(placed.range);
        } else { // cuts `range` out of it
            const std::uint64_t begin = to_integer(placed.range.base);
            const std::uint64_t end = to_integer(placed.range.end());
            if (begin < to_integer(range.base)) {
                plugged.push_back({placed.range.base, to_integer(range.base) - begin});
            }
            if (to_integer(range.end()) < end) {
                plugged.push_back({range.end(), end - to_integer(range.end())});
            }
        }
    }
    if (is_there) {
        plugged.push_back(range);
    }
    std::ranges::sort(plugged, {}, &GuestRange::base);
    std::vector<GuestRange> joined;
    for (const GuestRange& one : plugged) {
        if (!joined.empty() && joined.back().end() >= one.base) {
            GuestRange& last = joined.back();
            last.size = to_integer(std::max(last.end(), one.end())) - to_integer(last.base);
        } else {
            joined.push_back(one);
        }
    }
    for (const GuestRange& one : joined) {
        others.push_back({one, part.host_node});
    }
    std::ranges::sort(others, {}, [](const prefault::PlacedRange& placed) { return placed.range.base; });
    placement_.ranges = std::move(others);
}

std::vector<FilePart> GuestRam::parts_for(GuestRange range) {
    std::vector<FilePart> parts = file_parts(range, files_);
    if (!is_shared_) {
        return parts;
    }
    SharedFile shared{range, {}, 0};
    if (parts.empty()) {
        shared.file =
            prefault::make_memory_file("vmm-guest", range.size, memory_.page_size(), F_SEAL_SHRINK | F_SEAL_GROW);
        if (!shared.file) {
            throw_errno(errno, "make " + format_bytes(range.size) + " of shared memory for the guest",
                        {{ENOMEM, "free memory, or raise the pool of huge pages (vm.nr_hugepages)"},
                         {ENODEV, "this host has no pages of that size (Config::page_size)"},
                         {EINVAL, "this host has no pages of that size (Config::page_size)"},
                         {ENOENT, "this host has no pages of that size (Config::page_size)"}});
        }
        parts.push_back({0, range.size, shared.file.get(), 0, Sharing::kShared});
    } else { // the memory was handed over, in one file for each region
        shared.file = UniqueFd(::fcntl(parts.front().fd, F_DUPFD_CLOEXEC, 0));
        shared.offset = parts.front().file_offset;
        if (!shared.file) {
            throw_errno(errno, "keep the file of the guest's memory");
        }
    }
    shared_files_.push_back(std::move(shared));
    return parts;
}

std::vector<FileRange> GuestRam::shared_files() const {
    std::vector<FileRange> ranges;
    for (const SharedFile& shared : shared_files_) {
        ranges.push_back({shared.range, shared.file.get(), shared.offset, Sharing::kShared});
    }
    std::ranges::sort(ranges, {}, [](const FileRange& one) { return one.range.base; });
    return ranges;
}

std::vector<prefault::PlacedRange> GuestRam::place(std::span<const GuestRange> ranges) const {
    return prefault::place(ranges, policy_, topology_, memory_.region_alignment());
}

std::vector<unsigned> GuestRam::used_nodes() const {
    std::vector<unsigned> nodes;
    for (const prefault::PlacedRange& placed : placement_.ranges) {
        if (placed.node && std::ranges::find(nodes, *placed.node) == nodes.end()) {
            nodes.push_back(*placed.node);
        }
    }
    std::ranges::sort(nodes);
    return nodes;
}

GuestMemory::NewRegion GuestRam::map(GuestRange range) {
    GuestMemory::NewRegion region = memory_.map(range, parts_for(range));
    new_placement_ = place(std::span(&range, 1));
    prefault::bind_memory(std::span(&region.region(), 1), new_placement_, policy_, topology_);
    // This makes sure that add() cannot fail.
    placement_.ranges.reserve(placement_.ranges.size() + new_placement_.size());
    return region;
}

void GuestRam::add(GuestMemory::NewRegion region) noexcept {
    memory_.add(std::move(region));
    placement_.ranges.insert(placement_.ranges.end(), new_placement_.begin(), new_placement_.end());
}

std::optional<loader::AcpiNuma> GuestRam::describe_nodes(unsigned vcpus) const {
    const bool is_split = policy_.kind == NumaPolicy::Kind::kSplit;
    if (!is_split && pluggable_.empty()) {
        return std::nullopt;
    }
    // The guest's nodes are numbered from 0, whatever numbers the host's nodes have.
    const std::vector<unsigned> nodes = used_nodes();
    const auto guest_node = [&nodes](unsigned node) {
        return static_cast<unsigned>(std::ranges::lower_bound(nodes, node) - nodes.begin());
    };
    loader::AcpiNuma numa;
    for (const prefault::PlacedRange& placed : placement_.ranges) {
        numa.memory.push_back({placed.range, is_split ? guest_node(*placed.node) : 0});
    }
    // Linux prepares for memory that may come later only if a table says where: its map of pages, and bounce buffers.
    for (const PluggablePart& part : pluggable_) {
        numa.memory.push_back({part.device.region, part.device.node.value_or(0), true});
    }
    if (!is_split) {
        numa.vcpu_nodes.assign(vcpus, 0);
        return numa;
    }
    for (unsigned vcpu = 0; vcpu < vcpus; ++vcpu) {
        numa.vcpu_nodes.push_back(guest_node(prefault::node_of_vcpu(vcpu, vcpus, nodes)));
    }
    for (const unsigned from : nodes) {
        for (const unsigned to : nodes) {
            numa.distances.push_back(acpi_distance(from == to, topology_.distance(from, to)));
        }
    }
    return numa;
}

prefault::CpuList GuestRam::vcpu_cpus(unsigned vcpu, unsigned vcpus) const {
    if (policy_.kind != NumaPolicy::Kind::kSplit) {
        return {};
    }
    const auto cpus = placement_.node_cpus.find(prefault::node_of_vcpu(vcpu, vcpus, used_nodes()));
    if (cpus == placement_.node_cpus.end()) {
        return {};
    }
    const prefault::CpuList usable = prefault::usable_cpu_list();
    prefault::CpuList result;
    std::set_intersection(cpus->second.begin(), cpus->second.end(), usable.begin(), usable.end(),
                          std::back_inserter(result));
    return result;
}

} // namespace vmm
