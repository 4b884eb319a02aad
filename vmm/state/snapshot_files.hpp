// The files of a snapshot.
#pragma once

#include <cstddef>

#include "kvm/host/guest_address.hpp"

namespace vmm::snapshot_files {

inline constexpr const char* kState = "state";        ///< see encode_state()
inline constexpr const char* kMemory = "memory";      ///< see MemoryLayout
inline constexpr const char* kConfig = "config.json"; ///< the configuration of the machine
inline constexpr std::size_t kMostConfigBytes = kMiB;
/// The memory that a guest needs first, see WorkingSet. The file may be added later, and may be missing.
inline constexpr const char* kWorkingSet = "working-set.json";
inline constexpr std::size_t kMostWorkingSetBytes = 16 * kMiB;

} // namespace vmm::snapshot_files
