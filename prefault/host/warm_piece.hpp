// A piece of warm memory: its pages exist and are zero before they are needed.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <stop_token>
#include <string>

#include "kvm/host/export.hpp"
#include "kvm/host/guest_memory.hpp"
#include "kvm/host/unique_fd.hpp"

namespace vmm::prefault {

struct Workforce;
struct NumaTopology;

} // namespace vmm::prefault

VMM_API_BEGIN
namespace vmm::prefault {

/// Memory that a pool made for another process: a file in memory (memfd_create(2)) all of whose pages exist and are
/// zero. It has only one owner in its life. The pool makes it, seals its size and hands it over; the receiver maps it
/// and claims it. From then on nobody can map it writable, write to it, punch holes into it or claim it again
/// (F_SEAL_FUTURE_WRITE, Linux 5.1). When the owner unmaps it, its pages go back to the kernel.
///
/// Threads: one at a time.
class WarmPiece {
  public:
    /// Takes over a file that a pool has sent, which should have `bytes` bytes of `page_size`. Checks the kind of the
    /// file, its page size and size, that it may be read and written, that its size is sealed, and that nobody has
    /// claimed it. Throws Error whose text is only the reason.
    WarmPiece(UniqueFd file, std::uint64_t bytes, PageSize page_size, std::optional<unsigned> node);

    /// The file, on loan; negative after claim(). It must be mapped shared, at an address that agrees with the offset
    /// in the file modulo the largest page.
    [[nodiscard]] int fd() const noexcept { return file_.get(); }
    [[nodiscard]] std::uint64_t bytes() const noexcept { return bytes_; }
    /// The node of its pages; nothing if they are on no particular node.
    [[nodiscard]] std::optional<unsigned> node() const noexcept { return node_; }

    /// Claims the piece for the caller, who has mapped it: nobody else can use it any more. Closes the file, so that
    /// only the mappings remain. Throws Error whose text is only the reason: somebody else has claimed it, or pages
    /// were taken out of it.
    void claim();

    /// Describes the piece that a pool makes.
    struct Spec {
        std::uint64_t bytes = 0; ///< a multiple of the page size
        PageSize page_size = PageSize::k2M;
        std::optional<unsigned> node{}; ///< the node of its pages
    };

    /// Makes a piece; the kernel clears all of its pages while it makes them. Each worker calls `after_chunk` when it
    /// has made that many bytes; the call may wait. Returns nothing if `stop` was requested first. Throws Error: no
    /// memory, no such page size.
    [[nodiscard]] static std::optional<WarmPiece>
    make(const Spec& spec, const NumaTopology& topology, const Workforce& workforce,
         const std::function<void(std::uint64_t bytes, const std::stop_token& stop)>& after_chunk,
         const std::stop_token& stop);

    /// Cuts a piece that was made here down to `bytes`, whole pages and not more than it has, and seals its size. Then
    /// it can be handed over. Throws Error.
    void cut_and_seal(std::uint64_t bytes);
    /// True if its size cannot change any more.
    [[nodiscard]] bool is_sealed() const noexcept { return is_sealed_; }

  private:
    explicit WarmPiece(const Spec& spec);

    UniqueFd file_;
    std::uint64_t bytes_;
    std::optional<unsigned> node_;
    bool is_sealed_ = false;
};

/// Throws Error unless this host can make warm memory of `page_size`: it must have such pages, and for kThp it must
/// give huge pages to shared memory (shmem_enabled).
void check_warm_page_size(PageSize page_size);

} // namespace vmm::prefault
VMM_API_END
