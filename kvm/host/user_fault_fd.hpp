// Memory of this process whose pages another thread provides when they are first touched.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>

#include "kvm/host/unique_fd.hpp"

namespace vmm {

/// A userfaultfd (Documentation/admin-guide/mm/userfaultfd.rst). A thread that touches a missing page of watched
/// memory, in user space or in the kernel (KVM, io_uring), waits until the page is provided and wake() is called.
///
/// Threads: any.
class UserFaultFd {
  public:
    /// For memory with pages of `page_bytes`. Throws Error if this process may not handle faults of the kernel, or the
    /// host has no userfaultfd.
    explicit UserFaultFd(std::size_t page_bytes);

    /// The text of the error that the constructor would throw; empty if it would not throw.
    [[nodiscard]] static std::string problem();

    /// Watches `memory`, which must be private and anonymous, or of a pool of huge pages, and whole pages of the
    /// backing. Pages that exist already stay. Throws Error if the kernel cannot watch such memory.
    void watch(std::span<std::byte> memory);
    /// Stops watching `memory`, which need not be watched. Threads that wait continue; missing pages are then zero.
    void unwatch(std::span<std::byte> memory) noexcept;

    /// The descriptor, on loan. It is readable if a thread waits.
    [[nodiscard]] int fd() const noexcept { return fd_.get(); }
    /// A thread that has touched a missing page and waits.
    struct Fault {
        std::byte* page;      ///< start of the page, of 4 KiB
        std::uint32_t thread; ///< a thread of this process, or one of the kernel's own; as gettid()
    };
    /// Who makes the access that a thread waits for.
    enum class Accessor {
        kProgram, ///< the thread itself, in user space
        kKernel,  ///< the kernel, in a system call of the thread or by itself
        kNobody,  ///< the thread does not wait any more
    };
    /// The next fault; each is returned once. Nothing if no further thread waits. Never blocks. Throws Error.
    [[nodiscard]] std::optional<Fault> take_fault();
    /// Who waits in `thread`, according to /proc; kKernel if that is not known.
    [[nodiscard]] static Accessor accessor(std::uint32_t thread);

    /// Provides `content` at `memory`, which must have the same length, be watched, and be whole pages of the backing.
    /// Pages that exist already stay as they are. Wakes nobody. Throws Error if the host has no more memory.
    void provide(std::span<std::byte> memory, std::span<const std::byte> content);
    /// Like provide(), but moves the pages of `content` instead of copying them, so that a huge page stays a huge page
    /// (Linux 6.8 and later). `content` must be private anonymous memory of this process; it is empty afterwards.
    /// Returns false if not all pages could be moved, or if some of `memory` existed already: the caller then calls
    /// provide() with the same arguments.
    [[nodiscard]] bool provide_by_moving(std::span<std::byte> memory, std::span<std::byte> content) noexcept;
    [[nodiscard]] bool can_move() const noexcept;
    /// Wakes all threads that wait for a page of `memory`. If the page is still missing, they wait again, and
    /// take_fault() returns their fault again.
    void wake(std::span<std::byte> memory) noexcept;

  private:
    std::size_t page_bytes_;
    UniqueFd fd_;
    std::uint64_t features_ = 0; ///< of the kernel: UFFD_FEATURE_...
};

} // namespace vmm
