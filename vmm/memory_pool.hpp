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

/// What a MemoryPool is made from. A value.
struct MemoryPoolConfig {
    std::string path{};                  ///< the unix socket that it serves, at most 107 bytes
    std::uint64_t size_bytes = 0;        ///< how much is kept ready: whole pieces
    std::uint64_t piece_bytes = kGiB;    ///< of each piece: a multiple of 2 MiB and of the page size
    PageSize page_size = PageSize::k2M;  ///< kThp needs shmem_enabled other than `never`
    bool split_over_nodes = false;       ///< as many pieces on each node with memory, for guests with split memory
    unsigned workers = 1;                ///< threads that make a piece together, 1 to prefault::kMaxWorkers
    std::uint64_t bytes_per_second = 0;  ///< how fast memory is made at most; 0: as fast as it can be
    bool refills = true;                 ///< whether new pieces are made for those that were handed out
    LogSink log{};                       ///< is told what was handed out, and what fails
    std::shared_ptr<StopRequest> stop{}; ///< ends serve(); null: the pool has a request of its own
    /// It is called whenever all of `size_bytes` is ready, on a thread of the pool's. It does not throw, and may be
    /// empty.
    std::function<void()> filled{};

    static constexpr std::size_t kMostPieces = 16384;

    /// Throws Error if it asks for what no host can give.
    void check() const;
};

/// A service that keeps memory ready for guests: pieces of memory whose pages exist and are zero. It hands them to
/// machines whose Config::memory_from names its socket, each piece once. It never takes one back: when a guest ends,
/// its memory goes to the kernel, and the pool makes new pieces in the background, at nice 19. So no guest sees what
/// another one wrote. It serves its own user and root. If the pool ends, guests that run are not concerned.
///
///     MemoryPool pool({.path = "/run/vmm.pool", .size_bytes = 8 * kGiB});
///     pool.serve(); // until request_stop()
///
/// Threads: serve() one, the rest any.
class MemoryPool {
  public:
    /// Makes the socket; from then on clients wait. Throws Error: `config` asks for what cannot be, or the host has too
    /// little.
    explicit MemoryPool(MemoryPoolConfig config);
    ~MemoryPool();
    MemoryPool(const MemoryPool&) = delete;
    MemoryPool& operator=(const MemoryPool&) = delete;

    /// Makes pieces and hands them out until a stop is requested. If memory cannot be made, the log hears of it, and it
    /// is tried again every second. Throws Error if the host fails otherwise, and what the log throws.
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
