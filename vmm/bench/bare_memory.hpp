// Memory like a guest's, for a program that does nothing else with it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "kvm/host/guest_memory.hpp"
#include "vmm/stop_request.hpp"

namespace vmm {
class GuestRam;
} // namespace vmm

namespace vmm::bench {

/// Memory as a guest of this size would have it. Threads: one.
class BareMemory {
  public:
    /// One of the equal parts of the memory.
    struct Piece {
        std::uint64_t offset; ///< within all of memory, without its gaps
        std::span<std::byte> bytes;
    };

    /// `bytes` must be a multiple of 2 MiB. Throws Error if there is too little memory.
    BareMemory(std::uint64_t bytes, PageSize page_size, unsigned workers);
    ~BareMemory();
    BareMemory(const BareMemory&) = delete;
    BareMemory& operator=(const BareMemory&) = delete;

    /// Populates the pages with `workers` threads. Returns how long that took, including the making of the memory, in
    /// seconds; nothing if `stop` was requested before the end.
    [[nodiscard]] std::optional<double> populate(const StopRequest& stop);
    /// All pieces, in order, of 2 MiB each.
    [[nodiscard]] std::vector<Piece> pieces() const;

  private:
    unsigned workers_;
    double making_seconds_ = 0;
    std::unique_ptr<GuestRam> ram_;
};

} // namespace vmm::bench
