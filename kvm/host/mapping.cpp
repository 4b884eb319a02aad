#include "kvm/host/mapping.hpp"

#include <sys/mman.h>

#include <cassert>
#include <cerrno>
#include <cstdint>
#include <string>
#include <utility>

#include "kvm/host/error.hpp"
#include "kvm/host/guest_address.hpp"

namespace vmm {

Mapping::Mapping(Mapping&& other) noexcept
    : base_(std::exchange(other.base_, nullptr)), size_(std::exchange(other.size_, 0)) {}

Mapping& Mapping::operator=(Mapping&& other) noexcept {
    std::swap(base_, other.base_);
    std::swap(size_, other.size_);
    return *this;
}

Mapping::~Mapping() {
    if (base_ != nullptr) {
        ::munmap(base_, size_);
    }
}

namespace {

std::byte* map_or_throw(void* hint, std::size_t size, int protection, int flags, int fd, std::uint64_t offset,
                        std::string_view purpose) {
    void* const address = ::mmap(hint, size, protection, flags, fd, static_cast<off_t>(offset));
    if (address == MAP_FAILED) {
        const bool from_pool = (flags & MAP_HUGETLB) != 0;
        throw_errno(
            errno, "map " + format_bytes(size) + " for " + std::string(purpose),
            {{ENOMEM, from_pool ? "the pool of huge pages has too few: raise vm.nr_hugepages, take less memory, "
                                  "or Config::page_size=thp"
                                : "less memory, or raise `ulimit -v`, `ulimit -d`, vm.overcommit_memory or "
                                  "vm.max_map_count"},
             {EINVAL, from_pool ? "this host has no pages of that size: take another Config::page_size" : ""},
             {EAGAIN, "it would be locked at once, and the limit on locked memory is lower: `ulimit -l`"}});
    }
    return static_cast<std::byte*>(address);
}

} // namespace

Mapping Mapping::reserve(std::size_t size, std::size_t alignment, std::string_view purpose) {
    // The reservation has room to choose an aligned start. The rest is given back.
    const auto whole_pages = align_up(size, kSmallPageBytes);
    if (size == 0 || !whole_pages || *whole_pages > SIZE_MAX - alignment) {
        throw Error("cannot map " + format_bytes(size) + " for " + std::string(purpose) + ": no such size");
    }
    size = *whole_pages;
    const std::size_t reserved_size = size + alignment;
    Mapping reservation(
        map_or_throw(nullptr, reserved_size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0, purpose),
        reserved_size);
    const auto start = reinterpret_cast<std::uintptr_t>(reservation.base_);
    const auto head = static_cast<std::size_t>(-start & (alignment - 1));
    std::byte* const base = reservation.base_ + head;
    if (head != 0) {
        ::munmap(reservation.base_, head);
    }
    if (const std::size_t tail = reserved_size - head - size; tail != 0) {
        ::munmap(base + size, tail);
    }
    reservation.base_ = base;
    reservation.size_ = size;
    return reservation;
}

void Mapping::put_anonymous(std::size_t offset, std::size_t size, int extra_flags, std::string_view purpose) {
    assert(offset <= size_ && size <= size_ - offset);
    map_or_throw(base_ + offset, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | extra_flags,
                 -1, 0, purpose);
}

void Mapping::put_file(std::size_t offset, int fd, std::uint64_t file_offset, std::size_t size,
                       std::string_view purpose, Sharing sharing) {
    assert(offset <= size_ && size <= size_ - offset);
    const int flags = sharing == Sharing::kShared ? MAP_SHARED : MAP_PRIVATE | MAP_NORESERVE;
    map_or_throw(base_ + offset, size, PROT_READ | PROT_WRITE, flags | MAP_FIXED, fd, file_offset, purpose);
}

Mapping Mapping::anonymous(std::size_t size, std::size_t alignment, int extra_flags, std::string_view purpose) {
    Mapping mapping = reserve(size, alignment, purpose);
    mapping.put_anonymous(0, mapping.size_, extra_flags, purpose);
    return mapping;
}

Mapping Mapping::shared_file(int fd, std::size_t size, std::string_view purpose) {
    return {map_or_throw(nullptr, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0, purpose), size};
}

} // namespace vmm
