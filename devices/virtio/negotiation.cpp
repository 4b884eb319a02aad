#include "devices/virtio/negotiation.hpp"

#include <algorithm>
#include <array>
#include <bit>
#include <cassert>
#include <cstring>

#include "devices/virtio/driver_link.hpp"
#include "kvm/host/error.hpp"

namespace vmm::devices::virtio {
namespace {

constexpr std::byte kNoByte{0xff};
constexpr std::uint16_t kMaxQueueSize = 32768;

// Feature bits that Queue and every transport implement for every type of device.
constexpr std::uint64_t kCommonFeatures =
    kFeatureIndirectDescriptors | kFeatureEventIdx | kFeatureVersion1 | kFeatureRingReset;

// The bits that a driver sets, in the order in which it must set them (3.1.1).
constexpr std::array kStatusOrder = {kStatusAcknowledge, kStatusDriver, kStatusFeaturesOk, kStatusDriverOk};

std::uint64_t with_half(std::uint64_t value, std::uint32_t half, std::uint32_t bits) noexcept {
    assert(half < 2);
    const unsigned shift = 32 * half;
    return (value & ~(std::uint64_t{UINT32_MAX} << shift)) | (std::uint64_t{bits} << shift);
}

} // namespace

Negotiation::Negotiation(const Identity& identity, const GuestMemory& memory, Hooks hooks, std::function<void()> forget)
    : identity_(identity), offered_features_(identity.features | kCommonFeatures), memory_(memory),
      hooks_(std::move(hooks)), forget_(std::move(forget)), progress_(identity.queue_sizes.size()) {
    assert(identity.queue_sizes.size() <= QueueSet::kMostQueues);
    state_.config = identity.config;
    state_.reset_config = identity.config;
    for (std::size_t index = 0; index < identity.queue_sizes.size(); ++index) {
        assert(std::has_single_bit(identity.queue_sizes[index]) && identity.queue_sizes[index] <= kMaxQueueSize);
        state_.queues.push_back(fresh_queue(index));
    }
}

Negotiation::Negotiation(const Identity& identity, const GuestMemory& memory, Hooks hooks, std::function<void()> forget,
                         State state)
    : Negotiation(identity, memory, std::move(hooks), std::move(forget)) {
    state_ = std::move(state);
    while (identity.first_queues != 0 && state_.queues.size() >= identity.first_queues &&
           state_.queues.size() < identity.queue_sizes.size()) {
        state_.queues.push_back(fresh_queue(state_.queues.size()));
    }
    if (const std::string_view why = why_impossible(); !why.empty()) {
        throw Error("cannot restore the device " + identity_.name + ": " + std::string(why) +
                    " (see whether it is configured as the one whose state was saved)");
    }
    for (QueueState& queue : state_.queues) {
        if (queue.in_device) {
            // The last interrupt may have been lost with the interrupt controller. So one more is sent in any case.
            queue.in_device->signalled_used = static_cast<std::uint16_t>(queue.in_device->next_used - 1);
            queue.in_device->signalled_valid = false;
        }
    }
}

// ---- The guest's side

std::uint32_t Negotiation::offered_features(std::uint32_t half) const noexcept {
    return half < 2 ? static_cast<std::uint32_t>(offered_features_ >> (32 * half)) : 0;
}

std::uint32_t Negotiation::accepted_features(std::uint32_t half) const {
    const std::lock_guard lock(mutex_);
    return half < 2 ? static_cast<std::uint32_t>(state_.driver_features >> (32 * half)) : 0;
}

void Negotiation::accept_features(std::uint32_t half, std::uint32_t bits) {
    const std::lock_guard lock(mutex_);
    if (reset_ != Stop::kNone || has_status(kStatusFeaturesOk)) {
        return;
    }
    if (half < 2) {
        state_.driver_features = with_half(state_.driver_features, half, bits);
    } else {
        state_.accepts_unknown = state_.accepts_unknown || bits != 0;
    }
}

std::uint32_t Negotiation::status() const {
    const std::lock_guard lock(mutex_);
    return state_.status;
}

void Negotiation::write_status(std::uint32_t value) {
    std::unique_lock lock(mutex_);
    const After after = reset_ == Stop::kNone ? take_status(value) : After::kNothing;
    lock.unlock();
    follow_up(after);
}

bool Negotiation::is_resetting() const {
    const std::lock_guard lock(mutex_);
    return reset_ != Stop::kNone;
}

std::uint32_t Negotiation::config_generation() const {
    const std::lock_guard lock(mutex_);
    return state_.config_generation;
}

void Negotiation::read_config(std::uint64_t offset, std::span<std::byte> data) const noexcept {
    const std::lock_guard lock(mutex_);
    const std::vector<std::byte>& config = state_.config;
    const std::uint64_t there = offset < config.size() ? config.size() - offset : 0;
    const std::size_t length = std::min<std::uint64_t>(there, data.size());
    if (length > 0) {
        std::memcpy(data.data(), config.data() + offset, length);
    }
    std::ranges::fill(data.subspan(length), kNoByte);
}

void Negotiation::write_config(std::uint64_t offset, std::span<const std::byte> data) noexcept {
    const std::lock_guard lock(mutex_);
    if (reset_ != Stop::kNone || !has_status(kStatusFeaturesOk)) {
        return; // Before FEATURES_OK the driver may only read (3.1.1, step 4).
    }
    std::vector<std::byte>& config = state_.config;
    const std::size_t end = std::min(config.size(), identity_.config_writable.size());
    for (std::size_t i = 0; i < data.size() && offset < end; ++i, ++offset) {
        const std::byte mask = identity_.config_writable[offset];
        config[offset] = (config[offset] & ~mask) | (data[i] & mask);
    }
}

std::optional<Negotiation::QueueView> Negotiation::queue(std::uint32_t index) const {
    const std::lock_guard lock(mutex_);
    if (index >= state_.queues.size()) {
        return std::nullopt;
    }
    const QueueState& queue = state_.queues[index];
    return QueueView{queue.geometry, identity_.queue_sizes[index], queue.is_enabled, progress_[index].is_resetting};
}

void Negotiation::set_queue_size(std::uint32_t index, std::uint32_t size) {
    const std::lock_guard lock(mutex_);
    if (QueueGeometry* const geometry = changeable_geometry(index)) {
        geometry->size = size <= kMaxQueueSize ? static_cast<std::uint16_t>(size) : std::uint16_t{0};
    }
}

void Negotiation::set_queue_address(std::uint32_t index, QueuePart part, unsigned half, std::uint32_t bits) {
    const std::lock_guard lock(mutex_);
    QueueGeometry* const geometry = changeable_geometry(index);
    if (geometry == nullptr) {
        return;
    }
    GuestAddress& address = part == QueuePart::kDescriptors  ? geometry->descriptors
                            : part == QueuePart::kDriverArea ? geometry->driver_area
                                                             : geometry->device_area;
    address = GuestAddress{with_half(to_integer(address), half, bits)};
}

void Negotiation::enable_queue(std::uint32_t index, std::uint32_t value) {
    std::unique_lock lock(mutex_);
    const bool is_there = reset_ == Stop::kNone && index < state_.queues.size();
    const After after = is_there ? take_enable(index, value) : After::kNothing;
    lock.unlock();
    follow_up(after);
}

void Negotiation::reset_queue(std::uint32_t index) {
    std::unique_lock lock(mutex_);
    const bool may = reset_ == Stop::kNone && index < state_.queues.size() && has_status(kStatusFeaturesOk) &&
                     (state_.driver_features & kFeatureRingReset) != 0;
    const After after = may ? take_queue_reset(index) : After::kNothing;
    lock.unlock();
    follow_up(after);
}

void Negotiation::ring(std::uint32_t value) {
    {
        const std::lock_guard lock(mutex_);
        if (value > UINT16_MAX || reset_ != Stop::kNone || !has_status(kStatusDriverOk)) {
            return;
        }
    }
    if (hooks_.doorbell) {
        hooks_.doorbell(static_cast<std::uint16_t>(value));
    }
}

bool Negotiation::set_reach(bool reaches) noexcept {
    const std::lock_guard lock(mutex_);
    if (reaches == reaches_) {
        return false;
    }
    reaches_ = reaches;
    is_to_stand_ = !reaches && activated_.load();
    stopped_.notify_all();
    return reaches || is_to_stand_;
}

void Negotiation::follow_reach() {
    follow_up(After::kWorkAndWait);
}

void Negotiation::follow_up(After after) {
    if (after == After::kNothing) {
        return;
    }
    if (hooks_.work) {
        hooks_.work();
    }
    if (after == After::kWorkAndWait && hooks_.patience.count() > 0 && !wait_until_stopped() && hooks_.overdue) {
        hooks_.overdue();
    }
}

bool Negotiation::wait_until_stopped() {
    constexpr std::chrono::milliseconds kLookUpEvery{50};
    const auto is_ending = [this] { return hooks_.is_ending && hooks_.is_ending(); };
    std::unique_lock lock(mutex_);
    for (auto left = hooks_.patience; left.count() > 0 && !is_ending(); left -= kLookUpEvery) {
        if (stopped_.wait_for(lock, std::min(left, kLookUpEvery), [this] { return !is_stopping(); })) {
            return true;
        }
    }
    return !is_stopping() || is_ending();
}

Negotiation::After Negotiation::take_status(std::uint32_t value) {
    if (value == 0) {
        if (!has_status(kStatusDriverOk)) {
            become_reset();
            return After::kNothing;
        }
        reset_ = Stop::kRequested;
        return After::kWorkAndWait;
    }
    if (has_status(kStatusNeedsReset) || ((state_.status | value) & kStatusFailed) != 0) {
        state_.status |= value & kStatusFailed;
        return After::kNothing;
    }
    const bool was_running = has_status(kStatusDriverOk);
    for (const std::uint32_t bit : kStatusOrder) {
        if (has_status(bit)) {
            continue;
        }
        if ((value & bit) == 0 || (bit == kStatusFeaturesOk && !are_features_acceptable())) {
            break; // The bits after it are too early.
        }
        state_.status |= bit;
    }
    return !was_running && has_status(kStatusDriverOk) ? After::kWork : After::kNothing;
}

QueueGeometry* Negotiation::changeable_geometry(std::uint32_t index) noexcept {
    const bool may = reset_ == Stop::kNone && index < state_.queues.size() && !state_.queues[index].is_enabled;
    return may ? &state_.queues[index].geometry : nullptr;
}

Negotiation::After Negotiation::take_enable(std::size_t index, std::uint32_t value) {
    QueueState& queue = state_.queues[index];
    QueueProgress& progress = progress_[index];
    if (value == 0) {
        if (!progress.in_device) {
            queue = stopped_queue(index);
            return After::kNothing;
        }
        if (progress.stop == Stop::kNone) {
            progress.stop = Stop::kRequested;
        }
        return After::kWorkAndWait;
    }
    if (value != 1 || queue.is_enabled || !has_status(kStatusFeaturesOk) ||
        queue.geometry.size > identity_.queue_sizes[index] ||
        !Queue::make(memory_, fresh_queue_state(queue.geometry))) {
        return After::kNothing;
    }
    queue.is_enabled = true;
    return has_status(kStatusDriverOk) ? After::kWork : After::kNothing;
}

Negotiation::After Negotiation::take_queue_reset(std::size_t index) {
    QueueProgress& progress = progress_[index];
    if (!progress.in_device) {
        state_.queues[index] = fresh_queue(index);
        return After::kNothing;
    }
    progress.is_resetting = true;
    if (progress.stop != Stop::kNone) {
        return After::kNothing;
    }
    progress.stop = Stop::kRequested;
    return After::kWork;
}

bool Negotiation::are_features_acceptable() const noexcept {
    return !state_.accepts_unknown && (state_.driver_features & ~offered_features_) == 0 &&
           (state_.driver_features & kFeatureVersion1) != 0;
}

// ---- The device's side

Negotiation::Work Negotiation::take_work(Take take) {
    Work work;
    const std::lock_guard lock(mutex_);
    work.stands = !reaches_;
    if (reset_ != Stop::kNone) {
        if (!activated_.load()) {
            become_reset(); // The device has not seen the activation, and never will.
        } else if (reset_ == Stop::kRequested) {
            reset_ = Stop::kTaken;
            work.reset = true;
        }
        return work; // The reset ends everything else that the driver has asked for.
    }
    if (work.stands || take == Take::kReset || !has_status(kStatusDriverOk)) {
        return work;
    }
    for (std::size_t index = 0; index < progress_.size(); ++index) {
        if (progress_[index].stop == Stop::kRequested) {
            progress_[index].stop = Stop::kTaken;
            work.queue_resets.push_back(static_cast<std::uint16_t>(index));
        }
    }
    if (has_status(kStatusNeedsReset)) {
        return work;
    }
    if (!activated_.load()) {
        work.activation = Activation{state_.driver_features, std::vector<std::optional<Queue>>(state_.queues.size())};
        activated_ = true;
    }
    for (std::size_t index = 0; index < state_.queues.size(); ++index) {
        QueueState& negotiated = state_.queues[index];
        if (!negotiated.is_enabled || progress_[index].in_device) {
            continue;
        }
        const std::optional<Queue> queue =
            Queue::make(memory_, negotiated.in_device.value_or(fresh_queue_state(negotiated.geometry)));
        assert(queue); // Otherwise it would not be enabled, and memory never goes away.
        negotiated.in_device.reset();
        progress_[index].in_device = true;
        if (work.activation) {
            work.activation->queues[index] = queue;
        } else {
            work.restarts.emplace_back(static_cast<std::uint16_t>(index), *queue);
        }
    }
    return work;
}

void Negotiation::finish_reset() {
    const std::lock_guard lock(mutex_);
    assert(reset_ == Stop::kTaken);
    become_reset();
}

void Negotiation::finish_standing() {
    const std::lock_guard lock(mutex_);
    is_to_stand_ = false;
    stopped_.notify_all();
}

void Negotiation::finish_queue_reset(std::uint16_t index) {
    const std::lock_guard lock(mutex_);
    assert(index < progress_.size());
    if (progress_[index].stop != Stop::kTaken) {
        return;
    }
    state_.queues[index] = stopped_queue(index);
    progress_[index] = {};
    stopped_.notify_all();
}

bool Negotiation::change_config(std::size_t offset, std::span<const std::byte> bytes) {
    const std::lock_guard lock(mutex_);
    assert(offset <= state_.config.size() && bytes.size() <= state_.config.size() - offset);
    std::ranges::copy(bytes, state_.config.begin() + static_cast<std::ptrdiff_t>(offset));
    std::ranges::copy(bytes, state_.reset_config.begin() + static_cast<std::ptrdiff_t>(offset));
    ++state_.config_generation;
    return has_status(kStatusDriverOk);
}

std::vector<std::byte> Negotiation::config() const {
    const std::lock_guard lock(mutex_);
    return state_.config;
}

bool Negotiation::fail(std::string_view why) {
    const std::lock_guard lock(mutex_);
    if (has_status(kStatusNeedsReset)) {
        return false;
    }
    state_.status |= kStatusNeedsReset;
    state_.failure = why;
    return has_status(kStatusDriverOk);
}

std::string Negotiation::failure() const {
    const std::lock_guard lock(mutex_);
    return state_.failure;
}

Negotiation::State Negotiation::state(std::span<const std::optional<Queue::State>> queues) const {
    const std::lock_guard lock(mutex_);
    State state = state_;
    if (reset_ != Stop::kNone) {
        reset(state);
        return state;
    }
    for (std::size_t index = 0; index < progress_.size(); ++index) {
        if (progress_[index].stop != Stop::kNone) {
            state.queues[index] = stopped_queue(index);
        } else if (progress_[index].in_device && !has_status(kStatusNeedsReset)) { // Else it only waits for a reset.
            assert(index < queues.size() && queues[index]);
            state.queues[index].in_device = queues[index];
        }
    }
    return state;
}

// ---- Both sides, with the lock held

Negotiation::QueueState Negotiation::fresh_queue(std::size_t index) const noexcept {
    QueueState queue;
    queue.geometry.size = identity_.queue_sizes[index];
    return queue;
}

/// Returns the queue as it is after its stop. Without a reset the driver only stopped the queue, so its geometry
/// remains.
Negotiation::QueueState Negotiation::stopped_queue(std::size_t index) const noexcept {
    QueueState queue = fresh_queue(index);
    if (!progress_[index].is_resetting) {
        queue.geometry = state_.queues[index].geometry;
    }
    return queue;
}

Queue::State Negotiation::fresh_queue_state(const QueueGeometry& geometry) const noexcept {
    Queue::State queue;
    queue.geometry = geometry;
    queue.event_idx = (state_.driver_features & kFeatureEventIdx) != 0;
    queue.indirect = (state_.driver_features & kFeatureIndirectDescriptors) != 0;
    return queue;
}

bool Negotiation::is_stopping() const noexcept {
    return reset_ != Stop::kNone || is_to_stand_ ||
           std::ranges::any_of(progress_, [](const QueueProgress& queue) { return queue.stop != Stop::kNone; });
}

void Negotiation::reset(State& state) const {
    state.status = 0;
    state.driver_features = 0;
    state.accepts_unknown = false;
    for (std::size_t index = 0; index < state.queues.size(); ++index) {
        state.queues[index] = fresh_queue(index);
    }
    if (state.config != state.reset_config) { // What the driver wrote is lost.
        state.config = state.reset_config;
        ++state.config_generation;
    }
    state.failure.clear();
}

void Negotiation::become_reset() {
    activated_ = false;
    forget_();
    reset_ = Stop::kNone;
    is_to_stand_ = false;
    reset(state_);
    std::ranges::fill(progress_, QueueProgress{});
    stopped_.notify_all();
}

std::string_view Negotiation::why_impossible() const {
    constexpr std::uint32_t kKnown =
        kStatusAcknowledge | kStatusDriver | kStatusFeaturesOk | kStatusDriverOk | kStatusNeedsReset | kStatusFailed;
    if ((state_.status & ~kKnown) != 0 || (has_status(kStatusDriver) && !has_status(kStatusAcknowledge)) ||
        (has_status(kStatusFeaturesOk) && !has_status(kStatusDriver)) ||
        (has_status(kStatusDriverOk) && !has_status(kStatusFeaturesOk))) {
        return "its status is none that a driver can reach";
    }
    if (has_status(kStatusFeaturesOk) && !are_features_acceptable()) {
        return "its driver uses features that this device does not offer";
    }
    if (state_.config.size() != identity_.config.size() || state_.reset_config.size() != identity_.config.size()) {
        return "its configuration space has another size";
    }
    if (state_.queues.size() != identity_.queue_sizes.size()) {
        return "it has another number of queues";
    }
    for (std::size_t index = 0; index < state_.queues.size(); ++index) {
        const QueueState& queue = state_.queues[index];
        const Queue::State fresh = fresh_queue_state(queue.geometry);
        if (queue.geometry.size > kMaxQueueSize ||
            (queue.is_enabled &&
             (!has_status(kStatusFeaturesOk) || queue.geometry.size > identity_.queue_sizes[index] ||
              !Queue::make(memory_, fresh)))) {
            return "one of its queues is where none can be";
        }
        if (!queue.in_device) {
            continue;
        }
        const Queue::State& there = *queue.in_device;
        if (!queue.is_enabled || !has_status(kStatusDriverOk) || has_status(kStatusNeedsReset) ||
            there.geometry != fresh.geometry || there.event_idx != fresh.event_idx ||
            there.indirect != fresh.indirect) {
            return "one of its queues is not the one that the driver enabled";
        }
    }
    return {};
}

} // namespace vmm::devices::virtio
