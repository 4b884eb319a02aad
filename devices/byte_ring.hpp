// A queue of bytes with a fixed maximum.
#pragma once

#include <cstddef>
#include <memory>
#include <span>
#include <vector>

namespace vmm::devices {

/// First in, first out, never more than `capacity()` bytes. Construction reserves the memory, but touches it only when
/// bytes arrive. So a large ring that stays nearly empty costs almost nothing.
///
/// Threads: one at a time; the owner must lock.
class ByteRing {
  public:
    /// `capacity` in bytes, at least 1.
    explicit ByteRing(std::size_t capacity);

    [[nodiscard]] std::size_t capacity() const noexcept { return capacity_; }
    [[nodiscard]] std::size_t size() const noexcept { return size_; }
    [[nodiscard]] std::size_t room() const noexcept { return capacity_ - size_; }
    [[nodiscard]] bool empty() const noexcept { return size_ == 0; }

    /// Appends as much of the front of `bytes` as there is room for, and returns how many bytes that was.
    std::size_t push(std::span<const std::byte> bytes) noexcept;

    /// Moves up to `out.size()` of the oldest bytes to the front of `out`, and returns their number.
    std::size_t pop(std::span<std::byte> out) noexcept;

    /// The oldest bytes, as far as they are contiguous. The span is empty only if the ring is empty. It is valid until
    /// the next change.
    [[nodiscard]] std::span<const std::byte> front() const noexcept;
    /// All bytes, the oldest first.
    [[nodiscard]] std::vector<std::byte> contents() const;
    /// Forgets the oldest `count` bytes, at most size().
    void drop(std::size_t count) noexcept;

  private:
    std::size_t capacity_;
    std::unique_ptr<std::byte[]> bytes_; // NOLINT(modernize-avoid-c-arrays): a vector would touch every page.
    std::size_t oldest_ = 0;             ///< index of the oldest byte, below capacity_
    std::size_t size_ = 0;
};

} // namespace vmm::devices
