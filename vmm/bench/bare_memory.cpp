#include "vmm/bench/bare_memory.hpp"

#include <chrono>

#include "kvm/host/stopwatch.hpp"
#include "prefault/host/populate.hpp"
#include "vmm/config.hpp"
#include "vmm/machine/guest_ram.hpp"
#include "vmm/machine/stop_bridge.hpp"

namespace vmm::bench {

namespace {

constexpr std::uint64_t kBarePieceBytes = 2 * kMiB;

} // namespace

BareMemory::BareMemory(std::uint64_t bytes, PageSize page_size, unsigned workers) : workers_(workers) {
    Config config;
    config.memory_bytes = bytes;
    config.page_size = page_size;
    config.prefault.workers = workers;
    const auto start = std::chrono::steady_clock::now();
    ram_ = std::make_unique<GuestRam>(config, std::stop_token());
    making_seconds_ = seconds_since(start);
}

BareMemory::~BareMemory() = default;

std::optional<double> BareMemory::populate(const StopRequest& stop) {
    const StopBridge bridge(stop);
    const auto start = std::chrono::steady_clock::now();
    if (!prefault::populate_host(ram_->memory(), ram_->placement().ranges, {workers_, {}, {}, false, {}},
                                 bridge.token())) {
        return std::nullopt;
    }
    return making_seconds_ + seconds_since(start);
}

std::vector<BareMemory::Piece> BareMemory::pieces() const {
    std::vector<Piece> pieces;
    std::uint64_t offset = 0;
    for (const MemoryRegion& region : ram_->memory().regions()) {
        for (std::uint64_t at = 0; at < region.range.size; at += kBarePieceBytes) {
            pieces.push_back({offset, region.bytes().subspan(at, kBarePieceBytes)});
            offset += kBarePieceBytes;
        }
    }
    return pieces;
}

} // namespace vmm::bench
