#include "devices/virtio/pci_transport.hpp"

#include <algorithm>
#include <bit>
#include <bitset>
#include <cassert>
#include <cstring>
#include <string>
#include <utility>

#include "kvm/host/error.hpp"

namespace vmm::devices::virtio {
namespace {

static_assert(std::endian::native == std::endian::little, "the registers are little endian");

// The places of the structures behind base address register 0.
constexpr std::uint64_t kCommon = 0x0000;
constexpr std::uint64_t kIsr = 0x1000;
constexpr std::uint64_t kConfig = 0x2000;
constexpr std::uint64_t kMsixTable = 0x4000;
constexpr std::uint64_t kMsixPending = 0x5000;
constexpr std::uint64_t kStructureBytes = 0x1000; ///< the distance between structures

// The common configuration structure (4.1.4.3).
constexpr std::uint64_t kDeviceFeatureSelect = 0x00;
constexpr std::uint64_t kDeviceFeature = 0x04;
constexpr std::uint64_t kDriverFeatureSelect = 0x08;
constexpr std::uint64_t kDriverFeature = 0x0c;
constexpr std::uint64_t kConfigVector = 0x10;
constexpr std::uint64_t kQueueCount = 0x12;
constexpr std::uint64_t kStatus = 0x14;
constexpr std::uint64_t kConfigGeneration = 0x15;
constexpr std::uint64_t kQueueSelect = 0x16;
constexpr std::uint64_t kQueueSize = 0x18;
constexpr std::uint64_t kQueueVector = 0x1a;
constexpr std::uint64_t kQueueEnable = 0x1c;
constexpr std::uint64_t kQueueNotifyOffset = 0x1e;
constexpr std::uint64_t kQueueDescriptors = 0x20;
constexpr std::uint64_t kQueueDriverArea = 0x28;
constexpr std::uint64_t kQueueDeviceArea = 0x30;
constexpr std::uint64_t kQueueNotifyData = 0x38;
constexpr std::uint64_t kQueueReset = 0x3a;
constexpr std::uint64_t kCommonBytes = 0x3c;

/// The width of the field that begins at this offset; 0 if there is none.
constexpr std::size_t field_bytes(std::uint64_t offset) noexcept {
    switch (offset) {
    case kStatus:
    case kConfigGeneration:
        return 1;
    case kConfigVector:
    case kQueueCount:
    case kQueueSelect:
    case kQueueSize:
    case kQueueVector:
    case kQueueEnable:
    case kQueueNotifyOffset:
    case kQueueNotifyData:
    case kQueueReset:
        return 2;
    case kDeviceFeatureSelect:
    case kDeviceFeature:
    case kDriverFeatureSelect:
    case kDriverFeature:
        return 4;
    case kQueueDescriptors:
    case kQueueDriverArea:
    case kQueueDeviceArea:
        return 8;
    default:
        return 0;
    }
}

constexpr bool is_address(std::uint64_t offset) noexcept {
    return offset >= kQueueDescriptors && offset < kQueueNotifyData;
}

/// True if there is a field for such an access, or half of an address.
constexpr bool is_common_access(std::uint64_t offset, std::size_t bytes) noexcept {
    return (bytes != 0 && field_bytes(offset) == bytes) || (is_address(offset) && bytes == 4 && offset % 4 == 0);
}

Negotiation::QueuePart part_at(std::uint64_t offset) noexcept {
    return offset < kQueueDriverArea   ? Negotiation::QueuePart::kDescriptors
           : offset < kQueueDeviceArea ? Negotiation::QueuePart::kDriverArea
                                       : Negotiation::QueuePart::kDeviceArea;
}

// Bits of the ISR status (4.1.4.5).
constexpr std::uint8_t kUsedBuffer = 1;
constexpr std::uint8_t kConfigChange = 2;

constexpr std::uint16_t kNoVector = 0xffff;
constexpr std::byte kNoRegister{0xff};

// ---- What it is, as PCI has it

/// Base class and subclass. They do not matter to a driver (4.1.2.1), but people see them.
std::uint32_t class_of(DeviceId id) noexcept {
    switch (id) {
    case DeviceId::kNet:
        return 0x020000;
    case DeviceId::kBlock:
        return 0x018000;
    case DeviceId::kConsole:
        return 0x078000;
    case DeviceId::kEntropy:
        return 0x100000;
    case DeviceId::kBalloon:
        return 0x088000;
    case DeviceId::kVsock:
        return 0x028000;
    case DeviceId::kMemory:
        return 0x058000;
    }
    return 0xff0000;
}

pci::Identity identity_of(DeviceId id) noexcept {
    constexpr std::uint16_t kVirtio = 0x1af4;
    constexpr std::uint16_t kModern = 0x1040; // 4.1.2: the type of device is added to it
    constexpr std::uint8_t kModernRevision = 1;
    constexpr std::uint8_t kPinA = 1;
    const auto device = static_cast<std::uint16_t>(kModern + static_cast<std::uint32_t>(id));
    return {kVirtio, device, kModernRevision, class_of(id), kVirtio, device, kPinA};
}

/// A structure of 4.1.4, as described by its capability.
struct Structure {
    std::uint8_t type;
    std::uint32_t offset;
    std::uint32_t length;
};

constexpr std::uint8_t kVendorSpecific = 0x09;
constexpr std::uint8_t kPciCfgType = 5;

// The fields of such a capability after its id and the pointer to the next one.
constexpr std::size_t kLengthField = 0;
constexpr std::size_t kTypeField = 1;
constexpr std::size_t kBarField = 2;
constexpr std::size_t kOffsetField = 6;
constexpr std::size_t kSizeField = 10;
constexpr std::size_t kHeadBytes = 2;
constexpr std::size_t kBodyBytes = 14; ///< without what some types append
constexpr std::size_t kWindowBytes = 4;
/// The offset, from the id on, of the bytes by which the window is read and written.
constexpr std::size_t kWindowData = kHeadBytes + kBodyBytes;

std::uint8_t add_structure(pci::ConfigSpace& config, const Structure& structure, std::span<const std::byte> more,
                           bool is_writable = false) {
    std::array<std::byte, kBodyBytes + kWindowBytes> body{};
    const std::size_t bytes = kBodyBytes + more.size();
    body[kLengthField] = static_cast<std::byte>(kHeadBytes + bytes);
    body[kTypeField] = std::byte{structure.type};
    std::memcpy(body.data() + kOffsetField, &structure.offset, sizeof structure.offset);
    std::memcpy(body.data() + kSizeField, &structure.length, sizeof structure.length);
    std::ranges::copy(more, body.begin() + kBodyBytes);
    std::array<std::byte, kBodyBytes + kWindowBytes> writable{};
    if (is_writable) {
        writable[kBarField] = std::byte{0xff};
        std::fill(writable.begin() + kOffsetField, writable.end(), std::byte{0xff});
    }
    return config.add_capability(kVendorSpecific, std::span(body).first(bytes), std::span(writable).first(bytes));
}

std::uint64_t number_in(std::span<const std::byte> data) noexcept {
    std::uint64_t value = 0;
    std::memcpy(&value, data.data(), std::min(data.size(), sizeof value));
    return value;
}

} // namespace

PciTransport::PciTransport(const Identity& identity, const GuestMemory& memory, GuestAddress base,
                           const Interrupts& interrupts, Hooks hooks)
    : PciTransport(identity, memory, base, interrupts, std::move(hooks), nullptr) {}

PciTransport::PciTransport(const Identity& identity, const GuestMemory& memory, GuestAddress base,
                           const Interrupts& interrupts, Hooks hooks, const State& state)
    : PciTransport(identity, memory, base, interrupts, std::move(hooks), &state) {}

PciTransport::PciTransport(const Identity& identity, const GuestMemory& memory, GuestAddress base,
                           const Interrupts& interrupts, Hooks hooks, const State* state)
    : config_space_(identity_of(identity.id)), capabilities_(describe(identity, base, state)),
      msix_(make_msix(identity, interrupts, state)), pin_(interrupts.pin),
      negotiation_(make_negotiation(identity, memory, std::move(hooks), state)) {
    assert(interrupts.messages.size() == vectors(identity) && identity.config.size() <= kStructureBytes);
    pin_is_off_ = (config_space_.command() & pci::kCommandNoPin) != 0;
    static_cast<void>(negotiation_.set_reach(is_master())); // No other thread has the device yet.
    seen_generation_ = negotiation_.config_generation();
    shown_generation_ = static_cast<std::uint8_t>(seen_generation_);
    forget();
    if (state == nullptr) {
        return;
    }
    device_features_select_ = state->device_features_select;
    driver_features_select_ = state->driver_features_select;
    queue_select_ = state->queue_select;
    interrupt_status_ = state->interrupt_status & (kUsedBuffer | kConfigChange);
    config_vector_ = as_vector(state->config_vector);
    if (state->queue_vectors.size() != identity.queue_sizes.size()) {
        throw Error("cannot go on from the saved state of the device " + identity.name + ": it has vectors for " +
                    std::to_string(state->queue_vectors.size()) + " queues, and this one has " +
                    std::to_string(identity.queue_sizes.size()) +
                    " (configure the machine as the one whose state was saved)");
    }
    for (std::size_t index = 0; index < state->queue_vectors.size(); ++index) {
        queue_vectors_[index] = as_vector(state->queue_vectors[index]);
    }
}

PciTransport::Capabilities PciTransport::describe(const Identity& identity, GuestAddress base, const State* state) {
    config_space_.add_memory(kBytes, base);
    const auto queues = static_cast<std::uint32_t>(identity.queue_sizes.size());
    constexpr std::uint8_t kCommonType = 1; // the types of 4.1.4
    constexpr std::uint8_t kNotifyType = 2;
    constexpr std::uint8_t kIsrType = 3;
    constexpr std::uint8_t kDeviceType = 4;
    // 4.1.4.4.1: the structure has room for at least one doorbell.
    const std::uint32_t doorbells = std::max(queues, 1U) * static_cast<std::uint32_t>(kDoorbellStride);
    std::array<std::byte, sizeof(std::uint32_t)> stride{};
    stride[0] = std::byte{kDoorbellStride};
    add_structure(config_space_, {kCommonType, kCommon, kCommonBytes}, {});
    add_structure(config_space_, {kNotifyType, static_cast<std::uint32_t>(kDoorbells), doorbells}, stride);
    add_structure(config_space_, {kIsrType, kIsr, 1}, {});
    if (!identity.config.empty()) {
        add_structure(config_space_, {kDeviceType, kConfig, static_cast<std::uint32_t>(identity.config.size())}, {});
    }
    Capabilities capabilities;
    capabilities.window =
        add_structure(config_space_, {kPciCfgType, 0, 0}, std::array<std::byte, kWindowBytes>{}, true);
    capabilities.msix = pci::Msix::add_capability(config_space_, vectors(identity), kMsixTable, kMsixPending);
    if (state != nullptr) {
        config_space_.restore(state->config_space, identity.name);
    }
    return capabilities;
}

pci::Msix PciTransport::make_msix(const Identity& identity, const Interrupts& interrupts, const State* state) const {
    if (state == nullptr) {
        return pci::Msix(interrupts.messages);
    }
    return {interrupts.messages, state->msix, config_space_.word(capabilities_.msix + pci::Msix::kControlOffset),
            is_master(), identity.name};
}

Negotiation PciTransport::make_negotiation(const Identity& identity, const GuestMemory& memory, Hooks hooks,
                                           const State* state) {
    if (state == nullptr) {
        return {identity, memory, std::move(hooks), [this] { forget(); }};
    }
    return {identity, memory, std::move(hooks), [this] { forget(); }, state->negotiation};
}

std::string_view PciTransport::name() const noexcept {
    return negotiation_.identity().name;
}

// ---- Configuration space

/// The access that the driver has set up; nothing if it is not possible.
std::optional<PciTransport::Access> PciTransport::window_access() const noexcept {
    const std::lock_guard hold(config_mutex_);
    const std::size_t body = capabilities_.window + kHeadBytes;
    const std::uint32_t bar = config_space_.double_word(body + kBarField - 2) >> 16U & 0xffU;
    const std::uint32_t offset = config_space_.double_word(body + kOffsetField);
    const std::uint32_t length = config_space_.double_word(body + kSizeField);
    if (bar != 0 || (length != 1 && length != 2 && length != 4) || offset % length != 0 || offset > kBytes - length) {
        return std::nullopt;
    }
    return Access{offset, length};
}

/// True if an access to configuration space includes some of the window's data (4.1.4.9.1).
bool PciTransport::is_window_access(std::uint16_t offset, std::size_t bytes) const noexcept {
    const std::size_t data = capabilities_.window + kWindowData;
    return offset < data + kWindowBytes && offset + bytes > data;
}

void PciTransport::read_config(std::uint16_t offset, std::span<std::byte> data) noexcept {
    std::array<std::byte, kWindowBytes> window{};
    std::size_t window_bytes = 0;
    if (is_window_access(offset, data.size())) {
        window.fill(kNoRegister);
        const auto access = window_access();
        window_bytes = access ? access->length : window.size();
        if (access) {
            read(access->offset, std::span(window).first(access->length));
        }
    }
    const std::lock_guard hold(config_mutex_);
    config_space_.write(capabilities_.window + kWindowData, std::span(window).first(window_bytes));
    config_space_.show_interrupt(interrupt_status_.load() != 0 && !msix_.is_enabled());
    config_space_.read(offset, data);
}

void PciTransport::write_config(std::uint16_t offset, std::span<const std::byte> data) noexcept {
    std::array<std::byte, kWindowBytes> window{};
    bool reach_changes = false;
    {
        const std::lock_guard hold(config_mutex_);
        config_space_.write(offset, data);
        config_space_.read(capabilities_.window + kWindowData, window);
        pin_is_off_ = (config_space_.command() & pci::kCommandNoPin) != 0;
        msix_.set_control(config_space_.word(capabilities_.msix + pci::Msix::kControlOffset), is_master());
        reach_changes = negotiation_.set_reach(is_master());
    }
    if (reach_changes) {
        negotiation_.follow_reach();
    }
    if (is_window_access(offset, data.size())) {
        if (const auto access = window_access()) {
            write(access->offset, std::span(window).first(access->length));
        }
    }
    follow_pin();
}

bool PciTransport::is_master() const noexcept {
    return (config_space_.command() & pci::kCommandBusMaster) != 0;
}

std::optional<GuestRange> PciTransport::decoded() const noexcept {
    const std::lock_guard hold(config_mutex_);
    return config_space_.decoded();
}

// ---- Behind the base address register

void PciTransport::read(std::uint64_t offset, std::span<std::byte> data) noexcept {
    const std::uint64_t within = offset % kStructureBytes;
    switch (offset - within) {
    case kCommon:
        if (is_common_access(within, data.size())) {
            const std::uint64_t value = read_common(within, data.size());
            std::memcpy(data.data(), &value, data.size());
            return;
        }
        break;
    case kIsr:
        if (within == 0 && data.size() == 1) {
            data[0] = std::byte{take_interrupt_status()};
            return;
        }
        break;
    case kConfig:
        negotiation_.read_config(within, data);
        return;
    case kMsixTable:
        msix_.read_table(within, data);
        return;
    case kMsixPending:
        msix_.read_pending(within, data);
        return;
    default:
        break;
    }
    std::ranges::fill(data, kNoRegister);
}

void PciTransport::write(std::uint64_t offset, std::span<const std::byte> data) noexcept {
    const std::uint64_t within = offset % kStructureBytes;
    switch (offset - within) {
    case kCommon:
        if (is_common_access(within, data.size())) {
            write_common(within, data.size(), number_in(data));
        }
        return;
    case kConfig:
        negotiation_.write_config(within, data);
        return;
    case kDoorbells:
        if ((data.size() == 2 || data.size() == 4) && within % kDoorbellStride == 0) {
            negotiation_.ring(static_cast<std::uint32_t>(within / kDoorbellStride));
        }
        return;
    case kMsixTable:
        msix_.write_table(within, data);
        return;
    default:
        return;
    }
}

std::uint64_t PciTransport::read_common(std::uint64_t offset, std::size_t bytes) const noexcept {
    switch (offset) {
    case kDeviceFeatureSelect:
        return device_features_select_.load();
    case kDeviceFeature:
        return negotiation_.offered_features(device_features_select_.load());
    case kDriverFeatureSelect:
        return driver_features_select_.load();
    case kDriverFeature:
        return negotiation_.accepted_features(driver_features_select_.load());
    case kConfigVector:
        return config_vector_.load();
    case kQueueCount:
        return negotiation_.identity().queue_sizes.size();
    case kStatus:
        return negotiation_.status();
    case kConfigGeneration:
        return take_generation();
    case kQueueSelect:
        return queue_select_.load();
    default:
        return read_common_of_queue(offset, bytes);
    }
}

/// Returns another value if the configuration has changed since the last read (4.1.4.3.1). The number of changes alone
/// is not enough, because the register has only 8 bits.
std::uint8_t PciTransport::take_generation() const {
    const std::lock_guard hold(generation_mutex_);
    const std::uint32_t generation = negotiation_.config_generation();
    if (generation != seen_generation_) {
        seen_generation_ = generation;
        ++shown_generation_;
    }
    return shown_generation_;
}

/// Reads a field of the selected queue. If the queue does not exist, its size is 0 (4.1.4.3), and so are the other
/// fields.
std::uint64_t PciTransport::read_common_of_queue(std::uint64_t offset, std::size_t bytes) const noexcept {
    const std::uint16_t index = queue_select_.load();
    const auto queue = negotiation_.queue(index);
    if (!queue) {
        return offset == kQueueVector ? kNoVector : 0;
    }
    const auto half = [&](std::uint64_t begin, GuestAddress address) {
        const std::uint64_t whole = to_integer(address);
        return bytes == sizeof whole ? whole : offset == begin ? whole & UINT32_MAX : whole >> 32U;
    };
    switch (offset) {
    case kQueueSize:
        // 4.1.4.3.1: a power of two or 0, whatever the driver has written.
        return std::has_single_bit(queue->geometry.size) ? queue->geometry.size : 0;
    case kQueueVector:
        return queue_vectors_[index].load();
    case kQueueEnable:
        return queue->is_enabled ? 1 : 0;
    case kQueueNotifyOffset:
        return index;
    case kQueueNotifyData:
        return 0; // VIRTIO_F_NOTIF_CONFIG_DATA is not offered.
    case kQueueReset:
        return queue->is_resetting ? 1 : 0;
    default:
        return offset < kQueueDriverArea   ? half(kQueueDescriptors, queue->geometry.descriptors)
               : offset < kQueueDeviceArea ? half(kQueueDriverArea, queue->geometry.driver_area)
                                           : half(kQueueDeviceArea, queue->geometry.device_area);
    }
}

void PciTransport::write_common(std::uint64_t offset, std::size_t bytes, std::uint64_t value) {
    const std::uint16_t index = queue_select_.load();
    const auto bits = static_cast<std::uint32_t>(value);
    switch (offset) {
    case kDeviceFeatureSelect:
        select(device_features_select_, bits);
        return;
    case kDriverFeatureSelect:
        select(driver_features_select_, bits);
        return;
    case kDriverFeature:
        negotiation_.accept_features(driver_features_select_.load(), bits);
        return;
    case kConfigVector:
        select(config_vector_, as_vector(value));
        return;
    case kStatus:
        negotiation_.write_status(bits);
        return;
    case kQueueSelect:
        select(queue_select_, static_cast<std::uint16_t>(value));
        return;
    case kQueueSize:
        negotiation_.set_queue_size(index, bits);
        return;
    case kQueueVector:
        if (index < negotiation_.identity().queue_sizes.size()) {
            select(queue_vectors_[index], as_vector(value));
        }
        return;
    case kQueueEnable:
        if (value == 1) { // 4.1.4.3.2: a driver must not write 0.
            negotiation_.enable_queue(index, 1);
        }
        return;
    case kQueueReset:
        if (value == 1) {
            negotiation_.reset_queue(index);
        }
        return;
    default:
        break;
    }
    if (!is_address(offset)) {
        return; // The field is for reading only.
    }
    const Negotiation::QueuePart part = part_at(offset);
    if (bytes == sizeof(std::uint64_t)) {
        negotiation_.set_queue_address(index, part, 0, bits);
        negotiation_.set_queue_address(index, part, 1, static_cast<std::uint32_t>(value >> 32U));
    } else {
        negotiation_.set_queue_address(index, part, offset % sizeof(std::uint64_t) == 0 ? 0 : 1, bits);
    }
}

template <typename Value>
void PciTransport::select(std::atomic<Value>& what, Value value) {
    if (!negotiation_.is_resetting()) {
        what = value;
    }
}

/// 4.1.5.1.2: a number that is no vector reads back as "no vector".
std::uint16_t PciTransport::as_vector(std::uint64_t value) const noexcept {
    return value < msix_.vectors() ? static_cast<std::uint16_t>(value) : kNoVector;
}

// ---- The device's side

void PciTransport::notify(QueueSet queues) noexcept {
    if (queues.empty() || !negotiation_.is_active()) {
        return;
    }
    if (!msix_.is_enabled()) {
        interrupts_.fetch_add(1, std::memory_order_relaxed);
        interrupt_status_.fetch_or(kUsedBuffer);
        follow_pin();
        return;
    }
    std::bitset<pci::Msix::kMostVectors> raised; // Queues may share a vector.
    queues.each([&](std::uint16_t index) {
        const std::uint16_t vector = queue_vectors_[index].load();
        if (vector != kNoVector && !raised.test(vector)) {
            raised.set(vector);
            interrupts_.fetch_add(1, std::memory_order_relaxed);
            msix_.raise(vector);
        }
    });
}

void PciTransport::change_config(std::size_t offset, std::span<const std::byte> bytes) {
    if (negotiation_.change_config(offset, bytes)) {
        interrupt_for_config();
    }
}

void PciTransport::note_config(std::size_t offset, std::span<const std::byte> bytes) {
    static_cast<void>(negotiation_.change_config(offset, bytes));
}

void PciTransport::fail(std::string_view why) {
    // This thread also finishes every reset of an active device. So the driver cannot have completed a reset when this
    // comes.
    if (negotiation_.fail(why)) {
        interrupt_for_config();
    }
}

void PciTransport::interrupt_for_config() noexcept {
    interrupts_.fetch_add(1, std::memory_order_relaxed);
    interrupt_status_.fetch_or(kConfigChange); // 4.1.5.3: also with MSI-X.
    if (msix_.is_enabled()) {
        msix_.raise(config_vector_.load()); // "No vector" is beyond the last one.
    } else {
        follow_pin();
    }
}

void PciTransport::follow_pin() noexcept {
    const std::lock_guard hold(pin_mutex_);
    const bool up = interrupt_status_.load() != 0 && !msix_.is_enabled() && !pin_is_off_.load();
    if (up != pin_is_up_) {
        pin_is_up_ = up;
        pin_.set(up);
    }
}

/// Reads the status, which acknowledges the interrupt (4.1.4.5).
std::uint8_t PciTransport::take_interrupt_status() noexcept {
    const std::uint8_t status = interrupt_status_.exchange(0);
    follow_pin();
    return status;
}

void PciTransport::repeat_interrupt() noexcept {
    msix_.repeat_pending();
    follow_pin();
}

PciTransport::State PciTransport::state(std::span<const std::optional<Queue::State>> queues) const {
    constexpr std::uint32_t kShownBits = 0xff;
    State state;
    {
        // A device that continues from the state shows the same generation, or the next one if the driver has not read
        // the last change.
        const std::lock_guard hold(generation_mutex_);
        state.negotiation = negotiation_.state(queues);
        std::uint32_t& generation = state.negotiation.config_generation;
        const std::uint8_t next = generation == seen_generation_ ? shown_generation_ : shown_generation_ + 1;
        generation = (generation & ~kShownBits) | next;
    }
    {
        const std::lock_guard hold(config_mutex_);
        state.config_space = config_space_.state();
    }
    state.msix = msix_.state();
    const std::size_t count = negotiation_.identity().queue_sizes.size();
    state.config_vector = kNoVector;
    state.queue_vectors.assign(count, kNoVector);
    if (state.negotiation.status == 0) { // A reset that was under way is finished in the state.
        return state;
    }
    state.device_features_select = device_features_select_.load();
    state.driver_features_select = driver_features_select_.load();
    state.queue_select = queue_select_.load();
    state.interrupt_status = interrupt_status_.load();
    state.config_vector = config_vector_.load();
    for (std::size_t index = 0; index < count; ++index) {
        state.queue_vectors[index] = queue_vectors_[index].load();
    }
    return state;
}

void PciTransport::forget() noexcept {
    interrupt_status_ = 0;
    device_features_select_ = 0;
    driver_features_select_ = 0;
    queue_select_ = 0;
    config_vector_ = kNoVector;
    for (std::atomic<std::uint16_t>& vector : queue_vectors_) {
        vector = kNoVector;
    }
    follow_pin();
}

} // namespace vmm::devices::virtio
