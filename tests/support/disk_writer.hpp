// What disk_writer.cpp, a guest, writes to its disk: for the guest, and for who looks at the disk afterwards.
#pragma once

#include <cstddef>
#include <cstdint>

namespace vmm::testing::disk_writer {

inline constexpr std::size_t kBlockBytes = 4096;
/// Blocks on the disk.
inline constexpr std::uint64_t kPlaces = 1024;
/// Writes that are under way at once.
inline constexpr std::size_t kBatch = 16;
/// Odd: any kPlaces numbers in a row are of different places.
inline constexpr std::uint64_t kStep = 389;

/// Which block write `number` goes to.
[[nodiscard]] constexpr std::uint64_t place_of(std::uint64_t number) noexcept {
    return number * kStep % kPlaces;
}
/// What word `index` of the block holds then: the number in clear, mixed with where it stands. Never 0 for a number
/// from 1 on.
[[nodiscard]] constexpr std::uint64_t word_of(std::uint64_t number, std::uint64_t index) noexcept {
    return (number << 16) | (index ^ 0x5a5a);
}

} // namespace vmm::testing::disk_writer
