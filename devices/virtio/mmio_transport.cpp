#include "devices/virtio/mmio_transport.hpp"

#include <algorithm>
#include <array>
#include <bit>
#include <cassert>
#include <cstring>

namespace vmm::devices::virtio {
namespace {

static_assert(std::endian::native == std::endian::little, "the registers are little endian");

// Offsets of the registers (4.2.2). Those of shared memory, 0x0ac to 0x0bc, are missing: there are no such regions, and
// both length and address of one that does not exist read as all ones, as does what is no register.
constexpr std::uint64_t kMagicValue = 0x000;
constexpr std::uint64_t kVersion = 0x004;
constexpr std::uint64_t kDeviceId = 0x008;
constexpr std::uint64_t kVendorId = 0x00c;
constexpr std::uint64_t kDeviceFeatures = 0x010;
constexpr std::uint64_t kDeviceFeaturesSel = 0x014;
constexpr std::uint64_t kDriverFeatures = 0x020;
constexpr std::uint64_t kDriverFeaturesSel = 0x024;
constexpr std::uint64_t kQueueSel = 0x030;
constexpr std::uint64_t kQueueSizeMax = 0x034;
constexpr std::uint64_t kQueueSize = 0x038;
constexpr std::uint64_t kQueueReady = 0x044;
constexpr std::uint64_t kQueueNotify = MmioTransport::kQueueNotifyOffset;
constexpr std::uint64_t kInterruptStatus = 0x060;
constexpr std::uint64_t kInterruptAck = 0x064;
constexpr std::uint64_t kStatus = 0x070;
constexpr std::uint64_t kQueueDescLow = 0x080;
constexpr std::uint64_t kQueueDescHigh = 0x084;
constexpr std::uint64_t kQueueDriverLow = 0x090;
constexpr std::uint64_t kQueueDriverHigh = 0x094;
constexpr std::uint64_t kQueueDeviceLow = 0x0a0;
constexpr std::uint64_t kQueueDeviceHigh = 0x0a4;
constexpr std::uint64_t kQueueReset = 0x0c0;
constexpr std::uint64_t kConfigGeneration = 0x0fc;
constexpr std::uint64_t kConfig = 0x100;

constexpr std::uint32_t kMagic = 0x74726976; // "virt"
constexpr std::uint32_t kVersion2 = 2;
constexpr std::uint32_t kVendor = 0x4d4d5600; // ours: "VMM"

// Bits of InterruptStatus.
constexpr std::uint32_t kUsedBuffer = 1;
constexpr std::uint32_t kConfigChange = 2;

constexpr std::byte kNoRegister{0xff};
constexpr std::uint32_t kAllOnes = UINT32_MAX;

constexpr std::uint16_t kMaxQueueSize = 32768;

// Feature bits that this transport and Queue implement for every type.
constexpr std::uint64_t kTransportFeatures =
    kFeatureIndirectDescriptors | kFeatureEventIdx | kFeatureVersion1 | kFeatureRingReset;

// The bits a driver sets, in the order in which it has to (3.1.1).
constexpr std::array kStatusOrder = {kStatusAcknowledge, kStatusDriver, kStatusFeaturesOk, kStatusDriverOk};

constexpr bool is_control_access(std::uint64_t offset, std::size_t bytes) noexcept {
    return offset < kConfig && bytes == sizeof(std::uint32_t) && offset % sizeof(std::uint32_t) == 0;
}

std::uint32_t half(std::uint64_t value, std::uint32_t select) noexcept {
    return select < 2 ? static_cast<std::uint32_t>(value >> (32 * select)) : 0;
}

std::uint64_t with_half(std::uint64_t value, std::uint32_t select, std::uint32_t bits) noexcept {
    assert(select < 2);
    const unsigned shift = 32 * select;
    return (value & ~(std::uint64_t{UINT32_MAX} << shift)) | (std::uint64_t{bits} << shift);
}

GuestAddress with_half(GuestAddress address, std::uint32_t select, std::uint32_t bits) noexcept {
    return GuestAddress{with_half(to_integer(address), select, bits)};
}

} // namespace

MmioTransport::MmioTransport(const Identity& identity, const GuestMemory& memory, IrqLine& interrupt, Hooks hooks)
    : identity_(identity), offered_features_(identity.features | kTransportFeatures), memory_(memory), line_(interrupt),
      hooks_(std::move(hooks)), device_config_(identity.config), config_(identity.config) {
    assert(identity.config.size() <= kSize - kConfig);
    for (std::size_t index = 0; index < identity.queue_sizes.size(); ++index) {
        assert(std::has_single_bit(identity.queue_sizes[index]) && identity.queue_sizes[index] <= kMaxQueueSize);
        queues_.push_back(fresh_queue(index));
    }
}

std::string_view MmioTransport::name() const noexcept {
    return identity_.name;
}

// --- The guest's side ------------------------------------------------------------------------------------------------

void MmioTransport::read(std::uint64_t offset, std::span<std::byte> data) noexcept {
    if (offset >= kConfig) {
        read_config(offset - kConfig, data);
    } else if (is_control_access(offset, data.size())) {
        const std::uint32_t value = read_register(offset);
        std::memcpy(data.data(), &value, sizeof(value));
    } else {
        std::ranges::fill(data, kNoRegister);
    }
}

void MmioTransport::write(std::uint64_t offset, std::span<const std::byte> data) noexcept {
    if (offset >= kConfig) {
        write_config(offset - kConfig, data);
        return;
    }
    if (!is_control_access(offset, data.size())) {
        return;
    }
    std::uint32_t value = 0;
    std::memcpy(&value, data.data(), sizeof(value));
    if (offset == kInterruptAck) {
        interrupt_status_.fetch_and(~value);
    } else if (offset == kQueueNotify) {
        ring(value);
    } else {
        std::unique_lock lock(mutex_);
        const After after = write_register(offset, value);
        lock.unlock();
        follow_up(after);
    }
}

std::uint32_t MmioTransport::read_register(std::uint64_t offset) const noexcept {
    switch (offset) {
    case kMagicValue:
        return kMagic;
    case kVersion:
        return kVersion2;
    case kDeviceId:
        return static_cast<std::uint32_t>(identity_.id);
    case kVendorId:
        return kVendor;
    case kInterruptStatus:
        return interrupt_status_.load();
    default:
        break;
    }
    const std::lock_guard lock(mutex_);
    const QueueRegisters* queue = selected_queue();
    switch (offset) {
    case kDeviceFeatures:
        return half(offered_features_, device_features_select_);
    case kQueueSizeMax:
        return queue == nullptr ? 0 : identity_.queue_sizes[queue_select_];
    case kQueueReady:
        return queue != nullptr && queue->ready ? 1 : 0;
    case kQueueReset:
        return queue != nullptr && queue->resetting ? 1 : 0;
    case kStatus:
        return status_;
    case kConfigGeneration:
        return config_generation_;
    default:
        return kAllOnes;
    }
}

void MmioTransport::read_config(std::uint64_t offset, std::span<std::byte> data) const noexcept {
    const std::lock_guard lock(mutex_);
    const std::uint64_t there = offset < config_.size() ? config_.size() - offset : 0;
    const std::size_t length = std::min<std::uint64_t>(there, data.size());
    if (length > 0) {
        std::memcpy(data.data(), config_.data() + offset, length);
    }
    std::ranges::fill(data.subspan(length), kNoRegister);
}

void MmioTransport::write_config(std::uint64_t offset, std::span<const std::byte> data) noexcept {
    const std::lock_guard lock(mutex_);
    if (reset_ != Stop::kNone || !has_status(kStatusFeaturesOk)) {
        return; // Before that the driver may only read (3.1.1, step 4).
    }
    const std::size_t end = std::min(config_.size(), identity_.config_writable.size());
    for (std::size_t i = 0; i < data.size() && offset < end; ++i, ++offset) {
        const std::byte mask = identity_.config_writable[offset];
        config_[offset] = (config_[offset] & ~mask) | (data[i] & mask);
    }
}

void MmioTransport::ring(std::uint32_t value) {
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

void MmioTransport::follow_up(After after) {
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

bool MmioTransport::wait_until_stopped() {
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

MmioTransport::After MmioTransport::write_register(std::uint64_t offset, std::uint32_t value) {
    if (reset_ != Stop::kNone) {
        return After::kNothing;
    }
    switch (offset) {
    case kDeviceFeaturesSel:
        device_features_select_ = value;
        return After::kNothing;
    case kDriverFeaturesSel:
        driver_features_select_ = value;
        return After::kNothing;
    case kDriverFeatures:
        if (has_status(kStatusFeaturesOk)) {
            return After::kNothing;
        }
        if (driver_features_select_ < 2) {
            driver_features_ = with_half(driver_features_, driver_features_select_, value);
        } else {
            accepts_unknown_ = accepts_unknown_ || value != 0;
        }
        return After::kNothing;
    case kQueueSel:
        queue_select_ = value;
        return After::kNothing;
    case kStatus:
        return write_status(value);
    default: {
        QueueRegisters* queue = selected_queue();
        return queue == nullptr ? After::kNothing : write_queue(*queue, offset, value);
    }
    }
}

MmioTransport::After MmioTransport::write_status(std::uint32_t value) {
    if (value == 0) {
        if (!has_status(kStatusDriverOk)) {
            become_reset();
            return After::kNothing;
        }
        reset_ = Stop::kRequested;
        return After::kWorkAndWait;
    }
    if (has_status(kStatusNeedsReset) || ((status_ | value) & kStatusFailed) != 0) {
        status_ |= value & kStatusFailed;
        return After::kNothing;
    }
    const bool was_running = has_status(kStatusDriverOk);
    for (const std::uint32_t bit : kStatusOrder) {
        if (has_status(bit)) {
            continue;
        }
        if ((value & bit) == 0 || (bit == kStatusFeaturesOk && !are_features_acceptable())) {
            break; // The bits after it come too early.
        }
        status_ |= bit;
    }
    return !was_running && has_status(kStatusDriverOk) ? After::kWork : After::kNothing;
}

MmioTransport::After MmioTransport::write_queue(QueueRegisters& queue, std::uint64_t offset, std::uint32_t value) {
    if (offset == kQueueReady) {
        return write_queue_ready(queue, value);
    }
    if (offset == kQueueReset) {
        return value == 1 && has_status(kStatusFeaturesOk) && (driver_features_ & kFeatureRingReset) != 0
                   ? reset_queue(queue)
                   : After::kNothing;
    }
    if (queue.ready) {
        return After::kNothing;
    }
    QueueGeometry& geometry = queue.geometry;
    switch (offset) {
    case kQueueSize:
        geometry.size = value <= kMaxQueueSize ? static_cast<std::uint16_t>(value) : std::uint16_t{0};
        break;
    case kQueueDescLow:
    case kQueueDescHigh:
        geometry.descriptors = with_half(geometry.descriptors, offset == kQueueDescHigh ? 1 : 0, value);
        break;
    case kQueueDriverLow:
    case kQueueDriverHigh:
        geometry.driver_area = with_half(geometry.driver_area, offset == kQueueDriverHigh ? 1 : 0, value);
        break;
    case kQueueDeviceLow:
    case kQueueDeviceHigh:
        geometry.device_area = with_half(geometry.device_area, offset == kQueueDeviceHigh ? 1 : 0, value);
        break;
    default:
        break;
    }
    return After::kNothing;
}

MmioTransport::After MmioTransport::write_queue_ready(QueueRegisters& queue, std::uint32_t value) {
    if (value == 0) {
        if (!queue.in_device) {
            queue.ready = false;
            return After::kNothing;
        }
        if (queue.stop == Stop::kNone) {
            queue.stop = Stop::kRequested;
        }
        return After::kWorkAndWait;
    }
    if (value != 1 || queue.ready || !has_status(kStatusFeaturesOk) ||
        queue.geometry.size > identity_.queue_sizes[queue_select_] || !make_queue(queue)) {
        return After::kNothing;
    }
    queue.ready = true;
    return has_status(kStatusDriverOk) ? After::kWork : After::kNothing;
}

MmioTransport::After MmioTransport::reset_queue(QueueRegisters& queue) {
    if (!queue.in_device) {
        queue = fresh_queue(queue_select_);
        return After::kNothing;
    }
    queue.resetting = true;
    if (queue.stop != Stop::kNone) {
        return After::kNothing;
    }
    queue.stop = Stop::kRequested;
    return After::kWork;
}

bool MmioTransport::are_features_acceptable() const noexcept {
    return !accepts_unknown_ && (driver_features_ & ~offered_features_) == 0 &&
           (driver_features_ & kFeatureVersion1) != 0;
}

// --- The device's side -----------------------------------------------------------------------------------------------

MmioTransport::Work MmioTransport::take_work() {
    Work work;
    const std::lock_guard lock(mutex_);
    if (reset_ != Stop::kNone) {
        if (!activated_.load()) {
            become_reset(); // The device has not seen the activation, and never will.
        } else if (reset_ == Stop::kRequested) {
            reset_ = Stop::kTaken;
            work.reset = true;
        }
        return work; // Whatever else the driver wanted ends with it.
    }
    if (!has_status(kStatusDriverOk)) {
        return work;
    }
    for (std::size_t index = 0; index < queues_.size(); ++index) {
        if (queues_[index].stop == Stop::kRequested) {
            queues_[index].stop = Stop::kTaken;
            work.queue_resets.push_back(static_cast<std::uint16_t>(index));
        }
    }
    if (has_status(kStatusNeedsReset)) {
        return work;
    }
    if (!activated_.load()) {
        work.activation = Activation{driver_features_, std::vector<std::optional<Queue>>(queues_.size())};
        activated_ = true;
    }
    for (std::size_t index = 0; index < queues_.size(); ++index) {
        QueueRegisters& registers = queues_[index];
        if (!registers.ready || registers.in_device) {
            continue;
        }
        const std::optional<Queue> queue = make_queue(registers);
        assert(queue); // QueueReady was refused else, and memory never goes away.
        registers.in_device = true;
        if (work.activation) {
            work.activation->queues[index] = queue;
        } else {
            work.restarts.emplace_back(static_cast<std::uint16_t>(index), *queue);
        }
    }
    return work;
}

void MmioTransport::finish_reset() {
    const std::lock_guard lock(mutex_);
    assert(reset_ == Stop::kTaken);
    become_reset();
}

void MmioTransport::finish_queue_reset(std::uint16_t index) {
    const std::lock_guard lock(mutex_);
    assert(index < queues_.size());
    QueueRegisters& queue = queues_[index];
    if (queue.stop != Stop::kTaken) {
        return;
    }
    // Without a reset the driver only stopped the queue; what it wrote of its geometry remains.
    const QueueGeometry geometry = queue.resetting ? fresh_queue(index).geometry : queue.geometry;
    queue = QueueRegisters{};
    queue.geometry = geometry;
    stopped_.notify_all();
}

void MmioTransport::notify_driver() noexcept {
    if (activated_.load(std::memory_order_relaxed)) {
        interrupt(kUsedBuffer);
    }
}

void MmioTransport::change_config(std::size_t offset, std::span<const std::byte> bytes) {
    std::unique_lock lock(mutex_);
    assert(offset <= config_.size() && bytes.size() <= config_.size() - offset);
    std::ranges::copy(bytes, config_.begin() + static_cast<std::ptrdiff_t>(offset));
    std::ranges::copy(bytes, device_config_.begin() + static_cast<std::ptrdiff_t>(offset));
    ++config_generation_;
    const bool is_running = has_status(kStatusDriverOk);
    lock.unlock();
    if (is_running) {
        interrupt(kConfigChange);
    }
}

std::vector<std::byte> MmioTransport::config() const {
    const std::lock_guard lock(mutex_);
    return config_;
}

void MmioTransport::fail(std::string_view why) {
    std::unique_lock lock(mutex_);
    if (has_status(kStatusNeedsReset)) {
        return;
    }
    status_ |= kStatusNeedsReset;
    failure_ = why;
    const bool is_running = has_status(kStatusDriverOk);
    lock.unlock();
    // A reset from DRIVER_OK on is finished by this same thread: the driver is not done with the reset when this comes.
    if (is_running) {
        interrupt(kConfigChange);
    }
}

std::string MmioTransport::failure() const {
    const std::lock_guard lock(mutex_);
    return failure_;
}

void MmioTransport::interrupt(std::uint32_t event) noexcept {
    // In this order, and always both: whoever sees the pulse sees the bit, and a pulse that went lost is made good by
    // the next event, even where its bit is set already.
    interrupt_status_.fetch_or(event);
    interrupts_.fetch_add(1, std::memory_order_relaxed);
    line_.raise();
}

// --- Both sides, with the lock held ----------------------------------------------------------------------------------

MmioTransport::QueueRegisters MmioTransport::fresh_queue(std::size_t index) const noexcept {
    QueueRegisters queue;
    queue.geometry.size = identity_.queue_sizes[index];
    return queue;
}

std::optional<Queue> MmioTransport::make_queue(const QueueRegisters& queue) const {
    Queue::State state;
    state.geometry = queue.geometry;
    state.event_idx = (driver_features_ & kFeatureEventIdx) != 0;
    state.indirect = (driver_features_ & kFeatureIndirectDescriptors) != 0;
    return Queue::make(memory_, state);
}

MmioTransport::QueueRegisters* MmioTransport::selected_queue() noexcept {
    return queue_select_ < queues_.size() ? &queues_[queue_select_] : nullptr;
}

const MmioTransport::QueueRegisters* MmioTransport::selected_queue() const noexcept {
    return queue_select_ < queues_.size() ? &queues_[queue_select_] : nullptr;
}

bool MmioTransport::is_stopping() const noexcept {
    return reset_ != Stop::kNone ||
           std::ranges::any_of(queues_, [](const QueueRegisters& queue) { return queue.stop != Stop::kNone; });
}

void MmioTransport::become_reset() noexcept {
    activated_ = false;
    interrupt_status_ = 0;
    status_ = 0;
    reset_ = Stop::kNone;
    device_features_select_ = 0;
    driver_features_select_ = 0;
    driver_features_ = 0;
    accepts_unknown_ = false;
    queue_select_ = 0;
    for (std::size_t index = 0; index < queues_.size(); ++index) {
        queues_[index] = fresh_queue(index);
    }
    if (config_ != device_config_) { // What the driver wrote is gone.
        config_ = device_config_;
        ++config_generation_;
    }
    failure_.clear();
    stopped_.notify_all();
}

} // namespace vmm::devices::virtio
