// Ownership of one memory mapping of this process.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>

#include "kvm/host/export.hpp"

VMM_API_BEGIN
namespace vmm {

/// Whether writes to a mapping of a file go to the file.
enum class Sharing {
    kShared,  ///< they go to the file
    kPrivate, ///< they do not: a page is copied at its first write. The file need not be writable.
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

    /// Private anonymous memory. Its address is a multiple of `alignment` bytes (a power of two, at least 4096). `size`
    /// is rounded up to whole pages of 4 KiB. `extra_flags` is for mmap(), e.g. MAP_HUGETLB | MAP_HUGE_2MB.
    /// `purpose` goes into the message. Throws Error if the kernel refuses.
    static Mapping anonymous(std::size_t size, std::size_t alignment, int extra_flags, std::string_view purpose);

    /// Reserves `size` bytes of address space, rounded and aligned as by anonymous(). Nothing in it may be read or
    /// written until put_anonymous() or put_file() has put something there. It takes no memory. Throws Error.
    static Mapping reserve(std::size_t size, std::size_t alignment, std::string_view purpose);

    /// Puts private anonymous memory at `offset` of this mapping, whole pages of 4 KiB. Otherwise it is like
    /// anonymous().
    void put_anonymous(std::size_t offset, std::size_t size, int extra_flags, std::string_view purpose);
    /// Puts a part of the file behind `fd` at `offset`, readable and writable. Throws Error.
    void put_file(std::size_t offset, int fd, std::uint64_t file_offset, std::size_t size, std::string_view purpose,
                  Sharing sharing = Sharing::kShared);

    /// Maps `size` bytes of the file behind `fd` from offset 0, shared, readable and writable. Throws Error.
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
