#include "devices/virtio/pci_transport.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <optional>
#include <random>
#include <set>
#include <span>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "devices/pci/config_ports.hpp"
#include "devices/pci/root_bus.hpp"
#include "support/devices_echo_device.hpp"
#include "support/devices_pci_driver.hpp"
#include "support/devices_virtio_driver.hpp"
#include "support/host_errors.hpp"

namespace vmm::devices::virtio {
namespace {

namespace common = testing::common;
namespace header = testing::header;
using testing::EchoDevice;
using testing::kMsixEnable;
using testing::kMsixFunctionMask;
using testing::kNoVector;
using testing::kWritable;
using testing::PciDriver;
using testing::PciRig;
using testing::PciStructure;
using testing::RecordingMessages;
using testing::RecordingPin;
using testing::Used;
using testing::operator+;
using vmm::testing::error_of;
using vmm::testing::mentions;

constexpr std::uint64_t kTransportFeatures =
    kFeatureIndirectDescriptors | kFeatureEventIdx | kFeatureVersion1 | kFeatureRingReset;
constexpr std::uint8_t kUsedBuffer = 1;
constexpr std::uint8_t kConfigChange = 2;
constexpr std::uint8_t kRunning = kStatusAcknowledge | kStatusDriver | kStatusFeaturesOk | kStatusDriverOk;
constexpr GuestAddress kBase{0xe0000000};

// The types in 4.1.4.
constexpr std::uint8_t kCommonType = 1;
constexpr std::uint8_t kNotifyType = 2;
constexpr std::uint8_t kIsrType = 3;
constexpr std::uint8_t kDeviceType = 4;
constexpr std::uint8_t kWindowType = 5;

/// The function alone. The test does the work of the device's thread, step by step.
class PciTransportTest : public ::testing::Test {
  protected:
    PciTransportTest() {
        EXPECT_TRUE(driver.probe());
        works = 0;
    }

    static QueueGeometry geometry(std::uint16_t size = 8) {
        return {size, GuestAddress{0x1000}, GuestAddress{0x8000}, GuestAddress{0x10000}};
    }
    void negotiate(std::uint64_t features = kTransportFeatures) { ASSERT_TRUE(driver.negotiate(features)); }
    void start_and_take() {
        negotiate();
        ASSERT_TRUE(driver.enable_queue(0, geometry()));
        ASSERT_TRUE(driver.enable_queue(1, {4, GuestAddress{0x20000}, GuestAddress{0x21000}, GuestAddress{0x22000}}));
        driver.add_status(kStatusDriverOk);
        ASSERT_EQ(driver.status(), kRunning);
        ASSERT_TRUE(transport.negotiation().take_work().activation);
        works = 0;
    }
    void finish_reset() {
        if (transport.negotiation().take_work().reset) {
            transport.negotiation().finish_reset();
        }
    }
    std::uint64_t messages_of_all() {
        std::uint64_t count = 0;
        for (std::size_t vector = 0; vector < 3; ++vector) {
            count += messages[vector].take();
        }
        return count;
    }
    [[nodiscard]] bool shows_interrupt() {
        return (driver.config<std::uint16_t>(header::kStatus) & header::kInterruptPending) != 0;
    }

    EchoDevice device;
    const std::array<GuestRange, 1> layout{GuestRange{GuestAddress{0}, 2 * kMiB}};
    GuestMemory memory{layout, PageSize::k4K};
    RecordingMessages messages{PciTransport::vectors(device.identity())};
    RecordingPin pin;
    int works = 0;
    std::vector<std::uint16_t> doorbells;
    PciTransport transport{
        device.identity(),
        memory,
        kBase,
        {messages.lines(), pin},
        {.work = [this] { ++works; }, .doorbell = [this](std::uint16_t index) { doorbells.push_back(index); }}};
    PciDriver driver{transport};
};

// ---- What it is

// 4.1.2: "Any PCI device with PCI Vendor ID 0x1AF4, and PCI Device ID 0x1000 through 0x107F"; 4.1.2.1:
// "Non-transitional devices SHOULD have a PCI Device ID in the range 0x1040 to 0x107f", "a PCI Revision ID of 1 or
// higher", "a PCI Subsystem Device ID of 0x40 or higher".
TEST_F(PciTransportTest, IsAModernVirtioDeviceOfItsType) {
    EXPECT_EQ(driver.config<std::uint16_t>(header::kVendor), 0x1af4U);
    EXPECT_EQ(driver.config<std::uint16_t>(header::kDevice), 0x1040U + static_cast<unsigned>(DeviceId::kEntropy));
    EXPECT_GE(driver.config<std::uint8_t>(header::kRevision), 1U);
    EXPECT_GE(driver.config<std::uint16_t>(header::kSubsystem), 0x40U);
    EXPECT_EQ(driver.config<std::uint8_t>(header::kInterruptPin), 1U);
    EXPECT_EQ(transport.name(), "echo0");
    EXPECT_EQ(transport.decoded(), (GuestRange{kBase, PciTransport::kBytes}));
}

// 4.1.4.3.1, 4.1.4.4.1, 4.1.4.5.1 and 4.1.4.9.1: "MUST present at least one" capability of each of these
// types; 4.1.4.6: of the device-specific configuration, too.
TEST_F(PciTransportTest, HasACapabilityForEachStructure) {
    for (const std::uint8_t type : {kCommonType, kNotifyType, kIsrType, kDeviceType, kWindowType}) {
        const auto structure = driver.structure(type);
        ASSERT_TRUE(structure) << unsigned{type};
        EXPECT_EQ(structure->bar, 0U);
        EXPECT_LE(std::uint64_t{structure->offset} + structure->length, PciTransport::kBytes);
    }
    EXPECT_NE(driver.capability(testing::kMsixCapability), 0U);
    EXPECT_EQ(driver.capabilities().size(), 6U);
    EXPECT_GE(driver.structure(kCommonType)->length, common::kBytes);
    EXPECT_GE(driver.structure(kIsrType)->length, 1U);
    EXPECT_EQ(driver.structure(kDeviceType)->length, EchoDevice::kConfigBytes);
}

// 4.1.4.3.1 and 4.1.4.6.1: "MUST be 4-byte aligned"; PCI Local Bus 3.0, 6.7: capabilities are double words.
TEST_F(PciTransportTest, StructuresAndCapabilitiesAreAligned) {
    EXPECT_EQ(driver.structure(kCommonType)->offset % 4, 0U);
    EXPECT_EQ(driver.structure(kDeviceType)->offset % 4, 0U);
    for (const std::uint8_t at : driver.capabilities()) {
        EXPECT_EQ(at % 4, 0);
        EXPECT_GE(at, 0x40);
    }
}

// 4.1.4.2: "MUST include any extra data ... in cap_len".
TEST_F(PciTransportTest, TheLengthOfACapabilityCoversItsExtraData) {
    EXPECT_EQ(driver.structure(kCommonType)->capability_bytes, 16U);
    EXPECT_EQ(driver.structure(kNotifyType)->capability_bytes, 20U) << "with notify_off_multiplier";
    EXPECT_EQ(driver.structure(kIsrType)->capability_bytes, 16U);
    EXPECT_EQ(driver.structure(kDeviceType)->capability_bytes, 16U);
    EXPECT_EQ(driver.structure(kWindowType)->capability_bytes, 20U) << "with pci_cfg_data";
    const std::vector<std::uint8_t> all = driver.capabilities();
    for (std::size_t i = 0; i + 1 < all.size(); ++i) {
        if (driver.config<std::uint8_t>(all[i]) == testing::kVendorCapability) {
            EXPECT_LE(all[i] + driver.config<std::uint8_t>(PciDriver::field(all[i], 2)), all[i + 1]) << i;
        }
    }
}

// 4.1.4.4.1: the offset "MUST be 2-byte aligned", the multiplier "an even power of 2" or 0, and "cap.length >=
// queue_notify_off * notify_off_multiplier + 2".
TEST_F(PciTransportTest, EachQueueHasADoorbellWithinItsStructure) {
    const PciStructure notify = driver.notify_structure();
    EXPECT_EQ(notify.offset % 2, 0U);
    const std::uint32_t stride = driver.notify_stride();
    EXPECT_TRUE(std::has_single_bit(stride) && std::countr_zero(stride) % 2 == 0) << stride;
    EXPECT_GE(notify.length, 2U);
    for (std::uint16_t queue = 0; queue < 2; ++queue) {
        EXPECT_GE(notify.length, driver.of_queue(queue, common::kQueueNotifyOffset) * stride + 2) << queue;
        EXPECT_EQ(notify.offset + driver.of_queue(queue, common::kQueueNotifyOffset) * stride,
                  PciTransport::kDoorbells + queue * PciTransport::kDoorbellStride)
            << "where ioeventfds catch it";
    }
}

TEST_F(PciTransportTest, WithoutAConfigurationThereIsNoCapabilityForIt) {
    Identity identity = device.identity();
    identity.config.clear();
    identity.config_writable.clear();
    PciTransport without{identity, memory, kBase, {messages.lines(), pin}, {}};
    PciDriver other{without};
    EXPECT_FALSE(other.structure(kDeviceType));
    EXPECT_TRUE(other.structure(kWindowType));
    EXPECT_NE(other.capability(testing::kMsixCapability), 0U);
}

TEST_F(PciTransportTest, ADriverWritesNoCapabilityButThatOfTheWindow) {
    for (const std::uint8_t at : driver.capabilities()) {
        const bool is_window = at == driver.structure(kWindowType)->capability;
        const bool is_msix = driver.config<std::uint8_t>(at) == testing::kMsixCapability;
        const unsigned bytes = is_msix ? 12 : driver.config<std::uint8_t>(PciDriver::field(at, 2));
        for (unsigned offset = 0; offset < bytes; ++offset) {
            const bool may = is_window ? offset == 4 || offset >= 8 : is_msix && offset == 3;
            const std::uint16_t where = PciDriver::field(at, offset);
            const auto before = driver.config<std::uint8_t>(where);
            if (!may) {
                driver.set_config<std::uint8_t>(where, static_cast<std::uint8_t>(~before));
                EXPECT_EQ(driver.config<std::uint8_t>(where), before) << where;
            }
        }
    }
}

// ---- Common configuration

// 4.1.4.3.1: "MUST present the feature bits it is offering in device_feature, starting at bit device_feature_select *
// 32 for any device_feature_select"; 6.2: VIRTIO_F_VERSION_1.
TEST_F(PciTransportTest, TheFeaturesOfTheTypeAndOfTheTransportAreOffered) {
    EXPECT_EQ(driver.device_features(), EchoDevice::kFeatures | kTransportFeatures);
    for (const std::uint32_t select : {2U, 3U, 0x80000000U, UINT32_MAX}) {
        driver.set_common<std::uint32_t>(common::kDeviceFeatureSelect, select);
        EXPECT_EQ(driver.common<std::uint32_t>(common::kDeviceFeatureSelect), select);
        EXPECT_EQ(driver.common<std::uint32_t>(common::kDeviceFeature), 0U) << select;
    }
}

// 4.1.4.3.1: "MUST present any valid feature bits the driver has written in driver_feature, starting at bit
// driver_feature_select * 32".
TEST_F(PciTransportTest, TheFeaturesThatTheDriverHasWrittenShow) {
    const std::uint64_t features = kFeatureVersion1 | EchoDevice::kFeatureA | EchoDevice::kFeatureB;
    driver.set_features(features);
    EXPECT_EQ(driver.common<std::uint32_t>(common::kDriverFeatureSelect), 1U);
    EXPECT_EQ(driver.common<std::uint32_t>(common::kDriverFeature), features >> 32U);
    driver.set_common<std::uint32_t>(common::kDriverFeatureSelect, 0);
    EXPECT_EQ(driver.common<std::uint32_t>(common::kDriverFeature), features & UINT32_MAX);
    driver.set_common<std::uint32_t>(common::kDriverFeatureSelect, 2);
    EXPECT_EQ(driver.common<std::uint32_t>(common::kDriverFeature), 0U);
}

TEST_F(PciTransportTest, FeaturesThatWereNotOfferedAreRefused) {
    EXPECT_FALSE(driver.negotiate(kFeatureVersion1 | 1ULL << 34U));
    driver.set_status(0);
    driver.set_common<std::uint32_t>(common::kDriverFeatureSelect, 2);
    driver.set_common<std::uint32_t>(common::kDriverFeature, 1);
    EXPECT_FALSE(driver.negotiate(kFeatureVersion1));
    driver.set_status(0);
    EXPECT_FALSE(driver.negotiate(0)) << "there is no legacy interface";
    driver.set_status(0);
    EXPECT_TRUE(driver.negotiate(kFeatureVersion1));
}

// 4.1.4.3: the fields of the structure, each by an access of its own width (4.1.3.1).
TEST_F(PciTransportTest, AFieldIsThereForAnAccessOfItsOwnWidthOnly) {
    struct Field {
        std::uint64_t offset;
        std::size_t bytes;
    };
    constexpr std::array kFields{
        Field{common::kDeviceFeatureSelect, 4},
        Field{common::kDeviceFeature, 4},
        Field{common::kDriverFeatureSelect, 4},
        Field{common::kDriverFeature, 4},
        Field{common::kConfigVector, 2},
        Field{common::kQueueCount, 2},
        Field{common::kStatus, 1},
        Field{common::kConfigGeneration, 1},
        Field{common::kQueueSelect, 2},
        Field{common::kQueueSize, 2},
        Field{common::kQueueVector, 2},
        Field{common::kQueueEnable, 2},
        Field{common::kQueueNotifyOffset, 2},
        Field{common::kQueueDescriptors, 8},
        Field{common::kQueueDriverArea, 8},
        Field{common::kQueueDeviceArea, 8},
        Field{common::kQueueNotifyData, 2},
        Field{common::kQueueReset, 2},
    };
    negotiate();
    driver.set_common<std::uint16_t>(common::kConfigVector, 0); // Then no field but the vector holds all ones.
    driver.set_common<std::uint16_t>(common::kQueueVector, 0);
    const auto state_before = transport.state({});
    for (std::uint64_t offset = 0; offset < common::kBytes + 16; ++offset) {
        for (std::size_t bytes = 0; bytes <= 9; ++bytes) {
            const bool is_field = std::ranges::any_of(kFields, [&](const Field& field) {
                return (field.offset == offset && field.bytes == bytes) ||
                       (field.bytes == 8 && bytes == 4 && (field.offset == offset || field.offset + 4 == offset));
            });
            std::vector<std::byte> data(bytes, std::byte{0x5a});
            transport.read(offset, data);
            EXPECT_EQ(bytes != 0 && data == std::vector(bytes, std::byte{0xff}), bytes != 0 && !is_field)
                << offset << " " << bytes;
            if (!is_field) {
                transport.write(offset, std::vector(bytes, std::byte{1}));
            }
        }
    }
    EXPECT_EQ(transport.state({}), state_before) << "no other write has done anything";
}

// 4.1.4.3.2: "The driver MUST NOT write to device_feature, num_queues, config_generation, queue_notify_off".
TEST_F(PciTransportTest, WhatIsForReadingOnlyIsNotWritten) {
    negotiate();
    const auto before = transport.state({});
    driver.set_common<std::uint32_t>(common::kDeviceFeature, 0x12345678);
    driver.set_common<std::uint16_t>(common::kQueueCount, 7);
    driver.set_common<std::uint8_t>(common::kConfigGeneration, 99);
    driver.set_common<std::uint16_t>(common::kQueueNotifyOffset, 9);
    driver.set_common<std::uint16_t>(common::kQueueNotifyData, 9);
    EXPECT_EQ(transport.state({}), before);
    EXPECT_EQ(driver.common<std::uint16_t>(common::kQueueCount), 2U);
    EXPECT_EQ(driver.common<std::uint16_t>(common::kQueueNotifyData), 0U);
}

// 4.1.4.3: "On reset, specifies the maximum queue size"; 4.1.4.3.1: "MUST present a 0 in queue_size if the virtqueue
// corresponding to the current queue_select is unavailable".
TEST_F(PciTransportTest, QueueSizeIsTheLargestAtFirstAnd0WhereThereIsNoQueue) {
    EXPECT_EQ(driver.of_queue(0, common::kQueueSize), EchoDevice::kQueueSize);
    EXPECT_EQ(driver.of_queue(1, common::kQueueSize), EchoDevice::kSmallQueueSize);
    negotiate();
    for (const unsigned index : {2U, 3U, 0x7fffU, 0xffffU}) {
        const auto queue = static_cast<std::uint16_t>(index);
        EXPECT_EQ(driver.of_queue(queue, common::kQueueSize), 0U) << index;
        EXPECT_FALSE(driver.enable_queue(queue, geometry()));
        EXPECT_FALSE(driver.set_queue_vector(queue, 1));
        EXPECT_EQ(driver.common<std::uint16_t>(common::kQueueVector), kNoVector);
        driver.set_common<std::uint16_t>(common::kQueueReset, 1);
        EXPECT_EQ(driver.common<std::uint16_t>(common::kQueueReset), 0U);
        EXPECT_EQ(driver.common<std::uint64_t>(common::kQueueDescriptors), 0U);
    }
}

// 4.1.4.3.1: without VIRTIO_F_RING_PACKED "the device MUST present either a value of 0 or a power of 2 in queue_size".
TEST_F(PciTransportTest, QueueSizeIs0OrAPowerOf2WhateverTheDriverWrote) {
    negotiate();
    driver.select(0);
    for (unsigned size = 0; size <= UINT16_MAX; size += size < 600 ? 1 : 97) {
        driver.set_common<std::uint16_t>(common::kQueueSize, static_cast<std::uint16_t>(size));
        const auto shown = driver.common<std::uint16_t>(common::kQueueSize);
        EXPECT_EQ(shown, std::has_single_bit(size) && size <= 32768 ? size : 0) << size;
    }
    driver.set_geometry(0, geometry(3));
    driver.set_common<std::uint16_t>(common::kQueueEnable, 1);
    EXPECT_EQ(driver.common<std::uint16_t>(common::kQueueEnable), 0U);
    EXPECT_TRUE(driver.enable_queue(0, geometry(16))) << "the driver may correct it";
}

// 4.1.3.2: "For 64-bit device configuration fields, the device MUST allow driver independent access to high and low
// 32-bit parts of the field."
TEST_F(PciTransportTest, AddressesAreReadAndWrittenWholeOrByHalves) {
    negotiate();
    driver.select(0);
    for (const std::uint64_t field : {common::kQueueDescriptors, common::kQueueDriverArea, common::kQueueDeviceArea}) {
        driver.set_common<std::uint64_t>(field, 0x1122334455667780);
        EXPECT_EQ(driver.common<std::uint64_t>(field), 0x1122334455667780U);
        EXPECT_EQ(driver.common<std::uint32_t>(field), 0x55667780U);
        EXPECT_EQ(driver.common<std::uint32_t>(field + 4), 0x11223344U);
        driver.set_common<std::uint32_t>(field + 4, 0xaabbccdd);
        EXPECT_EQ(driver.common<std::uint64_t>(field), 0xaabbccdd55667780U);
        driver.set_common<std::uint32_t>(field, 0x10);
        EXPECT_EQ(driver.common<std::uint64_t>(field), 0xaabbccdd00000010U);
    }
}

TEST_F(PciTransportTest, QueuesComeWithWhatTheDriverWrote) {
    negotiate();
    ASSERT_TRUE(driver.enable_queue(1, geometry(4)));
    driver.set_geometry(1, geometry(8)); // the generation is frozen
    driver.add_status(kStatusDriverOk);
    EXPECT_EQ(works, 1);
    const auto activation = transport.negotiation().take_work().activation;
    ASSERT_TRUE(activation);
    EXPECT_FALSE(activation->queues[0]);
    ASSERT_TRUE(activation->queues[1]);
    EXPECT_EQ(activation->queues[1]->state().geometry, geometry(4));
    EXPECT_EQ(driver.of_queue(0, common::kQueueEnable), 0U);
    EXPECT_EQ(driver.of_queue(1, common::kQueueEnable), 1U);
}

// 4.1.4.3.2: "The driver MUST NOT write a 0 to queue_enable."
TEST_F(PciTransportTest, QueueEnableTakesOnly1) {
    negotiate();
    driver.set_geometry(0, geometry());
    driver.set_common<std::uint16_t>(common::kQueueEnable, 2);
    EXPECT_EQ(driver.common<std::uint16_t>(common::kQueueEnable), 0U);
    ASSERT_TRUE(driver.enable_queue(0, geometry()));
    driver.set_common<std::uint16_t>(common::kQueueEnable, 0);
    EXPECT_EQ(driver.common<std::uint16_t>(common::kQueueEnable), 1U);
}

// 4.1.4.3.1: "MUST present a changed config_generation after the driver has read a device-specific configuration value
// which has changed since any part of the device-specific configuration was last read".
TEST_F(PciTransportTest, ConfigGenerationChangesWithTheConfiguration) {
    const auto before = driver.common<std::uint8_t>(common::kConfigGeneration);
    (void)driver.device_config<std::uint64_t>(0);
    EXPECT_EQ(driver.common<std::uint8_t>(common::kConfigGeneration), before);
    transport.change_config(1, std::array{std::byte{1}, std::byte{2}});
    EXPECT_NE(driver.common<std::uint8_t>(common::kConfigGeneration), before);
    EXPECT_EQ(driver.device_config<std::uint32_t>(0), 0x13020110U);
}

// The same: it has 8 bits, and "simply incrementing it on every configuration change could violate this".
TEST_F(PciTransportTest, ConfigGenerationChangesHoweverManyChangesThereWere) {
    for (const unsigned changes : {1U, 2U, 255U, 256U, 257U, 512U, 65536U}) {
        const auto before = driver.common<std::uint8_t>(common::kConfigGeneration);
        for (unsigned i = 0; i < changes; ++i) {
            transport.change_config(0, std::array{static_cast<std::byte>(i)});
        }
        EXPECT_NE(driver.common<std::uint8_t>(common::kConfigGeneration), before) << changes;
    }
}

TEST_F(PciTransportTest, ConfigGenerationGoesOnInARestoredOne) {
    for (const unsigned changes : {0U, 1U, 256U}) {
        const auto before = driver.common<std::uint8_t>(common::kConfigGeneration);
        for (unsigned i = 0; i < changes; ++i) {
            transport.change_config(0, std::array{static_cast<std::byte>(i)});
        }
        PciTransport restored{device.identity(), memory, kBase, {messages.lines(), pin}, {}, transport.state({})};
        PciDriver other{restored};
        ASSERT_TRUE(other.probe());
        EXPECT_EQ(other.common<std::uint8_t>(common::kConfigGeneration) == before, changes == 0) << changes;
    }
}

// 4.1.4.6: the configuration of the device's type, here at every width and offset.
TEST_F(PciTransportTest, ConfigurationIsExactAtEveryWidthAndOffset) {
    const std::uint32_t at = driver.structure(kDeviceType)->offset;
    for (std::size_t width = 0; width <= 8; ++width) {
        for (std::size_t offset = 0; offset < EchoDevice::kConfigBytes + 4; ++offset) {
            std::vector<std::byte> data(width);
            transport.read(at + offset, data);
            for (std::size_t i = 0; i < width; ++i) {
                const std::size_t byte = offset + i;
                EXPECT_EQ(data[i], static_cast<std::byte>(byte < EchoDevice::kConfigBytes ? 0x10 + byte : 0xff));
            }
        }
    }
    negotiate();
    driver.set_device_config<std::uint8_t>(EchoDevice::kWritableByte, 0xff);
    EXPECT_EQ(driver.device_config<std::uint8_t>(EchoDevice::kWritableByte), 0x1fU);
}

TEST_F(PciTransportTest, WhereThereIsNoStructureThereIsNothing) {
    for (const std::uint64_t offset : {0x6000U, 0x7000U, 0x7ff8U}) {
        driver.write<std::uint64_t>(offset, 0);
        EXPECT_EQ(driver.read<std::uint64_t>(offset), UINT64_MAX) << offset;
    }
    for (const std::uint64_t structure : {0x1000U, 0x2000U, 0x3000U, 0x4000U, 0x5000U}) {
        EXPECT_EQ(driver.read<std::uint32_t>(structure + 0xffc), UINT32_MAX) << structure;
        EXPECT_EQ(driver.read<std::uint64_t>(structure + 0xffc), UINT64_MAX) << "from one structure into the next";
    }
}

// ---- Resets

// 4.1.4.3.1: "MUST reset when 0 is written to device_status, and present a 0 in device_status once that is done", "MUST
// present a 0 in queue_enable on reset", "a 0 in queue_reset on reset".
TEST_F(PciTransportTest, AResetTakesUntilTheDeviceIsDone) {
    start_and_take();
    driver.set_status(0);
    EXPECT_EQ(works, 1);
    EXPECT_EQ(driver.status(), kRunning);
    const Negotiation::Work work = transport.negotiation().take_work();
    EXPECT_TRUE(work.reset);
    EXPECT_EQ(driver.status(), kRunning);
    transport.negotiation().finish_reset();
    EXPECT_EQ(driver.status(), 0U);
    for (std::uint16_t queue = 0; queue < 2; ++queue) {
        EXPECT_EQ(driver.of_queue(queue, common::kQueueEnable), 0U);
        EXPECT_EQ(driver.of_queue(queue, common::kQueueReset), 0U);
    }
    EXPECT_EQ(driver.of_queue(0, common::kQueueSize), EchoDevice::kQueueSize);
}

// 4.1.5.1.2.1: "MUST have all queue and configuration change events are unmapped upon reset".
TEST_F(PciTransportTest, AResetForgetsVectorsSelectorsAndTheInterruptStatus) {
    driver.enable_msix();
    ASSERT_TRUE(driver.set_config_vector(0));
    ASSERT_TRUE(driver.set_queue_vector(0, 1));
    ASSERT_TRUE(driver.set_queue_vector(1, 2));
    start_and_take();
    transport.change_config(0, std::array{std::byte{1}});
    driver.set_common<std::uint32_t>(common::kDeviceFeatureSelect, 1);
    driver.select(1);
    driver.set_status(0);
    finish_reset();
    EXPECT_EQ(driver.common<std::uint32_t>(common::kDeviceFeatureSelect), 0U);
    EXPECT_EQ(driver.common<std::uint32_t>(common::kDriverFeatureSelect), 0U);
    EXPECT_EQ(driver.common<std::uint16_t>(common::kQueueSelect), 0U);
    EXPECT_EQ(driver.common<std::uint16_t>(common::kConfigVector), kNoVector);
    EXPECT_EQ(driver.of_queue(0, common::kQueueVector), kNoVector);
    EXPECT_EQ(driver.of_queue(1, common::kQueueVector), kNoVector);
    EXPECT_EQ(driver.take_isr(), 0U);
    EXPECT_EQ(driver.read<std::uint64_t>(driver.table_entry(0)), PciDriver::message_of(0).address)
        << "the vectors' table is PCI's, and stays";
}

TEST_F(PciTransportTest, WhatIsWrittenDuringAResetIsIgnored) {
    start_and_take();
    driver.set_status(0);
    driver.set_status(kStatusAcknowledge);
    driver.select(1);
    EXPECT_FALSE(driver.set_config_vector(1));
    EXPECT_FALSE(driver.set_queue_vector(0, 1));
    driver.set_common<std::uint32_t>(common::kDeviceFeatureSelect, 1);
    driver.ring(0);
    EXPECT_EQ(driver.common<std::uint16_t>(common::kQueueSelect), 1U) << "as it was before the reset";
    EXPECT_TRUE(doorbells.empty());
    finish_reset();
    EXPECT_EQ(driver.status(), 0U);
    start_and_take();
}

// 2.4.1: "MUST NOT send notifications ... after indicating completion of the reset".
TEST_F(PciTransportTest, AfterAResetThereAreNoNotifications) {
    for (const bool msix : {false, true}) {
        if (msix) {
            driver.enable_msix();
        }
        start_and_take();
        transport.notify(QueueSet::of(0));
        driver.set_status(0);
        finish_reset();
        EXPECT_FALSE(pin.is_up());
        (void)messages_of_all();
        transport.notify(QueueSet::of(0));
        transport.change_config(0, std::array{std::byte{1}});
        transport.fail("late");
        EXPECT_EQ(messages_of_all(), 0U);
        EXPECT_FALSE(pin.is_up());
        EXPECT_EQ(driver.take_isr(), 0U);
        driver.set_status(0);
    }
}

// 4.1.4.3.1: "MUST reset the queue when 1 is written to queue_reset. The device MUST continue to present 1 in
// queue_reset as long as the queue reset is ongoing. The device MUST present 0 in both queue_reset and queue_enable
// when queue reset has completed", and "a 0 in queue_reset after the virtqueue is enabled with queue_enable".
TEST_F(PciTransportTest, AResetOfAQueueShowsWhileItIsUnderWay) {
    start_and_take();
    driver.select(0);
    driver.set_common<std::uint16_t>(common::kQueueReset, 0);
    driver.set_common<std::uint16_t>(common::kQueueReset, 2);
    EXPECT_EQ(driver.common<std::uint16_t>(common::kQueueReset), 0U) << "1 alone resets";
    driver.set_common<std::uint16_t>(common::kQueueReset, 1);
    EXPECT_EQ(driver.common<std::uint16_t>(common::kQueueReset), 1U);
    EXPECT_EQ(transport.negotiation().take_work().queue_resets, (std::vector<std::uint16_t>{0}));
    EXPECT_EQ(driver.common<std::uint16_t>(common::kQueueReset), 1U);
    transport.negotiation().finish_queue_reset(0);
    EXPECT_EQ(driver.common<std::uint16_t>(common::kQueueReset), 0U);
    EXPECT_EQ(driver.common<std::uint16_t>(common::kQueueEnable), 0U);
    EXPECT_EQ(driver.status(), kRunning);
    const QueueGeometry other{16, GuestAddress{0x100000}, GuestAddress{0x120000}, GuestAddress{0x140000}};
    ASSERT_TRUE(driver.enable_queue(0, other));
    EXPECT_EQ(driver.common<std::uint16_t>(common::kQueueReset), 0U);
    const Negotiation::Work work = transport.negotiation().take_work();
    ASSERT_EQ(work.restarts.size(), 1U);
    EXPECT_EQ(work.restarts[0].second.state().geometry, other);
    EXPECT_EQ(work.restarts[0].second.state().next_available, 0U);
}

TEST_F(PciTransportTest, WithoutItsFeatureQueueResetIsIgnored) {
    negotiate(kFeatureVersion1);
    ASSERT_TRUE(driver.enable_queue(0, geometry()));
    driver.set_common<std::uint16_t>(common::kQueueReset, 1);
    EXPECT_EQ(driver.common<std::uint16_t>(common::kQueueReset), 0U);
    EXPECT_EQ(driver.common<std::uint16_t>(common::kQueueEnable), 1U);
}

// ---- Vectors

// 4.1.5.1.2.1: "SHOULD support at least 2 and at most 0x800 MSI-X vectors", "MUST report the number of vectors
// supported in Table Size".
TEST_F(PciTransportTest, HasAVectorForTheConfigurationAndOneForEachQueue) {
    EXPECT_EQ(driver.vectors(), 3U);
    EXPECT_EQ(PciTransport::vectors(device.identity()), 3U);
    EXPECT_LE(driver.pending_bits() + 8U, PciTransport::kBytes);
    EXPECT_LE(driver.table_entry(driver.vectors()), driver.pending_bits());
}

// 4.1.5.1.2.1: "MUST support mapping any event type to any valid vector", "MUST support unmapping any event type",
// "MUST return vector mapped to a given event, (NO_VECTOR if unmapped)", "MUST report mapping failures by returning the
// NO_VECTOR value".
TEST_F(PciTransportTest, AnyEventIsMappedToAnyVectorOrToNone) {
    EXPECT_EQ(driver.common<std::uint16_t>(common::kConfigVector), kNoVector);
    EXPECT_EQ(driver.of_queue(0, common::kQueueVector), kNoVector);
    for (std::uint16_t vector = 0; vector < 3; ++vector) {
        EXPECT_TRUE(driver.set_config_vector(vector));
        EXPECT_TRUE(driver.set_queue_vector(0, vector));
        EXPECT_TRUE(driver.set_queue_vector(1, vector));
    }
    EXPECT_TRUE(driver.set_queue_vector(0, 0));
    EXPECT_EQ(driver.of_queue(1, common::kQueueVector), 2U) << "each queue has its own";
    for (const unsigned value : {3U, 4U, 0x7ffU, 0x8000U, 0xfffeU, 0xffffU}) {
        const auto vector = static_cast<std::uint16_t>(value);
        EXPECT_TRUE(driver.set_config_vector(1) && driver.set_queue_vector(1, 1));
        (void)driver.set_config_vector(vector);
        (void)driver.set_queue_vector(1, vector);
        EXPECT_EQ(driver.common<std::uint16_t>(common::kConfigVector), kNoVector) << value;
        EXPECT_EQ(driver.common<std::uint16_t>(common::kQueueVector), kNoVector) << value;
    }
}

// 4.1.5.3: "request the appropriate MSI-X interrupt message"; 4.1.5.3.1: with NO_VECTOR "MUST NOT deliver an interrupt
// for that virtqueue".
TEST_F(PciTransportTest, AUsedBufferIsNotifiedByTheVectorOfItsQueue) {
    driver.enable_msix();
    ASSERT_TRUE(driver.set_queue_vector(0, 2));
    start_and_take();
    transport.notify(QueueSet::of(0));
    EXPECT_EQ(messages[2].take(), 1U);
    EXPECT_EQ(messages[2].message(), PciDriver::message_of(2));
    transport.notify(QueueSet::of(1));
    EXPECT_EQ(messages_of_all(), 0U) << "it has no vector";
    EXPECT_EQ(driver.take_isr(), 0U) << "the ISR status is unused";
    EXPECT_FALSE(pin.is_up());
    EXPECT_EQ(transport.interrupts(), 1U);
}

TEST_F(PciTransportTest, QueuesThatShareAVectorAreNotifiedByOneMessage) {
    driver.enable_msix();
    ASSERT_TRUE(driver.set_queue_vector(0, 1));
    ASSERT_TRUE(driver.set_queue_vector(1, 1));
    start_and_take();
    QueueSet both = QueueSet::of(0);
    both.add(1);
    transport.notify(both);
    EXPECT_EQ(messages_of_all(), 1U);
    ASSERT_TRUE(driver.set_queue_vector(1, 2));
    transport.notify(both);
    EXPECT_EQ(messages[1].take(), 1U);
    EXPECT_EQ(messages[2].take(), 1U);
}

// 4.1.5.4: by config_msix_vector; 4.1.5.4.1: with NO_VECTOR "MUST NOT deliver an interrupt"; 4.1.4.5.1: "MUST set the
// Device Configuration Interrupt bit in ISR status before sending a device configuration change notification".
TEST_F(PciTransportTest, AChangeOfTheConfigurationIsNotifiedByItsVector) {
    driver.enable_msix();
    start_and_take();
    transport.change_config(0, std::array{std::byte{1}});
    EXPECT_EQ(messages_of_all(), 0U) << "it has no vector";
    EXPECT_EQ(driver.take_isr(), kConfigChange);
    ASSERT_TRUE(driver.set_config_vector(0));
    transport.change_config(0, std::array{std::byte{2}});
    EXPECT_EQ(messages[0].take(), 1U);
    EXPECT_EQ(driver.take_isr(), kConfigChange);
    transport.fail("a chain loops");
    EXPECT_EQ(messages[0].take(), 1U);
    EXPECT_EQ(driver.status(), kRunning | kStatusNeedsReset);
    EXPECT_FALSE(pin.is_up());
}

TEST_F(PciTransportTest, AMaskedVectorIsPendingUntilItIsNot) {
    driver.enable_msix();
    ASSERT_TRUE(driver.set_queue_vector(0, 1));
    start_and_take();
    driver.mask(1, true);
    transport.notify(QueueSet::of(0));
    EXPECT_EQ(messages_of_all(), 0U);
    EXPECT_EQ(driver.read<std::uint32_t>(driver.pending_bits()), 2U);
    driver.mask(1, false);
    EXPECT_EQ(messages[1].take(), 1U);
    EXPECT_EQ(driver.read<std::uint32_t>(driver.pending_bits()), 0U);
    driver.set_msix_control(kMsixEnable | kMsixFunctionMask);
    transport.notify(QueueSet::of(0));
    EXPECT_EQ(messages_of_all(), 0U);
    driver.set_msix_control(kMsixEnable);
    EXPECT_EQ(messages[1].take(), 1U);
}

// ---- Mastering the bus

// PCI Local Bus 3.0, 6.2.2: "A value of 0 disables the device from generating PCI accesses"; "State after RST# is 0".
TEST_F(PciTransportTest, ADeviceIsActivatedWhenItMastersTheBus) {
    driver.become_master(false);
    negotiate();
    ASSERT_TRUE(driver.enable_queue(0, geometry()));
    driver.add_status(kStatusDriverOk);
    EXPECT_EQ(driver.status(), kRunning);
    const Negotiation::Work work = transport.negotiation().take_work();
    EXPECT_FALSE(work.activation);
    EXPECT_TRUE(work.stands);
    works = 0;
    driver.become_master();
    EXPECT_EQ(works, 1);
    const Negotiation::Work then = transport.negotiation().take_work();
    EXPECT_TRUE(then.activation);
    EXPECT_FALSE(then.stands);
    driver.become_master();
    EXPECT_EQ(works, 1) << "nothing has changed";
}

TEST_F(PciTransportTest, IsNoMasterBeforeADriverSaysSo) {
    const PciTransport fresh{device.identity(), memory, kBase, {messages.lines(), pin}, {}};
    EXPECT_EQ(static_cast<unsigned>(fresh.state({}).config_space[header::kCommand]) & header::kMastersBus, 0U);
}

TEST_F(PciTransportTest, AResetAndNothingElseIsServedWhileItMayNotMasterTheBus) {
    start_and_take();
    driver.become_master(false);
    EXPECT_EQ(works, 1);
    driver.select(0);
    driver.set_common<std::uint16_t>(common::kQueueReset, 1);
    EXPECT_TRUE(transport.negotiation().take_work().queue_resets.empty());
    EXPECT_EQ(driver.common<std::uint16_t>(common::kQueueReset), 1U) << "it is under way";
    driver.set_status(0);
    const Negotiation::Work work = transport.negotiation().take_work();
    EXPECT_TRUE(work.reset);
    EXPECT_TRUE(work.stands);
    transport.negotiation().finish_reset();
    EXPECT_EQ(driver.status(), 0U);
    driver.become_master();
    start_and_take();
}

TEST_F(PciTransportTest, AWriteOfAnotherBitOfTheCommandDoesNotStopTheDevice) {
    start_and_take();
    driver.set_config<std::uint16_t>(header::kCommand, header::kMastersBus);
    driver.set_config<std::uint16_t>(header::kCommand,
                                     header::kMastersBus | header::kDecodesMemory | header::kPinDisabled);
    EXPECT_EQ(works, 0);
    EXPECT_FALSE(transport.negotiation().take_work().stands);
}

// ---- The pin

// 4.1.5.3 and 4.1.4.5.1: without MSI-X "MUST set the Queue Interrupt bit in ISR status before sending a virtqueue
// notification", "MUST reset ISR status to 0 on driver read".
TEST_F(PciTransportTest, WithoutMsixTheIsrSaysWhyThePinIsUpAndAReadLowersIt) {
    start_and_take();
    EXPECT_FALSE(pin.is_up());
    transport.notify(QueueSet::of(0));
    EXPECT_TRUE(pin.is_up());
    EXPECT_EQ(pin.take_changes(), 1U);
    transport.notify(QueueSet::of(1));
    EXPECT_EQ(pin.take_changes(), 0U) << "it is level-triggered";
    EXPECT_EQ(driver.take_isr(), kUsedBuffer);
    EXPECT_FALSE(pin.is_up());
    EXPECT_EQ(driver.take_isr(), 0U);
    transport.change_config(0, std::array{std::byte{1}});
    EXPECT_TRUE(pin.is_up());
    transport.notify(QueueSet::of(0));
    EXPECT_EQ(driver.take_isr(), kUsedBuffer | kConfigChange);
    EXPECT_FALSE(pin.is_up());
    EXPECT_EQ(messages_of_all(), 0U);
    EXPECT_EQ(transport.interrupts(), 4U);
}

TEST_F(PciTransportTest, TheIsrIsOneByte) {
    start_and_take();
    transport.notify(QueueSet::of(0));
    const std::uint32_t at = driver.isr_structure().offset;
    EXPECT_EQ(driver.read<std::uint16_t>(at), 0xffffU);
    EXPECT_EQ(driver.read<std::uint32_t>(at), UINT32_MAX);
    EXPECT_EQ(driver.read<std::uint8_t>(at + 1), 0xffU);
    driver.write<std::uint8_t>(at, 0);
    EXPECT_TRUE(pin.is_up()) << "none of these has acknowledged";
    EXPECT_EQ(driver.take_isr(), kUsedBuffer);
}

// 4.1.4.5.1: "MUST set the Interrupt Status bit in the PCI Status register ... to the logical OR of all bits in ISR
// status".
TEST_F(PciTransportTest, TheStatusRegisterShowsTheInterruptWhateverTheCommandRegisterSays) {
    start_and_take();
    EXPECT_FALSE(shows_interrupt());
    transport.notify(QueueSet::of(0));
    EXPECT_TRUE(shows_interrupt());
    driver.set_config<std::uint16_t>(header::kCommand, header::kDecodesMemory | header::kPinDisabled);
    EXPECT_TRUE(shows_interrupt());
    (void)driver.take_isr();
    EXPECT_FALSE(shows_interrupt());
}

// PCI Local Bus 3.0, 6.2.2: "This bit disables the device/function from asserting INTx#."
TEST_F(PciTransportTest, InterruptDisableLowersThePin) {
    start_and_take();
    transport.notify(QueueSet::of(0));
    driver.set_config<std::uint16_t>(header::kCommand, header::kDecodesMemory | header::kPinDisabled);
    EXPECT_FALSE(pin.is_up());
    driver.set_config<std::uint16_t>(header::kCommand, header::kDecodesMemory);
    EXPECT_TRUE(pin.is_up()) << "what was not acknowledged asks again";
    driver.set_config<std::uint16_t>(header::kCommand, header::kDecodesMemory | header::kPinDisabled);
    (void)driver.take_isr();
    transport.notify(QueueSet::of(0));
    EXPECT_FALSE(pin.is_up());
}

// PCI Local Bus 3.0, 6.8.2: "While enabled for MSI-X operation, a function is prohibited from using its INTx# pin".
TEST_F(PciTransportTest, WithMsixThePinStaysDown) {
    start_and_take();
    transport.notify(QueueSet::of(0));
    EXPECT_TRUE(pin.is_up());
    driver.set_msix_control(kMsixEnable);
    EXPECT_FALSE(pin.is_up());
    EXPECT_FALSE(shows_interrupt());
    driver.set_msix_control(0);
    EXPECT_TRUE(pin.is_up());
}

// ---- Doorbells

// 4.1.5.2: "by writing the 16-bit virtqueue index of this virtqueue to the Queue Notify address".
TEST_F(PciTransportTest, ADoorbellIsThatOfItsPlace) {
    start_and_take();
    driver.ring(0);
    driver.ring(1);
    const std::uint32_t at = driver.notify_structure().offset;
    driver.write<std::uint32_t>(at + 4, 0);
    EXPECT_EQ(doorbells, (std::vector<std::uint16_t>{0, 1, 1}));
    doorbells.clear();
    driver.write<std::uint8_t>(at, 0);
    driver.write<std::uint64_t>(at, 0);
    driver.write<std::uint16_t>(at + 2, 0);
    driver.write<std::uint16_t>(at + 1, 0);
    EXPECT_TRUE(doorbells.empty());
    EXPECT_EQ(driver.read<std::uint16_t>(at), 0xffffU);
}

// 2.1.2: "MUST NOT consume buffers or send any used buffer notifications to the driver before DRIVER_OK".
TEST_F(PciTransportTest, NothingHappensBeforeDriverOk) {
    negotiate();
    ASSERT_TRUE(driver.enable_queue(0, geometry()));
    driver.ring(0);
    transport.notify(QueueSet::of(0));
    transport.change_config(0, std::array{std::byte{1}});
    EXPECT_TRUE(doorbells.empty());
    EXPECT_EQ(works, 0);
    EXPECT_FALSE(pin.is_up());
    EXPECT_EQ(driver.take_isr(), 0U);
}

// ---- The window of VIRTIO_PCI_CAP_PCI_CFG

class PciWindow : public PciTransportTest {
  protected:
    void point(std::uint32_t offset, std::uint32_t length, std::uint8_t bar = 0) {
        const std::uint8_t at = driver.structure(kWindowType)->capability;
        driver.set_config<std::uint8_t>(PciDriver::field(at, 4), bar);
        driver.set_config<std::uint32_t>(PciDriver::field(at, 8), offset);
        driver.set_config<std::uint32_t>(PciDriver::field(at, 12), length);
    }
    [[nodiscard]] std::uint16_t data() { return PciDriver::field(driver.structure(kWindowType)->capability, 16); }
};

// 4.1.4.9.1: "MUST execute a write access at offset cap.offset at BAR selected by cap.bar using the first cap.length
// bytes from pci_cfg_data", "MUST execute a read access ... and store the first cap.length bytes in pci_cfg_data".
TEST_F(PciWindow, ReachesTheRegisters) {
    point(common::kStatus, 1);
    driver.set_config<std::uint8_t>(data(), kStatusAcknowledge);
    EXPECT_EQ(driver.status(), kStatusAcknowledge);
    driver.set_config<std::uint32_t>(data(), 0xffffff00U | kStatusAcknowledge | kStatusDriver);
    EXPECT_EQ(driver.status(), kStatusAcknowledge | kStatusDriver) << "the first byte alone counts";
    EXPECT_EQ(driver.config<std::uint8_t>(data()), driver.status());
    point(common::kDeviceFeatureSelect, 4);
    driver.set_config<std::uint32_t>(data(), 1);
    point(common::kDeviceFeature, 4);
    EXPECT_EQ(driver.config<std::uint32_t>(data()), (EchoDevice::kFeatures | kTransportFeatures) >> 32U);
    point(common::kQueueSize, 2);
    EXPECT_EQ(driver.config<std::uint16_t>(data()), EchoDevice::kQueueSize);
    EXPECT_EQ(driver.config<std::uint8_t>(PciDriver::field(static_cast<std::uint8_t>(data()), 1)),
              EchoDevice::kQueueSize >> 8U)
        << "any part of the data is an access to it";
    point(driver.structure(kDeviceType)->offset + 1, 1);
    EXPECT_EQ(driver.config<std::uint8_t>(data()), 0x11U);
}

TEST_F(PciWindow, AWriteOfAPartUsesWhatTheRestHolds) {
    point(common::kQueueSelect, 2);
    driver.set_config<std::uint16_t>(data(), 0x0102);
    EXPECT_EQ(driver.common<std::uint16_t>(common::kQueueSelect), 0x0102U);
    driver.set_config<std::uint8_t>(PciDriver::field(static_cast<std::uint8_t>(data()), 1), 3);
    EXPECT_EQ(driver.common<std::uint16_t>(common::kQueueSelect), 0x0302U);
}

TEST_F(PciWindow, AReadOfTheIsrAcknowledges) {
    start_and_take();
    transport.notify(QueueSet::of(0));
    point(driver.isr_structure().offset, 1);
    EXPECT_TRUE(pin.is_up()) << "pointing there is no access";
    EXPECT_EQ(driver.config<std::uint32_t>(data()) & 0xffU, kUsedBuffer);
    EXPECT_FALSE(pin.is_up());
}

TEST_F(PciWindow, RingsDoorbellsWithoutDecodingMemory) {
    start_and_take();
    driver.set_config<std::uint16_t>(header::kCommand, 0);
    EXPECT_FALSE(transport.decoded());
    point(driver.notify_structure().offset + 4, 2);
    driver.set_config<std::uint16_t>(data(), 1);
    EXPECT_EQ(doorbells, (std::vector<std::uint16_t>{1}));
}

// 4.1.4.9.2: what a driver must not do.
TEST_F(PciWindow, LeadsNowhereElse) {
    struct Aim {
        std::uint32_t offset;
        std::uint32_t length;
        std::uint8_t bar;
    };
    const auto before = transport.negotiation().state({});
    for (const Aim& aim : {Aim{0, 4, 1}, Aim{0, 4, 5}, Aim{0, 4, 0xff}, Aim{0, 0, 0}, Aim{0, 3, 0}, Aim{0, 8, 0},
                           Aim{0, UINT32_MAX, 0}, Aim{1, 2, 0}, Aim{2, 4, 0}, Aim{PciTransport::kBytes, 1, 0},
                           Aim{PciTransport::kBytes - 2, 4, 0}, Aim{UINT32_MAX, 1, 0}, Aim{UINT32_MAX - 3, 4, 0}}) {
        point(aim.offset, aim.length, aim.bar);
        EXPECT_EQ(driver.config<std::uint32_t>(data()), UINT32_MAX) << aim.offset << " " << aim.length;
        driver.set_config<std::uint32_t>(data(), 1);
    }
    EXPECT_EQ(transport.negotiation().state({}), before);
}

TEST_F(PciWindow, EveryOffsetOfIt) {
    start_and_take();
    for (std::uint32_t offset = 0; offset < PciTransport::kBytes; ++offset) {
        for (const std::uint32_t length : {1U, 2U, 4U}) {
            if (offset % length == 0 && offset != common::kConfigGeneration && offset != common::kStatus) {
                point(offset, length);
                std::array<std::byte, 4> direct{};
                transport.read(offset, std::span(direct).first(length));
                std::array<std::byte, 4> through{};
                transport.read_config(data(), through);
                ASSERT_TRUE(std::ranges::equal(std::span(direct).first(length), std::span(through).first(length)))
                    << offset << " " << length;
            }
        }
    }
}

// ---- With a device

class PciDeviceTest : public ::testing::Test {
  protected:
    std::uint16_t echo(std::uint16_t index = 0) {
        const GuestAddress in = rig.allocate(16);
        const GuestAddress out = rig.allocate(16);
        EXPECT_TRUE(rig.memory().store(in, std::uint64_t{0x1122334455667788}));
        last_out = out;
        const std::uint16_t head = rig.queue(index).add({{in, 8}, {out, 8, kWritable}});
        rig.ring(index);
        return head;
    }

    EchoDevice device;
    PciRig rig{device};
    GuestAddress last_out{};
};

TEST_F(PciDeviceTest, ARequestIsAnsweredWithOneMessageOfItsQueue) {
    ASSERT_TRUE(rig.start());
    for (std::uint16_t queue = 0; queue < 2; ++queue) {
        const std::uint16_t head = echo(queue);
        EXPECT_EQ(rig.wait_for_used(queue), (Used{head, 8}));
        EXPECT_EQ(rig.memory().load<std::uint64_t>(last_out), 0x1122334455667788U);
        rig.settle();
        EXPECT_EQ(rig.message(queue + 1U).take(), 1U);
        rig.queue(queue).ask_for_interrupt();
    }
    EXPECT_FALSE(rig.pin().is_up());
}

TEST_F(PciDeviceTest, ARequestIsAnsweredByThePin) {
    ASSERT_TRUE(rig.start(false));
    for (int i = 0; i < 3; ++i) {
        const std::uint16_t head = echo();
        EXPECT_EQ(rig.wait_for_used(0), (Used{head, 8}));
        rig.settle();
        EXPECT_TRUE(rig.pin().is_up());
        EXPECT_EQ(rig.driver().take_isr(), kUsedBuffer);
        EXPECT_FALSE(rig.pin().is_up());
        rig.queue(0).ask_for_interrupt();
    }
}

TEST_F(PciDeviceTest, ADriverComesAfterADriver) {
    for (const bool msix : {true, false, true}) {
        ASSERT_TRUE(rig.start(msix));
        const std::uint16_t head = echo();
        EXPECT_EQ(rig.wait_for_used(0), (Used{head, 8}));
    }
    EXPECT_EQ(rig.pump().activations(), 3);
}

TEST_F(PciDeviceTest, AResetOfAQueueLeavesTheOtherRunning) {
    ASSERT_TRUE(rig.start());
    rig.driver().select(0);
    rig.driver().set_common<std::uint16_t>(common::kQueueReset, 1);
    ASSERT_TRUE(rig.pump_until([&] { return rig.driver().of_queue(0, common::kQueueReset) == 0; }));
    const std::uint16_t other = echo(1);
    EXPECT_EQ(rig.wait_for_used(1), (Used{other, 8}));
    testing::DriverQueue fresh(rig.memory(), rig.queue(0).geometry().descriptors, 16);
    ASSERT_TRUE(rig.driver().enable_queue(0, fresh.geometry()));
    EXPECT_EQ(rig.driver().of_queue(0, common::kQueueVector), 1U) << "its vector stays";
    const GuestAddress at = rig.allocate(16);
    fresh.add({{at, 8}});
    rig.driver().ring(0);
    EXPECT_TRUE(rig.pump_until([&] { return fresh.take_used().has_value(); }));
}

// Linux clears the bit before it starts the next kernel by kexec. That kernel uses the memory of the queues for other
// things.
TEST_F(PciDeviceTest, ThatMayNotMasterTheBusAnswersWhenItMayAgain) {
    for (const bool msix : {true, false}) {
        ASSERT_TRUE(rig.start(msix));
        const std::uint16_t before = echo();
        EXPECT_EQ(rig.wait_for_used(0), (Used{before, 8}));
        rig.driver().become_master(false);
        rig.settle();
        const std::uint16_t then = echo();
        rig.settle();
        EXPECT_EQ(rig.queue(0).take_used(), std::nullopt);
        EXPECT_EQ(rig.memory().load<std::uint64_t>(last_out), 0U);
        rig.driver().become_master();
        EXPECT_EQ(rig.wait_for_used(0), (Used{then, 8}));
    }
}

TEST_F(PciDeviceTest, ADriverComesAfterOneThatTookTheBusAway) {
    ASSERT_TRUE(rig.start());
    rig.driver().become_master(false);
    ASSERT_TRUE(rig.reset());
    rig.settle();
    EXPECT_EQ(rig.driver().status(), 0U);
    rig.driver().become_master();
    ASSERT_TRUE(rig.start());
    const std::uint16_t head = echo();
    EXPECT_EQ(rig.wait_for_used(0), (Used{head, 8}));
}

TEST_F(PciDeviceTest, GoesOnFromAStateInWhichItMayNotMasterTheBus) {
    ASSERT_TRUE(rig.start());
    rig.driver().become_master(false);
    rig.settle();
    const PciTransport::State state = rig.pump().state();
    PciTransport restored(device.identity(), rig.memory(), PciRig::kRegisters, rig.interrupts(), {}, state);
    EXPECT_FALSE(restored.negotiation().take_work().activation);
    EXPECT_EQ(restored.state({}).negotiation.queues[0].in_device->next_available,
              state.negotiation.queues[0].in_device->next_available);
    PciDriver driver{restored};
    driver.become_master();
    const auto activation = restored.negotiation().take_work().activation;
    ASSERT_TRUE(activation);
    EXPECT_TRUE(activation->queues[0]);
}

// ---- From a state

TEST_F(PciDeviceTest, ADeviceGoesOnInTheMiddleOfTraffic) {
    std::array<EchoDevice, 2> others;
    for (const bool msix : {true, false}) {
        ASSERT_TRUE(rig.start(msix));
        const std::uint16_t before = echo();
        EXPECT_EQ(rig.wait_for_used(0), (Used{before, 8}));
        (void)rig.driver().take_isr();
        (void)rig.message(1).take();
        rig.queue(0).ask_for_interrupt();
        const std::uint16_t between = rig.queue(0).add({{rig.allocate(16), 8}}); // its doorbell is lost
        EchoDevice& second = others[msix ? 0 : 1];
        ASSERT_TRUE(rig.replace_device(second));
        EXPECT_EQ(rig.driver().status(), kRunning);
        rig.settle();
        const auto used = rig.queue(0).take_used();
        ASSERT_TRUE(used);
        EXPECT_EQ(used->id, between);
        if (msix) {
            EXPECT_GE(rig.message(1).take(), 1U);
            EXPECT_EQ(rig.message(1).message(), PciDriver::message_of(1));
        } else {
            EXPECT_TRUE(rig.pin().is_up());
            EXPECT_EQ(rig.driver().take_isr(), kUsedBuffer);
        }
        const std::uint16_t after = echo();
        EXPECT_EQ(rig.wait_for_used(0), (Used{after, 8}));
        EXPECT_EQ(second.answered(), 2U);
    }
    ASSERT_TRUE(rig.replace_device(device)); // the others are destroyed before the rig
}

class StateOfPciTransport : public PciDeviceTest {
  protected:
    void SetUp() override {
        ASSERT_TRUE(rig.start());
        rig.driver().select(1);
        rig.driver().set_common<std::uint32_t>(common::kDeviceFeatureSelect, 1);
        state = rig.transport().state(queues());
    }
    [[nodiscard]] std::vector<std::optional<Queue::State>> queues() {
        std::vector<std::optional<Queue::State>> states;
        for (std::uint16_t index = 0; index < 2; ++index) {
            states.push_back(Queue::State{rig.queue(index).geometry(), true, true, 5, 3, 3, true});
        }
        return states;
    }
    [[nodiscard]] std::unique_ptr<PciTransport> restore() {
        return std::make_unique<PciTransport>(device.identity(), rig.memory(), PciRig::kRegisters,
                                              PciTransport::Interrupts{messages.lines(), pin}, PciTransport::Hooks{},
                                              state);
    }
    [[nodiscard]] std::string error_of_restoring() {
        return error_of([&] { return restore() != nullptr; });
    }

    RecordingMessages messages{3};
    RecordingPin pin;
    PciTransport::State state;
};

TEST_F(StateOfPciTransport, IsWhatTheNewOneSaysAndShows) {
    const auto restored = restore();
    auto again = restored->state({});
    for (auto& queue : again.negotiation.queues) { // The position of the last interrupt is not trusted.
        queue.in_device->signalled_used = 3;
        queue.in_device->signalled_valid = true;
    }
    EXPECT_EQ(again, state);
    EXPECT_EQ(std::get<PciState>(restored->save({})).config_vector, state.config_vector);
    PciDriver driver{*restored};
    ASSERT_TRUE(driver.probe());
    EXPECT_EQ(driver.status(), kRunning);
    EXPECT_EQ(driver.common<std::uint16_t>(common::kQueueSelect), 1U);
    EXPECT_EQ(driver.common<std::uint32_t>(common::kDeviceFeatureSelect), 1U);
    EXPECT_EQ(driver.common<std::uint16_t>(common::kQueueVector), 2U);
    EXPECT_EQ(driver.common<std::uint16_t>(common::kConfigVector), 0U);
    for (unsigned vector = 0; vector < 3; ++vector) {
        EXPECT_EQ(messages[vector].message(), PciDriver::message_of(vector));
    }
    for (std::uint16_t offset = 0; offset < 256; offset += 4) {
        if (offset != PciDriver::field(driver.structure(kWindowType)->capability, 16)) {
            EXPECT_EQ(driver.config<std::uint32_t>(offset), rig.driver().config<std::uint32_t>(offset)) << offset;
        }
    }
}

TEST_F(StateOfPciTransport, LiesWhereTheDriverHadMovedIt) {
    rig.driver().set_config<std::uint32_t>(header::kBaseAddress, 0xe1230000);
    state = rig.transport().state(queues());
    EXPECT_EQ(restore()->decoded(), (GuestRange{GuestAddress{0xe1230000}, PciTransport::kBytes}));
}

TEST_F(StateOfPciTransport, ActivatesTheDeviceWithItsQueuesWhereTheyWere) {
    const auto restored = restore();
    const Negotiation::Work work = restored->negotiation().take_work();
    ASSERT_TRUE(work.activation);
    EXPECT_EQ(work.activation->queues[0]->state().next_available, 5U);
    restored->notify(QueueSet::of(0));
    EXPECT_EQ(messages[1].take(), 1U);
}

TEST_F(StateOfPciTransport, AResetThatIsUnderWayIsFinishedInIt) {
    rig.driver().set_status(0);
    state = rig.transport().state(queues());
    EXPECT_EQ(state.negotiation.status, 0U);
    EXPECT_EQ(state.queue_select, 0U);
    EXPECT_EQ(state.config_vector, kNoVector);
    EXPECT_EQ(state.queue_vectors, (std::vector<std::uint16_t>{kNoVector, kNoVector}));
    const auto restored = restore();
    PciDriver driver{*restored};
    ASSERT_TRUE(driver.probe());
    EXPECT_EQ(driver.status(), 0U);
    EXPECT_EQ(driver.of_queue(0, common::kQueueEnable), 0U);
}

TEST_F(StateOfPciTransport, WhatWasNotTakenIsSentAgainWhenTheInterruptControllersAreThere) {
    rig.driver().mask(1, true);
    rig.transport().notify(QueueSet::of(0));
    rig.transport().change_config(0, std::array{std::byte{1}});
    state = rig.transport().state(queues());
    EXPECT_EQ(state.interrupt_status, kConfigChange);
    state.msix.entries[1].control = 0; // as if the driver had unmasked it at the last moment
    const auto restored = restore();
    EXPECT_EQ(messages[1].take(), 0U);
    restored->repeat_interrupt();
    EXPECT_EQ(messages[1].take(), 1U);
    EXPECT_FALSE(pin.is_up());

    rig.driver().set_msix_control(0);
    state = rig.transport().state(queues());
    const auto by_pin = restore();
    EXPECT_FALSE(pin.is_up());
    by_pin->repeat_interrupt();
    EXPECT_TRUE(pin.is_up()) << "the ISR has not been read";
}

TEST_F(StateOfPciTransport, BitsAndVectorsThatThereAreNotAreLeftOut) {
    state.interrupt_status = 0xff;
    state.config_vector = 3;
    state.queue_vectors = {7, 0xfffe};
    const auto restored = restore();
    EXPECT_EQ(restored->state({}).interrupt_status, kUsedBuffer | kConfigChange);
    EXPECT_EQ(restored->state({}).config_vector, kNoVector);
    EXPECT_EQ(restored->state({}).queue_vectors, (std::vector<std::uint16_t>{kNoVector, kNoVector}));
}

TEST_F(StateOfPciTransport, WithVectorsForAnotherNumberOfQueuesIsRefused) {
    for (const std::size_t count : {0U, 1U, 3U, 1000U}) {
        state.queue_vectors.assign(count, 1);
        const std::string refusal = error_of_restoring();
        EXPECT_TRUE(vmm::testing::mentions(refusal, "vectors for " + std::to_string(count) + " queues")) << refusal;
    }
}

TEST_F(StateOfPciTransport, OfAnotherDeviceIsRefused) {
    const PciTransport::State good = state;
    EXPECT_EQ(error_of_restoring(), "");
    state.config_space[header::kDevice] ^= std::byte{1};
    EXPECT_TRUE(mentions(error_of_restoring(), "echo0"));
    EXPECT_TRUE(mentions(error_of_restoring(), "configuration space"));
    state = good;
    state.config_space[0x40] ^= std::byte{1}; // one capability differs
    EXPECT_TRUE(mentions(error_of_restoring(), "configuration space"));
    state = good;
    state.msix.entries.pop_back();
    EXPECT_TRUE(mentions(error_of_restoring(), "MSI-X"));
    state = good;
    state.msix.pending.push_back(0);
    EXPECT_TRUE(mentions(error_of_restoring(), "MSI-X"));
    state = good;
    state.negotiation.status = kStatusDriverOk;
    EXPECT_TRUE(mentions(error_of_restoring(), "status"));
    state = good;
    state.negotiation.queues[0].geometry.size = 3;
    EXPECT_TRUE(mentions(error_of_restoring(), "where none can be"));
    state = good;
    state.negotiation.queues.pop_back();
    EXPECT_TRUE(mentions(error_of_restoring(), "number of queues"));
}

// ---- A hostile driver on several threads

/// A device on a bus, with a thread that turns its pump, and drivers that break all rules.
class HostilePciDriver : public ::testing::Test {
  protected:
    static constexpr GuestRange kWindow{GuestAddress{0xe0000000}, 0x100000};
    static constexpr unsigned kSlot = 1;
    static constexpr int kDrivers = 3;
    static constexpr int kSteps = 4000;

    /// The bus must not own anything of the device, because it is destroyed before the rig.
    HostilePciDriver() {
        bus.insert(kSlot, std::shared_ptr<pci::Function>(&rig.transport(), [](pci::Function*) {}));
    }

    /// Each of `attacks` runs on a thread of its own, `kSteps` times, while the device works. Afterwards the device
    /// must work like a new one.
    void attack(const std::vector<std::function<void(std::mt19937_64&)>>& attacks) {
        ASSERT_TRUE(rig.start());
        std::atomic<bool> is_over = false;
        std::thread device_thread([&] {
            while (!is_over.load()) {
                (void)rig.pump().turn(std::chrono::milliseconds(1));
                rig.transport().notify(QueueSet::of(0));
                rig.transport().change_config(0, std::array{std::byte{1}});
            }
        });
        std::vector<std::thread> threads;
        for (std::size_t i = 0; i < attacks.size(); ++i) {
            threads.emplace_back([&, i] {
                std::mt19937_64 random(i + 1);
                for (int step = 0; step < kSteps; ++step) {
                    attacks[i](random);
                }
            });
        }
        for (std::thread& thread : threads) {
            thread.join();
        }
        is_over = true;
        device_thread.join();
        expect_as_good_as_new();
    }
    void expect_as_good_as_new() {
        rig.driver().set_config<std::uint32_t>(header::kBaseAddress, static_cast<std::uint32_t>(kBase));
        rig.driver().set_config<std::uint16_t>(header::kCommand, header::kDecodesMemory | header::kMastersBus);
        bus.write_config(kSlot << 15U | header::kInterruptLine, std::array{std::byte{0}}); // the bus looks again
        ASSERT_TRUE(rig.start());
        const GuestAddress at = rig.allocate(16);
        const std::uint16_t head = rig.queue(0).add({{at, 8}});
        (void)rig.message(1).take();
        std::array<std::byte, 2> index{};
        bus.window().write(to_integer(PciRig::kRegisters) - to_integer(kWindow.base) + PciTransport::kDoorbells, index);
        const auto used = rig.wait_for_used(0);
        ASSERT_TRUE(used);
        EXPECT_EQ(used->id, head);
        rig.settle();
        EXPECT_GE(rig.message(1).take(), 1U);
        // The resulting state is one from which a new device can go on.
        ASSERT_TRUE(rig.pump().pause());
        const PciTransport::State state = rig.pump().state();
        RecordingMessages others{3};
        RecordingPin other_pin;
        const auto make = [&] {
            const PciTransport made(device.identity(), rig.memory(), kBase, {others.lines(), other_pin}, {}, state);
            return true;
        };
        EXPECT_EQ(error_of(make), "");
        device.resume();
    }
    static void access(devices::Device& to, std::uint64_t offset, std::mt19937_64& random) {
        std::array<std::byte, 8> data{};
        const std::uint64_t value = random();
        std::memcpy(data.data(), &value, sizeof value);
        const std::span part = std::span(data).first(std::size_t{1} << random() % 4);
        if (random() % 2 == 0) {
            to.read(offset, part);
        } else {
            to.write(offset, part);
        }
    }
    void access_config(std::mt19937_64& random) { access(bus.ecam(), (kSlot << 15U) + random() % 0x110, random); }
    void access_registers(std::mt19937_64& random) {
        const std::uint64_t structure = random() % 8 * 0x1000;
        access(bus.window(), random() % 2 * PciTransport::kBytes + structure + random() % 0x60, random);
    }
    void move(std::mt19937_64& random) {
        const auto base = static_cast<std::uint32_t>(to_integer(kBase) + random() % 8 * PciTransport::kBytes);
        std::uint32_t value = random() % 4 == 0 ? UINT32_MAX : base;
        bus.write_config(kSlot << 15U | header::kBaseAddress, std::as_bytes(std::span(&value, 1)));
        const unsigned decodes = random() % 4 == 0 ? 0U : header::kDecodesMemory;
        const unsigned masters = random() % 4 == 0 ? 0U : header::kMastersBus;
        auto command = static_cast<std::uint16_t>(decodes | masters);
        bus.write_config(kSlot << 15U | header::kCommand, std::as_bytes(std::span(&command, 1)));
    }
    void flood_table(std::mt19937_64& random) {
        PciDriver driver = rig.driver();
        const auto vector = static_cast<unsigned>(random() % 3);
        driver.set_message(vector, {random(), static_cast<std::uint32_t>(random())});
        driver.mask(vector, random() % 2 == 0);
        if (random() % 8 == 0) {
            driver.set_msix_control(static_cast<std::uint16_t>(random()));
        }
    }
    void walk_window(std::mt19937_64& random) {
        PciDriver driver = rig.driver();
        const std::uint8_t at = driver.structure(kWindowType)->capability;
        driver.set_config<std::uint32_t>(PciDriver::field(at, 8),
                                         static_cast<std::uint32_t>(random() % (PciTransport::kBytes + 8)));
        driver.set_config<std::uint32_t>(PciDriver::field(at, 12), static_cast<std::uint32_t>(1U << random() % 4));
        if (random() % 2 == 0) {
            (void)driver.config<std::uint32_t>(PciDriver::field(at, 16));
        } else {
            driver.set_config(PciDriver::field(at, 16), static_cast<std::uint32_t>(random()));
        }
    }

    EchoDevice device;
    PciRig rig{device};
    pci::RootBus bus{kWindow, {}};
};

TEST_F(HostilePciDriver, WritesAllOfConfigurationSpace) {
    attack(
        std::vector<std::function<void(std::mt19937_64&)>>(kDrivers, [this](auto& random) { access_config(random); }));
}

TEST_F(HostilePciDriver, WritesAllRegisters) {
    attack(std::vector<std::function<void(std::mt19937_64&)>>(kDrivers,
                                                              [this](auto& random) { access_registers(random); }));
}

TEST_F(HostilePciDriver, MovesTheRegistersWhileOthersAccessThem) {
    attack({[this](auto& random) { move(random); }, [this](auto& random) { move(random); },
            [this](auto& random) { access_registers(random); }});
}

TEST_F(HostilePciDriver, FloodsTheTableOfVectors) {
    attack(std::vector<std::function<void(std::mt19937_64&)>>(kDrivers, [this](auto& random) { flood_table(random); }));
}

TEST_F(HostilePciDriver, WalksTheWindowOfConfigurationSpace) {
    attack({[this](auto& random) { walk_window(random); }, [this](auto& random) { walk_window(random); },
            [this](auto& random) { access_config(random); }});
}

TEST_F(HostilePciDriver, DoesAllOfThisAtOnce) {
    attack({[this](auto& random) { walk_window(random); }, [this](auto& random) { flood_table(random); },
            [this](auto& random) { move(random); }, [this](auto& random) { access_registers(random); },
            [this](auto& random) { access_config(random); }});
}

} // namespace
} // namespace vmm::devices::virtio
