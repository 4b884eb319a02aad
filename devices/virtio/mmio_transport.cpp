#include "devices/virtio/mmio_transport.hpp"

#include <algorithm>
#include <bit>
#include <cassert>
#include <cstring>
#include <utility>

namespace vmm::devices::virtio {
namespace {

static_assert(std::endian::native == std::endian::little, "the registers are little endian");

// Offsets of the registers (4.2.2). Those of shared memory, 0x0ac to 0x0bc, are left out, because there are no such
// regions. The length and the address of a region that does not exist must read as all ones, and so does every unknown
// register.
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
constexpr std::uint32_t kVendor = 0x4d4d5600; // our own: "VMM"

// Bits of InterruptStatus.
constexpr std::uint32_t kUsedBuffer = 1;
constexpr std::uint32_t kConfigChange = 2;

constexpr std::byte kNoRegister{0xff};
constexpr std::uint32_t kAllOnes = UINT32_MAX;

constexpr bool is_control_access(std::uint64_t offset, std::size_t bytes) noexcept {
    return offset < kConfig && bytes == sizeof(std::uint32_t) && offset % sizeof(std::uint32_t) == 0;
}

} // namespace

MmioTransport::MmioTransport(const Identity& identity, const GuestMemory& memory, IrqLine& interrupt, Hooks hooks)
    : line_(interrupt), negotiation_(identity, memory, std::move(hooks), [this] { forget(); }) {
    assert(identity.config.size() <= kSize - kConfig);
}

MmioTransport::MmioTransport(const Identity& identity, const GuestMemory& memory, IrqLine& interrupt, Hooks hooks,
                             const State& state)
    : line_(interrupt), interrupt_status_(state.interrupt_status & (kUsedBuffer | kConfigChange)),
      device_features_select_(state.device_features_select), driver_features_select_(state.driver_features_select),
      queue_select_(state.queue_select),
      negotiation_(
          identity, memory, std::move(hooks), [this] { forget(); }, state.negotiation) {
    assert(identity.config.size() <= kSize - kConfig);
}

std::string_view MmioTransport::name() const noexcept {
    return negotiation_.identity().name;
}

// ---- The guest's side

void MmioTransport::read(std::uint64_t offset, std::span<std::byte> data) noexcept {
    if (offset >= kConfig) {
        negotiation_.read_config(offset - kConfig, data);
    } else if (is_control_access(offset, data.size())) {
        const std::uint32_t value = read_register(offset);
        std::memcpy(data.data(), &value, sizeof(value));
    } else {
        std::ranges::fill(data, kNoRegister);
    }
}

void MmioTransport::write(std::uint64_t offset, std::span<const std::byte> data) noexcept {
    if (offset >= kConfig) {
        negotiation_.write_config(offset - kConfig, data);
    } else if (is_control_access(offset, data.size())) {
        std::uint32_t value = 0;
        std::memcpy(&value, data.data(), sizeof(value));
        write_register(offset, value);
    }
}

std::uint32_t MmioTransport::read_register(std::uint64_t offset) const noexcept {
    switch (offset) {
    case kMagicValue:
        return kMagic;
    case kVersion:
        return kVersion2;
    case kDeviceId:
        return static_cast<std::uint32_t>(negotiation_.identity().id);
    case kVendorId:
        return kVendor;
    case kInterruptStatus:
        return interrupt_status_.load();
    case kDeviceFeatures:
        return negotiation_.offered_features(device_features_select_.load());
    case kStatus:
        return negotiation_.status();
    case kConfigGeneration:
        return negotiation_.config_generation();
    case kQueueSizeMax:
    case kQueueReady:
    case kQueueReset:
        break;
    default:
        return kAllOnes;
    }
    const auto queue = negotiation_.queue(queue_select_.load()).value_or(Negotiation::QueueView{});
    return offset == kQueueSizeMax
               ? queue.largest
               : static_cast<std::uint32_t>(offset == kQueueReady ? queue.is_enabled : queue.is_resetting);
}

void MmioTransport::write_register(std::uint64_t offset, std::uint32_t value) {
    using Part = Negotiation::QueuePart;
    const std::uint32_t queue = queue_select_.load();
    switch (offset) {
    case kInterruptAck:
        interrupt_status_.fetch_and(~value);
        return;
    case kQueueNotify:
        negotiation_.ring(value);
        return;
    case kDeviceFeaturesSel:
        select(device_features_select_, value);
        return;
    case kDriverFeaturesSel:
        select(driver_features_select_, value);
        return;
    case kDriverFeatures:
        negotiation_.accept_features(driver_features_select_.load(), value);
        return;
    case kQueueSel:
        select(queue_select_, value);
        return;
    case kStatus:
        negotiation_.write_status(value);
        return;
    case kQueueSize:
        negotiation_.set_queue_size(queue, value);
        return;
    case kQueueReady:
        negotiation_.enable_queue(queue, value);
        return;
    case kQueueReset:
        if (value == 1) {
            negotiation_.reset_queue(queue);
        }
        return;
    case kQueueDescLow:
    case kQueueDescHigh:
        negotiation_.set_queue_address(queue, Part::kDescriptors, offset == kQueueDescHigh ? 1 : 0, value);
        return;
    case kQueueDriverLow:
    case kQueueDriverHigh:
        negotiation_.set_queue_address(queue, Part::kDriverArea, offset == kQueueDriverHigh ? 1 : 0, value);
        return;
    case kQueueDeviceLow:
    case kQueueDeviceHigh:
        negotiation_.set_queue_address(queue, Part::kDeviceArea, offset == kQueueDeviceHigh ? 1 : 0, value);
        return;
    default:
        return;
    }
}

void MmioTransport::select(std::atomic<std::uint32_t>& what, std::uint32_t value) {
    if (!negotiation_.is_resetting()) {
        what = value;
    }
}

// ---- The device's side

void MmioTransport::notify(QueueSet queues) noexcept {
    if (!queues.empty() && negotiation_.is_active()) {
        interrupt(kUsedBuffer);
    }
}

void MmioTransport::change_config(std::size_t offset, std::span<const std::byte> bytes) {
    if (negotiation_.change_config(offset, bytes)) {
        interrupt(kConfigChange);
    }
}

void MmioTransport::note_config(std::size_t offset, std::span<const std::byte> bytes) {
    static_cast<void>(negotiation_.change_config(offset, bytes));
}

void MmioTransport::fail(std::string_view why) {
    // This thread also finishes every reset of an active device. So the driver cannot have completed a reset when this
    // comes.
    if (negotiation_.fail(why)) {
        interrupt(kConfigChange);
    }
}

void MmioTransport::interrupt(std::uint32_t event) noexcept {
    // The bit is set first, and the line is always raised. So whoever sees the pulse sees the bit, and if a pulse was
    // lost, the next event makes up for it, even if its bit is set already.
    interrupt_status_.fetch_or(event);
    interrupts_.fetch_add(1, std::memory_order_relaxed);
    line_.raise();
}

void MmioTransport::repeat_interrupt() noexcept {
    if (interrupt_status_.load() != 0) {
        interrupt(0);
    }
}

MmioTransport::State MmioTransport::state(std::span<const std::optional<Queue::State>> queues) const {
    State state{negotiation_.state(queues), device_features_select_.load(), driver_features_select_.load(),
                queue_select_.load(), interrupt_status_.load()};
    if (state.negotiation.status == 0) { // A reset that was under way is finished in the state.
        state.device_features_select = state.driver_features_select = state.queue_select = 0;
        state.interrupt_status = 0;
    }
    return state;
}

void MmioTransport::forget() noexcept {
    interrupt_status_ = 0;
    device_features_select_ = 0;
    driver_features_select_ = 0;
    queue_select_ = 0;
}

} // namespace vmm::devices::virtio
