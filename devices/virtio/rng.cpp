#include "devices/virtio/rng.hpp"

#include <sys/random.h>

#include <algorithm>
#include <cerrno>
#include <utility>

#include "devices/virtio/mmio_transport.hpp"

namespace vmm::devices::virtio {

namespace {

constexpr std::uint16_t kQueueSize = 64;
constexpr int kMostRequestsATurn = 256;

} // namespace

Rng::Entropy Rng::host_entropy() {
    return [](std::span<std::byte> bytes) {
        while (!bytes.empty()) {
            const ssize_t count = ::getrandom(bytes.data(), bytes.size(), 0);
            if (count < 0 && errno != EINTR) {
                return false;
            }
            bytes = bytes.subspan(count < 0 ? 0 : static_cast<std::size_t>(count));
        }
        return true;
    };
}

Rng::Rng(std::string name, Entropy entropy) : entropy_(std::move(entropy)) {
    identity_.id = DeviceId::kEntropy;
    identity_.name = std::move(name);
    identity_.queue_sizes = {kQueueSize};
}

void Rng::activate(Activation activation, MmioTransport& transport) {
    transport_ = &transport;
    queue_ = std::move(activation.queues.front());
    serve();
}

void Rng::doorbell(std::uint16_t index) {
    if (index == 0) {
        serve();
    }
}

void Rng::ready(int fd, std::uint32_t /*events*/) {
    another_turn_.take(fd);
    serve();
}

void Rng::stop() {
    queue_.reset();
    transport_ = nullptr;
}

void Rng::stop_queue(std::uint16_t index) {
    if (index == 0) {
        queue_.reset();
    }
}

void Rng::restart_queue(std::uint16_t index, Queue queue) {
    if (index == 0) {
        queue_ = std::move(queue);
        serve();
    }
}

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
    if (!queue_ || queue_->is_broken()) {
        return;
    }
    std::uint64_t bytes = 0;
    int requests = 0;
    bool empty = false;
    while (!empty && bytes < kMostBytesATurn && requests < kMostRequestsATurn) {
        switch (queue_->pop(chain_)) {
        case Queue::Pop::kBroken:
            transport_->fail(queue_->why());
            empty = true; // What was answered before is told of.
            break;
        case Queue::Pop::kEmpty:
            empty = !queue_->ask_for_doorbell();
            break;
        case Queue::Pop::kChain: {
            // One byte at least, it says (5.4.6.2); a request without room for one has asked for none.
            const std::uint64_t filled = fill(chain_);
            queue_->push(chain_.head, static_cast<std::uint32_t>(filled));
            bytes += filled;
            ++requests;
            break;
        }
        }
    }
    if (!empty) {
        another_turn_.ask();
    }
    if (requests != 0 && queue_->wants_interrupt()) {
        transport_->notify_driver();
    }
}

} // namespace vmm::devices::virtio
