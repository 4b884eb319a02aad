// For programs that start guests: a pool of warm memory.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <stop_token>
#include <string>

#include "kvm/host/export.hpp"
#include "kvm/host/guest_memory.hpp"
#include "prefault/host/warm_memory.hpp" // IWYU pragma: export
#include "vmm/log.hpp"
#include "vmm/stop_request.hpp"

VMM_API_BEGIN
namespace vmm {

/// The settings of a MemoryPool. A value.
struct MemoryPoolConfig {
    std::string path{};                  ///< the unix socket that it serves, at most 107 bytes
    std::uint64_t size_bytes = 0;        ///< how much is kept ready: whole pieces
    std::uint64_t piece_bytes = kGiB;    ///< of each piece: a multiple of 2 MiB and of the page size
    PageSize page_size = PageSize::k2M;  ///< kThp needs shmem_enabled other than `never`
    bool split_over_nodes = false;       ///< equally many pieces on each node with memory, for guests with split memory
    unsigned workers = 1;                ///< threads that make a piece together, 1 to prefault::kMaxWorkers
    std::uint64_t bytes_per_second = 0;  ///< how fast memory is made at most; 0: as fast as it can be
    bool refills = true;                 ///< whether new pieces are made for those that were handed out
    LogSink log{};                       ///< it is called with what was handed out, and what fails
    std::shared_ptr<StopRequest> stop{}; ///< ends serve(); null: the pool has a request of its own
    /// It is called on a thread of the pool whenever all of `size_bytes` is ready. It must not throw, and may be empty.
    std::function<void()> filled{};

    static constexpr std::size_t kMostPieces = 16384;

    /// Throws Error if no host can give what it asks for.
    void check() const;
};

/// A service that keeps memory ready for guests, in pieces whose pages exist and are zero. Each piece goes once to a
/// machine whose Config::memory_from names the pool's socket, and never comes back: when a guest ends, the kernel gets
/// its memory, and the pool makes new pieces in the background, at nice 19. So no guest sees what another one wrote.
///
/// It serves its own user and root. Guests go on running if the pool ends.
///
///     MemoryPool pool({.path = "/run/vmm.pool", .size_bytes = 8 * kGiB});
///     pool.serve(); // until request_stop()
///
/// Threads: serve() is for one thread, the other functions are for any.
class MemoryPool {
  public:
    /// Makes the socket; from then on clients wait. Throws Error if `config` asks for something impossible, or if the
    /// host has too little memory.
    explicit MemoryPool(MemoryPoolConfig config);
    ~MemoryPool();
    MemoryPool(const MemoryPool&) = delete;
    MemoryPool& operator=(const MemoryPool&) = delete;

    /// Makes pieces and hands them out until a stop is requested. If memory cannot be made, it logs this and tries
    /// again every second. Throws Error if the host fails otherwise, and what the log throws.
    void serve();
    /// Ends serve() soon. May be called from a signal handler.
    void request_stop() noexcept;

    [[nodiscard]] std::size_t ready_pieces() const;
    [[nodiscard]] bool is_full() const;

  private:
    struct __attribute__((visibility("hidden"))) Parts;
    std::unique_ptr<Parts> parts_;
};

} // namespace vmm
VMM_API_END
