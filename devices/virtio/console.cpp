#include "devices/virtio/console.hpp"

#include <algorithm>
#include <array>
#include <cstring>
#include <utility>

#include "devices/virtio/driver_link.hpp"
#include "kvm/host/error.hpp"

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

Identity identity_of(std::string name, const std::optional<ConsoleSize>& size) {
    Identity identity;
    identity.id = DeviceId::kConsole;
    identity.name = std::move(name);
    identity.features = size ? kSize : 0;
    identity.queue_sizes = {kQueueSize, kQueueSize};
    const auto config = bytes_of(size.value_or(ConsoleSize{}));
    identity.config.assign(config.begin(), config.end());
    return identity;
}

} // namespace

Console::Console(std::string name, Callbacks callbacks, std::optional<ConsoleSize> size, std::size_t output_capacity,
                 const ConsoleState& state)
    : SynchronousDevice(identity_of(std::move(name), size)), callbacks_(std::move(callbacks)),
      has_size_(size.has_value()), told_size_(state.told_size.value_or(size.value_or(ConsoleSize{}))),
      output_(output_capacity), dropped_output_bytes_(state.dropped_output_bytes), size_(size.value_or(ConsoleSize{})) {
    if (state.output.size() > output_.room() || state.input.size() > input_.room()) {
        throw Error("cannot restore the device " + identity().name + ": it holds more characters than it has room for");
    }
    output_.push(state.output);
    input_.push(state.input);
    if (!output_.empty()) {
        host_spoke_.ask();
    }
}

DeviceState Console::state() const {
    const std::lock_guard lock(mutex_);
    ConsoleState state{output_.contents(), input_.contents(), dropped_output_bytes_, std::nullopt};
    if (has_size_) {
        state.told_size = told_size_;
    }
    return state;
}

// ---- The host's side

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

// ---- Turns

std::vector<Source> Console::sources() const {
    std::vector<Source> sources = SynchronousDevice::sources();
    sources.push_back(host_spoke_.source());
    return sources;
}

void Console::look_at_source(int fd) {
    host_spoke_.take(fd);
    announce_output();
}

void Console::serve() {
    tell_size();
    take_from_guest();
    give_to_guest();
}

void Console::tell_size() {
    ConsoleSize now;
    {
        const std::lock_guard lock(mutex_);
        now = size_;
    }
    if (now != told_size_) {
        told_size_ = now;
        driver().change_config(0, bytes_of(now));
    }
}

// ---- Characters

void Console::take_from_guest() {
    std::uint64_t bytes = 0;
    for (int requests = 0; requests < kMostRequestsATurn && bytes < kMostBytesATurn; ++requests) {
        if (!take(kTransmit, chain_)) {
            return;
        }
        print(chain_);
        bytes += chain_.readable_bytes;
        working_queue(kTransmit)->push(chain_.head, 0);
    }
    ask_for_another_turn();
}

void Console::print(const Chain& chain) {
    {
        const std::lock_guard lock(mutex_);
        std::uint64_t printed = 0;
        for (const std::span<std::byte> buffer : chain.readable) {
            printed += output_.push(buffer);
        }
        dropped_output_bytes_ += chain.readable_bytes - printed;
    }
    announce_output();
}

void Console::announce_output() {
    bool announce = false;
    {
        const std::lock_guard lock(mutex_);
        announce = !output_announced_ && !output_.empty();
        output_announced_ = output_announced_ || announce;
    }
    if (announce && callbacks_.output_ready) {
        callbacks_.output_ready();
    }
}

bool Console::has_input() const {
    const std::lock_guard lock(mutex_);
    return !input_.empty();
}

void Console::give_to_guest() {
    for (int requests = 0; requests < kMostRequestsATurn; ++requests) {
        if (!has_input() || !take(kReceive, chain_)) {
            return; // The guest reports when it has room.
        }
        std::uint32_t count = 0;
        bool room = false;
        {
            const std::lock_guard lock(mutex_);
            for (const std::span<std::byte> buffer : chain_.writable) {
                count += static_cast<std::uint32_t>(input_.pop(buffer));
            }
            room = input_blocked_ && count != 0;
            input_blocked_ = input_blocked_ && count == 0;
        }
        working_queue(kReceive)->push(chain_.head, count);
        if (room && callbacks_.input_room_ready) {
            callbacks_.input_room_ready();
        }
    }
    ask_for_another_turn();
}

} // namespace vmm::devices::virtio
