#include "devices/virtio/balloon.hpp"

#include <algorithm>
#include <cassert>
#include <cstring>
#include <utility>

#include "devices/virtio/mmio_transport.hpp"
#include "kvm/guest_memory.hpp"

namespace vmm::devices::virtio {

namespace {

// Feature bits (5.5.3).
constexpr std::uint64_t kDeflateOnOom = 1ULL << 2;
constexpr std::uint64_t kPageReporting = 1ULL << 5;

constexpr std::size_t kInflate = 0;
constexpr std::size_t kDeflate = 1;
constexpr std::uint16_t kQueueSize = 128;
constexpr int kMostRequestsATurn = 64;
constexpr std::uint64_t kMostPagesATurn = Balloon::kMostPages;

// The configuration space (5.5.4): num_pages, actual, and two that belong to features which are not offered.
constexpr std::size_t kConfigBytes = 16;
constexpr std::size_t kActualOffset = 4;

std::uint32_t pages_of(std::uint64_t bytes) noexcept {
    assert(bytes % Balloon::kPageBytes == 0 && bytes <= Balloon::kMostTargetBytes);
    return static_cast<std::uint32_t>(bytes / Balloon::kPageBytes);
}

} // namespace

Balloon::Balloon(std::string name, std::uint64_t target_bytes, bool reporting)
    : told_target_(pages_of(target_bytes)), target_(told_target_) {
    identity_.id = DeviceId::kBalloon;
    identity_.name = std::move(name);
    // What is in the balloon is of no use to us: a guest that runs out of memory may have it back.
    identity_.features = kDeflateOnOom | (reporting ? kPageReporting : 0);
    identity_.queue_sizes.assign(reporting ? kLastReportingQueue + 1U : 2U, kQueueSize);
    identity_.config.resize(kConfigBytes);
    std::memcpy(identity_.config.data(), &told_target_, sizeof(told_target_));
    identity_.config_writable.resize(kActualOffset + sizeof(std::uint32_t));
    std::fill(identity_.config_writable.begin() + kActualOffset, identity_.config_writable.end(), std::byte{0xff});
}

void Balloon::set_target(std::uint64_t target_bytes) noexcept {
    target_.store(pages_of(target_bytes), std::memory_order_relaxed);
    target_changed_.ask();
}

Balloon::Statistics Balloon::statistics() const noexcept {
    return {inflated_.load(std::memory_order_relaxed), deflated_.load(std::memory_order_relaxed),
            reported_.load(std::memory_order_relaxed)};
}

// --- The device's life -------------------------------------------------------------------------------------------

void Balloon::activate(Activation activation, MmioTransport& transport) {
    transport_ = &transport;
    broken_ = false;
    queues_ = std::move(activation.queues);
    serve();
}

void Balloon::doorbell(std::uint16_t /*index*/) {
    serve();
}

std::vector<Source> Balloon::sources() const {
    return {another_turn_.source(), target_changed_.source()};
}

void Balloon::ready(int fd, std::uint32_t /*events*/) {
    another_turn_.take(fd);
    target_changed_.take(fd);
    serve();
}

void Balloon::stop() {
    queues_.clear();
    transport_ = nullptr;
}

void Balloon::stop_queue(std::uint16_t index) {
    if (index < queues_.size()) {
        queues_[index].reset();
    }
}

void Balloon::restart_queue(std::uint16_t index, Queue queue) {
    if (index < queues_.size()) {
        queues_[index] = std::move(queue);
        serve();
    }
}

void Balloon::serve() {
    if (transport_ == nullptr) {
        return;
    }
    tell_target();
    bool more = false;
    for (std::size_t index = 0; index < queues_.size(); ++index) {
        more = serve_queue(index) || more;
    }
    bool wanted = false;
    for (std::optional<Queue>& queue : queues_) {
        wanted = (queue && queue->wants_interrupt()) || wanted;
    }
    if (wanted) {
        transport_->notify_driver();
    }
    if (more) {
        another_turn_.ask();
    }
}

void Balloon::tell_target() {
    const std::uint32_t now = target_.load(std::memory_order_relaxed);
    if (now != told_target_) {
        told_target_ = now;
        transport_->change_config(0, std::as_bytes(std::span(&now, 1)));
    }
}

// --- Pages -------------------------------------------------------------------------------------------------------

/// Returns whether there may be more.
bool Balloon::serve_queue(std::size_t index) {
    std::optional<Queue>& queue = queues_[index];
    if (!queue || queue->is_broken() || broken_) {
        return false;
    }
    std::uint64_t bytes = 0;
    for (int requests = 0; requests < kMostRequestsATurn && bytes < kMostPagesATurn * sizeof(std::uint32_t);) {
        switch (queue->pop(chain_)) {
        case Queue::Pop::kBroken:
            transport_->fail(queue->why());
            return false;
        case Queue::Pop::kEmpty:
            if (!queue->ask_for_doorbell()) {
                return false;
            }
            break;
        case Queue::Pop::kChain: {
            const bool good = answer(index, chain_);
            queue->push(chain_.head, 0);
            if (!good) {
                broken_ = true;
                transport_->fail("a page of the balloon is no RAM (virtio 1.2, 5.5.6)");
                return false;
            }
            bytes += chain_.readable_bytes;
            ++requests;
            break;
        }
        }
    }
    return true;
}

/// False where the driver named what is no RAM.
bool Balloon::answer(std::size_t index, const Chain& chain) {
    if (index == kInflate) {
        return inflate(chain);
    }
    if (index == kDeflate) { // The host gives the guest a new page when it touches one: nothing is to be done.
        deflated_.fetch_add(chain.readable_bytes / sizeof(std::uint32_t) * kPageBytes, std::memory_order_relaxed);
        return true;
    }
    release_reported(chain);
    return true;
}

/// Gives back the pages whose numbers are the readable bytes of `chain`. Of a number that is there in part only, or
/// beyond kMostPages, nothing is known.
bool Balloon::inflate(const Chain& chain) {
    constexpr std::uint64_t kMostAtOnce = 1024;
    const std::uint64_t count = std::min(chain.readable_bytes / sizeof(std::uint32_t), kMostPages);
    for (std::uint64_t done = 0; done < count; done += kMostAtOnce) {
        pages_.resize(std::min(kMostAtOnce, count - done));
        copy_from(chain, done * sizeof(std::uint32_t), std::as_writable_bytes(std::span(pages_)));
        if (!release_pages(pages_)) {
            return false;
        }
    }
    return true;
}

/// Neighbours go together: each call costs the host a flush of what the vCPUs' processors know of the page tables.
bool Balloon::release_pages(std::span<std::uint32_t> pages) {
    const GuestMemory& memory = transport_->memory();
    const auto bytes_of = [&memory](std::uint64_t page, std::uint64_t count) {
        return memory.at({GuestAddress{page * kPageBytes}, count * kPageBytes});
    };
    // All of these or none: a request that is wrong in one number may be wrong in all of them.
    if (!std::all_of(pages.begin(), pages.end(), [&](std::uint32_t page) { return bytes_of(page, 1).has_value(); })) {
        return false;
    }
    std::sort(pages.begin(), pages.end());
    const auto end = std::unique(pages.begin(), pages.end());
    for (auto first = pages.begin(); first != end;) {
        auto next = first + 1;
        // Up to where there is a gap, or another region begins.
        while (next != end && *next == *(next - 1) + 1 &&
               bytes_of(*first, static_cast<std::uint64_t>(next - first) + 1)) {
            ++next;
        }
        const auto count = static_cast<std::uint64_t>(next - first);
        if (memory.discard(*bytes_of(*first, count))) {
            inflated_.fetch_add(count * kPageBytes, std::memory_order_relaxed);
        }
        first = next;
    }
    return true;
}

void Balloon::release_reported(const Chain& chain) {
    for (const std::span<std::byte> pages : chain.writable) { // Checked to be RAM when the chain was taken.
        if (transport_->memory().discard(pages)) {
            reported_.fetch_add(pages.size(), std::memory_order_relaxed);
        }
    }
}

} // namespace vmm::devices::virtio
