#include "devices/virtio/mmio_transport.hpp"

#include <gtest/gtest.h>

#include <array>
#include <atomic>
#include <chrono>
#include <string>
#include <thread>
#include <vector>

#include "support/devices_echo_device.hpp"
#include "support/devices_guest_access.hpp"
#include "support/devices_virtio_driver.hpp"

namespace vmm::devices::virtio {
namespace {

using namespace std::chrono_literals;
namespace reg = testing::reg;
using testing::DriverQueue;
using testing::EchoDevice;
using testing::kWritable;
using testing::RecordingIrq;
using testing::RegisterDriver;
using testing::Used;
using testing::VirtioPump;
using testing::VirtioRig;
using testing::operator+;

constexpr std::uint64_t kTransportFeatures =
    kFeatureIndirectDescriptors | kFeatureEventIdx | kFeatureVersion1 | kFeatureRingReset;
constexpr std::uint32_t kUsedBuffer = 1;
constexpr std::uint32_t kConfigChange = 2;
constexpr std::uint32_t kAllOnes = 0xffffffff;
constexpr std::uint32_t kRunning = kStatusAcknowledge | kStatusDriver | kStatusFeaturesOk | kStatusDriverOk;

/// The registers alone. The test does the work of the device's thread, step by step.
class MmioTransportTest : public ::testing::Test {
  protected:
    QueueGeometry geometry(std::uint16_t size = 8) const {
        return {size, GuestAddress{0x1000}, GuestAddress{0x8000}, GuestAddress{0x10000}};
    }
    void negotiate(std::uint64_t features = kTransportFeatures) { ASSERT_TRUE(driver.negotiate(features)); }
    /// Up to DRIVER_OK, with queue 0; the activation has not been taken yet.
    void start() {
        negotiate();
        ASSERT_TRUE(driver.enable_queue(0, geometry()));
        driver.add_status(kStatusDriverOk);
        ASSERT_EQ(driver.status(), kRunning);
    }
    void start_and_take() {
        start();
        ASSERT_TRUE(transport.negotiation().take_work().activation);
        works = 0;
    }
    static bool is_empty(const Negotiation::Work& work) {
        return !work.reset && !work.activation && work.queue_resets.empty() && work.restarts.empty();
    }

    EchoDevice device;
    const std::array<GuestRange, 1> layout{GuestRange{GuestAddress{0}, 2 * kMiB}};
    GuestMemory memory{layout, PageSize::k4K};
    RecordingIrq irq;
    int works = 0;
    std::vector<std::uint16_t> doorbells;
    MmioTransport transport{
        device.identity(),
        memory,
        irq,
        {.work = [this] { ++works; }, .doorbell = [this](std::uint16_t index) { doorbells.push_back(index); }}};
    RegisterDriver driver{transport};
};

// ---- Registers that say what the device is

// 4.2.2.1: "MUST return 0x74726976 in MagicValue".
TEST_F(MmioTransportTest, MagicValueIsVirt) {
    EXPECT_EQ(driver.read(reg::kMagicValue), 0x74726976U);
}

// 4.2.2.1: "MUST return value 0x2 in Version".
TEST_F(MmioTransportTest, VersionIs2) {
    EXPECT_EQ(driver.read(reg::kVersion), 2U);
}

TEST_F(MmioTransportTest, DeviceAndVendorShow) {
    EXPECT_EQ(driver.read(reg::kDeviceId), static_cast<std::uint32_t>(DeviceId::kEntropy));
    EXPECT_NE(driver.read(reg::kVendorId), 0U);
    EXPECT_EQ(transport.name(), "echo0");
}

// 6.2: "A device MUST offer VIRTIO_F_VERSION_1".
TEST_F(MmioTransportTest, TheFeaturesOfTheTypeAndOfTheTransportAreOffered) {
    EXPECT_EQ(driver.device_features(), EchoDevice::kFeatures | kTransportFeatures);
    for (const std::uint32_t select : {2U, 3U, 0x80000000U, UINT32_MAX}) {
        driver.write(reg::kDeviceFeaturesSel, select);
        EXPECT_EQ(driver.read(reg::kDeviceFeatures), 0U) << select;
    }
}

// 4.2.2: "zero (0x0) if the queue is not available".
TEST_F(MmioTransportTest, QueueSizeMaxIsThatOfTheSelectedQueue) {
    EXPECT_EQ(driver.queue_size_max(0), EchoDevice::kQueueSize);
    EXPECT_EQ(driver.queue_size_max(1), EchoDevice::kSmallQueueSize);
    for (const std::uint32_t index : {2U, 0xffffU, 0x10000U, UINT32_MAX}) {
        EXPECT_EQ(driver.queue_size_max(index), 0U) << index;
    }
}

// 4.2.2: a region of shared memory that does not exist has a length of -1 and the address 0xffffffffffffffff.
TEST_F(MmioTransportTest, ThereIsNoSharedMemory) {
    for (const std::uint32_t id : {0U, 1U, UINT32_MAX}) {
        driver.write(reg::kShmSel, id);
        for (const std::uint64_t offset : {reg::kShmLenLow, reg::kShmLenHigh, reg::kShmBaseLow, reg::kShmBaseHigh}) {
            EXPECT_EQ(driver.read(offset), kAllOnes);
        }
    }
}

TEST_F(MmioTransportTest, WhatIsForWritingOnlyReadsAsAllOnes) {
    for (const std::uint64_t offset :
         {reg::kDeviceFeaturesSel, reg::kDriverFeatures, reg::kDriverFeaturesSel, reg::kQueueSel, reg::kQueueSize,
          reg::kQueueNotify, reg::kInterruptAck, reg::kQueueDescLow, reg::kQueueDeviceHigh}) {
        EXPECT_EQ(driver.read(offset), kAllOnes) << offset;
    }
}

TEST_F(MmioTransportTest, ControlRegistersAreForAlignedAccessesOf4BytesOnly) {
    for (const std::size_t width : {1U, 2U, 3U, 8U}) {
        std::vector<std::byte> data(width);
        transport.read(reg::kMagicValue, data);
        EXPECT_EQ(data, std::vector<std::byte>(width, std::byte{0xff})) << width;
        transport.write(reg::kStatus, std::vector<std::byte>(width, std::byte{kStatusAcknowledge}));
        EXPECT_EQ(driver.status(), 0U) << width;
    }
    for (const std::uint64_t offset : {1U, 2U, 3U}) {
        EXPECT_EQ(driver.read(offset), kAllOnes);
        driver.write(reg::kStatus + offset, kAllOnes);
        driver.write(reg::kStatus - offset, kAllOnes);
        EXPECT_EQ(driver.status(), 0U);
    }
    transport.read(reg::kMagicValue, {});
    transport.write(reg::kStatus, {});
}

TEST_F(MmioTransportTest, WhatIsForReadingOnlyIsNotWritten) {
    for (const std::uint64_t offset :
         {reg::kMagicValue, reg::kVersion, reg::kDeviceId, reg::kVendorId, reg::kDeviceFeatures, reg::kQueueSizeMax,
          reg::kInterruptStatus, reg::kConfigGeneration, reg::kShmLenLow}) {
        const std::uint32_t before = driver.read(offset);
        driver.write(offset, ~before);
        EXPECT_EQ(driver.read(offset), before) << offset;
    }
}

// ---- Status

// 3.1.1, as a whole.
TEST_F(MmioTransportTest, ADriverComesUpStepByStep) {
    EXPECT_EQ(driver.status(), 0U);
    driver.write(reg::kStatus, kStatusAcknowledge);
    EXPECT_EQ(driver.status(), kStatusAcknowledge);
    driver.add_status(kStatusDriver);
    driver.set_features(kFeatureVersion1 | EchoDevice::kFeatureB);
    driver.add_status(kStatusFeaturesOk);
    EXPECT_EQ(driver.status(), std::uint32_t{kStatusAcknowledge | kStatusDriver | kStatusFeaturesOk});
    EXPECT_TRUE(driver.enable_queue(1, geometry(4)));
    EXPECT_EQ(works, 0);
    driver.add_status(kStatusDriverOk);
    EXPECT_EQ(driver.status(), kRunning);
    EXPECT_EQ(works, 1);

    Negotiation::Work work = transport.negotiation().take_work();
    ASSERT_TRUE(work.activation);
    EXPECT_FALSE(work.reset);
    EXPECT_EQ(work.activation->features, kFeatureVersion1 | EchoDevice::kFeatureB);
    ASSERT_EQ(work.activation->queues.size(), 2U);
    EXPECT_FALSE(work.activation->queues[0]);
    ASSERT_TRUE(work.activation->queues[1]);
    EXPECT_EQ(work.activation->queues[1]->state().geometry, geometry(4));
    EXPECT_FALSE(work.activation->queues[1]->state().event_idx);
    EXPECT_FALSE(work.activation->queues[1]->state().indirect);
    EXPECT_TRUE(is_empty(transport.negotiation().take_work()));
}

TEST_F(MmioTransportTest, QueuesKnowWhatWasNegotiated) {
    negotiate(kFeatureVersion1 | kFeatureEventIdx | kFeatureIndirectDescriptors);
    ASSERT_TRUE(driver.enable_queue(0, geometry()));
    driver.add_status(kStatusDriverOk);
    const auto activation = transport.negotiation().take_work().activation;
    ASSERT_TRUE(activation && activation->queues[0]);
    EXPECT_TRUE(activation->queues[0]->state().event_idx);
    EXPECT_TRUE(activation->queues[0]->state().indirect);
}

TEST_F(MmioTransportTest, SeveralStatusBitsMayComeAtOnce) {
    driver.set_features(kFeatureVersion1);
    driver.write(reg::kStatus, kRunning);
    EXPECT_EQ(driver.status(), kRunning);
}

TEST_F(MmioTransportTest, StatusBitsBeforeTheirTimeAreIgnored) {
    driver.set_features(kFeatureVersion1);
    driver.write(reg::kStatus, kStatusDriver);
    EXPECT_EQ(driver.status(), 0U);
    driver.write(reg::kStatus, kStatusAcknowledge | kStatusFeaturesOk);
    EXPECT_EQ(driver.status(), kStatusAcknowledge);
    driver.write(reg::kStatus, kStatusAcknowledge | kStatusDriver | kStatusDriverOk);
    EXPECT_EQ(driver.status(), std::uint32_t{kStatusAcknowledge | kStatusDriver});
    EXPECT_TRUE(is_empty(transport.negotiation().take_work()));
}

// 2.1.1: the driver may not clear a bit.
TEST_F(MmioTransportTest, StatusBitsStayUntilReset) {
    start();
    driver.write(reg::kStatus, kStatusAcknowledge);
    EXPECT_EQ(driver.status(), kRunning);
}

TEST_F(MmioTransportTest, BitsThatAreNotTheDriversAreIgnored) {
    driver.write(reg::kStatus, kStatusAcknowledge | kStatusNeedsReset | 16 | 32 | 0xffffff00);
    EXPECT_EQ(driver.status(), kStatusAcknowledge);
    driver.write(reg::kStatus, 0x100);
    EXPECT_EQ(driver.status(), kStatusAcknowledge) << "only 0 resets";
}

// 2.1.1: "If the driver sets the FAILED bit, the driver MUST later reset the device".
TEST_F(MmioTransportTest, AfterFailedOnlyAResetHelps) {
    driver.set_features(kFeatureVersion1);
    driver.write(reg::kStatus, kStatusAcknowledge);
    driver.write(reg::kStatus, kRunning | kStatusFailed);
    EXPECT_EQ(driver.status(), std::uint32_t{kStatusAcknowledge | kStatusFailed});
    driver.add_status(kStatusDriver);
    EXPECT_EQ(driver.status(), std::uint32_t{kStatusAcknowledge | kStatusFailed});
    driver.write(reg::kStatus, 0);
    EXPECT_EQ(driver.status(), 0U);
    start();
}

// 2.1.2: "MUST NOT consume buffers or send any used buffer notifications to the driver before DRIVER_OK".
TEST_F(MmioTransportTest, NothingHappensBeforeDriverOk) {
    negotiate();
    ASSERT_TRUE(driver.enable_queue(0, geometry()));
    driver.ring(0);
    transport.notify(QueueSet::of(0));
    EXPECT_TRUE(doorbells.empty());
    EXPECT_EQ(works, 0);
    EXPECT_TRUE(is_empty(transport.negotiation().take_work()));
    EXPECT_EQ(irq.pulses(), 0U);
    EXPECT_EQ(driver.read(reg::kInterruptStatus), 0U);
}

// ---- Features

// 2.2.2: "otherwise it MUST fail to set the FEATURES_OK device status bit when the driver writes it".
TEST_F(MmioTransportTest, FeaturesThatWereNotOfferedAreRefused) {
    for (const std::uint64_t feature : {1ULL << 1, 1ULL << 24, 1ULL << 34, 1ULL << 63}) {
        driver.write(reg::kStatus, 0);
        EXPECT_FALSE(driver.negotiate(kFeatureVersion1 | feature)) << feature;
        EXPECT_EQ(driver.status(), std::uint32_t{kStatusAcknowledge | kStatusDriver});
        EXPECT_FALSE(driver.enable_queue(0, geometry()));
    }
}

TEST_F(MmioTransportTest, FeaturesBeyondBit63AreRefused) {
    for (const std::uint32_t select : {2U, 3U, UINT32_MAX}) {
        driver.write(reg::kStatus, 0);
        driver.write(reg::kDriverFeaturesSel, select);
        driver.write(reg::kDriverFeatures, 0);
        EXPECT_TRUE(driver.negotiate(kFeatureVersion1)) << "0 accepts nothing";
        driver.write(reg::kStatus, 0);
        driver.write(reg::kDriverFeaturesSel, select);
        driver.write(reg::kDriverFeatures, 1);
        EXPECT_FALSE(driver.negotiate(kFeatureVersion1));
    }
}

// 6.2: "A device MAY fail to operate further if VIRTIO_F_VERSION_1 is not accepted"; there is no legacy interface here.
TEST_F(MmioTransportTest, ADriverWithoutVersion1IsRefused) {
    EXPECT_FALSE(driver.negotiate(kFeatureEventIdx));
}

TEST_F(MmioTransportTest, ARefusedDriverMayTryOtherFeatures) {
    ASSERT_FALSE(driver.negotiate(0));
    EXPECT_TRUE(driver.negotiate(kFeatureVersion1));
}

// 2.2.2: every valid subset is accepted, and again after a reset.
TEST_F(MmioTransportTest, EverySubsetOfWhatIsOfferedIsAccepted) {
    const std::array features{kFeatureIndirectDescriptors, kFeatureEventIdx, kFeatureRingReset, EchoDevice::kFeatureA,
                              EchoDevice::kFeatureB};
    for (unsigned subset = 0; subset < 32; ++subset) {
        std::uint64_t accepted = kFeatureVersion1;
        for (unsigned i = 0; i < features.size(); ++i) {
            accepted |= (subset >> i & 1) != 0 ? features[i] : 0;
        }
        EXPECT_TRUE(driver.negotiate(accepted)) << accepted;
        driver.write(reg::kStatus, 0);
        EXPECT_TRUE(driver.negotiate(accepted)) << accepted;
        driver.write(reg::kStatus, 0);
    }
}

// 3.1.1, step 5: no new features after FEATURES_OK.
TEST_F(MmioTransportTest, FeaturesAreFrozenByFeaturesOk) {
    negotiate(kFeatureVersion1);
    driver.set_features(kTransportFeatures | 2);
    driver.add_status(kStatusDriverOk);
    EXPECT_EQ(transport.negotiation().take_work().activation->features, kFeatureVersion1);
}

// ---- Queues

TEST_F(MmioTransportTest, AQueueIsEnabledFromFeaturesOkOn) {
    EXPECT_FALSE(driver.enable_queue(0, geometry()));
    negotiate();
    EXPECT_TRUE(driver.enable_queue(0, geometry()));
    EXPECT_FALSE(driver.is_queue_ready(1));
    EXPECT_TRUE(driver.is_queue_ready(0));
}

TEST_F(MmioTransportTest, AGeometryThatIsNoneLeavesTheQueueDisabled) {
    negotiate();
    std::vector<QueueGeometry> bad;
    for (const unsigned size : {0U, 3U, 512U, 32768U}) {
        bad.push_back(geometry(static_cast<std::uint16_t>(size)));
    }
    for (auto part : {&QueueGeometry::descriptors, &QueueGeometry::driver_area, &QueueGeometry::device_area}) {
        for (const std::uint64_t address : {0x1001ULL, 2 * kMiB + 0ULL, 1ULL << 40, ~0xfULL}) {
            bad.push_back(geometry());
            bad.back().*part = GuestAddress{address};
        }
    }
    for (const QueueGeometry& each : bad) {
        EXPECT_FALSE(driver.enable_queue(0, each)) << each.size << to_string(each.descriptors);
    }
    EXPECT_TRUE(driver.enable_queue(0, geometry())) << "the driver may correct it";
}

TEST_F(MmioTransportTest, ASizeOfMoreThan16BitsIsNotCutOff) {
    negotiate();
    driver.set_geometry(0, geometry());
    driver.write(reg::kQueueSize, 0x10008);
    driver.write(reg::kQueueReady, 1);
    EXPECT_FALSE(driver.is_queue_ready(0));
}

TEST_F(MmioTransportTest, AQueueIsNotLongerThanItsMaximum) {
    negotiate();
    EXPECT_TRUE(driver.enable_queue(1, geometry(EchoDevice::kSmallQueueSize)));
    driver.write(reg::kQueueReady, 0);
    EXPECT_FALSE(driver.enable_queue(1, geometry(2 * EchoDevice::kSmallQueueSize)));
}

TEST_F(MmioTransportTest, AQueueThatDoesNotExistIsNeverReady) {
    negotiate();
    for (const std::uint32_t index : {2U, 0x10000U, UINT32_MAX}) {
        EXPECT_FALSE(driver.enable_queue(index, geometry()));
        driver.write(reg::kQueueReset, 1);
        EXPECT_EQ(driver.read(reg::kQueueReset), 0U);
    }
}

TEST_F(MmioTransportTest, QueueReadyTakesOnly1) {
    negotiate();
    driver.set_geometry(0, geometry());
    driver.write(reg::kQueueReady, 2);
    EXPECT_EQ(driver.read(reg::kQueueReady), 0U);
    driver.write(reg::kQueueReady, 1);
    driver.write(reg::kQueueReady, 3);
    EXPECT_EQ(driver.read(reg::kQueueReady), 1U);
}

// 4.2.2.2: "When QueueReady is not zero, the driver MUST NOT access" the geometry.
TEST_F(MmioTransportTest, GeometryIsFrozenWhileTheQueueIsReady) {
    negotiate();
    ASSERT_TRUE(driver.enable_queue(0, geometry(8)));
    driver.set_geometry(0, {16, GuestAddress{0x100000}, GuestAddress{0x120000}, GuestAddress{0x140000}});
    driver.add_status(kStatusDriverOk);
    driver.set_geometry(0, {4, GuestAddress{0x100000}, GuestAddress{0x120000}, GuestAddress{0x140000}});
    const auto activation = transport.negotiation().take_work().activation;
    ASSERT_TRUE(activation && activation->queues[0]);
    EXPECT_EQ(activation->queues[0]->state().geometry, geometry(8));
}

TEST_F(MmioTransportTest, AddressesHave64Bits) {
    const std::array<GuestRange, 1> high_layout{GuestRange{GuestAddress{5 * kGiB}, 2 * kMiB}};
    const GuestMemory high_memory{high_layout, PageSize::k4K};
    MmioTransport high{device.identity(), high_memory, irq, {}};
    RegisterDriver high_driver{high};
    ASSERT_TRUE(high_driver.negotiate(kFeatureVersion1));
    const QueueGeometry where{8, GuestAddress{5 * kGiB}, GuestAddress{5 * kGiB + 0x1000},
                              GuestAddress{5 * kGiB + 0x2000}};
    ASSERT_TRUE(high_driver.enable_queue(0, where));
    high_driver.add_status(kStatusDriverOk);
    EXPECT_EQ(high.negotiation().take_work().activation->queues[0]->state().geometry, where);
}

// 4.2.2.1: "MUST NOT access virtual queue contents when QueueReady is zero".
TEST_F(MmioTransportTest, AQueueDisabledBeforeItWasTakenIsNotHandedOut) {
    start();
    driver.write(reg::kQueueSel, 0);
    driver.write(reg::kQueueReady, 0);
    EXPECT_EQ(driver.read(reg::kQueueReady), 0U);
    const auto activation = transport.negotiation().take_work().activation;
    ASSERT_TRUE(activation);
    EXPECT_FALSE(activation->queues[0]);
}

TEST_F(MmioTransportTest, AQueueEnabledBetweenDriverOkAndTakingComesWithTheActivation) {
    start();
    ASSERT_TRUE(driver.enable_queue(1, geometry(4)));
    const Negotiation::Work work = transport.negotiation().take_work();
    ASSERT_TRUE(work.activation);
    EXPECT_TRUE(work.activation->queues[0]);
    EXPECT_TRUE(work.activation->queues[1]);
    EXPECT_TRUE(work.restarts.empty());
}

TEST_F(MmioTransportTest, AQueueEnabledAfterDriverOkIsARestart) {
    start_and_take();
    ASSERT_TRUE(driver.enable_queue(1, geometry(4)));
    EXPECT_EQ(works, 1);
    const Negotiation::Work work = transport.negotiation().take_work();
    ASSERT_EQ(work.restarts.size(), 1U);
    EXPECT_EQ(work.restarts[0].first, 1);
    EXPECT_EQ(work.restarts[0].second.state().geometry, geometry(4));
    EXPECT_TRUE(is_empty(transport.negotiation().take_work()));
}

// 4.2.2.2: to stop using a queue the driver writes 0 to QueueReady and reads it back.
TEST_F(MmioTransportTest, QueueReadyReads1UntilTheDeviceHasLetGo) {
    start_and_take();
    driver.write(reg::kQueueSel, 0);
    driver.write(reg::kQueueReady, 0);
    EXPECT_EQ(works, 1);
    EXPECT_EQ(driver.read(reg::kQueueReady), 1U);
    EXPECT_EQ(driver.read(reg::kQueueReset), 0U);
    EXPECT_EQ(transport.negotiation().take_work().queue_resets, (std::vector<std::uint16_t>{0}));
    EXPECT_TRUE(is_empty(transport.negotiation().take_work())) << "told once";
    EXPECT_EQ(driver.read(reg::kQueueReady), 1U);
    transport.negotiation().finish_queue_reset(0);
    EXPECT_EQ(driver.read(reg::kQueueReady), 0U);
    driver.write(reg::kQueueReady, 1);
    EXPECT_EQ(driver.read(reg::kQueueReady), 1U);
    const Negotiation::Work work = transport.negotiation().take_work();
    ASSERT_EQ(work.restarts.size(), 1U);
    EXPECT_EQ(work.restarts[0].second.state().geometry, geometry()) << "it remains";
}

// ---- Reset of a queue

// 4.2.2.1: "MUST reset the queue when 1 is written to QueueReset", "MUST continue to present 1 in QueueReset as long as
// the queue reset is ongoing", "MUST present 0 in both QueueReset and QueueReady when queue reset has completed".
TEST_F(MmioTransportTest, QueueResetReads1WhileItIsUnderWay) {
    start_and_take();
    driver.write(reg::kQueueSel, 0);
    EXPECT_EQ(driver.read(reg::kQueueReset), 0U);
    driver.write(reg::kQueueReset, 1);
    EXPECT_EQ(works, 1);
    EXPECT_EQ(driver.read(reg::kQueueReset), 1U);
    EXPECT_EQ(transport.negotiation().take_work().queue_resets, (std::vector<std::uint16_t>{0}));
    EXPECT_EQ(driver.read(reg::kQueueReset), 1U);
    transport.negotiation().finish_queue_reset(0);
    EXPECT_EQ(driver.read(reg::kQueueReset), 0U);
    EXPECT_EQ(driver.read(reg::kQueueReady), 0U);
    EXPECT_EQ(driver.status(), kRunning) << "the rest of the device goes on";
}

// 2.6.1.2.1: "The device MUST observe any queue configuration that may have been changed by the driver", and 4.2.2.1:
// "MUST present a 0 in QueueReset after the virtqueue is enabled".
TEST_F(MmioTransportTest, AQueueThatWasResetComesBackFreshWithWhatTheDriverWroteThen) {
    start_and_take();
    driver.write(reg::kQueueSel, 0);
    driver.write(reg::kQueueReset, 1);
    (void)transport.negotiation().take_work();
    transport.negotiation().finish_queue_reset(0);
    const QueueGeometry other{16, GuestAddress{0x100000}, GuestAddress{0x120000}, GuestAddress{0x140000}};
    ASSERT_TRUE(driver.enable_queue(0, other));
    EXPECT_EQ(driver.read(reg::kQueueReset), 0U);
    const Negotiation::Work work = transport.negotiation().take_work();
    ASSERT_EQ(work.restarts.size(), 1U);
    const Queue::State state = work.restarts[0].second.state();
    EXPECT_EQ(state.geometry, other);
    // 2.6.1.1.1: "MUST reset any state of a virtqueue to the default state, including the available state and the used
    // state".
    EXPECT_EQ(state.next_available, 0);
    EXPECT_EQ(state.next_used, 0);
}

TEST_F(MmioTransportTest, WithoutItsFeatureQueueResetIsIgnored) {
    negotiate(kFeatureVersion1);
    ASSERT_TRUE(driver.enable_queue(0, geometry()));
    driver.write(reg::kQueueReset, 1);
    EXPECT_EQ(driver.read(reg::kQueueReset), 0U);
    EXPECT_TRUE(driver.is_queue_ready(0));
}

TEST_F(MmioTransportTest, AQueueTheDeviceDoesNotHaveIsResetAtOnce) {
    negotiate();
    ASSERT_TRUE(driver.enable_queue(0, geometry()));
    driver.write(reg::kQueueReset, 1);
    EXPECT_EQ(driver.read(reg::kQueueReset), 0U);
    EXPECT_EQ(driver.read(reg::kQueueReady), 0U);
    EXPECT_EQ(works, 0);
}

TEST_F(MmioTransportTest, AQueueIsResetOnceHoweverOftenTheDriverAsks) {
    start_and_take();
    driver.write(reg::kQueueSel, 0);
    driver.write(reg::kQueueReady, 0);
    driver.write(reg::kQueueReset, 1);
    driver.write(reg::kQueueReset, 1);
    EXPECT_EQ(driver.read(reg::kQueueReset), 1U);
    EXPECT_EQ(transport.negotiation().take_work().queue_resets.size(), 1U);
    driver.write(reg::kQueueReset, 1);
    driver.write(reg::kQueueReady, 0);
    EXPECT_TRUE(is_empty(transport.negotiation().take_work()));
}

TEST_F(MmioTransportTest, AQueueIsNotEnabledWhileItIsReset) {
    start_and_take();
    driver.write(reg::kQueueSel, 0);
    driver.write(reg::kQueueReset, 1);
    driver.write(reg::kQueueReady, 1);
    const Negotiation::Work work = transport.negotiation().take_work();
    EXPECT_EQ(work.queue_resets.size(), 1U);
    EXPECT_TRUE(work.restarts.empty());
    transport.negotiation().finish_queue_reset(0);
    EXPECT_FALSE(driver.is_queue_ready(0));
}

TEST_F(MmioTransportTest, ARestartNotYetTakenIsUndoneByAReset) {
    start_and_take();
    ASSERT_TRUE(driver.enable_queue(1, geometry(4)));
    driver.write(reg::kQueueReset, 1);
    EXPECT_EQ(driver.read(reg::kQueueReady), 0U);
    EXPECT_TRUE(is_empty(transport.negotiation().take_work()));
}

// ---- Reset of the device

// 2.4.1: "A device MUST reinitialize device status to 0 after receiving a reset".
TEST_F(MmioTransportTest, BeforeDriverOkAResetIsImmediate) {
    negotiate();
    ASSERT_TRUE(driver.enable_queue(0, geometry()));
    driver.write(reg::kStatus, 0);
    EXPECT_EQ(driver.status(), 0U);
    EXPECT_EQ(works, 0);
    EXPECT_FALSE(driver.is_queue_ready(0));
    driver.write(reg::kStatus, 0);
    EXPECT_EQ(driver.status(), 0U);
}

// 4.2.2.1: "Upon reset, the device MUST clear all bits in InterruptStatus and ready bits in the QueueReady register".
TEST_F(MmioTransportTest, AResetTakesUntilTheDeviceIsDone) {
    start_and_take();
    transport.notify(QueueSet::of(0));
    driver.write(reg::kStatus, 0);
    EXPECT_EQ(works, 1);
    EXPECT_EQ(driver.status(), kRunning);
    const Negotiation::Work work = transport.negotiation().take_work();
    EXPECT_TRUE(work.reset);
    EXPECT_FALSE(work.activation);
    EXPECT_TRUE(is_empty(transport.negotiation().take_work())) << "told once";
    EXPECT_EQ(driver.status(), kRunning);
    transport.negotiation().finish_reset();
    EXPECT_EQ(driver.status(), 0U);
    EXPECT_EQ(driver.read(reg::kInterruptStatus), 0U);
    EXPECT_FALSE(driver.is_queue_ready(0));
    EXPECT_EQ(driver.read(reg::kQueueReset), 0U);
}

TEST_F(MmioTransportTest, AnActivationThatWasNotTakenIsGoneAfterAReset) {
    start();
    driver.write(reg::kStatus, 0);
    EXPECT_TRUE(is_empty(transport.negotiation().take_work())) << "the device has nothing to stop";
    EXPECT_EQ(driver.status(), 0U);
    start();
    const Negotiation::Work work = transport.negotiation().take_work();
    EXPECT_FALSE(work.reset);
    EXPECT_TRUE(work.activation);
}

TEST_F(MmioTransportTest, WhatIsWrittenDuringAResetIsIgnored) {
    start_and_take();
    driver.write(reg::kStatus, 0);
    for (const bool taken : {false, true}) {
        if (taken) {
            ASSERT_TRUE(transport.negotiation().take_work().reset);
        }
        driver.set_features(kFeatureVersion1);
        driver.write(reg::kStatus, kStatusAcknowledge);
        driver.write(reg::kStatus, kRunning | kStatusFailed);
        driver.write(reg::kStatus, 0);
        driver.write(reg::kQueueSel, 0);
        driver.write(reg::kQueueReset, 1);
        driver.write(reg::kQueueReady, 0);
        driver.ring(0);
        driver.write_config(EchoDevice::kWritableByte, std::uint8_t{0xff});
        (void)driver.enable_queue(1, geometry(4));
        EXPECT_EQ(driver.status(), kRunning);
    }
    EXPECT_TRUE(is_empty(transport.negotiation().take_work()));
    EXPECT_TRUE(doorbells.empty());
    transport.negotiation().finish_reset();
    EXPECT_EQ(driver.status(), 0U);
    EXPECT_TRUE(is_empty(transport.negotiation().take_work()));
    start();
    EXPECT_TRUE(transport.negotiation().take_work().activation);
}

TEST_F(MmioTransportTest, AQueueResetUnderWayEndsWithTheDevices) {
    start_and_take();
    driver.write(reg::kQueueSel, 0);
    driver.write(reg::kQueueReset, 1);
    ASSERT_EQ(transport.negotiation().take_work().queue_resets.size(), 1U);
    driver.write(reg::kStatus, 0);
    ASSERT_TRUE(transport.negotiation().take_work().reset);
    transport.negotiation().finish_reset();
    start_and_take();
    transport.negotiation().finish_queue_reset(0); // late, and from before the reset
    EXPECT_TRUE(driver.is_queue_ready(0));
}

TEST_F(MmioTransportTest, AQueueResetNotYetTakenEndsWithTheDevices) {
    start_and_take();
    driver.write(reg::kQueueSel, 0);
    driver.write(reg::kQueueReset, 1);
    driver.write(reg::kStatus, 0);
    const Negotiation::Work work = transport.negotiation().take_work();
    EXPECT_TRUE(work.reset);
    EXPECT_TRUE(work.queue_resets.empty());
}

// 2.4.1: "MUST NOT send notifications ... after indicating completion of the reset".
TEST_F(MmioTransportTest, AfterAResetThereAreNoNotifications) {
    start_and_take();
    driver.write(reg::kStatus, 0);
    transport.notify(QueueSet::of(0)); // Harmless: Status does not read 0 yet.
    ASSERT_TRUE(transport.negotiation().take_work().reset);
    transport.negotiation().finish_reset();
    (void)irq.take();
    transport.notify(QueueSet::of(0));
    transport.change_config(0, std::array{std::byte{1}});
    transport.fail("late");
    EXPECT_EQ(irq.pulses(), 0U);
    EXPECT_EQ(driver.read(reg::kInterruptStatus), 0U);
}

TEST_F(MmioTransportTest, FeaturesAndSelectorsDoNotOutliveAReset) {
    negotiate(kFeatureVersion1 | kFeatureRingReset);
    driver.write(reg::kDeviceFeaturesSel, 1);
    driver.write(reg::kQueueSel, 1);
    driver.write(reg::kStatus, 0);
    EXPECT_EQ(driver.read(reg::kDeviceFeatures), static_cast<std::uint32_t>(driver.device_features()));
    EXPECT_EQ(driver.read(reg::kQueueSizeMax), EchoDevice::kQueueSize);
    driver.write(reg::kStatus, kStatusAcknowledge | kStatusDriver | kStatusFeaturesOk);
    EXPECT_EQ(driver.status() & kStatusFeaturesOk, 0U) << "VERSION_1 has to be accepted anew";
}

// Linux does this: it writes 0 to Status, reads nothing back, and frees the queues.
TEST_F(MmioTransportTest, WithPatienceAWriteOfStatusReturnsAfterTheReset) {
    std::atomic<bool> asked = false;
    MmioTransport patient{device.identity(),
                          memory,
                          irq,
                          {.work =
                               [&] {
                                   asked = true;
                                   asked.notify_one();
                               },
                           .doorbell = {},
                           .patience = vmm::testing::kPatience}};
    RegisterDriver guest{patient};
    ASSERT_TRUE(guest.negotiate(kFeatureVersion1));
    ASSERT_TRUE(guest.enable_queue(0, geometry()));
    guest.add_status(kStatusDriverOk);
    ASSERT_TRUE(patient.negotiation().take_work().activation);
    asked = false;
    std::thread thread([&] {
        asked.wait(false);
        ASSERT_TRUE(patient.negotiation().take_work().reset);
        std::this_thread::sleep_for(5ms);
        patient.negotiation().finish_reset();
    });
    guest.write(reg::kStatus, 0);
    EXPECT_EQ(guest.status(), 0U);
    thread.join();
}

TEST_F(MmioTransportTest, PatienceHasAnEnd) {
    MmioTransport patient{device.identity(), memory, irq, {.work = {}, .doorbell = {}, .patience = 1ms}};
    RegisterDriver guest{patient};
    ASSERT_TRUE(guest.negotiate(kFeatureVersion1));
    guest.add_status(kStatusDriverOk);
    ASSERT_TRUE(patient.negotiation().take_work().activation);
    guest.write(reg::kStatus, 0);
    EXPECT_EQ(guest.status(), kRunning);
}

/// A transport with a driver that has started it, and is about to reset it.
struct ImpatientDriver {
    ImpatientDriver(const Identity& identity, const GuestMemory& memory, IrqLine& irq, bool is_ending)
        : transport(identity, memory, irq,
                    {.work = {},
                     .doorbell = {},
                     .patience = 1ms,
                     .overdue = [this] { ++told; },
                     .is_ending = [is_ending] { return is_ending; }}) {
        EXPECT_TRUE(guest.negotiate(kFeatureVersion1));
        guest.add_status(kStatusDriverOk);
        EXPECT_TRUE(transport.negotiation().take_work().activation);
    }
    int told = 0;
    MmioTransport transport;
    RegisterDriver guest{transport};
};

TEST_F(MmioTransportTest, AResetThatRunsOutOfPatienceIsTold) {
    ImpatientDriver impatient(device.identity(), memory, irq, false);
    impatient.guest.write(reg::kStatus, 0);
    EXPECT_EQ(impatient.told, 1);
}

TEST_F(MmioTransportTest, AStopOfAQueueThatRunsOutOfPatienceIsTold) {
    ImpatientDriver impatient(device.identity(), memory, irq, false);
    ASSERT_TRUE(impatient.guest.enable_queue(0, geometry()));
    ASSERT_FALSE(impatient.transport.negotiation().take_work().restarts.empty());
    impatient.guest.write(reg::kQueueReady, 0);
    EXPECT_EQ(impatient.told, 1);
}

TEST_F(MmioTransportTest, AResetWhileTheMachineEndsWaitsForNobodyAndTellsNobody) {
    ImpatientDriver impatient(device.identity(), memory, irq, true);
    impatient.guest.write(reg::kStatus, 0);
    EXPECT_EQ(impatient.told, 0);
}

TEST_F(MmioTransportTest, AResetOfADeviceThatIsDoneTellsNobody) {
    int told = 0;
    MmioTransport* made = nullptr;
    MmioTransport prompt{device.identity(),
                         memory,
                         irq,
                         {.work =
                              [&] {
                                  if (made->negotiation().take_work().reset) {
                                      made->negotiation().finish_reset();
                                  }
                              },
                          .doorbell = {},
                          .patience = 10s,
                          .overdue = [&] { ++told; },
                          .is_ending = {}}};
    made = &prompt;
    RegisterDriver guest{prompt};
    ASSERT_TRUE(guest.negotiate(kFeatureVersion1));
    guest.add_status(kStatusDriverOk);
    guest.write(reg::kStatus, 0);
    EXPECT_EQ(guest.status(), 0U);
    EXPECT_EQ(told, 0);
}

// ---- Interrupts

// 4.2.2.1: "MUST present each event by setting the corresponding bit in InterruptStatus from the moment it takes place,
// until the driver acknowledges the interrupt". "Bits which do not represent events which took place MUST be zero."
TEST_F(MmioTransportTest, AnEventShowsUntilItIsAcknowledged) {
    start_and_take();
    EXPECT_EQ(driver.read(reg::kInterruptStatus), 0U);
    transport.notify(QueueSet::of(0));
    EXPECT_EQ(irq.take(), 1U);
    EXPECT_EQ(driver.read(reg::kInterruptStatus), kUsedBuffer);
    EXPECT_EQ(driver.read(reg::kInterruptStatus), kUsedBuffer);
    driver.write(reg::kInterruptAck, kConfigChange);
    EXPECT_EQ(driver.read(reg::kInterruptStatus), kUsedBuffer);
    transport.change_config(0, std::array{std::byte{1}});
    EXPECT_EQ(driver.read(reg::kInterruptStatus), kUsedBuffer | kConfigChange);
    driver.write(reg::kInterruptAck, kUsedBuffer);
    EXPECT_EQ(driver.read(reg::kInterruptStatus), kConfigChange);
    driver.write(reg::kInterruptAck, kAllOnes);
    EXPECT_EQ(driver.read(reg::kInterruptStatus), 0U);
}

TEST_F(MmioTransportTest, EveryEventRaisesTheLineEvenIfItsBitIsSet) {
    start_and_take();
    transport.notify(QueueSet::of(0));
    transport.notify(QueueSet::of(0));
    EXPECT_EQ(irq.take(), 2U);
    EXPECT_EQ(transport.interrupts(), 2U);
}

TEST_F(MmioTransportTest, TheBitIsThereWhenTheLineRises) {
    class Looking final : public IrqLine {
      public:
        void raise() noexcept override {
            std::array<std::byte, 4> data{};
            transport->read(reg::kInterruptStatus, data);
            seen.push_back(std::to_integer<unsigned>(data[0]));
        }
        MmioTransport* transport = nullptr;
        std::vector<unsigned> seen;
    } line;
    MmioTransport looked_at{device.identity(), memory, line, {}};
    line.transport = &looked_at;
    RegisterDriver guest{looked_at};
    ASSERT_TRUE(guest.negotiate(kFeatureVersion1));
    guest.add_status(kStatusDriverOk);
    (void)looked_at.negotiation().take_work();
    looked_at.notify(QueueSet::of(0));
    looked_at.fail("for the test"); // The line is raised without the lock: otherwise reading Status here would hang.
    EXPECT_EQ(line.seen, (std::vector<unsigned>{kUsedBuffer, kUsedBuffer | kConfigChange}));
}

// ---- Doorbells

TEST_F(MmioTransportTest, ADoorbellNamesItsQueue) {
    start_and_take();
    driver.ring(0);
    driver.ring(1);
    EXPECT_EQ(doorbells, (std::vector<std::uint16_t>{0, 1}));
}

TEST_F(MmioTransportTest, ADoorbellOfMoreThan16BitsIsIgnored) {
    start_and_take();
    driver.write(reg::kQueueNotify, 0x10000);
    EXPECT_TRUE(doorbells.empty());
}

// ---- Configuration space

// 2.5.2: "MUST allow reading of any device-specific configuration field before FEATURES_OK is set".
TEST_F(MmioTransportTest, ConfigurationIsExactAtEveryWidthAndOffset) {
    for (std::size_t width = 0; width <= 8; ++width) {
        for (std::size_t offset = 0; offset < EchoDevice::kConfigBytes + 4; ++offset) {
            std::vector<std::byte> data(width);
            transport.read(reg::kConfig + offset, data);
            for (std::size_t i = 0; i < width; ++i) {
                const std::size_t at = offset + i;
                const auto expected = static_cast<std::byte>(at < EchoDevice::kConfigBytes ? 0x10 + at : 0xff);
                EXPECT_EQ(data[i], expected) << "width " << width << " offset " << at;
            }
        }
    }
}

TEST_F(MmioTransportTest, FarBeyondTheConfigurationThereIsNothing) {
    for (const std::uint64_t offset :
         {MmioTransport::kSize - 1, MmioTransport::kSize, std::uint64_t{1} << 63, UINT64_MAX - 7, UINT64_MAX}) {
        std::array<std::byte, 8> data{};
        transport.read(offset, data);
        EXPECT_EQ(data[7], std::byte{0xff});
        transport.write(offset, data);
    }
}

TEST_F(MmioTransportTest, OnlyWritableBitsOfTheConfigurationAreWritten) {
    negotiate();
    std::vector<std::byte> expected = device.identity().config;
    const std::array<std::byte, 8> zeros{};
    for (std::uint64_t offset = 0; offset < 20; ++offset) {
        transport.write(reg::kConfig + offset, zeros);
    }
    expected[EchoDevice::kWritableByte] &= ~EchoDevice::kWritableBits;
    EXPECT_EQ(transport.negotiation().config(), expected);
    driver.write_config(EchoDevice::kWritableByte, std::uint8_t{0xff});
    expected[EchoDevice::kWritableByte] |= EchoDevice::kWritableBits;
    EXPECT_EQ(transport.negotiation().config(), expected);
    EXPECT_EQ(driver.read_config<std::uint8_t>(EchoDevice::kWritableByte), 0x1f);
}

// 3.1.1, step 4: until FEATURES_OK the driver must not write the configuration.
TEST_F(MmioTransportTest, ConfigurationIsNotWrittenBeforeFeaturesOk) {
    driver.write_config(EchoDevice::kWritableByte, std::uint8_t{0xff});
    EXPECT_EQ(transport.negotiation().config(), device.identity().config);
}

TEST_F(MmioTransportTest, WhatTheDriverWroteToTheConfigurationGoesWithAReset) {
    negotiate();
    driver.write_config(EchoDevice::kWritableByte, std::uint8_t{0xff});
    transport.change_config(0, std::array{std::byte{0xee}});
    driver.write(reg::kStatus, 0);
    std::vector<std::byte> expected = device.identity().config;
    expected[0] = std::byte{0xee};
    EXPECT_EQ(transport.negotiation().config(), expected);
}

// 4.2.2: the same as long as nothing changes. 4.2.2.1: "MUST change value returned in ConfigGeneration if there is any
// risk of a driver seeing an inconsistent configuration state".
TEST_F(MmioTransportTest, ConfigGenerationChangesWithTheConfiguration) {
    const std::uint32_t before = driver.read(reg::kConfigGeneration);
    (void)driver.read_config<std::uint64_t>(0);
    EXPECT_EQ(driver.read(reg::kConfigGeneration), before);
    transport.change_config(1, std::array{std::byte{1}, std::byte{2}});
    EXPECT_NE(driver.read(reg::kConfigGeneration), before);
    EXPECT_EQ(driver.read_config<std::uint32_t>(0), 0x13020110U);
}

TEST_F(MmioTransportTest, AResetThatUndoesWhatTheDriverWroteIsANewConfigGeneration) {
    const std::uint32_t before = driver.read(reg::kConfigGeneration);
    negotiate();
    driver.write(reg::kStatus, 0);
    EXPECT_EQ(driver.read(reg::kConfigGeneration), before); // it was not written
    negotiate();
    driver.write_config(EchoDevice::kWritableByte, std::uint8_t{0xff});
    driver.write(reg::kStatus, 0);
    EXPECT_NE(driver.read(reg::kConfigGeneration), before);
}

// 3.2.1 of the driver's life: a notification when the configuration changes; 2.1.2 of none before DRIVER_OK.
TEST_F(MmioTransportTest, AChangeOfTheConfigurationIsNotifiedOnceTheDriverIsReady) {
    transport.change_config(0, std::array{std::byte{1}});
    EXPECT_EQ(irq.pulses(), 0U);
    EXPECT_EQ(driver.read(reg::kInterruptStatus), 0U);
    start();
    transport.change_config(0, std::array{std::byte{2}});
    EXPECT_EQ(irq.pulses(), 1U);
    EXPECT_EQ(driver.read(reg::kInterruptStatus), kConfigChange);
}

// ---- Failure

// 2.1.2: "If DRIVER_OK is set, after it sets DEVICE_NEEDS_RESET, the device MUST send a device configuration change
// notification to the driver".
TEST_F(MmioTransportTest, AFailureIsNotified) {
    start_and_take();
    EXPECT_EQ(transport.negotiation().failure(), "");
    transport.fail("a chain loops");
    EXPECT_EQ(driver.status(), std::uint32_t{kRunning | kStatusNeedsReset});
    EXPECT_EQ(driver.read(reg::kInterruptStatus), kConfigChange);
    EXPECT_EQ(irq.pulses(), 1U);
    EXPECT_EQ(transport.negotiation().failure(), "a chain loops");
    transport.fail("and something else");
    EXPECT_EQ(transport.negotiation().failure(), "a chain loops") << "the first one is the reason";
    EXPECT_EQ(irq.pulses(), 1U);
}

TEST_F(MmioTransportTest, AFailureBeforeDriverOkIsNotNotified) {
    negotiate();
    transport.fail("for the test");
    EXPECT_EQ(irq.pulses(), 0U);
    EXPECT_NE(driver.status() & kStatusNeedsReset, 0U);
}

TEST_F(MmioTransportTest, AfterAFailureNothingIsActivatedUntilReset) {
    negotiate();
    transport.fail("for the test");
    driver.add_status(kStatusDriverOk);
    EXPECT_EQ(driver.status() & kStatusDriverOk, 0U);
    EXPECT_TRUE(is_empty(transport.negotiation().take_work()));
    driver.write(reg::kStatus, 0);
    EXPECT_EQ(driver.status(), 0U);
    EXPECT_EQ(transport.negotiation().failure(), "");
    start_and_take();

    transport.fail("again");
    (void)driver.enable_queue(1, geometry(4));
    EXPECT_TRUE(is_empty(transport.negotiation().take_work())) << "nor restarted";
    driver.write(reg::kQueueSel, 0);
    driver.write(reg::kQueueReset, 1);
    EXPECT_EQ(transport.negotiation().take_work().queue_resets.size(), 1U) << "but a queue is still let go of";
}

TEST_F(MmioTransportTest, AnActivationNotYetTakenIsNotHandedOutAfterAFailure) {
    start();
    transport.fail("for the test");
    EXPECT_TRUE(is_empty(transport.negotiation().take_work()));
    driver.write(reg::kStatus, 0);
    EXPECT_TRUE(is_empty(transport.negotiation().take_work()));
    EXPECT_EQ(driver.status(), 0U);
}

// ---- With a device

class VirtioDeviceTest : public ::testing::Test {
  protected:
    void SetUp() override {
        ASSERT_TRUE(rig.start());
        in = rig.allocate(16);
        out = rig.allocate(16);
        ASSERT_TRUE(rig.memory().store(in, std::uint64_t{0x1122334455667788}));
    }
    std::uint16_t echo(std::uint16_t index = 0) {
        const std::uint16_t head = rig.queue(index).add({{in, 8}, {out, 8, kWritable}});
        rig.ring(index);
        return head;
    }

    EchoDevice device;
    VirtioRig rig{device};
    GuestAddress in{};
    GuestAddress out{};
};

TEST_F(VirtioDeviceTest, ARequestIsAnsweredWithOneInterrupt) {
    const std::uint16_t head = echo();
    EXPECT_EQ(rig.wait_for_used(0), (Used{head, 8}));
    EXPECT_EQ(rig.memory().load<std::uint64_t>(out), 0x1122334455667788U);
    EXPECT_EQ(rig.irq().take(), 1U);
    EXPECT_EQ(rig.driver().take_interrupts(), kUsedBuffer);
    EXPECT_EQ(rig.driver().take_interrupts(), 0U);
}

// 2.7.5.1: "A device MUST NOT write to a device-readable buffer".
TEST_F(VirtioDeviceTest, WhatIsToBeReadIsNotWritten) {
    rig.queue(0).add({{in, 8}, {out, 8, kWritable}});
    rig.driver().ring(0);
    rig.settle();
    EXPECT_EQ(rig.memory().load<std::uint64_t>(in), 0x1122334455667788U);
}

// 2.7.10.2: "The device MUST handle spurious notifications from the driver".
TEST_F(VirtioDeviceTest, DoorbellsForNothingAreHarmless) {
    for (int i = 0; i < 100; ++i) {
        rig.driver().ring(0);
        rig.driver().ring(1);
        rig.driver().ring(7);
        rig.settle();
    }
    EXPECT_TRUE(rig.is_alive());
    EXPECT_EQ(rig.irq().pulses(), 0U);
    echo();
    EXPECT_TRUE(rig.wait_for_used(0));
}

// 2.4.1: "MUST NOT ... interact with the queues after indicating completion of the reset".
TEST_F(VirtioDeviceTest, AResetWaitsForWorkInFlightAndThenTheQueuesAreLeftAlone) {
    device.hold();
    echo();
    rig.settle();
    ASSERT_EQ(device.held(), 1U);
    rig.driver().write(reg::kStatus, 0);
    rig.settle();
    EXPECT_EQ(device.stops(), 1);
    EXPECT_EQ(rig.driver().status(), kRunning) << "the host is still at work in the buffers";
    device.release();
    EXPECT_TRUE(rig.pump_until([&] { return rig.driver().status() == 0; }));
    EXPECT_EQ(rig.queue(0).used_index(), 0);
    EXPECT_EQ(rig.irq().pulses(), 0U);
    EXPECT_TRUE(rig.start());
    echo();
    EXPECT_TRUE(rig.wait_for_used(0));
}

// 2.6.1.1.1: "MUST NOT execute any requests from that virtqueue, or notify the driver for it"; the others go on.
TEST_F(VirtioDeviceTest, AResetOfAQueueLeavesTheOtherOnesRunning) {
    device.hold();
    echo(0);
    rig.settle();
    rig.driver().write(reg::kQueueSel, 0);
    rig.driver().write(reg::kQueueReset, 1);
    echo(0);
    rig.driver().ring(0);
    rig.settle();
    EXPECT_EQ(rig.driver().read(reg::kQueueReset), 1U);
    device.release();
    EXPECT_TRUE(rig.pump_until([&] { return rig.driver().read(reg::kQueueReset) == 0; }));
    EXPECT_FALSE(rig.driver().is_queue_ready(0));
    EXPECT_EQ(rig.queue(0).used_index(), 0);
    echo(1);
    EXPECT_TRUE(rig.wait_for_used(1));
    EXPECT_TRUE(rig.is_alive());

    rig.set_up_queues();
    ASSERT_TRUE(rig.driver().enable_queue(0, rig.queue(0).geometry()));
    rig.settle();
    echo(0);
    EXPECT_TRUE(rig.wait_for_used(0));
}

TEST_F(VirtioDeviceTest, ABrokenQueueNeedsAReset) {
    rig.queue(0).publish(0xffff);
    rig.driver().ring(0);
    rig.settle();
    EXPECT_TRUE(rig.needs_reset());
    EXPECT_NE(rig.transport().negotiation().failure(), "");
    EXPECT_EQ(rig.driver().take_interrupts(), kConfigChange);
    EXPECT_TRUE(rig.start());
    echo();
    EXPECT_TRUE(rig.wait_for_used(0));
}

TEST_F(VirtioDeviceTest, SuppressedInterruptsAreNotSent) {
    rig.queue(0).suppress_interrupts();
    echo();
    EXPECT_TRUE(rig.wait_for_used(0));
    EXPECT_EQ(rig.irq().pulses(), 0U);
    rig.queue(0).ask_for_interrupt();
    echo();
    EXPECT_TRUE(rig.wait_for_used(0));
    EXPECT_EQ(rig.irq().pulses(), 1U);
}

// ---- Several threads

/// The device's side, in a thread of its own.
class DeviceThread {
  public:
    DeviceThread(Device& device, const GuestMemory& memory, IrqLine& irq)
        : pump_(device, memory, irq, vmm::testing::kPatience) {}
    DeviceThread(const DeviceThread&) = delete;
    DeviceThread(DeviceThread&&) = delete;
    DeviceThread& operator=(const DeviceThread&) = delete;
    DeviceThread& operator=(DeviceThread&&) = delete;
    ~DeviceThread() {
        stop_ = true;
        pump_.wake();
        thread_.join();
    }
    [[nodiscard]] MmioTransport& transport() noexcept { return pump_.transport(); }

  private:
    VirtioPump pump_;
    std::atomic<bool> stop_ = false;
    std::thread thread_{[this] {
        while (!stop_) {
            pump_.turn(100ms);
        }
    }};
};

class MmioTransportThreadsTest : public ::testing::Test {
  protected:
    const std::array<GuestRange, 1> layout{GuestRange{GuestAddress{0}, 2 * kMiB}};
    GuestMemory memory{layout, PageSize::k4K};
    RecordingIrq irq;
    EchoDevice device;
    DeviceThread thread{device, memory, irq};
};

// A driver that is unloaded and loaded again without reading Status back, as with Linux. It uses its queues' memory for
// other things as soon as the write of 0 returns.
TEST_F(MmioTransportThreadsTest, ADriverComesAndGoes) {
    RegisterDriver driver{thread.transport()};
    constexpr GuestAddress kBase{0x10000};
    constexpr GuestAddress kData{0x100000};
    for (unsigned round = 0; round < 200; ++round) {
        ASSERT_EQ(driver.status(), 0U);
        ASSERT_TRUE(driver.negotiate(driver.device_features()));
        DriverQueue queue{memory, kBase, 16};
        ASSERT_TRUE(driver.enable_queue(0, queue.geometry()));
        driver.add_status(kStatusDriverOk);
        ASSERT_TRUE(memory.store(kData, round));
        for (unsigned i = 0; i < round % 7; ++i) {
            queue.add({{kData, 4}, {kData + 8, 4, kWritable}});
            if (queue.wants_doorbell()) {
                driver.ring(0);
            }
        }
        for (unsigned done = 0; round % 2 == 0 && done < round % 7;) {
            done += queue.take_used() ? 1 : 0;
            std::this_thread::yield();
        }
        driver.write(reg::kStatus, 0);
        // No other thread uses the memory any more: ThreadSanitizer would report it.
        std::ranges::fill(*memory.at({kBase, DriverQueue::bytes(16)}), std::byte{0});
        std::ranges::fill(*memory.at({kData, 64}), std::byte{0});
    }
}

TEST_F(MmioTransportThreadsTest, VcpusHammerTheRegistersWhileTheDeviceWorks) {
    RegisterDriver driver{thread.transport()};
    std::atomic<bool> done = false;
    std::vector<std::thread> vcpus;
    for (std::uint64_t seed = 1; seed <= 2; ++seed) {
        vcpus.emplace_back([&, seed] {
            testing::HostileGuest random{seed};
            RegisterDriver mine{thread.transport()};
            while (!done) {
                switch (random.below(8)) {
                case 0:
                    mine.take_interrupts();
                    break;
                case 1:
                    mine.ring(static_cast<std::uint16_t>(random.below(3)));
                    break;
                case 2:
                    mine.write_config(EchoDevice::kWritableByte, static_cast<std::uint8_t>(random.below(256)));
                    break;
                case 3:
                    (void)mine.read_config<std::uint64_t>(random.below(16));
                    break;
                default:
                    (void)mine.read(random.below(0x110));
                }
            }
        });
    }
    ASSERT_TRUE(driver.negotiate(driver.device_features()));
    DriverQueue queue{memory, GuestAddress{0x10000}, 16};
    ASSERT_TRUE(driver.enable_queue(0, queue.geometry()));
    driver.add_status(kStatusDriverOk);
    for (unsigned i = 0; i < 2000; ++i) {
        queue.add({{GuestAddress{0x100000}, 4}, {GuestAddress{0x100008}, 4, kWritable}});
        if (queue.wants_doorbell()) {
            driver.ring(0);
        }
        while (!queue.take_used()) {
            std::this_thread::yield();
        }
    }
    EXPECT_EQ(driver.status(), kRunning);
    done = true;
    for (std::thread& vcpu : vcpus) {
        vcpu.join();
    }
}

TEST_F(MmioTransportThreadsTest, RegistersWrittenAtRandomBreakNothing) {
    std::vector<std::thread> vcpus;
    for (std::uint64_t seed = 1; seed <= 2; ++seed) {
        vcpus.emplace_back([&, seed] {
            testing::HostileGuest random{seed};
            RegisterDriver mine{thread.transport()};
            const std::array<std::uint64_t, 9> offsets{reg::kStatus,       reg::kQueueReady,  reg::kQueueReset,
                                                       reg::kQueueSel,     reg::kQueueNotify, reg::kInterruptAck,
                                                       reg::kQueueDescLow, reg::kQueueSize,   reg::kDriverFeaturesSel};
            for (unsigned i = 0; i < 3000; ++i) {
                if (random.below(20) == 0) {
                    (void)mine.negotiate(mine.device_features());
                    (void)mine.enable_queue(0, {8, GuestAddress{0x1000}, GuestAddress{0x2000}, GuestAddress{0x3000}});
                    mine.add_status(kStatusDriverOk);
                }
                mine.write(offsets[random.below(offsets.size())], static_cast<std::uint32_t>(random.below(2)));
                (void)mine.status();
            }
        });
    }
    for (std::thread& vcpu : vcpus) {
        vcpu.join();
    }
    RegisterDriver driver{thread.transport()};
    driver.write(reg::kStatus, 0);
    EXPECT_EQ(driver.status(), 0U);
    EXPECT_TRUE(driver.negotiate(driver.device_features()));
}

} // namespace
} // namespace vmm::devices::virtio
