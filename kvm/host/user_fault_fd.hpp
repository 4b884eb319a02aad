// Memory of this process whose pages another thread provides when they are first touched.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>

#include "kvm/host/unique_fd.hpp"

namespace vmm {

/// A userfaultfd (Documentation/admin-guide/mm/userfaultfd.rst). Whoever touches a page of watched memory that is not
/// there waits, in user space or in the kernel (KVM, io_uring), until the page is provided and wake() is called.
///
/// Threads: any.
class UserFaultFd {
  public:
    /// For memory whose pages are of `page_bytes`. Throws Error: this process may not have faults of the kernel wait
    /// for it, or the host has no userfaultfd.
    explicit UserFaultFd(std::size_t page_bytes);

    /// What a constructor would throw, for people; empty: it would not.
    [[nodiscard]] static std::string problem();

    /// Watches `memory`: private and anonymous, or of a pool of huge pages; whole pages of the backing. What is there
    /// already stays. Throws Error: the kernel cannot do it with such memory.
    void watch(std::span<std::byte> memory);
    /// Ends that. Whoever waits goes on; what is missing then is zero. `memory` need not be watched.
    void unwatch(std::span<std::byte> memory) noexcept;

    /// Readable when somebody waits. On loan.
    [[nodiscard]] int fd() const noexcept { return fd_.get(); }
    /// Somebody who has touched a page that is not there, and waits.
    struct Fault {
        std::byte* page;      ///< of 4 KiB
        std::uint32_t thread; ///< of this process, or one of the kernel's own; as gettid()
    };
    /// Who does the access that a thread waits for.
    enum class Accessor {
        kProgram, ///< the thread itself, in user space
        kKernel,  ///< the kernel, in a system call of the thread's or by itself
        kNobody,  ///< it does not wait any more
    };
    /// Each access is told once. Nothing if nobody waits who has not been told of. Never blocks. Throws Error.
    [[nodiscard]] std::optional<Fault> take_fault();
    /// Who waits in `thread`, by what /proc says of it; kKernel if that is not known.
    [[nodiscard]] static Accessor accessor(std::uint32_t thread);

    /// Provides `content` at `memory`, which is as long, watched, and whole pages of the backing. Pages that are there
    /// stay as they are. Nobody is woken. Throws Error: the host has no more memory.
    void provide(std::span<std::byte> memory, std::span<const std::byte> content);
    /// As provide(), but the pages of `content` are moved instead of being copied, so that a huge page stays a huge
    /// page. `content` is private anonymous memory of this process, and it is empty afterwards. Linux can do this
    /// since 6.8. The function returns false if not all pages could be moved, or if some of `memory` was there already.
    /// The caller then calls provide() with the same arguments.
    [[nodiscard]] bool provide_by_moving(std::span<std::byte> memory, std::span<std::byte> content) noexcept;
    [[nodiscard]] bool can_move() const noexcept;
    /// Has everybody go on who waits for a page of `memory`. If it is not there, they wait again, and are told of
    /// again.
    void wake(std::span<std::byte> memory) noexcept;

  private:
    std::size_t page_bytes_;
    UniqueFd fd_;
    std::uint64_t features_ = 0; ///< of the kernel: UFFD_FEATURE_...
};

} // namespace vmm
