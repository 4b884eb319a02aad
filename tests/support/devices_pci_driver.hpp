// A small driver of a virtio device over PCI, and the interrupt lines that it listens to, for tests of PCI.
//
//     EchoDevice device;
//     PciRig rig{device};
//     ASSERT_TRUE(rig.start());                       // finds the structures, negotiates, takes a vector for each
//     queue rig.queue(0).add({{at, 16}}); rig.ring(0); ASSERT_TRUE(rig.wait_for_used(0));
//     EXPECT_EQ(rig.message(1).take(), 1U);           // the interrupt of queue 0
#pragma once

#include <algorithm>
#include <array>
#include <atomic>
#include <cassert>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <memory>
#include <optional>
#include <set>
#include <span>
#include <utility>
#include <vector>

#include "devices/pci/function.hpp"
#include "devices/pci/interrupts.hpp"
#include "devices/virtio/device.hpp"
#include "devices/virtio/pci_transport.hpp"
#include "devices/virtio/queue.hpp"
#include "kvm/host/guest_memory.hpp"
#include "support/devices_virtio_driver.hpp"
#include "support/host_waiting.hpp"

namespace vmm::devices::testing {

/// An interrupt path that counts its messages. Threads: any, at once.
class RecordingMessage final : public pci::MessageLine {
  public:
    void prepare(pci::Message message) noexcept override {
        address_ = message.address;
        data_ = message.data;
        preparations_.fetch_add(1);
    }
    void raise() noexcept override { raised_.fetch_add(1); }

    /// The message that was prepared last.
    [[nodiscard]] pci::Message message() const noexcept { return {address_.load(), data_.load()}; }
    [[nodiscard]] std::uint64_t preparations() const noexcept { return preparations_.load(); }
    /// Messages since the last call.
    std::uint64_t take() noexcept { return raised_.exchange(0); }

  private:
    std::atomic<std::uint64_t> address_ = 0;
    std::atomic<std::uint32_t> data_ = 0;
    std::atomic<std::uint64_t> preparations_ = 0;
    std::atomic<std::uint64_t> raised_ = 0;
};

/// An interrupt pin that shows its level. Threads: any, at once.
class RecordingPin final : public pci::PinLine {
  public:
    void set(bool up) noexcept override {
        up_ = up;
        changes_.fetch_add(1);
    }

    [[nodiscard]] bool is_up() const noexcept { return up_.load(); }
    /// How often its level was set since the last call.
    std::uint64_t take_changes() noexcept { return changes_.exchange(0); }

  private:
    std::atomic<bool> up_ = false;
    std::atomic<std::uint64_t> changes_ = 0;
};

/// `count` lines, and the pointers to them for making a function.
class RecordingMessages {
  public:
    explicit RecordingMessages(std::size_t count) : lines_(count) {
        for (RecordingMessage& line : lines_) {
            pointers_.push_back(&line);
        }
    }

    [[nodiscard]] std::span<pci::MessageLine* const> lines() const noexcept { return pointers_; }
    [[nodiscard]] RecordingMessage& operator[](std::size_t index) { return lines_.at(index); }

  private:
    std::deque<RecordingMessage> lines_;
    std::vector<pci::MessageLine*> pointers_;
};

/// Offsets in the common configuration structure (virtio 1.2, 4.1.4.3), as the driver knows them.
namespace common {
inline constexpr std::uint64_t kDeviceFeatureSelect = 0x00;
inline constexpr std::uint64_t kDeviceFeature = 0x04;
inline constexpr std::uint64_t kDriverFeatureSelect = 0x08;
inline constexpr std::uint64_t kDriverFeature = 0x0c;
inline constexpr std::uint64_t kConfigVector = 0x10;
inline constexpr std::uint64_t kQueueCount = 0x12;
inline constexpr std::uint64_t kStatus = 0x14;
inline constexpr std::uint64_t kConfigGeneration = 0x15;
inline constexpr std::uint64_t kQueueSelect = 0x16;
inline constexpr std::uint64_t kQueueSize = 0x18;
inline constexpr std::uint64_t kQueueVector = 0x1a;
inline constexpr std::uint64_t kQueueEnable = 0x1c;
inline constexpr std::uint64_t kQueueNotifyOffset = 0x1e;
inline constexpr std::uint64_t kQueueDescriptors = 0x20;
inline constexpr std::uint64_t kQueueDriverArea = 0x28;
inline constexpr std::uint64_t kQueueDeviceArea = 0x30;
inline constexpr std::uint64_t kQueueNotifyData = 0x38;
inline constexpr std::uint64_t kQueueReset = 0x3a;
inline constexpr std::uint64_t kBytes = 0x3c;
} // namespace common

/// The registers of a configuration space (PCI Local Bus 3.0, 6.1), as the driver knows them.
namespace header {
inline constexpr std::uint16_t kVendor = 0x00;
inline constexpr std::uint16_t kDevice = 0x02;
inline constexpr std::uint16_t kCommand = 0x04;
inline constexpr std::uint16_t kStatus = 0x06;
inline constexpr std::uint16_t kRevision = 0x08;
inline constexpr std::uint16_t kHeaderType = 0x0e;
inline constexpr std::uint16_t kBaseAddress = 0x10;
inline constexpr std::uint16_t kSubsystemVendor = 0x2c;
inline constexpr std::uint16_t kSubsystem = 0x2e;
inline constexpr std::uint16_t kCapabilities = 0x34;
inline constexpr std::uint16_t kInterruptLine = 0x3c;
inline constexpr std::uint16_t kInterruptPin = 0x3d;

inline constexpr std::uint16_t kDecodesMemory = 1U << 1U;
inline constexpr std::uint16_t kMastersBus = 1U << 2U;
inline constexpr std::uint16_t kPinDisabled = 1U << 10U;
inline constexpr std::uint16_t kInterruptPending = 1U << 3U;
inline constexpr std::uint16_t kHasCapabilities = 1U << 4U;
} // namespace header

/// Ids of capabilities.
inline constexpr std::uint8_t kVendorCapability = 0x09;
inline constexpr std::uint8_t kMsixCapability = 0x11;

/// Bits of MSI-X's message control.
inline constexpr std::uint16_t kMsixEnable = 1U << 15U;
inline constexpr std::uint16_t kMsixFunctionMask = 1U << 14U;

inline constexpr std::uint16_t kNoVector = 0xffff;

/// A structure of virtio 1.2, 4.1.4, at the place that its capability names.
struct PciStructure {
    std::uint8_t capability = 0; ///< the offset of that in configuration space
    std::uint8_t capability_bytes = 0;
    std::uint8_t bar = 0;
    std::uint32_t offset = 0;
    std::uint32_t length = 0;
};

/// The driver's side of a function: its configuration space, its capabilities, and its registers.
///
/// Threads: one for each driver; several drivers of one function at once.
class PciDriver {
  public:
    explicit PciDriver(pci::Function& function) : function_(&function) {}

    // ---- Configuration space

    template <typename T>
    T config(std::uint16_t offset) {
        T value{};
        function_->read_config(offset, std::as_writable_bytes(std::span(&value, 1)));
        return value;
    }
    template <typename T>
    void set_config(std::uint16_t offset, T value) {
        function_->write_config(offset, std::as_bytes(std::span(&value, 1)));
    }
    /// The offsets of all capabilities, in the order of the list; there is room for at most 48.
    std::vector<std::uint8_t> capabilities() {
        std::vector<std::uint8_t> found;
        if ((config<std::uint16_t>(header::kStatus) & header::kHasCapabilities) == 0) {
            return found;
        }
        constexpr std::size_t kMost = 48;
        for (auto at = config<std::uint8_t>(header::kCapabilities); at != 0 && found.size() < kMost;
             at = config<std::uint8_t>(static_cast<std::uint16_t>(at + 1))) {
            found.push_back(at);
        }
        return found;
    }
    /// The offset of the first capability of that id; 0 if there is none.
    std::uint8_t capability(std::uint8_t id) {
        for (const std::uint8_t at : capabilities()) {
            if (config<std::uint8_t>(at) == id) {
                return at;
            }
        }
        return 0;
    }
    /// The first structure of that type.
    std::optional<PciStructure> structure(std::uint8_t type) {
        for (const std::uint8_t at : capabilities()) {
            if (config<std::uint8_t>(at) == kVendorCapability && config<std::uint8_t>(field(at, 3)) == type) {
                return PciStructure{at, config<std::uint8_t>(field(at, 2)), config<std::uint8_t>(field(at, 4)),
                                    config<std::uint32_t>(field(at, 8)), config<std::uint32_t>(field(at, 12))};
            }
        }
        return std::nullopt;
    }
    static constexpr std::uint16_t field(std::uint8_t capability, unsigned offset) {
        return static_cast<std::uint16_t>(capability + offset);
    }

    /// Sets or clears the bit of the command register.
    void become_master(bool master = true) {
        const auto others = static_cast<std::uint16_t>(config<std::uint16_t>(header::kCommand) & ~header::kMastersBus);
        set_config<std::uint16_t>(header::kCommand, master ? others | header::kMastersBus : others);
    }

    // ---- Behind the base address register

    template <typename T>
    T read(std::uint64_t offset) {
        T value{};
        function_->read(offset, std::as_writable_bytes(std::span(&value, 1)));
        return value;
    }
    template <typename T>
    void write(std::uint64_t offset, T value) {
        function_->write(offset, std::as_bytes(std::span(&value, 1)));
    }

    /// Finds the structures, and lets the function master the bus. False if a structure is missing.
    bool probe() {
        become_master();
        constexpr std::uint8_t kTypes = 4;
        for (std::uint8_t type = 1; type <= kTypes; ++type) {
            const auto found = structure(type);
            if (!found || found->bar != 0) {
                return false;
            }
            structures_[type - 1U] = *found;
        }
        stride_ = config<std::uint32_t>(field(structures_[1].capability, 16));
        const std::uint8_t msix = capability(kMsixCapability);
        if (msix == 0) {
            return false;
        }
        msix_control_ = field(msix, 2);
        vectors_ = (config<std::uint16_t>(msix_control_) & 0x7ffU) + 1U;
        table_ = config<std::uint32_t>(field(msix, 4));
        pending_ = config<std::uint32_t>(field(msix, 8));
        return true;
    }

    // ---- After probe()

    template <typename T>
    T common(std::uint64_t offset) {
        return read<T>(structures_[0].offset + offset);
    }
    template <typename T>
    void set_common(std::uint64_t offset, T value) {
        write<T>(structures_[0].offset + offset, value);
    }
    std::uint8_t take_isr() { return read<std::uint8_t>(structures_[2].offset); }
    template <typename T>
    T device_config(std::uint64_t offset) {
        return read<T>(structures_[3].offset + offset);
    }
    template <typename T>
    void set_device_config(std::uint64_t offset, T value) {
        write<T>(structures_[3].offset + offset, value);
    }

    std::uint8_t status() { return common<std::uint8_t>(common::kStatus); }
    void set_status(std::uint8_t value) { set_common<std::uint8_t>(common::kStatus, value); }
    void add_status(std::uint8_t bits) { set_status(static_cast<std::uint8_t>(status() | bits)); }

    std::uint64_t device_features() {
        set_common<std::uint32_t>(common::kDeviceFeatureSelect, 1);
        const std::uint64_t high = common<std::uint32_t>(common::kDeviceFeature);
        set_common<std::uint32_t>(common::kDeviceFeatureSelect, 0);
        return high << 32U | common<std::uint32_t>(common::kDeviceFeature);
    }
    void set_features(std::uint64_t features) {
        set_common<std::uint32_t>(common::kDriverFeatureSelect, 0);
        set_common<std::uint32_t>(common::kDriverFeature, static_cast<std::uint32_t>(features));
        set_common<std::uint32_t>(common::kDriverFeatureSelect, 1);
        set_common<std::uint32_t>(common::kDriverFeature, static_cast<std::uint32_t>(features >> 32U));
    }
    /// Negotiates up to FEATURES_OK. True if the device has accepted the features.
    bool negotiate(std::uint64_t features) {
        set_status(virtio::kStatusAcknowledge);
        add_status(virtio::kStatusDriver);
        set_features(features);
        add_status(virtio::kStatusFeaturesOk);
        return (status() & virtio::kStatusFeaturesOk) != 0;
    }
    void select(std::uint16_t queue) { set_common<std::uint16_t>(common::kQueueSelect, queue); }
    /// Selects the queue and reads one of its fields.
    template <typename T = std::uint16_t>
    T of_queue(std::uint16_t queue, std::uint64_t offset) {
        select(queue);
        return common<T>(offset);
    }
    void set_geometry(std::uint16_t queue, const virtio::QueueGeometry& geometry) {
        select(queue);
        set_common<std::uint16_t>(common::kQueueSize, geometry.size);
        set_common<std::uint64_t>(common::kQueueDescriptors, to_integer(geometry.descriptors));
        set_common<std::uint64_t>(common::kQueueDriverArea, to_integer(geometry.driver_area));
        set_common<std::uint64_t>(common::kQueueDeviceArea, to_integer(geometry.device_area));
    }
    /// True if the queue is enabled then.
    bool enable_queue(std::uint16_t queue, const virtio::QueueGeometry& geometry) {
        set_geometry(queue, geometry);
        set_common<std::uint16_t>(common::kQueueEnable, 1);
        return common<std::uint16_t>(common::kQueueEnable) == 1;
    }
    /// True if the device has accepted the vector.
    bool set_queue_vector(std::uint16_t queue, std::uint16_t vector) {
        select(queue);
        set_common<std::uint16_t>(common::kQueueVector, vector);
        return common<std::uint16_t>(common::kQueueVector) == vector;
    }
    bool set_config_vector(std::uint16_t vector) {
        set_common<std::uint16_t>(common::kConfigVector, vector);
        return common<std::uint16_t>(common::kConfigVector) == vector;
    }
    void ring(std::uint16_t queue) {
        const std::uint64_t at = of_queue(queue, common::kQueueNotifyOffset) * std::uint64_t{stride_};
        write<std::uint16_t>(structures_[1].offset + at, queue);
    }

    [[nodiscard]] unsigned vectors() const noexcept { return vectors_; }
    void set_msix_control(std::uint16_t bits) { set_config<std::uint16_t>(msix_control_, bits); }
    [[nodiscard]] std::uint32_t table_entry(unsigned vector) const noexcept { return (table_ & ~7U) + vector * 16U; }
    [[nodiscard]] std::uint32_t pending_bits() const noexcept { return pending_ & ~7U; }
    void set_message(unsigned vector, pci::Message message) {
        write<std::uint64_t>(table_entry(vector), message.address);
        write<std::uint32_t>(table_entry(vector) + 8U, message.data);
    }
    void mask(unsigned vector, bool masked) { write<std::uint32_t>(table_entry(vector) + 12U, masked ? 1 : 0); }
    /// Gives each vector a message of its own, unmasks them, and switches MSI-X on.
    void enable_msix() {
        for (unsigned vector = 0; vector < vectors_; ++vector) {
            set_message(vector, message_of(vector));
            mask(vector, false);
        }
        set_msix_control(kMsixEnable);
    }
    static constexpr pci::Message message_of(unsigned vector) { return {0xfee00000U, 0x40U + vector}; }

    [[nodiscard]] const PciStructure& notify_structure() const noexcept { return structures_[1]; }
    [[nodiscard]] const PciStructure& isr_structure() const noexcept { return structures_[2]; }
    [[nodiscard]] std::uint32_t notify_stride() const noexcept { return stride_; }

  private:
    pci::Function* function_;
    std::array<PciStructure, 4> structures_{}; ///< by type, from 1 on
    std::uint32_t stride_ = 0;
    std::uint16_t msix_control_ = 0;
    unsigned vectors_ = 0;
    std::uint32_t table_ = 0;
    std::uint32_t pending_ = 0;
};

using PciPump = DevicePump<virtio::PciTransport>;

/// A device under test over PCI, with everything that it needs.
///
/// Threads: one; the function any.
class PciRig {
  public:
    static constexpr std::uint64_t kMemoryBytes = 4 * kMiB;
    static constexpr GuestAddress kRegisters{0xe0000000};

    /// `device` must outlive it. `patience` is as in DevicePump.
    explicit PciRig(virtio::Device& device, std::chrono::milliseconds patience = {})
        : messages_(virtio::PciTransport::vectors(device.identity())),
          pump_(std::make_unique<PciPump>(device, patience,
                                          [&](PciPump::Hooks hooks) {
                                              return virtio::PciTransport(device.identity(), memory_, kRegisters,
                                                                          interrupts(), std::move(hooks));
                                          })),
          driver_(pump_->transport()), queue_count_(static_cast<std::uint16_t>(device.identity().queue_sizes.size())) {
        [[maybe_unused]] const bool found = driver_.probe();
        assert(found);
    }

    [[nodiscard]] const GuestMemory& memory() const noexcept { return memory_; }
    [[nodiscard]] virtio::PciTransport& transport() noexcept { return pump_->transport(); }
    [[nodiscard]] PciDriver& driver() noexcept { return driver_; }
    [[nodiscard]] PciPump& pump() noexcept { return *pump_; }
    [[nodiscard]] DriverQueue& queue(std::size_t index) { return *queues_.at(index); }
    [[nodiscard]] RecordingMessage& message(std::size_t vector) { return messages_[vector]; }
    [[nodiscard]] RecordingPin& pin() noexcept { return pin_; }
    [[nodiscard]] virtio::PciTransport::Interrupts interrupts() noexcept { return {messages_.lines(), pin_}; }

    /// `bytes` of guest memory that nothing else uses, aligned to 16. They are never given back.
    GuestAddress allocate(std::uint64_t bytes) {
        const GuestAddress address{next_free_};
        next_free_ += (bytes + 15) / 16 * 16;
        assert(next_free_ <= kMemoryBytes);
        return address;
    }

    /// From reset to DRIVER_OK with all queues. With `msix` vector 0 is for changes of the configuration, and vector
    /// n + 1 for queue n. False if the device refuses.
    bool start(bool msix = true, std::uint64_t features = ~std::uint64_t{0}) {
        if (!reset()) {
            return false;
        }
        const std::uint64_t accepted = driver_.device_features() & features;
        driver_.set_msix_control(0);
        if (msix) {
            driver_.enable_msix();
        }
        if (!driver_.negotiate(accepted) || (msix && !driver_.set_config_vector(0))) {
            return false;
        }
        queues_.clear();
        for (std::uint16_t index = 0; index < queue_count_; ++index) {
            const auto size = driver_.of_queue(index, common::kQueueSize);
            if (bases_.size() <= index) {
                bases_.push_back(allocate(DriverQueue::bytes(size)));
            }
            queues_.push_back(std::make_unique<DriverQueue>(memory_, bases_[index], size,
                                                            (accepted & virtio::kFeatureEventIdx) != 0));
            if ((msix && !driver_.set_queue_vector(index, static_cast<std::uint16_t>(index + 1))) ||
                !driver_.enable_queue(index, queues_.back()->geometry())) {
                return false;
            }
        }
        driver_.add_status(virtio::kStatusDriverOk);
        settle();
        return (driver_.status() & (virtio::kStatusDriverOk | virtio::kStatusNeedsReset)) == virtio::kStatusDriverOk;
    }
    bool reset() {
        driver_.set_status(0);
        return pump_until([this] { return driver_.status() == 0; });
    }
    /// Rings the doorbell of queue `index`, if the device wants that.
    void ring(std::uint16_t index) {
        if (queue(index).wants_doorbell()) {
            driver_.ring(index);
        }
    }
    void settle() {
        constexpr int kMostTurns = 100'000;
        for (int turns = 0; turns < kMostTurns && pump_->turn(); ++turns) {
        }
    }
    template <typename Condition>
    bool pump_until(Condition condition) {
        const auto end = std::chrono::steady_clock::now() + vmm::testing::kPatience;
        while (!condition()) {
            if (std::chrono::steady_clock::now() > end) {
                return false;
            }
            pump_->turn(std::chrono::milliseconds(10));
        }
        return true;
    }
    std::optional<Used> wait_for_used(std::uint16_t index) {
        std::optional<Used> used;
        pump_until([&] { return (used = queue(index).take_used()).has_value(); });
        return used;
    }

    /// Pauses the device, and lets `device` go on in its place, with a transport made from the state of the old
    /// transport. `device` must outlive the rig. False if the old one does not come to rest.
    bool replace_device(virtio::Device& device) {
        if (!pump_->pause()) {
            return false;
        }
        const virtio::PciTransport::State state = pump_->state();
        pump_ = std::make_unique<PciPump>(device, std::chrono::milliseconds{0}, [&](PciPump::Hooks hooks) {
            return virtio::PciTransport(device.identity(), memory_, kRegisters, interrupts(), std::move(hooks), state);
        });
        driver_ = PciDriver(pump_->transport());
        pump_->transport().repeat_interrupt();
        return driver_.probe();
    }

  private:
    const std::array<GuestRange, 1> layout_{GuestRange{GuestAddress{0}, kMemoryBytes}};
    GuestMemory memory_{layout_, PageSize::k4K};
    RecordingMessages messages_;
    RecordingPin pin_;
    std::unique_ptr<PciPump> pump_;
    PciDriver driver_;
    std::uint16_t queue_count_;
    std::uint64_t next_free_ = 0x1000;
    std::vector<GuestAddress> bases_; ///< of the queues, the same after each reset
    std::vector<std::unique_ptr<DriverQueue>> queues_;
};

} // namespace vmm::devices::testing
