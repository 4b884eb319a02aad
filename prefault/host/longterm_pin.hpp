// Pins pages so that nothing may move them: memory registered with io_uring as fixed buffers.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>

#include "kvm/host/guest_address.hpp"
#include "kvm/host/unique_fd.hpp"

namespace vmm::prefault {

/// Memory that is pinned as the fixed buffers of its own io_uring (io_uring_register(2)). The kernel holds long-term
/// references to the pages, so they are neither swapped out, nor migrated, nor compacted.
///
/// The ring is restricted to registering and unregistering buffers, so whoever gets hold of it can submit nothing. That
/// matters because no seccomp filter sees what a ring does. A child process does not inherit the ring past exec(). The
/// ring needs one descriptor, some 20 KiB, and 16 bytes in the kernel for each page: 4 MiB for a GiB of 4 KiB pages.
///
/// Threads: one at a time. Different rings do not wait for each other.
class BufferRing {
  public:
    /// The size of the largest buffer, in bytes (io_uring/rsrc.c, io_validate_user_buf_range).
    static constexpr std::uint64_t kMaxBufferBytes = kGiB;
    /// The most buffers of a ring (io_uring/rsrc.c, IORING_MAX_REG_BUFFERS).
    static constexpr unsigned kMaxBuffers = 16384;

    /// Makes a ring for `buffers` buffers, 1 to kMaxBuffers. Needs Linux 5.19. Throws Error if this kernel has no
    /// io_uring, this process may not use it, or there is no descriptor left.
    explicit BufferRing(unsigned buffers);
    BufferRing(BufferRing&&) noexcept = default;
    BufferRing& operator=(BufferRing&&) = delete;
    BufferRing(const BufferRing&) = delete;
    BufferRing& operator=(const BufferRing&) = delete;
    /// Unpins all buffers before it returns.
    ~BufferRing();

    /// Pins `bytes` as one more buffer, and populates pages that do not exist. `bytes` must be whole pages and at most
    /// kMaxBufferBytes. Returns 0, or the errno of the kernel; then nothing is pinned.
    [[nodiscard]] int pin(std::span<std::byte> bytes) noexcept;

    /// The ring, on loan.
    [[nodiscard]] int fd() const noexcept { return fd_.get(); }

  private:
    UniqueFd fd_;
    unsigned capacity_;
    unsigned used_ = 0;
};

/// What the reader can do if io_uring_setup() failed with `error_number`. `sysctl_kernel` is the folder of the kernel's
/// settings.
[[nodiscard]] std::string ring_advice(int error_number, std::string_view sysctl_kernel = "/proc/sys/kernel");

} // namespace vmm::prefault
