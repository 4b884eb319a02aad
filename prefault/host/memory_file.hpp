// Files in memory that can be used as guest memory.
#pragma once

#include <cstdint>

#include "kvm/host/guest_memory.hpp"
#include "kvm/host/unique_fd.hpp"

namespace vmm::prefault {

/// Makes a file in memory (memfd_create(2)) of `bytes`, a multiple of the page size, with `seals` (F_SEAL_* of
/// fcntl(2)). None of its pages exists yet, and `name` is shown in /proc. Empty, with errno set, if the host cannot
/// make it: no such pages (ENODEV, EINVAL, ENOENT), too few in the pool (ENOMEM).
[[nodiscard]] UniqueFd make_memory_file(const char* name, std::uint64_t bytes, PageSize page_size, int seals) noexcept;

} // namespace vmm::prefault
