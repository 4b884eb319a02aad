// Guest RAM on the host: reserved, placed on nodes, mapped, pinned, and given back.
#pragma once

#include <optional>
#include <span>
#include <stop_token>
#include <string>
#include <vector>

#include "kvm/host/guest_memory.hpp"
#include "kvm/host/unique_fd.hpp"
#include "loader/acpi.hpp"
#include "prefault/host/cpu_list.hpp"
#include "prefault/host/huge_page_pool.hpp"
#include "prefault/host/numa.hpp"
#include "prefault/host/pin.hpp"
#include "prefault/host/placement.hpp"
#include "vmm/config.hpp"
#include "vmm/machine/pluggable_memory.hpp"

namespace vmm {

/// A part of guest memory that is a part of a file.
struct FileRange {
    GuestRange range;
    int fd = -1; ///< on loan, until the memory is mapped
    std::uint64_t file_offset = 0;
    Sharing sharing = Sharing::kShared;
};

/// Guest RAM, and everything about it that KVM does not know. It must outlive the VM.
///
/// Threads: memory() any; the rest one at a time.
class GuestRam {
  public:
    /// Raises the pool of huge pages if the configuration says so, and maps and places memory. If a shortage of huge
    /// pages would show only at the first access, they are populated at once. With Config::memory_from, memory comes
    /// from a pool. Otherwise `files` become the memory where there are any; the others of them are for memory that is
    /// added later. Throws Error, also if `stop` is requested before it is done.
    GuestRam(const Config& config, const std::stop_token& stop, std::vector<FileRange> files = {});

    [[nodiscard]] const GuestMemory& memory() const noexcept { return memory_; }
    [[nodiscard]] prefault::PinnedMemory& pins() noexcept { return pins_; }
    /// The parts of memory() that are there, the node of each, and the CPUs of each node of the host. Memory that the
    /// guest can be given and has not yet is in no part, though it is in a region.
    [[nodiscard]] const prefault::Placement& placement() const noexcept { return placement_; }
    /// The size of the memory that is there, in bytes.
    [[nodiscard]] std::uint64_t present_bytes() const noexcept { return prefault::total_bytes(placement_.ranges); }

    /// How many bytes came from a pool of warm memory.
    [[nodiscard]] std::uint64_t warm_bytes() const noexcept { return warm_bytes_; }
    /// Why the pool gave less memory than was asked for; empty if it gave all.
    [[nodiscard]] const std::string& warm_short_because() const noexcept { return warm_short_because_; }

    /// The files of guest memory with Config::memory_shared, in ascending order, on loan. Empty if memory is not files.
    [[nodiscard]] std::vector<FileRange> shared_files() const;

    /// Maps and places one more region. It is not part of the memory before add(). Throws Error.
    [[nodiscard]] GuestMemory::NewRegion map(GuestRange range);
    void add(GuestMemory::NewRegion region) noexcept;

    /// The memory that the guest can be given while it runs.
    [[nodiscard]] const std::vector<PluggablePart>& pluggable() const noexcept { return pluggable_; }
    /// Whether `region` is of such memory.
    [[nodiscard]] bool is_pluggable(const MemoryRegion& region) const noexcept;
    /// Maps and places a part of such memory, and does not populate it. `range` is whole blocks of one region. With
    /// `is_saved` its content is that of the files from which memory goes on, if there are any. Throws Error; then
    /// nothing has changed.
    void plug(GuestRange range, bool is_saved = false);
    /// Unpins plugged memory at `range` and gives it back to the host. `range` is whole blocks of one region. Returns
    /// other ranges that had to be unpinned with it. Throws Error; then the memory is empty and unpinned, and otherwise
    /// as before.
    [[nodiscard]] std::vector<GuestRange> unplug(GuestRange range);

    /// Does what GuestMemory::log_writes() does.
    void log_writes(WriteLog* log) noexcept { memory_.log_writes(log); }

    /// The description of the guest's nodes; nothing unless memory is split.
    [[nodiscard]] std::optional<loader::AcpiNuma> describe_nodes(unsigned vcpus) const;
    /// The CPUs of the node of vCPU `vcpu` of `vcpus`, on which it runs unless the user says otherwise; empty: any.
    [[nodiscard]] prefault::CpuList vcpu_cpus(unsigned vcpu, unsigned vcpus) const;

  private:
    /// Frees the pages with several threads. This happens when everything that refers to them is gone, and before the
    /// mappings go.
    class PageRelease {
      public:
        PageRelease(const GuestMemory& memory, unsigned workers) : memory_(memory), workers_(workers) {}
        ~PageRelease();
        PageRelease(const PageRelease&) = delete;
        PageRelease& operator=(const PageRelease&) = delete;

      private:
        const GuestMemory& memory_;
        unsigned workers_;
    };

    /// The files that are mapped at `range`: parts of files_, or a new file if memory is shared.
    [[nodiscard]] std::vector<FilePart> parts_for(GuestRange range);
    [[nodiscard]] std::vector<prefault::PlacedRange> place(std::span<const GuestRange> ranges) const;
    [[nodiscard]] const PluggablePart& pluggable_part(GuestRange range) const noexcept;
    /// The part of a file that becomes the memory at `range`; nothing: the memory is new.
    [[nodiscard]] std::optional<FilePart> file_for(GuestRange range) const noexcept;
    void map_plugged(GuestRange range, bool is_saved);
    void place_plugged(GuestRange range, bool is_there);
    void map_pluggable();
    /// Maps all memory: the part that a pool gives, and new memory for the rest.
    void map_all(const Config& config, std::span<const GuestRange> ranges, const std::stop_token& stop);
    /// The nodes that hold memory, in ascending order.
    [[nodiscard]] std::vector<unsigned> used_nodes() const;

    /// A file that holds one region of memory, and nothing else.
    struct SharedFile {
        GuestRange range;
        UniqueFd file;
        std::uint64_t offset = 0;
    };

    std::vector<FileRange> files_;
    bool is_shared_;
    std::vector<SharedFile> shared_files_;
    prefault::NumaPolicy policy_;
    prefault::NumaTopology topology_;
    std::optional<prefault::HugePageReservation> reservation_; ///< given back when the memory is gone
    std::vector<PluggablePart> pluggable_;
    UniqueFd spare_file_; ///< mapped where memory is not plugged
    GuestMemory memory_;
    PageRelease release_;
    prefault::Placement placement_;
    std::vector<prefault::PlacedRange> new_placement_; ///< of the region that map() made last
    prefault::PinnedMemory pins_;
    std::uint64_t warm_bytes_ = 0;
    std::string warm_short_because_;
};

} // namespace vmm
