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

/// Guest RAM, and everything about it that KVM does not know. It outlives the VM.
///
/// Threads: memory() any; the rest one at a time.
class GuestRam {
  public:
    /// Raises the pool of huge pages if the configuration says so; maps and places memory. If only the first access
    /// would find a shortage of huge pages, they are populated at once. Throws Error, also if `stop` was requested
    /// before it was done. With Config::memory_from, a pool's memory takes the place of new memory; otherwise `files`
    /// do where there are any, which may be of memory that is added later, too.
    GuestRam(const Config& config, const std::stop_token& stop, std::vector<FileRange> files = {});

    [[nodiscard]] const GuestMemory& memory() const noexcept { return memory_; }
    [[nodiscard]] prefault::PinnedMemory& pins() noexcept { return pins_; }
    /// Which parts of memory() are there, and the node of each; and the CPUs of each node of the host. What the guest
    /// can be given and has not is in no part, though it is in a region.
    [[nodiscard]] const prefault::Placement& placement() const noexcept { return placement_; }
    /// How much memory is there, in bytes.
    [[nodiscard]] std::uint64_t present_bytes() const noexcept { return prefault::total_bytes(placement_.ranges); }

    /// How much of the memory a pool of warm memory gave.
    [[nodiscard]] std::uint64_t warm_bytes() const noexcept { return warm_bytes_; }
    /// Why that is less than all although it was asked for; empty: it is not.
    [[nodiscard]] const std::string& warm_short_because() const noexcept { return warm_short_because_; }

    /// The files that all of memory is (Config::memory_shared), in ascending order, on loan; empty if it is none.
    [[nodiscard]] std::vector<FileRange> shared_files() const;

    /// Maps and places one more region, which is not part of the memory before add(). Throws Error.
    [[nodiscard]] GuestMemory::NewRegion map(GuestRange range);
    void add(GuestMemory::NewRegion region) noexcept;

    /// What the guest can be given while it runs.
    [[nodiscard]] const std::vector<PluggablePart>& pluggable() const noexcept { return pluggable_; }
    /// Whether `region` is of such memory.
    [[nodiscard]] bool is_pluggable(const MemoryRegion& region) const noexcept;
    /// Maps and places a part of such memory, whole blocks of one region, which is not populated. With `is_saved` its
    /// content is that of the files that memory goes on from, if there are any. Throws Error: nothing has changed then.
    void plug(GuestRange range, bool is_saved = false);
    /// Unpins what is plugged at `range`, whole blocks of one region, and gives it back to the host. Returns what else
    /// had to be unpinned with it. Throws Error: it is empty then, and not pinned, and otherwise as before.
    [[nodiscard]] std::vector<GuestRange> unplug(GuestRange range);

    /// As GuestMemory::log_writes().
    void log_writes(WriteLog* log) noexcept { memory_.log_writes(log); }

    /// The description of the guest's nodes; nothing unless memory is split.
    [[nodiscard]] std::optional<loader::AcpiNuma> describe_nodes(unsigned vcpus) const;
    /// The CPUs that vCPU `vcpu` of `vcpus` runs on, unless the user says otherwise: those of its node; empty: any.
    [[nodiscard]] prefault::CpuList vcpu_cpus(unsigned vcpu, unsigned vcpus) const;

  private:
    /// Frees the pages with several threads: after everything that refers to them is gone, and before the mappings go.
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

    /// What is mapped at `range`: parts of files_, or a new file if memory is shared.
    [[nodiscard]] std::vector<FilePart> parts_for(GuestRange range);
    [[nodiscard]] std::vector<prefault::PlacedRange> place(std::span<const GuestRange> ranges) const;
    [[nodiscard]] const PluggablePart& pluggable_part(GuestRange range) const noexcept;
    /// The part of a file that is to be the memory at `range`; nothing: it is new.
    [[nodiscard]] std::optional<FilePart> file_for(GuestRange range) const noexcept;
    void map_plugged(GuestRange range, bool is_saved);
    void place_plugged(GuestRange range, bool is_there);
    void map_pluggable();
    /// Maps all memory: what a pool gives of it, and new memory for the rest.
    void map_all(const Config& config, std::span<const GuestRange> ranges, const std::stop_token& stop);
    /// The nodes that hold memory, in ascending order.
    [[nodiscard]] std::vector<unsigned> used_nodes() const;

    /// A file that is a region of memory, and nothing else.
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
    UniqueFd spare_file_; ///< stands where memory is not plugged
    GuestMemory memory_;
    PageRelease release_;
    prefault::Placement placement_;
    std::vector<prefault::PlacedRange> new_placement_; ///< of the region that map() made last
    prefault::PinnedMemory pins_;
    std::uint64_t warm_bytes_ = 0;
    std::string warm_short_because_;
};

} // namespace vmm
