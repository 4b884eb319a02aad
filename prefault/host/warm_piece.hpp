// A piece of warm memory: pages that exist and are zero before anybody needs them.
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

/// Memory that a pool made for somebody else: a file in memory (memfd_create(2)) all of whose pages exist and are zero.
/// It belongs to one owner in its life. The pool makes it and hands it over, sealed so that its size cannot change. Who
/// gets it maps it and claims it. From then on nobody can map it writable, write to it, punch holes into it or claim it
/// again (F_SEAL_FUTURE_WRITE, Linux 5.1). When the owner unmaps it, its pages go back to the kernel.
///
/// Threads: one at a time.
class WarmPiece {
  public:
    /// Takes over a file that a pool has sent, which is to have `bytes` bytes of `page_size`. Checks all that can be
    /// known of it: what kind of file it is, its page size and size, that it may be read and written, that its size is
    /// sealed, and that nobody has claimed it. Throws Error, with the reason alone.
    WarmPiece(UniqueFd file, std::uint64_t bytes, PageSize page_size, std::optional<unsigned> node);

    /// The file, on loan. It is to be mapped shared, at an address that agrees with the offset in the file modulo the
    /// largest page; empty after claim().
    [[nodiscard]] int fd() const noexcept { return file_.get(); }
    [[nodiscard]] std::uint64_t bytes() const noexcept { return bytes_; }
    /// The node that its pages lie on; nothing: wherever they came to lie.
    [[nodiscard]] std::optional<unsigned> node() const noexcept { return node_; }

    /// Makes the piece the caller's, who has mapped it: nobody else can have it any more. Closes the file, so that the
    /// mappings are all that is left of it. Throws Error, with the reason alone: somebody else has claimed it, or pages
    /// were taken out of it.
    void claim();

    /// What a pool makes.
    struct Spec {
        std::uint64_t bytes = 0; ///< a multiple of the page size
        PageSize page_size = PageSize::k2M;
        std::optional<unsigned> node{}; ///< where its pages lie
    };

    /// Makes a piece; all of its pages are cleared by the kernel on the way. `after_chunk` is called by each worker
    /// when it has made so many bytes, and may wait. Returns nothing if `stop` was requested first. Throws Error: no
    /// memory, no such page size.
    [[nodiscard]] static std::optional<WarmPiece>
    make(const Spec& spec, const NumaTopology& topology, const Workforce& workforce,
         const std::function<void(std::uint64_t bytes, const std::stop_token& stop)>& after_chunk,
         const std::stop_token& stop);

    /// Cuts a piece that was made here down to `bytes`, whole pages and no more than it has, and seals its size. It is
    /// ready to be handed over then. Throws Error.
    void cut_and_seal(std::uint64_t bytes);
    /// Whether its size cannot change any more.
    [[nodiscard]] bool is_sealed() const noexcept { return is_sealed_; }

  private:
    explicit WarmPiece(const Spec& spec);

    UniqueFd file_;
    std::uint64_t bytes_;
    std::optional<unsigned> node_;
    bool is_sealed_ = false;
};

/// Throws Error unless this host can make warm memory of `page_size`: it has such pages, and for kThp it gives huge
/// pages to shared memory (shmem_enabled).
void check_warm_page_size(PageSize page_size);

} // namespace vmm::prefault
VMM_API_END
