// Feature bits of a network interface (virtio 1.2, 5.1.3), as masks.
#pragma once

#include <cstdint>

namespace vmm::devices::virtio::net_features {

inline constexpr std::uint64_t kChecksum = 1ULL << 0;
inline constexpr std::uint64_t kGuestChecksum = 1ULL << 1;
inline constexpr std::uint64_t kMac = 1ULL << 5;
inline constexpr std::uint64_t kGuestTso4 = 1ULL << 7;
inline constexpr std::uint64_t kGuestTso6 = 1ULL << 8;
inline constexpr std::uint64_t kGuestEcn = 1ULL << 9;
inline constexpr std::uint64_t kHostTso4 = 1ULL << 11;
inline constexpr std::uint64_t kHostTso6 = 1ULL << 12;
inline constexpr std::uint64_t kHostEcn = 1ULL << 13;
inline constexpr std::uint64_t kMergeBuffers = 1ULL << 15;
inline constexpr std::uint64_t kStatus = 1ULL << 16;
inline constexpr std::uint64_t kControlQueue = 1ULL << 17;
inline constexpr std::uint64_t kGuestAnnounce = 1ULL << 21;
inline constexpr std::uint64_t kMultiQueue = 1ULL << 22;

} // namespace vmm::devices::virtio::net_features
