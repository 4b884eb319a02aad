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
    k4K,  ///< 4 KiB pages; the kernel is told not to use transparent huge pages.
    kThp, ///< Transparent huge pages if the host can give them, 4 KiB pages otherwise.
    k2M,  ///< 2 MiB pages of the hugetlb pool.
    k1G,  ///< 1 GiB pages of the hugetlb pool.
};

/// All of them, in the order in which help lists them. The C API and the protocol of pools number them by it.
inline constexpr std::array kPageSizes{PageSize::k4K, PageSize::kThp, PageSize::k2M, PageSize::k1G};

/// The name used on the command line and in the report: "4K", "thp", "2M", "1G".
[[nodiscard]] std::string_view to_string(PageSize page_size) noexcept;
/// The smallest host page there may be, in bytes: 4 KiB for k4K and kThp, else the hugetlb size.
[[nodiscard]] std::uint64_t certain_page_bytes(PageSize page_size) noexcept;
/// The largest host page there may be, in bytes: 2 MiB for kThp, else as `certain_page_bytes`.
[[nodiscard]] std::uint64_t largest_page_bytes(PageSize page_size) noexcept;

/// True if the pages come from a pool of the host (hugetlb). Such pages are set aside before, and never swapped or
/// moved.
[[nodiscard]] constexpr bool is_from_pool(PageSize page_size) noexcept {
    return page_size == PageSize::k2M || page_size == PageSize::k1G;
}

/// One piece of guest RAM: a memslot's worth, contiguous in guest-physical and in host-virtual addresses.
struct MemoryRegion {
    GuestRange range;
    std::byte* host = nullptr; ///< congruent to `range.base` modulo the largest page of the backing

    [[nodiscard]] std::span<std::byte> bytes() const noexcept { return {host, range.size}; }
};

/// Existing memory that becomes a part of a new region: a part of a file in memory.
struct FilePart {
    std::uint64_t offset = 0; ///< in the region
    std::uint64_t size = 0;
    int fd = -1;                   ///< on loan, while it is mapped
    std::uint64_t file_offset = 0; ///< agrees with the guest's address modulo the largest page of the backing
    Sharing sharing = Sharing::kShared;
};

/// A file in memory that fills, mapped again and again, the places where pluggable memory is not plugged. Whoever
/// touches memory that is not plugged touches this file. So nobody faults, and the host never gives more memory for it
/// than the file is large.
struct SpareFile {
    int fd = -1;             ///< on loan, for as long as the memory lives; pages of 4 KiB
    std::uint64_t bytes = 0; ///< a multiple of 2 MiB; one mapping is needed for each such number of bytes
};

/// Owns guest RAM on the host side; knows nothing of KVM. Every access to guest memory by address goes through `at`.
/// Regions may be added while the memory is used; no region is ever moved or taken away. Parts of a pluggable region
/// come and go, and at() does not tell whether they are plugged.
///
/// Threads: any thread may call the const members, also while a region is added; one thread at a time may call add().
/// The *content* belongs to the guest and changes at any time: before a decision the data must be copied (`load`,
/// `copy_out`), and the copy must be checked.
class GuestMemory {
  public:
    /// The most regions there can be.
    static constexpr std::size_t kMaxRegions = 16;

    /// A region that is mapped, but not yet part of the memory.
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

    /// Maps one region for each range of `layout`. The ranges must be ascending, must not overlap, and must be at most
    /// kMaxRegions; otherwise as `map`. Throws Error.
    GuestMemory(std::span<const GuestRange> layout, PageSize page_size);
    /// Memory without any region yet.
    explicit GuestMemory(PageSize page_size) noexcept : page_size_(page_size) {}

    /// Memory that somebody else has mapped and keeps mapped for longer than this object lives. `loans` are in
    /// ascending order of address, do not overlap, and are each congruent as MemoryRegion says. Throws Error if there
    /// are more than kMaxRegions.
    GuestMemory(std::span<const MemoryRegion> loans, PageSize page_size);

    /// Maps host memory for `range`. Its base must be a multiple of `region_alignment`, its size a multiple of
    /// `certain_page_bytes`, and it must not overlap a region. No page is populated; the advice (huge page or not, no
    /// fork, no core dump) is given before any page exists, because later it would change nothing. Throws Error: not
    /// aligned, overlapping, too many regions, no address space, no huge pages.
    ///
    /// Each of `parts` puts a file in the place of new memory. The parts must be in ascending order, must not overlap,
    /// and must be whole pages of the backing. The pages of the file become guest memory, and if the file is shared,
    /// the guest's writes go to the file.
    [[nodiscard]] NewRegion map(GuestRange range, std::span<const FilePart> parts = {}) const;
    /// Like map(), but none of the memory is plugged at first: see plug(). Throws Error.
    [[nodiscard]] NewRegion map_pluggable(GuestRange range, SpareFile spare) const;
    /// Makes `region`, which map() or map_pluggable() of this object returned, part of the memory.
    void add(NewRegion region) noexcept;

    /// Maps new memory, or `file` if it is given, at `range`, which must be whole pages of the backing in one pluggable
    /// region. No page is populated, but pages of a pool are reserved; the old content of `range` is lost. Only one
    /// thread may call this at a time, and nobody may populate or pin the range meanwhile. Throws Error: nothing has
    /// changed then.
    void plug(GuestRange range, const std::optional<FilePart>& file = {});
    /// Takes the memory at `range` away, which must be whole pages of the backing in one pluggable region. All its
    /// pages go back to the host, also locked pages and pages of a pool; pages of a file stay with the file. The rules
    /// of plug() for threads hold. Throws Error: a part of the range may be gone then, and plug() makes it whole again.
    void unplug(GuestRange range);

    /// The base of a region must be a multiple of this number of bytes: at least 2 MiB, and at least the largest page
    /// of the backing. So host and guest addresses are congruent modulo the largest mapping that KVM could make;
    /// otherwise KVM would map 4 KiB pages only.
    [[nodiscard]] std::uint64_t region_alignment() const noexcept;

    /// The regions in the order in which they were added; those given to the constructor are in ascending order.
    [[nodiscard]] std::span<const MemoryRegion> regions() const noexcept {
        return std::span(regions_).first(count_.load(std::memory_order_acquire));
    }
    [[nodiscard]] PageSize page_size() const noexcept { return page_size_; }
    /// Sum over all regions, in bytes.
    [[nodiscard]] std::uint64_t size_bytes() const noexcept;

    /// The host bytes of `range`; nothing unless all of it lies in one region. Correct for every value of `range`.
    [[nodiscard]] std::optional<std::span<std::byte>> at(GuestRange range) const noexcept;

    /// Remembers the region of a caller's last access, because the next access is likely to be in the same region.
    class Hint {
        friend GuestMemory;
        MemoryRegion region_;
    };
    /// Like at(range), but does not search if the range is in the region of `hint`. Stores the region that it found in
    /// `hint`.
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
    /// order. There are no more parts than regions. Returns false if the range is not wholly RAM; `take` has then seen
    /// the parts before the gap.
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

    /// A copy of the object at `address`; nothing if it is not wholly RAM. `address` need not be aligned.
    template <typename T>
    [[nodiscard]] std::optional<T> load(GuestAddress address) const noexcept {
        static_assert(std::is_trivially_copyable_v<T>);
        std::array<std::byte, sizeof(T)> raw;
        if (!copy_out(address, raw)) {
            return std::nullopt;
        }
        return std::bit_cast<T>(raw);
    }

    /// Writes `value` at `address`. Returns false and writes nothing if it is not wholly RAM.
    template <typename T>
    [[nodiscard]] bool store(GuestAddress address, const T& value) const noexcept {
        static_assert(std::is_trivially_copyable_v<T>);
        return copy_in(address, std::as_bytes(std::span{&value, 1}));
    }

    /// Copies guest memory to `out`. Returns false and copies nothing if the range is not wholly RAM.
    [[nodiscard]] bool copy_out(GuestAddress address, std::span<std::byte> out) const noexcept;
    /// Copies `in` to guest memory. Returns false and copies nothing if the range is not wholly RAM.
    [[nodiscard]] bool copy_in(GuestAddress address, std::span<const std::byte> in) const noexcept;

    /// Gives the host's pages behind `bytes` back, whole pages of 4 KiB only. They then read as zeros, and come back
    /// one by one when they are touched; KVM drops its mappings by itself (MMU notifier). `bytes` are as at() returns
    /// them. Returns false and does nothing if `bytes` is not all of one region, or if the pages come from a pool of
    /// huge pages, come from a file, or are locked: such pages stay the guest's.
    [[nodiscard]] bool discard(std::span<std::byte> bytes) const noexcept;

    /// From now on copy_in(), store(), discard() and note_write() mark the pages that they write in `log`. `log` must
    /// live until another one, or null, takes its place. Nobody may write while this is called.
    void log_writes(WriteLog* log) noexcept { write_log_.store(log, std::memory_order_release); }
    /// Marks `bytes` in the log. The caller is about to write them, or has written them; at() or for_each_part()
    /// returned them.
    void note_write(std::span<const std::byte> bytes) const noexcept {
        if (WriteLog* const log = write_log_.load(std::memory_order_acquire); log != nullptr) {
            mark(*log, bytes);
        }
    }

  private:
    static void mark(WriteLog& log, std::span<const std::byte> bytes) noexcept;
    [[nodiscard]] Mapping reserve(GuestRange range) const;
    void advise(std::span<std::byte> bytes) const;
    /// The index of the pluggable region that contains all of `range`.
    [[nodiscard]] std::size_t pluggable(GuestRange range) const noexcept;
    void take_away(Mapping& mapping, std::uint64_t offset, std::uint64_t size, SpareFile spare) const;
    static void put_spare(Mapping& mapping, std::uint64_t offset, std::uint64_t size, SpareFile spare);
    /// The region that contains all of `range`; null if there is none.
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
    /// The number of regions. It is released after a region is written, so that whoever sees the number sees the whole
    /// region.
    std::atomic<std::size_t> count_{0};
    std::atomic<WriteLog*> write_log_{nullptr};
};

} // namespace vmm
VMM_API_END
