// Guest RAM: its regions, what backs them, and the only bounds check of the project.
#pragma once

#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <optional>
#include <span>
#include <string_view>
#include <type_traits>
#include <vector>

#include "kvm/guest_address.hpp"
#include "kvm/mapping.hpp"

namespace vmm {

/// What backs guest RAM on the host.
enum class PageSize {
    k4K,  ///< 4 KiB pages; transparent huge pages are advised against.
    kThp, ///< Transparent huge pages where the host can give them, 4 KiB pages elsewhere.
    k2M,  ///< 2 MiB pages of the hugetlb pool.
    k1G,  ///< 1 GiB pages of the hugetlb pool.
};

/// The name used on the command line and in the report: "4K", "thp", "2M", "1G".
[[nodiscard]] std::string_view to_string(PageSize page_size) noexcept;
/// Bytes of one host page that is certain: 4 KiB for k4K and kThp, else the hugetlb size.
[[nodiscard]] std::uint64_t certain_page_bytes(PageSize page_size) noexcept;
/// Bytes of the largest host page there may be: 2 MiB for kThp, else as `certain_page_bytes`.
[[nodiscard]] std::uint64_t largest_page_bytes(PageSize page_size) noexcept;

/// One piece of guest RAM: a memslot's worth, contiguous in guest-physical and in host-virtual addresses.
struct MemoryRegion {
    GuestRange range;
    std::byte* host = nullptr; ///< congruent to `range.base` modulo the largest page of the backing

    [[nodiscard]] std::span<std::byte> bytes() const noexcept { return {host, range.size}; }
};

/// Owns guest RAM on the host side; knows nothing of KVM. Every access to guest memory by address goes through `at`.
///
/// Threads: const after construction, so every member may be called from any thread. The *content* is the guest's: it
/// changes at any time, so what decides anything is copied first (`load`, `copy_out`) and the copy is checked.
class GuestMemory {
  public:
    /// Maps one region for each range of `layout` (ascending, not overlapping, each a multiple of
    /// `certain_page_bytes`). No page is populated; the advice (huge page or not, no fork, no core dump) is given
    /// before any page exists, because later it would change nothing. Throws Error: not aligned, no address space, no
    /// huge pages.
    GuestMemory(std::span<const GuestRange> layout, PageSize page_size);

    [[nodiscard]] std::span<const MemoryRegion> regions() const noexcept { return regions_; }
    [[nodiscard]] PageSize page_size() const noexcept { return page_size_; }
    /// Sum over all regions, in bytes.
    [[nodiscard]] std::uint64_t size_bytes() const noexcept;

    /// The host bytes of `range`, or nothing unless all of it lies in one region. Holds for every value of `range`.
    [[nodiscard]] std::optional<std::span<std::byte>> at(GuestRange range) const noexcept;

    /// A copy of the object at `address`, or nothing where it is not wholly RAM. Needs no alignment.
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

  private:
    PageSize page_size_;
    std::vector<Mapping> mappings_;
    std::vector<MemoryRegion> regions_;
};

} // namespace vmm
