#include "loader/placement.hpp"

#include <algorithm>
#include <cassert>
#include <ranges>
#include <utility>

#include "kvm/host/error.hpp"

namespace vmm::loader {
namespace {

GuestRange between(GuestAddress begin, GuestAddress end) {
    return {begin, to_integer(end) - to_integer(begin)};
}

GuestRange below(GuestAddress limit) {
    return between(GuestAddress{0}, limit);
}

/// The lowest multiple of `alignment` at which `size` bytes fit into `range`.
std::optional<GuestAddress> lowest_fit(GuestRange range, std::uint64_t size, std::uint64_t alignment) {
    const auto base = align_up(to_integer(range.base), alignment);
    if (!base || !range.contains({GuestAddress{*base}, size})) {
        return std::nullopt;
    }
    return GuestAddress{*base};
}

/// The highest multiple of `alignment` at which `size` bytes fit into `range`.
std::optional<GuestAddress> highest_fit(GuestRange range, std::uint64_t size, std::uint64_t alignment) {
    if (size > range.size) {
        return std::nullopt;
    }
    const GuestAddress base{align_down(to_integer(range.end()) - size, alignment)};
    return base >= range.base ? std::optional{base} : std::nullopt;
}

} // namespace

Placement::Placement(std::span<const GuestRange> ram) {
    for (const GuestRange range : ram) {
        assert(range.size != 0 && checked_add(range.base, range.size));
        if (!ram_.empty() && range.base == ram_.back().end()) {
            ram_.back().size += range.size;
            continue;
        }
        assert(ram_.empty() || range.base > ram_.back().end());
        ram_.push_back(range);
    }
}

bool Placement::is_ram(GuestRange range) const noexcept {
    return std::ranges::any_of(ram_, [range](GuestRange ram) { return ram.contains(range); });
}

bool Placement::is_free(GuestRange range) const noexcept {
    return is_ram(range) &&
           std::ranges::none_of(claims_, [range](const Claim& claim) { return claim.range.overlaps(range); });
}

void Placement::claim(GuestRange range, std::string what) {
    assert(range.size != 0);
    if (!is_ram(range)) {
        std::string ram;
        for (const GuestRange part : ram_) {
            ram += (ram.empty() ? "" : ", ") + to_string(part);
        }
        throw Error(what + " (" + to_string(range) + ") does not fit into guest memory " + ram +
                    ": give the guest more memory (Config::memory_bytes)");
    }
    const auto next =
        std::ranges::find_if(claims_, [range](const Claim& claim) { return claim.range.end() > range.base; });
    if (next != claims_.end() && next->range.overlaps(range)) {
        throw Error(what + " (" + to_string(range) + ") overlaps " + next->what + " (" + to_string(next->range) + ")");
    }
    claims_.insert(next, {range, std::move(what)});
}

std::vector<GuestRange> Placement::free_ranges(GuestRange bounds) const {
    std::vector<GuestRange> free;
    for (const GuestRange ram : ram_) {
        GuestAddress begin = std::max(ram.base, bounds.base);
        const GuestAddress end = std::min(ram.end(), bounds.end());
        for (const Claim& claim : claims_) {
            if (claim.range.end() <= begin || claim.range.base >= end) {
                continue;
            }
            if (claim.range.base > begin) {
                free.push_back(between(begin, claim.range.base));
            }
            begin = claim.range.end();
        }
        if (begin < end) {
            free.push_back(between(begin, end));
        }
    }
    return free;
}

std::optional<GuestAddress> Placement::find_below(std::uint64_t size, std::uint64_t alignment,
                                                  GuestAddress limit) const {
    const std::vector<GuestRange> free = free_ranges(below(limit));
    for (const GuestRange range : std::views::reverse(free)) {
        if (const auto base = highest_fit(range, size, alignment)) {
            return base;
        }
    }
    return std::nullopt;
}

std::optional<GuestAddress> Placement::find_above(std::uint64_t size, std::uint64_t alignment,
                                                  GuestRange bounds) const {
    for (const GuestRange range : free_ranges(bounds)) {
        if (const auto base = lowest_fit(range, size, alignment)) {
            return base;
        }
    }
    return std::nullopt;
}

std::uint64_t Placement::largest_free_below(GuestAddress limit) const {
    std::uint64_t largest = 0;
    for (const GuestRange range : free_ranges(below(limit))) {
        largest = std::max(largest, range.size);
    }
    return largest;
}

} // namespace vmm::loader
