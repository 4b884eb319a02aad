// Limits and defaults of a machine, and the exit codes of the command. Each of them stands here and nowhere else.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

#include "kvm/host/export.hpp"
#include "kvm/host/guest_address.hpp"

VMM_API_BEGIN
namespace vmm {

namespace limits {

inline constexpr std::uint64_t kMinMemoryBytes = 2 * kMiB;
inline constexpr std::uint64_t kDefaultMemoryBytes = 512 * kMiB;
inline constexpr unsigned kMaxVcpus = 254; ///< the ids that xAPIC mode can name
inline constexpr unsigned kMaxDiskQueues = 16;
inline constexpr unsigned kMaxNetQueues = 16;          ///< pairs
inline constexpr std::array kSectorBytes{512U, 4096U}; ///< of a disk's sectors, as the guest sees them; default first
inline constexpr std::size_t kMaxDiskIdBytes = 20;     ///< of a virtio block device's serial number (virtio 1.2, 5.2.6)

inline constexpr unsigned kDefaultKeepEveryMs = 250;
inline constexpr unsigned kMinKeepEveryMs = 10;
inline constexpr unsigned kMaxKeepEveryMs = 60'000;

} // namespace limits

/// The exit codes of the command (docs/report.md).
namespace exit_codes {

inline constexpr int kSuccess = 0; ///< the guest powered off, or was stopped as asked
inline constexpr int kHostFailed = 1;
inline constexpr int kUsageError = 2;
inline constexpr int kGuestFailed = 3;
inline constexpr int kStoppedBySignal = 4;
inline constexpr int kNobodyThere = 3; ///< of `vmm ctl`

} // namespace exit_codes

} // namespace vmm
VMM_API_END
