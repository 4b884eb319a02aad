// Ownership of one memory mapping of this process.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>

#include "kvm/host/export.hpp"

VMM_API_BEGIN
namespace vmm {

/// Whether what is written to a mapping of a file is the file's.
enum class Sharing {
    kShared,  ///< it is
    kPrivate, ///< it is not: a page is copied when it is first written. The file need not be writable.
};

/// Owns one mmap()ed range and unmaps it.
class Mapping {
  public:
    Mapping() noexcept = default;
    /// Takes over a range that mmap() returned.
    Mapping(std::byte* base, std::size_t size) noexcept : base_(base), size_(size) {}
    Mapping(Mapping&& other) noexcept;
    Mapping& operator=(Mapping&& other) noexcept;
    Mapping(const Mapping&) = delete;
    Mapping& operator=(const Mapping&) = delete;
    ~Mapping();

    /// Private anonymous memory whose address is a multiple of `alignment` (a power of two, at least 4096), in bytes.
    /// `size` is rounded up to whole pages of 4 KiB.
    /// `extra_flags` is for mmap(), e.g. MAP_HUGETLB | MAP_HUGE_2MB. `purpose` goes into the message.
    /// Throws Error if the kernel refuses.
    static Mapping anonymous(std::size_t size, std::size_t alignment, int extra_flags, std::string_view purpose);

    /// `size` bytes of address space, rounded and aligned as by anonymous(), in which nothing may be read or written
    /// until put_anonymous() or put_file() have put something there. Takes no memory. Throws Error.
    static Mapping reserve(std::size_t size, std::size_t alignment, std::string_view purpose);

    /// Puts private anonymous memory at `offset` of this mapping, whole pages of 4 KiB; otherwise as anonymous().
    void put_anonymous(std::size_t offset, std::size_t size, int extra_flags, std::string_view purpose);
    /// Puts a part of the file behind `fd` there, readable and writable. Throws Error.
    void put_file(std::size_t offset, int fd, std::uint64_t file_offset, std::size_t size, std::string_view purpose,
                  Sharing sharing = Sharing::kShared);

    /// `size` bytes of the file behind `fd` from offset 0, shared, readable and writable. Throws Error.
    static Mapping shared_file(int fd, std::size_t size, std::string_view purpose);

    [[nodiscard]] std::byte* data() const noexcept { return base_; }
    [[nodiscard]] std::size_t size() const noexcept { return size_; }
    [[nodiscard]] std::span<std::byte> bytes() const noexcept { return {base_, size_}; }

  private:
    std::byte* base_ = nullptr;
    std::size_t size_ = 0;
};

} // namespace vmm
VMM_API_END
