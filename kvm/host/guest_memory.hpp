// Guest RAM: its regions, what backs them, and the only bounds check of the project.
#pragma once

#include <algorithm>
#include <array>
#include <atomic>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <optional>
#include <span>
#include <string_view>
#include <type_traits>
#include <utility>

#include "kvm/host/export.hpp"
#include "kvm/host/guest_address.hpp"
#include "kvm/host/mapping.hpp"

VMM_API_BEGIN
namespace vmm {

class WriteLog;

/// What backs guest RAM on the host.
enum class PageSize {
    k4K,  ///< 4 KiB pages; transparent huge pages are advised against.
    kThp, ///< Transparent huge pages where the host can give them, 4 KiB pages elsewhere.
    k2M,  ///< 2 MiB pages of the hugetlb pool.
    k1G,  ///< 1 GiB pages of the hugetlb pool.
};

/// All of them, in the order in which help lists them. The C API and the protocol of pools number them by it.
inline constexpr std::array kPageSizes{PageSize::k4K, PageSize::kThp, PageSize::k2M, PageSize::k1G};

/// The name used on the command line and in the report: "4K", "thp", "2M", "1G".
[[nodiscard]] std::string_view to_string(PageSize page_size) noexcept;
/// Bytes of one host page that is certain: 4 KiB for k4K and kThp, else the hugetlb size.
[[nodiscard]] std::uint64_t certain_page_bytes(PageSize page_size) noexcept;
/// Bytes of the largest host page there may be: 2 MiB for kThp, else as `certain_page_bytes`.
[[nodiscard]] std::uint64_t largest_page_bytes(PageSize page_size) noexcept;

/// Whether the pages come from a pool of the host's (hugetlb): set aside before, never swapped or moved.
[[nodiscard]] constexpr bool is_from_pool(PageSize page_size) noexcept {
    return page_size == PageSize::k2M || page_size == PageSize::k1G;
}

/// One piece of guest RAM: a memslot's worth, contiguous in guest-physical and in host-virtual addresses.
struct MemoryRegion {
    GuestRange range;
    std::byte* host = nullptr; ///< congruent to `range.base` modulo the largest page of the backing

    [[nodiscard]] std::span<std::byte> bytes() const noexcept { return {host, range.size}; }
};

/// Memory that exists already, and becomes a part of a new region: a part of a file in memory.
struct FilePart {
    std::uint64_t offset = 0; ///< in the region
    std::uint64_t size = 0;
    int fd = -1;                   ///< on loan, while it is mapped
    std::uint64_t file_offset = 0; ///< agrees with the guest's address modulo the largest page of the backing
    Sharing sharing = Sharing::kShared;
};

/// What stands where memory that can be plugged is not: a file in memory, again and again. Whoever touches memory that
/// is not plugged touches that, so that nobody faults, and the host never gives more for it than the file is large.
struct SpareFile {
    int fd = -1;             ///< on loan, for as long as the memory lives; pages of 4 KiB
    std::uint64_t bytes = 0; ///< a multiple of 2 MiB; each of so many bytes takes a mapping
};

/// Owns guest RAM on the host side; knows nothing of KVM. Every access to guest memory by address goes through `at`.
/// Regions may be added while it is used; none is ever moved or taken away. Parts of a region that was made for that
/// come and go; at() does not tell whether they are there.
///
/// Threads: every const member may be called from any thread, also while a region is added; add() from one thread at a
/// time. The *content* is the guest's: it changes at any time, so what decides anything is copied first (`load`,
/// `copy_out`) and the copy is checked.
class GuestMemory {
  public:
    /// The most regions there can be.
    static constexpr std::size_t kMaxRegions = 16;

    /// A region that is mapped, and not yet part of the memory.
    class NewRegion {
      public:
        [[nodiscard]] const MemoryRegion& region() const noexcept { return region_; }

      private:
        friend GuestMemory;
        NewRegion(GuestRange range, Mapping mapping, bool has_files, SpareFile spare = {})
            : region_{range, mapping.data()}, mapping_(std::move(mapping)), has_files_(has_files), spare_(spare) {}
        MemoryRegion region_;
        Mapping mapping_;
        bool has_files_;
        SpareFile spare_;
    };

    /// Maps one region for each range of `layout` (ascending, not overlapping, at most kMaxRegions; otherwise as
    /// `map`). Throws Error.
    GuestMemory(std::span<const GuestRange> layout, PageSize page_size);
    /// Without any region yet.
    explicit GuestMemory(PageSize page_size) noexcept : page_size_(page_size) {}

    /// Of memory that somebody else has mapped, and keeps mapped for longer than this lives: `loans` in ascending order
    /// of address, not overlapping, each congruent as MemoryRegion says. Throws Error: more than kMaxRegions.
    GuestMemory(std::span<const MemoryRegion> loans, PageSize page_size);

    /// Maps host memory for `range`: its base a multiple of `region_alignment`, its size of `certain_page_bytes`, not
    /// overlapping any region. No page is populated; the advice (huge page or not, no fork, no core dump) is given
    /// before any page exists, because later it would change nothing. Throws Error: not aligned, overlapping, too many
    /// regions, no address space, no huge pages.
    ///
    /// Where `parts` say so (in ascending order, not overlapping, whole pages of the backing), a file takes the place
    /// of new memory. Its pages are the guest's, and if it is shared, what the guest writes is the file's.
    [[nodiscard]] NewRegion map(GuestRange range, std::span<const FilePart> parts = {}) const;
    /// As map(), of memory of which nothing is there at first: see plug(). Throws Error.
    [[nodiscard]] NewRegion map_pluggable(GuestRange range, SpareFile spare) const;
    /// Makes `region`, which map() or map_pluggable() of this object returned, part of the memory.
    void add(NewRegion region) noexcept;

    /// Maps new memory, or `file` if there is one, at `range`: whole pages of the backing in one pluggable region. No
    /// page is populated, but pages of a pool are reserved. What was there is gone. One such call at a time, while
    /// nobody populates or pins the range. Throws Error: nothing has changed then.
    void plug(GuestRange range, const std::optional<FilePart>& file = {});
    /// Takes the memory at `range` away, whole pages of the backing in one pluggable region, and its pages go back to
    /// the host, locked ones and those of a pool, too; but those of a file stay the file's. Likewise. Throws Error:
    /// some of the range is gone then, and plug() makes it whole again.
    void unplug(GuestRange range);

    /// What the base of a region must be a multiple of, in bytes: at least 2 MiB, and the largest page of the backing.
    /// It makes host and guest addresses congruent modulo the largest mapping KVM could make, without which it maps
    /// 4 KiB pages only.
    [[nodiscard]] std::uint64_t region_alignment() const noexcept;

    /// In the order in which they were added; those of construction in ascending order.
    [[nodiscard]] std::span<const MemoryRegion> regions() const noexcept {
        return std::span(regions_).first(count_.load(std::memory_order_acquire));
    }
    [[nodiscard]] PageSize page_size() const noexcept { return page_size_; }
    /// Sum over all regions, in bytes.
    [[nodiscard]] std::uint64_t size_bytes() const noexcept;

    /// The host bytes of `range`, or nothing unless all of it lies in one region. Holds for every value of `range`.
    [[nodiscard]] std::optional<std::span<std::byte>> at(GuestRange range) const noexcept;

    /// The region of a caller's last access, where the next one is likely to be, too.
    class Hint {
        friend GuestMemory;
        MemoryRegion region_;
    };
    /// As at(range), without a search if the range is in the region of `hint`; remembers its region there.
    [[nodiscard]] std::optional<std::span<std::byte>> at(GuestRange range, Hint& hint) const noexcept {
        if (hint.region_.host == nullptr || !hint.region_.range.contains(range)) {
            const MemoryRegion* const region = find(range);
            if (region == nullptr) {
                return std::nullopt;
            }
            hint.region_ = *region;
        }
        return hint.region_.bytes().subspan(to_integer(range.base) - to_integer(hint.region_.range.base), range.size);
    }

    /// Calls `take(std::span<std::byte>)` with the host bytes of each part of `range` that lies in one region, in
    /// order: there are no more parts than regions. Returns false, after the parts before the gap, if the range is not
    /// wholly RAM.
    template <typename Take>
    [[nodiscard]] bool for_each_part(GuestRange range, Take take) const {
        while (range.size > 0) {
            const MemoryRegion* const region = find({range.base, 1});
            if (region == nullptr) {
                return false;
            }
            const std::uint64_t offset = to_integer(range.base) - to_integer(region->range.base);
            const std::uint64_t length = std::min(range.size, region->range.size - offset);
            take(region->bytes().subspan(offset, length));
            range.size -= length;
            const auto next = checked_add(range.base, length);
            if (!next) {
                return range.size == 0;
            }
            range.base = *next;
        }
        return true;
    }

    /// A copy of the object at `address`, or nothing if it is not wholly RAM. Needs no alignment.
    template <typename T>
    [[nodiscard]] std::optional<T> load(GuestAddress address) const noexcept {
        static_assert(std::is_trivially_copyable_v<T>);
        std::array<std::byte, sizeof(T)> raw;
        if (!copy_out(address, raw)) {
            return std::nullopt;
        }
        return std::bit_cast<T>(raw);
    }

    /// Writes `value` at `address`; false, with nothing written, where it is not wholly RAM.
    template <typename T>
    [[nodiscard]] bool store(GuestAddress address, const T& value) const noexcept {
        static_assert(std::is_trivially_copyable_v<T>);
        return copy_in(address, std::as_bytes(std::span{&value, 1}));
    }

    /// Copies guest memory out; false, with nothing copied, where the range is not wholly RAM.
    [[nodiscard]] bool copy_out(GuestAddress address, std::span<std::byte> out) const noexcept;
    /// Copies `in` to guest memory; false, with nothing copied, where the range is not wholly RAM.
    [[nodiscard]] bool copy_in(GuestAddress address, std::span<const std::byte> in) const noexcept;

    /// Gives the host's pages behind `bytes` back, whole pages of 4 KiB only; they read as zeros then, and come back
    /// one by one when they are touched. `bytes` are as at() returns them. False, with nothing done, where that cannot
    /// be: pages of a pool of huge pages and of files, which stay the guest's, locked ones, or where `bytes` is not all
    /// of one region. KVM drops its mappings by itself (MMU notifier).
    [[nodiscard]] bool discard(std::span<std::byte> bytes) const noexcept;

    /// From now on what copy_in(), store() and discard() write is marked in `log`, which lives until another one, or
    /// null, takes its place; and so is what note_write() is told of. Nobody writes while this is called.
    void log_writes(WriteLog* log) noexcept { write_log_.store(log, std::memory_order_release); }
    /// `bytes`, which at() or for_each_part() returned, are about to be written by this process, or have been.
    void note_write(std::span<const std::byte> bytes) const noexcept {
        if (WriteLog* const log = write_log_.load(std::memory_order_acquire); log != nullptr) {
            mark(*log, bytes);
        }
    }

  private:
    static void mark(WriteLog& log, std::span<const std::byte> bytes) noexcept;
    [[nodiscard]] Mapping reserve(GuestRange range) const;
    void advise(std::span<std::byte> bytes) const;
    /// The index of the pluggable region that all of `range` lies in.
    [[nodiscard]] std::size_t pluggable(GuestRange range) const noexcept;
    void take_away(Mapping& mapping, std::uint64_t offset, std::uint64_t size, SpareFile spare) const;
    void put_spare(Mapping& mapping, std::uint64_t offset, std::uint64_t size, SpareFile spare) const;
    /// The region that all of `range` lies in; null if there is none.
    [[nodiscard]] const MemoryRegion* find(GuestRange range) const noexcept {
        for (const MemoryRegion& region : regions()) {
            if (region.range.contains(range)) {
                return &region;
            }
        }
        return nullptr;
    }

    PageSize page_size_;
    std::array<Mapping, kMaxRegions> mappings_;
    std::array<MemoryRegion, kMaxRegions> regions_;
    std::array<bool, kMaxRegions> has_files_{};
    std::array<SpareFile, kMaxRegions> spares_{}; ///< of pluggable regions
    /// How many of the regions there are. Released after a region is written, so that whoever sees it sees all of it.
    std::atomic<std::size_t> count_{0};
    std::atomic<WriteLog*> write_log_{nullptr};
};

} // namespace vmm
VMM_API_END
