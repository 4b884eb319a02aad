#include "devices/virtio/console.hpp"

#include <algorithm>
#include <array>
#include <cstring>
#include <utility>

#include "devices/virtio/mmio_transport.hpp"

namespace vmm::devices::virtio {

namespace {

constexpr std::uint64_t kSize = 1ULL << 0;
constexpr std::uint16_t kReceive = 0;
constexpr std::uint16_t kTransmit = 1;
constexpr std::uint16_t kQueueSize = 64;
constexpr int kMostRequestsATurn = 256;

std::array<std::byte, 4> bytes_of(ConsoleSize size) { // cols, rows (5.3.4)
    const std::array<std::uint16_t, 2> fields{size.columns, size.rows};
    std::array<std::byte, 4> bytes{};
    std::memcpy(bytes.data(), fields.data(), bytes.size());
    return bytes;
}

} // namespace

Console::Console(std::string name, Callbacks callbacks, std::optional<ConsoleSize> size, std::size_t output_capacity)
    : callbacks_(std::move(callbacks)), has_size_(size.has_value()), told_size_(size.value_or(ConsoleSize{})),
      output_(output_capacity), size_(told_size_) {
    identity_.id = DeviceId::kConsole;
    identity_.name = std::move(name);
    identity_.features = has_size_ ? kSize : 0;
    identity_.queue_sizes = {kQueueSize, kQueueSize};
    const auto config = bytes_of(told_size_);
    identity_.config.assign(config.begin(), config.end());
}

// --- The host's side ---------------------------------------------------------------------------------------------

void Console::resize(ConsoleSize size) noexcept {
    if (!has_size_) {
        return;
    }
    {
        const std::lock_guard lock(mutex_);
        size_ = size;
    }
    host_spoke_.ask();
}

std::size_t Console::take_output(std::span<std::byte> out) noexcept {
    const std::lock_guard lock(mutex_);
    const std::size_t count = output_.pop(out);
    output_announced_ = output_announced_ && (count != 0 || out.empty());
    return count;
}

std::uint64_t Console::dropped_output_bytes() const noexcept {
    const std::lock_guard lock(mutex_);
    return dropped_output_bytes_;
}

std::size_t Console::feed_input(std::span<const std::byte> bytes) noexcept {
    std::size_t count = 0;
    {
        const std::lock_guard lock(mutex_);
        count = input_.push(bytes);
        input_blocked_ = input_blocked_ || count < bytes.size();
    }
    if (count != 0) {
        host_spoke_.ask();
    }
    return count;
}

// --- The device's life -------------------------------------------------------------------------------------------

void Console::activate(Activation activation, MmioTransport& transport) {
    transport_ = &transport;
    queues_ = std::move(activation.queues);
    serve();
}

void Console::doorbell(std::uint16_t /*index*/) {
    serve();
}

std::vector<Source> Console::sources() const {
    return {another_turn_.source(), host_spoke_.source()};
}

void Console::ready(int fd, std::uint32_t /*events*/) {
    another_turn_.take(fd);
    host_spoke_.take(fd);
    serve();
}

void Console::stop() {
    queues_.clear();
    transport_ = nullptr;
}

void Console::stop_queue(std::uint16_t index) {
    if (index < queues_.size()) {
        queues_[index].reset();
    }
}

void Console::restart_queue(std::uint16_t index, Queue queue) {
    if (index < queues_.size()) {
        queues_[index] = std::move(queue);
        serve();
    }
}

void Console::serve() {
    if (transport_ == nullptr) {
        return;
    }
    tell_size();
    const bool more_output = take_from_guest();
    const bool more_input = give_to_guest();
    bool wanted = false;
    for (std::optional<Queue>& queue : queues_) {
        wanted = (queue && queue->wants_interrupt()) || wanted;
    }
    if (wanted) {
        transport_->notify_driver();
    }
    if (more_output || more_input) {
        another_turn_.ask();
    }
}

void Console::tell_size() {
    ConsoleSize now;
    {
        const std::lock_guard lock(mutex_);
        now = size_;
    }
    if (now != told_size_) {
        told_size_ = now;
        transport_->change_config(0, bytes_of(now));
    }
}

// --- Characters --------------------------------------------------------------------------------------------------

/// Returns whether there may be more.
bool Console::take_from_guest() {
    std::optional<Queue>& queue = queues_[kTransmit];
    if (!queue || queue->is_broken()) {
        return false;
    }
    std::uint64_t bytes = 0;
    for (int requests = 0; requests < kMostRequestsATurn && bytes < kMostBytesATurn;) {
        switch (queue->pop(chain_)) {
        case Queue::Pop::kBroken:
            transport_->fail(queue->why());
            return false;
        case Queue::Pop::kEmpty:
            if (!queue->ask_for_doorbell()) {
                return false;
            }
            break;
        case Queue::Pop::kChain:
            print(chain_);
            bytes += chain_.readable_bytes;
            queue->push(chain_.head, 0);
            ++requests;
            break;
        }
    }
    return true;
}

void Console::print(const Chain& chain) {
    bool announce = false;
    {
        const std::lock_guard lock(mutex_);
        std::uint64_t printed = 0;
        for (const std::span<std::byte> buffer : chain.readable) {
            printed += output_.push(buffer);
        }
        dropped_output_bytes_ += chain.readable_bytes - printed;
        announce = !output_announced_ && !output_.empty();
        output_announced_ = output_announced_ || announce;
    }
    if (announce && callbacks_.output_ready) {
        callbacks_.output_ready();
    }
}

/// Returns whether there may be more.
bool Console::give_to_guest() {
    std::optional<Queue>& queue = queues_[kReceive];
    if (!queue || queue->is_broken()) {
        return false;
    }
    for (int requests = 0; requests < kMostRequestsATurn;) {
        bool room = false;
        {
            const std::lock_guard lock(mutex_);
            if (input_.empty()) {
                return false;
            }
        }
        switch (queue->pop(chain_)) {
        case Queue::Pop::kBroken:
            transport_->fail(queue->why());
            return false;
        case Queue::Pop::kEmpty:
            if (!queue->ask_for_doorbell()) {
                return false; // The guest says when it has room.
            }
            break;
        case Queue::Pop::kChain: {
            std::uint32_t count = 0;
            {
                const std::lock_guard lock(mutex_);
                for (const std::span<std::byte> buffer : chain_.writable) {
                    count += static_cast<std::uint32_t>(input_.pop(buffer));
                }
                room = std::exchange(input_blocked_, input_blocked_ && count == 0);
                room = room && !input_blocked_;
            }
            queue->push(chain_.head, count);
            ++requests;
            break;
        }
        }
        if (room && callbacks_.input_room_ready) {
            callbacks_.input_room_ready();
        }
    }
    return true;
}

} // namespace vmm::devices::virtio
