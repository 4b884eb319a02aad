#include "devices/virtio/memory_device.hpp"

#include <algorithm>
#include <array>
#include <bit>
#include <cassert>
#include <cstddef>
#include <cstring>
#include <span>
#include <utility>

#include "devices/virtio/driver_link.hpp"
#include "kvm/host/error.hpp"

namespace vmm::devices::virtio {

namespace {

// Feature bits (5.15.3).
constexpr std::uint64_t kAcpiPxm = 1ULL << 0;
constexpr std::uint64_t kUnpluggedInaccessible = 1ULL << 1;

constexpr std::uint16_t kRequests = 0;
constexpr std::uint16_t kQueueSize = 128;
constexpr int kMostRequestsATurn = 64;

/// The configuration space (5.15.4).
struct ConfigSpace {
    std::uint64_t block_size = 0;
    std::uint16_t node_id = 0;
    std::array<std::uint8_t, 6> padding{};
    std::uint64_t addr = 0;
    std::uint64_t region_size = 0;
    std::uint64_t usable_region_size = 0;
    std::uint64_t plugged_size = 0;
    std::uint64_t requested_size = 0;
};
static_assert(sizeof(ConfigSpace) == 56);

/// A request, and its answer (5.15.6).
struct RequestBytes {
    std::uint16_t type = 0;
    std::array<std::uint16_t, 3> padding{};
    std::uint64_t address = 0;
    std::uint16_t blocks = 0;
    std::array<std::uint16_t, 3> more_padding{};
};
static_assert(sizeof(RequestBytes) == 24);

constexpr std::size_t kAnswerBytes = 10;
constexpr std::size_t kStateOffset = 8;

// The answers to a request for the state.
constexpr std::uint16_t kPlugged = 0;
constexpr std::uint16_t kUnplugged = 1;
constexpr std::uint16_t kMixed = 2;

Identity identity_of(std::string name, const MemoryDevice::Settings& settings, std::uint64_t requested,
                     std::uint64_t plugged) {
    ConfigSpace config;
    config.block_size = settings.block_bytes;
    config.node_id = settings.node.value_or(0);
    config.addr = to_integer(settings.region.base);
    config.region_size = settings.region.size;
    config.usable_region_size = settings.region.size;
    config.plugged_size = plugged;
    config.requested_size = requested;
    Identity identity;
    identity.id = DeviceId::kMemory;
    identity.name = std::move(name);
    identity.features = kUnpluggedInaccessible | (settings.node ? kAcpiPxm : 0);
    identity.queue_sizes = {kQueueSize};
    identity.config.resize(sizeof(config));
    std::memcpy(identity.config.data(), &config, sizeof(config));
    return identity;
}

std::uint64_t blocks_in(const MemoryDevice::Settings& settings) noexcept {
    return settings.region.size / settings.block_bytes;
}

std::uint64_t requested_in(const MemoryState& state, const MemoryDevice::Settings& settings) noexcept {
    return state.address != 0 ? state.requested_bytes : settings.requested_bytes;
}

/// Throws Error if `state` is not that of a device with `settings`.
void check_state(const MemoryState& state, const MemoryDevice::Settings& settings) {
    const std::uint64_t blocks = blocks_in(settings);
    const auto is_amount = [&](std::uint64_t bytes) {
        return bytes <= settings.region.size && bytes % settings.block_bytes == 0;
    };
    bool is_right = state.address == to_integer(settings.region.base) && state.block_bytes == settings.block_bytes &&
                    state.plugged.size() == (blocks + 7) / 8 && is_amount(state.requested_bytes) &&
                    is_amount(state.told_bytes) && state.done_blocks <= blocks;
    for (std::uint64_t bit = blocks; is_right && bit < state.plugged.size() * 8; ++bit) {
        is_right = (state.plugged[bit / 8] >> (bit % 8) & std::byte{1}) == std::byte{0};
    }
    if (!is_right) {
        throw Error("cannot restore the memory that a guest can be given while it runs: the state is of another region "
                    "of memory (Config::memory_max_bytes and Config::page_size have to be the same)");
    }
}

std::uint64_t plugged_bytes_in(const MemoryState& state, const MemoryDevice::Settings& settings) {
    if (state.address == 0) {
        return 0;
    }
    check_state(state, settings);
    std::uint64_t blocks = 0;
    for (const std::byte byte : state.plugged) {
        blocks += static_cast<std::uint64_t>(std::popcount(static_cast<unsigned>(byte)));
    }
    return blocks * settings.block_bytes;
}

} // namespace

MemoryDevice::MemoryDevice(std::string name, const Settings& settings, const MemoryState& state)
    : SynchronousDevice(
          identity_of(std::move(name), settings, requested_in(state, settings), plugged_bytes_in(state, settings))),
      settings_(settings), plugged_(blocks_in(settings)), done_(state.address != 0 ? state.done_blocks : 0),
      told_bytes_(state.address != 0 ? state.told_bytes : settings.requested_bytes),
      requested_bytes_(requested_in(state, settings)), plugged_bytes_(plugged_bytes_in(state, settings)) {
    assert(std::has_single_bit(settings.block_bytes) && settings.block_bytes >= 4096 && settings.region.size != 0);
    assert(to_integer(settings.region.base) % settings.block_bytes == 0 &&
           settings.region.size % settings.block_bytes == 0 && blocks() <= kMostBlocks);
    assert(settings.requested_bytes <= settings.region.size && settings.requested_bytes % settings.block_bytes == 0);
    if (state.address != 0) {
        for (std::uint64_t block = 0; block < blocks(); ++block) {
            plugged_[block] = (state.plugged[block / 8] >> (block % 8) & std::byte{1}) != std::byte{0};
        }
    }
}

DeviceState MemoryDevice::state() const {
    MemoryState state;
    state.address = to_integer(settings_.region.base);
    state.block_bytes = settings_.block_bytes;
    state.plugged.resize((blocks() + 7) / 8);
    for (std::uint64_t block = 0; block < blocks(); ++block) {
        if (plugged_[block]) {
            state.plugged[block / 8] |= std::byte{1} << (block % 8);
        }
    }
    state.requested_bytes = requested_bytes_.load(std::memory_order_relaxed);
    state.told_bytes = told_bytes_;
    state.done_blocks = done_;
    return state;
}

std::vector<GuestRange> MemoryDevice::plugged_in(const MemoryState& state, const Settings& settings) {
    std::vector<GuestRange> ranges;
    if (state.address == 0) {
        return ranges;
    }
    check_state(state, settings);
    for (std::uint64_t block = 0; block < blocks_in(settings); ++block) {
        if ((state.plugged[block / 8] >> (block % 8) & std::byte{1}) == std::byte{0}) {
            continue;
        }
        const GuestAddress base{to_integer(settings.region.base) + block * settings.block_bytes};
        if (!ranges.empty() && ranges.back().end() == base) {
            ranges.back().size += settings.block_bytes;
        } else {
            ranges.push_back({base, settings.block_bytes});
        }
    }
    return ranges;
}

void MemoryDevice::set_requested(std::uint64_t bytes) noexcept {
    assert(bytes <= settings_.region.size && bytes % settings_.block_bytes == 0);
    requested_bytes_.store(bytes, std::memory_order_relaxed);
    target_changed_.ask();
}

MemoryDevice::Statistics MemoryDevice::statistics() const noexcept {
    return {requested_bytes_.load(std::memory_order_relaxed), plugged_bytes_.load(std::memory_order_relaxed),
            refused_.load(std::memory_order_relaxed)};
}

std::vector<Source> MemoryDevice::sources() const {
    std::vector<Source> sources = SynchronousDevice::sources();
    sources.push_back(target_changed_.source());
    sources.push_back(work_.source());
    return sources;
}

// ---- Turns

void MemoryDevice::begin(std::uint64_t /*features*/) {
    link_ = &driver();
}

void MemoryDevice::forget_queue(std::uint16_t /*index*/) noexcept {
    request_.is_under_way = false;
    is_of_request_ = false;
    done_ = 0;
    work_.cancel();
}

std::uint16_t MemoryDevice::put_back(std::uint16_t /*index*/) noexcept {
    work_.cancel();
    return std::exchange(request_.is_under_way, false) ? 1 : 0; // What is done of the request remains done.
}

/// The result is recorded in any state of the device, because the guest's memory has changed.
void MemoryDevice::look_at_work_outside(int fd) {
    if (fd != work_.source().fd) {
        return;
    }
    const std::optional<MemoryOutcome> outcome = work_.take_outcome();
    if (!outcome) {
        return;
    }
    if (*outcome == MemoryOutcome::kCannot) {
        refused_.fetch_add(1, std::memory_order_relaxed);
        has_failed_ = is_of_request_;
    }
    if (*outcome != MemoryOutcome::kDone) {
        return;
    }
    const std::uint64_t first = block_at(asked_.range.base);
    const std::uint64_t count = asked_.range.size / settings_.block_bytes;
    for (std::uint64_t block = first; block < first + count; ++block) {
        plugged_[block] = asked_.plug;
    }
    const std::uint64_t bytes = count_plugged(0, blocks()) * settings_.block_bytes;
    plugged_bytes_.store(bytes, std::memory_order_relaxed);
    link_->note_config(offsetof(ConfigSpace, plugged_size), std::as_bytes(std::span(&bytes, 1)));
    if (is_of_request_) {
        done_ = request_.goes_back ? done_ - count : done_ + count;
    }
}

void MemoryDevice::serve() {
    tell_target();
    for (int requests = 0; requests < kMostRequestsATurn; ++requests) {
        if (has_work_outside() || working_queue(kRequests) == nullptr || (!request_.is_under_way && !take_request())) {
            return;
        }
        if (const std::optional<Answer> answer = go_on()) {
            give(*answer);
        }
    }
    ask_for_another_turn();
}

void MemoryDevice::tell_target() {
    const std::uint64_t now = requested_bytes_.load(std::memory_order_relaxed);
    if (now != told_bytes_) {
        told_bytes_ = now;
        driver().change_config(offsetof(ConfigSpace, requested_size), std::as_bytes(std::span(&now, 1)));
    }
}

// ---- Requests

bool MemoryDevice::take_request() {
    if (!take(kRequests, request_.chain)) {
        return false;
    }
    RequestBytes bytes;
    if (request_.chain.readable_bytes < sizeof(bytes) || request_.chain.writable_bytes < kAnswerBytes) {
        working_queue(kRequests)->push(request_.chain.head, 0);
        driver().fail("a request for memory is too short, or has no room for the answer (virtio 1.2, 5.15.6)");
        return false;
    }
    copy_from(request_.chain, 0, std::as_writable_bytes(std::span(&bytes, 1)));
    request_.is_under_way = true;
    request_.goes_back = false;
    request_.kind = static_cast<Kind>(bytes.type);
    request_.refusal = refusal_of(bytes.type, bytes.address, bytes.blocks);
    request_.first = request_.refusal ? 0 : block_at(GuestAddress{bytes.address});
    request_.count = bytes.blocks;
    has_failed_ = false;
    is_of_request_ = true;
    return true;
}

/// The answer to a request that is not possible (5.15.6.2). Nothing if it is possible, or if it names no block.
std::optional<MemoryDevice::Answer> MemoryDevice::refusal_of(std::uint16_t kind, std::uint64_t address,
                                                             std::uint64_t count) {
    if (kind == static_cast<std::uint16_t>(Kind::kUnplugAll)) {
        done_ = 0;
        return std::nullopt;
    }
    const std::uint64_t base = to_integer(settings_.region.base);
    const std::uint64_t done = std::exchange(done_, 0);
    if (kind > static_cast<std::uint16_t>(Kind::kState) || count == 0 || address < base ||
        address - base >= settings_.region.size || (address - base) % settings_.block_bytes != 0 ||
        count > blocks() - (address - base) / settings_.block_bytes) {
        return Answer::kError;
    }
    if (kind == static_cast<std::uint16_t>(Kind::kState)) {
        return std::nullopt;
    }
    // The part that was done before a pause is already in the requested state, and the rest is not.
    const std::uint64_t first = block_at(GuestAddress{address});
    const bool plug = kind == static_cast<std::uint16_t>(Kind::kPlug);
    const auto as_wanted = [&](std::uint64_t from, std::uint64_t blocks) {
        const std::uint64_t plugged = count_plugged(from, blocks);
        return plug ? plugged : blocks - plugged;
    };
    if (done > count || as_wanted(first, done) != done || as_wanted(first + done, count - done) != 0) {
        return Answer::kError;
    }
    const std::uint64_t after = plugged_bytes_.load(std::memory_order_relaxed) + count * settings_.block_bytes;
    if (plug && done == 0 && after > requested_bytes_.load(std::memory_order_relaxed)) {
        return Answer::kNack;
    }
    done_ = done;
    return std::nullopt;
}

/// The answer to the request that is under way; nothing if the host was given a step of it.
std::optional<MemoryDevice::Answer> MemoryDevice::go_on() {
    if (request_.refusal) {
        return request_.refusal;
    }
    switch (request_.kind) {
    case Kind::kPlug:
    case Kind::kUnplug:
        return step(request_.kind == Kind::kPlug);
    case Kind::kUnplugAll:
        return step_of_all();
    case Kind::kState:
        break;
    }
    return Answer::kAck;
}

std::optional<MemoryDevice::Answer> MemoryDevice::step(bool plug) {
    if (std::exchange(has_failed_, false)) {
        if (request_.goes_back) {
            driver().fail("the host can neither do what was asked for nor undo it");
            return Answer::kError;
        }
        request_.goes_back = true;
    }
    if (request_.goes_back) {
        if (done_ == 0) {
            return Answer::kBusy;
        }
        const std::uint64_t count = std::min(done_, most_blocks_a_step());
        ask(!plug, request_.first + done_ - count, count);
        return std::nullopt;
    }
    if (done_ == request_.count) {
        return Answer::kAck;
    }
    ask(plug, request_.first + done_, std::min(request_.count - done_, most_blocks_a_step()));
    return std::nullopt;
}

/// Unplugs all plugged blocks. Blocks that cannot be unplugged stay.
std::optional<MemoryDevice::Answer> MemoryDevice::step_of_all() {
    if (std::exchange(has_failed_, false)) {
        return Answer::kBusy;
    }
    const auto first = std::ranges::find(plugged_, true);
    if (first == plugged_.end()) {
        return Answer::kAck;
    }
    const auto last = std::find(first, plugged_.end(), false);
    ask(false, static_cast<std::uint64_t>(first - plugged_.begin()),
        std::min(static_cast<std::uint64_t>(last - first), most_blocks_a_step()));
    return std::nullopt;
}

void MemoryDevice::ask(bool plug, std::uint64_t first, std::uint64_t count) {
    asked_ = {plug,
              {GuestAddress{to_integer(settings_.region.base) + first * settings_.block_bytes},
               count * settings_.block_bytes}};
    work_.ask(asked_);
}

void MemoryDevice::give(Answer answer) {
    std::array<std::byte, kAnswerBytes> bytes{};
    const auto type = static_cast<std::uint16_t>(answer);
    std::memcpy(bytes.data(), &type, sizeof(type));
    if (answer == Answer::kAck && request_.kind == Kind::kState) {
        const std::uint64_t plugged = count_plugged(request_.first, request_.count);
        const std::uint16_t state = plugged == request_.count ? kPlugged : plugged == 0 ? kUnplugged : kMixed;
        std::memcpy(bytes.data() + kStateOffset, &state, sizeof(state));
    }
    copy_to(request_.chain, 0, bytes);
    request_.is_under_way = false;
    done_ = 0;
    if (Queue* const queue = working_queue(kRequests); queue != nullptr) {
        queue->push(request_.chain.head, kAnswerBytes);
    }
}

std::uint64_t MemoryDevice::block_at(GuestAddress address) const noexcept {
    return (to_integer(address) - to_integer(settings_.region.base)) / settings_.block_bytes;
}

std::uint64_t MemoryDevice::count_plugged(std::uint64_t first, std::uint64_t count) const noexcept {
    const auto begin = plugged_.begin() + static_cast<std::ptrdiff_t>(first);
    return static_cast<std::uint64_t>(std::count(begin, begin + static_cast<std::ptrdiff_t>(count), true));
}

std::uint64_t MemoryDevice::most_blocks_a_step() const noexcept {
    return std::max<std::uint64_t>(kStepBytes / settings_.block_bytes, 1);
}

} // namespace vmm::devices::virtio
