// Pages that nothing may move: memory registered with io_uring as fixed buffers.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>

#include "kvm/host/guest_address.hpp"
#include "kvm/host/unique_fd.hpp"

namespace vmm::prefault {

/// Memory that is pinned as the fixed buffers of an io_uring of its own (io_uring_register(2)). The kernel holds
/// long-term references to its pages, so that they are neither swapped out, nor migrated, nor compacted.
///
/// The ring is restricted to registering and unregistering buffers: whoever gets hold of it can submit nothing with it.
/// That matters because no seccomp filter sees what a ring does. A child process does not inherit it past exec(). It
/// takes a descriptor, some 20 KiB, and in the kernel 16 bytes for each page: 4 MiB for a GiB of 4 KiB pages.
///
/// Threads: one at a time; different rings do not wait for each other.
class BufferRing {
  public:
    /// The size of the largest buffer, in bytes (io_uring/rsrc.c, io_validate_user_buf_range).
    static constexpr std::uint64_t kMaxBufferBytes = kGiB;
    /// The most buffers of a ring (io_uring/rsrc.c, IORING_MAX_REG_BUFFERS).
    static constexpr unsigned kMaxBuffers = 16384;

    /// A ring for `buffers` buffers, 1 to kMaxBuffers. Needs Linux 5.19. Throws Error: this kernel has no io_uring, or
    /// none for this process, or there is no descriptor left.
    explicit BufferRing(unsigned buffers);
    BufferRing(BufferRing&&) noexcept = default;
    BufferRing& operator=(BufferRing&&) = delete;
    BufferRing(const BufferRing&) = delete;
    BufferRing& operator=(const BufferRing&) = delete;
    /// Unpins all of it before it returns.
    ~BufferRing();

    /// Pins `bytes`, whole pages and at most kMaxBufferBytes, as one buffer more, and populates pages that do not
    /// exist. Returns 0, or the errno with which the kernel refuses; nothing is pinned then.
    [[nodiscard]] int pin(std::span<std::byte> bytes) noexcept;

    /// The ring, on loan.
    [[nodiscard]] int fd() const noexcept { return fd_.get(); }

  private:
    UniqueFd fd_;
    unsigned capacity_;
    unsigned used_ = 0;
};

/// What the reader can do if io_uring_setup() failed with `error_number`. `sysctl_kernel` is where the kernel's
/// settings are.
[[nodiscard]] std::string ring_advice(int error_number, std::string_view sysctl_kernel = "/proc/sys/kernel");

} // namespace vmm::prefault
