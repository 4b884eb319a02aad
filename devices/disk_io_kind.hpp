// How a disk's I/O reaches the kernel.
#pragma once

#include <array>
#include <string_view>

#include "kvm/host/export.hpp"

VMM_API_BEGIN
namespace vmm::devices {

/// How the I/O of a disk reaches the kernel.
enum class DiskIoKind {
    kAuto,    ///< by io_uring if this process may use it, otherwise by threads
    kUring,   ///< by io_uring
    kThreads, ///< by threads that make system calls
};

/// All of them, in the order in which help lists them.
inline constexpr std::array kDiskIoKinds{DiskIoKind::kAuto, DiskIoKind::kUring, DiskIoKind::kThreads};

/// The name used on the command line: "auto", "uring", "threads".
[[nodiscard]] std::string_view to_string(DiskIoKind kind) noexcept;

} // namespace vmm::devices
VMM_API_END
