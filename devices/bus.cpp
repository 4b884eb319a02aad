#include "devices/bus.hpp"

#include <algorithm>
#include <cassert>
#include <string>

#include "kvm/host/error.hpp"
#include "kvm/host/guest_address.hpp"

namespace vmm::devices {
namespace {

constexpr std::uint64_t kLastPort = 0xffff;
constexpr std::byte kNobody{0xff};

std::string describe(const Device& device, std::uint64_t base, std::uint64_t size) {
    return std::string(device.name()) + " at " + to_string(GuestRange{GuestAddress{base}, size});
}

} // namespace

std::uint64_t Bus::last_address() const noexcept {
    return space_ == AddressSpace::kPortIo ? kLastPort : UINT64_MAX;
}

void Bus::attach(std::uint64_t base, std::uint64_t size, Device& device) {
    assert(!frozen_);
    const std::string tried = "cannot attach " + std::string(device.name()) + " to the " +
                              (space_ == AddressSpace::kPortIo ? "I/O port" : "MMIO") + " bus: ";
    if (size == 0) {
        throw Error(tried + "its range is empty");
    }
    if (base > last_address() || size - 1 > last_address() - base) {
        throw Error(tried + to_string(GuestAddress{base}) + " and " + format_bytes(size) + " from there on pass " +
                    to_string(GuestAddress{last_address()}) + ", the last address");
    }
    const Claim claim{base, base + (size - 1), &device};
    const auto next = std::ranges::lower_bound(claims_, base, {}, &Claim::last);
    if (next != claims_.end() && next->base <= claim.last) {
        throw Error(tried + describe(device, base, size) + " would overlap " +
                    describe(*next->device, next->base, next->last - next->base + 1));
    }
    claims_.insert(next, claim);
}

Bus::Part Bus::first_part(std::uint64_t address, std::size_t length) const noexcept {
    const auto claim = std::ranges::lower_bound(claims_, address, {}, &Claim::last);
    if (claim == claims_.end()) {
        return {nullptr, length};
    }
    if (claim->base > address) {
        return {nullptr, std::min<std::uint64_t>(length, claim->base - address)};
    }
    const std::uint64_t bytes_after_first = claim->last - address;
    return {&*claim, length - 1 <= bytes_after_first ? length : bytes_after_first + 1};
}

template <typename Byte, typename OnDevice, typename OnNobody>
void Bus::split(std::uint64_t address, std::span<Byte> data, OnDevice on_device, OnNobody on_nobody) const noexcept {
    while (!data.empty()) {
        const Part part = first_part(address, data.size());
        if (part.claim != nullptr) {
            on_device(*part.claim->device, address - part.claim->base, data.first(part.length));
        } else {
            on_nobody(data.first(part.length));
        }
        data = data.subspan(part.length);
        if (!data.empty() && part.length > UINT64_MAX - address) {
            on_nobody(data); // The access passes the end of the address space. It does not continue at 0.
            return;
        }
        address += part.length;
    }
}

void Bus::read(std::uint64_t address, std::span<std::byte> data) noexcept {
    bool unclaimed = false;
    split(
        address, data,
        [](Device& device, std::uint64_t offset, std::span<std::byte> part) { device.read(offset, part); },
        [&unclaimed](std::span<std::byte> part) {
            std::ranges::fill(part, kNobody);
            unclaimed = true;
        });
    if (unclaimed) {
        unclaimed_reads_.fetch_add(1, kRelaxed);
    }
}

void Bus::write(std::uint64_t address, std::span<const std::byte> data) noexcept {
    bool unclaimed = false;
    split(
        address, data,
        [](Device& device, std::uint64_t offset, std::span<const std::byte> part) { device.write(offset, part); },
        [&unclaimed](std::span<const std::byte>) { unclaimed = true; });
    if (unclaimed) {
        unclaimed_writes_.fetch_add(1, kRelaxed);
    }
}

} // namespace vmm::devices
