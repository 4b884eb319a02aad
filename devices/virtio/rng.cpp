#include "devices/virtio/rng.hpp"

#include <sys/random.h>

#include <algorithm>
#include <cerrno>
#include <utility>

#include "kvm/host/retry.hpp"

namespace vmm::devices::virtio {

namespace {

constexpr std::uint16_t kRequests = 0;
constexpr std::uint16_t kQueueSize = 64;
constexpr int kMostRequestsATurn = 256;

Identity identity_of(std::string name) {
    Identity identity;
    identity.id = DeviceId::kEntropy;
    identity.name = std::move(name);
    identity.queue_sizes = {kQueueSize};
    return identity;
}

} // namespace

Rng::Entropy Rng::host_entropy() {
    return [](std::span<std::byte> bytes) {
        while (!bytes.empty()) {
            const ssize_t count = uninterrupted([&] { return ::getrandom(bytes.data(), bytes.size(), 0); });
            if (count < 0) {
                return false;
            }
            bytes = bytes.subspan(static_cast<std::size_t>(count));
        }
        return true;
    };
}

Rng::Rng(std::string name, Entropy entropy)
    : SynchronousDevice(identity_of(std::move(name))), entropy_(std::move(entropy)) {}

std::uint64_t Rng::fill(const Chain& chain) {
    std::uint64_t filled = 0;
    for (const std::span<std::byte> buffer : chain.writable) {
        const std::uint64_t count = std::min<std::uint64_t>(buffer.size(), kMostBytes - filled);
        if (!entropy_(buffer.first(count))) {
            break;
        }
        filled += count;
    }
    return filled;
}

void Rng::serve() {
    std::uint64_t bytes = 0;
    for (int requests = 0; bytes < kMostBytesATurn && requests < kMostRequestsATurn; ++requests) {
        if (!take(kRequests, chain_)) {
            return;
        }
        // The specification requires at least one byte (5.4.6.2). A request without room for a byte has asked for none.
        const std::uint64_t filled = fill(chain_);
        working_queue(kRequests)->push(chain_.head, static_cast<std::uint32_t>(filled));
        bytes += filled;
    }
    ask_for_another_turn();
}

} // namespace vmm::devices::virtio
