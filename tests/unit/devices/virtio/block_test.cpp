// virtio-blk (virtio 1.2, 5.2), through its registers and queues, on files.

#include <gtest/gtest.h>

#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <csignal>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <memory>
#include <optional>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "devices/virtio/block.hpp"
#include "kvm/host/error.hpp"
#include "support/devices_hostile_driver.hpp"
#include "support/devices_virtio_driver.hpp"
#include "support/host_errors.hpp"
#include "support/host_loop_device.hpp"
#include "support/host_temporary_directory.hpp"

namespace vmm::devices::testing {
namespace {

using virtio::Block;
using virtio::BlockConfig;

constexpr std::uint64_t kSector = 512;
constexpr std::uint64_t kSectors = 256;
enum Type : std::uint32_t { kIn = 0, kOut = 1, kFlush = 4, kGetId = 8, kDiscard = 11, kWriteZeroes = 13 };
constexpr std::uint8_t kOk = 0;
constexpr std::uint8_t kIoError = 1;
constexpr std::uint8_t kUnsupported = 2;
constexpr std::uint8_t kUntouched = 0xee;
constexpr std::uint64_t kFeatureReadOnly = 1ULL << 5;
constexpr std::uint64_t kFeatureFlush = 1ULL << 9;
constexpr std::uint64_t kFeatureMultiQueue = 1ULL << 12;
constexpr std::uint64_t kFeatureDiscard = 1ULL << 13;

struct Header {
    std::uint32_t type = kIn;
    std::uint32_t reserved = 0;
    std::uint64_t sector = 0;
};

struct Segment {
    std::uint64_t sector = 0;
    std::uint32_t sectors = 0;
    std::uint32_t flags = 0;
};

/// The properties of a test's disk.
struct DiskOptions {
    bool read_only = false;
    bool direct = false;
    unsigned queues = 1;
    std::uint64_t features = ~std::uint64_t{0};
    std::uint64_t sectors = kSectors;
    bool pinned = false;
};

/// A disk, its file, and a driver.
class Disk {
  public:
    explicit Disk(const DiskOptions& options = {}) : path_(directory_.write("disk", "")) {
        std::filesystem::resize_file(path_, options.sectors * kSector);
        BlockConfig config;
        config.queues = options.queues;
        config.id = "a disk";
        config.warn = [this](const std::string& line) { warnings_.push_back(line); };
        if (options.pinned) {
            config.pinned_memory = [this] {
                return std::vector<std::span<std::byte>>{rig_->memory().regions().front().bytes()};
            };
        }
        block_ = std::make_unique<Block>("blk0", DiskImage(path_, {options.read_only, options.direct}), config);
        rig_ = std::make_unique<VirtioRig>(*block_);
        EXPECT_TRUE(rig_->start(options.features));
    }

    VirtioRig& rig() { return *rig_; }
    Block& block() { return *block_; }
    const std::string& path() const { return path_; }
    const std::vector<std::string>& warnings() const { return warnings_; }

    struct Answer {
        std::uint8_t status = kUntouched;
        std::uint32_t length = 0; ///< of the used entry
    };

    /// Makes one request with its data in one piece; returns the answer, or nothing.
    std::optional<Answer> request(const Header& header, std::vector<Buffer> data, std::uint16_t queue = 0) {
        const GuestAddress front = rig_->allocate(sizeof(Header));
        const GuestAddress status = rig_->allocate(1);
        EXPECT_TRUE(rig_->memory().store(front, header));
        EXPECT_TRUE(rig_->memory().store(status, kUntouched));
        data.insert(data.begin(), {front, sizeof(Header)});
        data.push_back({status, 1, kWritable});
        rig_->queue(queue).add(data);
        rig_->ring(queue);
        const auto used = rig_->wait_for_used(queue);
        if (!used) {
            return std::nullopt;
        }
        return Answer{*rig_->memory().load<std::uint8_t>(status), used->length};
    }
    std::uint8_t write(std::uint64_t sector, const std::string& bytes) {
        const GuestAddress at = place(bytes);
        return request({kOut, 0, sector}, {{at, static_cast<std::uint32_t>(bytes.size())}}).value_or(Answer{}).status;
    }
    std::string read(std::uint64_t sector, std::uint32_t bytes) {
        const GuestAddress at = rig_->allocate(bytes);
        const auto answer = request({kIn, 0, sector}, {{at, bytes, kWritable}});
        EXPECT_TRUE(answer && answer->status == kOk);
        EXPECT_TRUE(answer && answer->length == bytes + 1);
        return bytes_at(at, bytes);
    }
    std::uint8_t range(Type type, const Segment& segment) {
        const GuestAddress at = rig_->allocate(sizeof(segment));
        EXPECT_TRUE(rig_->memory().store(at, segment));
        return request({type, 0, 0}, {{at, sizeof(segment)}}).value_or(Answer{}).status;
    }
    GuestAddress place(const std::string& bytes) {
        const GuestAddress at = rig_->allocate(bytes.size());
        EXPECT_TRUE(rig_->memory().copy_in(at, std::as_bytes(std::span(bytes))));
        return at;
    }
    std::string bytes_at(GuestAddress at, std::size_t bytes) {
        std::string text(bytes, '\0');
        EXPECT_TRUE(rig_->memory().copy_out(at, std::as_writable_bytes(std::span(text))));
        return text;
    }
    std::string content() const {
        std::ifstream file(path_, std::ios::binary);
        return {std::istreambuf_iterator<char>(file), {}};
    }

  private:
    vmm::testing::TemporaryDirectory directory_;
    std::string path_;
    std::vector<std::string> warnings_;
    std::unique_ptr<Block> block_;
    std::unique_ptr<VirtioRig> rig_;
};

std::string pattern(std::size_t bytes, unsigned seed) {
    std::mt19937 random(seed);
    std::string text(bytes, '\0');
    std::generate(text.begin(), text.end(), [&] { return static_cast<char>(random()); });
    return text;
}

TEST(VirtioBlock, SaysItsCapacityInSectors) { // 5.2.4
    Disk disk;
    std::uint64_t capacity = 0;
    disk.rig().transport().read(reg::kConfig, std::as_writable_bytes(std::span(&capacity, 1)));
    EXPECT_EQ(capacity, kSectors);
}

// 5.2.5.2: "SHOULD always offer VIRTIO_BLK_F_FLUSH", "MUST initialize padding bytes unused0 and unused1 to 0".
TEST(VirtioBlock, OffersFlushesAndPadsItsConfigurationWithZeros) {
    constexpr std::uint64_t kUnused0 = 33; // Offsets in the configuration space (5.2.4).
    constexpr std::uint64_t kUnused1 = 57;
    Disk disk;
    EXPECT_NE(disk.block().identity().features & kFeatureFlush, 0U);
    EXPECT_EQ(disk.rig().driver().read_config<std::uint8_t>(kUnused0), 0);
    for (std::uint64_t i = 0; i < 3; ++i) {
        EXPECT_EQ(disk.rig().driver().read_config<std::uint8_t>(kUnused1 + i), 0);
    }
    // CONFIG_WCE is not offered, because it would demand more; nor are the zoned, secure erase and lifetime features.
    EXPECT_EQ(disk.block().identity().features & (1ULL << 11 | 1ULL << 15 | 1ULL << 16 | 1ULL << 17), 0U);
}

TEST(VirtioBlock, ReadsWhatTheFileHasAndWritesWhatTheGuestHas) {
    Disk disk;
    const std::string bytes = pattern(8 * kSector, 1);
    EXPECT_EQ(disk.write(3, bytes), kOk);
    EXPECT_EQ(disk.content().substr(3 * kSector, bytes.size()), bytes);
    EXPECT_EQ(disk.read(3, 8 * kSector), bytes);
    EXPECT_EQ(disk.read(4, kSector), bytes.substr(kSector, kSector));
}

TEST(VirtioBlock, TakesHeaderDataAndStatusInAnyPieces) { // 2.7.4: no assumption about framing
    Disk disk;
    VirtioRig& rig = disk.rig();
    const std::string bytes = pattern(kSector, 2);
    const GuestAddress header = rig.allocate(sizeof(Header));
    ASSERT_TRUE(rig.memory().store(header, Header{kOut, 0, 5}));
    const GuestAddress data = disk.place(bytes);
    const GuestAddress status = rig.allocate(1);
    rig.queue(0).add({{header, 3},
                      {header + 3, 12},
                      {header + 15, 1},
                      {data, 1},
                      {data + 1, 500},
                      {data + 501, 11},
                      {status, 1, kWritable}});
    rig.ring(0);
    ASSERT_TRUE(rig.wait_for_used(0));
    EXPECT_EQ(disk.content().substr(5 * kSector, kSector), bytes);
    // Header and data in one piece, and data and status in one.
    const GuestAddress both = rig.allocate(kSector + 1);
    ASSERT_TRUE(rig.memory().store(header, Header{kIn, 0, 5}));
    rig.queue(0).add({{header, 16}, {both, kSector + 1, kWritable}});
    rig.ring(0);
    const auto used = rig.wait_for_used(0);
    ASSERT_TRUE(used);
    EXPECT_EQ(used->length, kSector + 1);
    EXPECT_EQ(disk.bytes_at(both, kSector), bytes);
    EXPECT_EQ(*rig.memory().load<std::uint8_t>(both + kSector), kOk);
}

TEST(VirtioBlock, RefusesWhatIsNoWholeSectorsOrBeyondTheEndAndTouchesNothing) { // 5.2.6.2
    Disk disk;
    const std::string before = disk.content();
    EXPECT_EQ(disk.write(0, std::string(511, 'x')), kIoError);
    EXPECT_EQ(disk.write(kSectors, std::string(kSector, 'x')), kIoError);
    EXPECT_EQ(disk.write(kSectors - 1, std::string(2 * kSector, 'x')), kIoError);
    EXPECT_EQ(disk.write(UINT64_MAX, std::string(kSector, 'x')), kIoError);
    EXPECT_EQ(disk.write(UINT64_MAX / kSector, std::string(kSector, 'x')), kIoError);
    EXPECT_EQ(disk.write(1ULL << 55, std::string(kSector, 'x')), kIoError);
    EXPECT_EQ(disk.content(), before);
    const GuestAddress at = disk.rig().allocate(2 * kSector);
    const auto answer = disk.request({kIn, 0, kSectors - 1}, {{at, 2 * kSector, kWritable}});
    ASSERT_TRUE(answer);
    EXPECT_EQ(answer->status, kIoError);
    EXPECT_EQ(answer->length, 0U) << "nothing was written from the front on (2.7.8.2)";
    EXPECT_TRUE(disk.rig().is_alive());
}

TEST(VirtioBlock, OfNoSectorsIsDoneAtOnce) {
    Disk disk;
    EXPECT_EQ(disk.request({kIn, 0, 0}, {})->status, kOk);
    EXPECT_EQ(disk.request({kOut, 0, kSectors}, {})->status, kOk);
}

TEST(VirtioBlock, SaysThatARequestOfUnknownTypeIsUnsupported) { // 5.2.6.2
    Disk disk;
    for (const std::uint32_t type : {2U, 3U, 5U, 7U, 14U, 0x80000000U, 0xffffffffU}) {
        EXPECT_EQ(disk.request({type, 0, 0}, {})->status, kUnsupported) << type;
    }
}

TEST(VirtioBlock, WithoutAByteForTheStatusNeedsAReset) {
    Disk disk;
    const GuestAddress header = disk.rig().allocate(16);
    disk.rig().queue(0).add({{header, 16}});
    disk.rig().ring(0);
    EXPECT_TRUE(disk.rig().pump_until([&] { return disk.rig().needs_reset(); }));
    EXPECT_TRUE(disk.rig().reset());
    EXPECT_TRUE(disk.rig().start());
    EXPECT_EQ(disk.write(0, std::string(kSector, 'x')), kOk);
}

TEST(VirtioBlock, GivesBackWhatIsUnderWayWhenARequestBreaksARule) {
    Disk disk({.queues = 2});
    VirtioRig& rig = disk.rig();
    const GuestAddress header = rig.allocate(sizeof(Header));
    ASSERT_TRUE(rig.memory().store(header, Header{kIn, 0, 0}));
    for (std::uint16_t queue = 0; queue < 2; ++queue) {
        for (int i = 0; i < 20; ++i) {
            rig.queue(queue).add({{header, sizeof(Header)}, {rig.allocate(513), 513, kWritable}});
        }
    }
    rig.queue(0).add({{header, sizeof(Header)}}); // without a byte for the status
    rig.driver().ring(1);
    rig.driver().ring(0);
    EXPECT_TRUE(rig.pump_until([&] { return rig.needs_reset() && disk.block().statistics().reads >= 20; }));
    EXPECT_TRUE(rig.pump_until([&] { return rig.queue(0).used_index() == 21; })) << rig.queue(0).used_index();
}

TEST(VirtioBlock, WithAShortHeaderIsAnError) {
    Disk disk;
    const GuestAddress header = disk.rig().allocate(16);
    const GuestAddress status = disk.rig().allocate(1);
    disk.rig().queue(0).add({{header, 15}, {status, 1, kWritable}});
    disk.rig().ring(0);
    ASSERT_TRUE(disk.rig().wait_for_used(0));
    EXPECT_EQ(*disk.rig().memory().load<std::uint8_t>(status), kIoError);
}

TEST(VirtioBlock, ThatIsReadOnlyOffersThatAndRefusesWrites) { // 5.2.6.2
    Disk disk({.read_only = true});
    EXPECT_NE(disk.block().identity().features & kFeatureReadOnly, 0U);
    EXPECT_EQ(disk.block().identity().features & kFeatureDiscard, 0U);
    EXPECT_EQ(disk.write(0, std::string(kSector, 'x')), kIoError);
    EXPECT_EQ(disk.range(kWriteZeroes, {0, 1, 0}), kIoError);
    EXPECT_EQ(disk.range(kDiscard, {0, 1, 0}), kUnsupported);
    EXPECT_EQ(disk.read(0, kSector), std::string(kSector, '\0'));
}

TEST(VirtioBlock, SaysItsId) { // 5.2.6: 20 bytes, and zeroes behind what is shorter
    Disk disk;
    const GuestAddress at = disk.rig().allocate(20);
    const auto answer = disk.request({kGetId, 0, 0}, {{at, 20, kWritable}});
    ASSERT_TRUE(answer);
    EXPECT_EQ(answer->status, kOk);
    EXPECT_EQ(disk.bytes_at(at, 20), std::string("a disk") + std::string(14, '\0'));
    EXPECT_EQ(disk.request({kGetId, 0, 0}, {{at, 4, kWritable}})->status, kOk) << "less room is less of it";
}

TEST(VirtioBlock, FlushesWhenAsked) {
    Disk disk;
    EXPECT_EQ(disk.write(0, std::string(kSector, 'x')), kOk);
    EXPECT_EQ(disk.request({kFlush, 0, 0}, {})->status, kOk);
    EXPECT_EQ(disk.block().statistics().flushes, 1U);
}

TEST(VirtioBlock, WithoutFlushesWritesThrough) { // 5.2.6.2
    Disk disk({.features = ~kFeatureFlush});
    EXPECT_EQ(disk.write(0, pattern(kSector, 3)), kOk);
    EXPECT_EQ(disk.range(kWriteZeroes, {0, 1, 0}), kOk);
    EXPECT_EQ(disk.read(0, kSector), std::string(kSector, '\0'));
}

TEST(VirtioBlock, ZeroesAndDiscardsTheRangeAndNothingElse) {
    Disk disk;
    const std::string bytes = pattern(kSectors * kSector, 4);
    ASSERT_EQ(disk.write(0, bytes), kOk);
    for (const std::uint32_t flags : {0U, 1U}) { // 1: may unmap
        const std::uint64_t first = 8 + (flags * 16);
        EXPECT_EQ(disk.range(kWriteZeroes, {first, 8, flags}), kOk);
        EXPECT_EQ(disk.read(first, 8 * kSector), std::string(8 * kSector, '\0'));
        EXPECT_EQ(disk.read(first - 1, kSector), bytes.substr((first - 1) * kSector, kSector));
        EXPECT_EQ(disk.read(first + 8, kSector), bytes.substr((first + 8) * kSector, kSector));
    }
    EXPECT_EQ(disk.range(kDiscard, {64, 64, 0}), kOk);
    EXPECT_EQ(disk.read(63, kSector), bytes.substr(63 * kSector, kSector));
    EXPECT_EQ(disk.read(128, kSector), bytes.substr(128 * kSector, kSector));
    EXPECT_EQ(disk.content().size(), kSectors * kSector) << "the disk keeps its size";
}

TEST(VirtioBlock, RefusesRangesThatBreakTheRules) { // 5.2.6.2
    Disk disk;
    for (const Type type : {kDiscard, kWriteZeroes}) {
        EXPECT_EQ(disk.range(type, {kSectors, 1, 0}), kIoError);
        EXPECT_EQ(disk.range(type, {UINT64_MAX, 1, 0}), kIoError);
        EXPECT_EQ(disk.range(type, {0, UINT32_MAX, 0}), kIoError);
        EXPECT_EQ(disk.range(type, {0, 1, 2}), kUnsupported);
        EXPECT_EQ(disk.range(type, {0, 0, 0}), kOk);
        const GuestAddress two = disk.rig().allocate(32);
        EXPECT_EQ(disk.request({type, 0, 0}, {{two, 32}})->status, kIoError) << "max_*_seg is 1";
        EXPECT_EQ(disk.request({type, 0, 0}, {})->status, kIoError);
    }
    EXPECT_EQ(disk.range(kDiscard, {0, 1, 1}), kUnsupported) << "unmap is no flag of a discard";
}

TEST(VirtioBlock, ServesAllItsQueues) {
    Disk disk({.queues = 4});
    EXPECT_NE(disk.block().identity().features & kFeatureMultiQueue, 0U);
    for (std::uint16_t queue = 0; queue < 4; ++queue) {
        const std::string bytes = pattern(kSector, 10U + queue);
        const GuestAddress at = disk.place(bytes);
        EXPECT_EQ(disk.request({kOut, 0, queue}, {{at, kSector}}, queue)->status, kOk);
        EXPECT_EQ(disk.content().substr(queue * kSector, kSector), bytes);
    }
}

TEST(VirtioBlock, WhoseFileBecameShorterAnswersWithAnErrorAndWarnsTheUser) {
    Disk disk;
    std::filesystem::resize_file(disk.path(), 10 * kSector);
    const GuestAddress at = disk.rig().allocate(4 * kSector);
    EXPECT_EQ(disk.request({kIn, 0, 8}, {{at, 4 * kSector, kWritable}})->status, kIoError);
    EXPECT_EQ(disk.request({kIn, 0, 20}, {{at, 4 * kSector, kWritable}})->status, kIoError);
    ASSERT_EQ(disk.warnings().size(), 1U) << "the second one within a second is only counted";
    EXPECT_TRUE(vmm::testing::mentions(disk.warnings().front(), disk.path()));
    EXPECT_TRUE(vmm::testing::mentions(disk.warnings().front(), "the guest sees an I/O error"));
    EXPECT_EQ(disk.block().statistics().errors, 2U);
    EXPECT_EQ(disk.read(0, kSector), std::string(kSector, '\0')) << "the rest is there";
}

TEST(VirtioBlock, WhoseFileMayNotGrowAnswersWithAnErrorAndGoesOn) {
    Disk disk;
    std::filesystem::resize_file(disk.path(), 10 * kSector);
    rlimit before{};
    ASSERT_EQ(::getrlimit(RLIMIT_FSIZE, &before), 0);
    const auto handler = std::signal(SIGXFSZ, SIG_IGN);
    const rlimit small{20 * kSector, before.rlim_max};
    ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &small), 0);
    const std::uint8_t beyond = disk.write(100, std::string(kSector, 'x'));
    const std::uint8_t within = disk.write(1, std::string(kSector, 'y'));
    ::setrlimit(RLIMIT_FSIZE, &before);
    std::signal(SIGXFSZ, handler);
    EXPECT_EQ(beyond, kIoError);
    EXPECT_EQ(within, kOk);
}

TEST(VirtioBlock, OnABlockDeviceThatFailsAnswersWithAnErrorAndGoesOn) {
    const vmm::testing::TemporaryDirectory directory;
    const std::string path = directory.write("disk", std::string(64 * kSector, 'x'));
    const vmm::testing::LoopDevice device(path);
    if (!device.is_there()) {
        GTEST_SKIP() << "no loop device can be made here";
    }
    std::vector<std::string> warnings;
    BlockConfig config;
    config.warn = [&](const std::string& line) { warnings.push_back(line); };
    Block block("blk0", DiskImage(device.path(), {.direct = true}), config);
    VirtioRig rig(block);
    ASSERT_TRUE(rig.start());
    const auto status_of = [&](const Header& header, std::uint32_t bytes) {
        const GuestAddress front = rig.allocate(sizeof(Header));
        const GuestAddress data = rig.allocate(bytes);
        const GuestAddress status = rig.allocate(1);
        EXPECT_TRUE(rig.memory().store(front, header) && rig.memory().store(status, kUntouched));
        rig.queue(0).add({{front, sizeof(Header)}, {data, bytes, header.type == kIn}, {status, 1, kWritable}});
        rig.ring(0);
        EXPECT_TRUE(rig.wait_for_used(0));
        return *rig.memory().load<std::uint8_t>(status);
    };
    EXPECT_EQ(status_of({kIn, 0, 0}, 4096), kOk);
    EXPECT_EQ(status_of({kOut, 0, 8}, 4096), kOk);
    std::filesystem::resize_file(path, 0); // The device keeps its size, but its last sectors cannot be read any more.
    EXPECT_EQ(status_of({kIn, 0, 16}, 4096), kIoError);
    ASSERT_EQ(warnings.size(), 1U);
    EXPECT_TRUE(vmm::testing::mentions(warnings.front(), device.path())) << warnings.front();
    std::filesystem::resize_file(path, 64 * kSector);
    EXPECT_EQ(status_of({kIn, 0, 0}, 4096), kOk);
}

class VirtioBlockKinds : public ::testing::TestWithParam<DiskOptions> {};

INSTANTIATE_TEST_SUITE_P(Of, VirtioBlockKinds,
                         ::testing::Values(DiskOptions{}, DiskOptions{.direct = true}, DiskOptions{.queues = 2},
                                           DiskOptions{.features = ~kFeatureFlush},
                                           DiskOptions{.features = ~virtio::kFeatureEventIdx},
                                           DiskOptions{.pinned = true}),
                         [](const auto& options) { return "Kind" + std::to_string(options.index); });

TEST_P(VirtioBlockKinds, AThousandRandomRequestsAtOnceDoWhatAnArrayOfBytesDoes) {
    std::optional<Disk> made;
    try {
        made.emplace(GetParam());
    } catch (const Error& error) {
        GTEST_SKIP() << error.what();
    }
    Disk& disk = *made;
    VirtioRig& rig = disk.rig();
    const std::uint32_t block = GetParam().direct ? 4096 : kSector;
    std::string model(kSectors * kSector, '\0');
    std::mt19937 random(7);
    // A batch of requests that do not overlap, so their order does not matter: one for each of 8 areas.
    constexpr std::uint64_t kAreas = 8;
    constexpr std::uint64_t kAreaBytes = kSectors * kSector / kAreas;
    const GuestAddress memory = rig.allocate(kAreas * (kAreaBytes + 128));
    for (std::size_t done = 0; done < 1000;) {
        struct Pending {
            bool write;
            std::uint64_t offset;
            std::uint32_t bytes;
            GuestAddress data, status;
        };
        std::vector<Pending> batch;
        for (std::uint64_t area = 0; area < kAreas; ++area) {
            const std::uint64_t first = random() % (kAreaBytes / block);
            const std::uint64_t blocks = 1 + (random() % (kAreaBytes / block - first));
            const auto bytes = static_cast<std::uint32_t>(blocks * block);
            // Not aligned, so direct I/O must use aligned memory in between.
            const GuestAddress header = memory + (area * (kAreaBytes + 128));
            const GuestAddress status = header + 16;
            const GuestAddress data = header + 32 + (16 * (random() % 4));
            const bool write = random() % 2 == 0;
            const std::uint64_t offset = (area * kAreaBytes) + (first * block);
            if (write) {
                const std::string text = pattern(bytes, static_cast<unsigned>(random()));
                ASSERT_TRUE(rig.memory().copy_in(data, std::as_bytes(std::span(text))));
                model.replace(offset, bytes, text);
            }
            ASSERT_TRUE(rig.memory().store(header, Header{write ? kOut : kIn, 0, offset / kSector}));
            ASSERT_TRUE(rig.memory().store(status, kUntouched));
            const auto cut = static_cast<std::uint32_t>(1 + (random() % (bytes - 1)));
            const auto queue = static_cast<std::uint16_t>(random() % GetParam().queues);
            rig.queue(queue).add(
                {{header, 16}, {data, cut, !write}, {data + cut, bytes - cut, !write}, {status, 1, kWritable}});
            rig.ring(queue);
            batch.push_back({write, offset, bytes, data, status});
        }
        std::size_t returned = 0;
        ASSERT_TRUE(rig.pump_until([&] {
            for (unsigned queue = 0; queue < GetParam().queues; ++queue) {
                while (rig.queue(queue).take_used()) {
                    ++returned;
                }
            }
            return returned == batch.size();
        })) << returned;
        for (const Pending& pending : batch) {
            ASSERT_EQ(*rig.memory().load<std::uint8_t>(pending.status), kOk);
            if (!pending.write) {
                ASSERT_EQ(disk.bytes_at(pending.data, pending.bytes), model.substr(pending.offset, pending.bytes));
            }
        }
        done += batch.size();
    }
    EXPECT_EQ(disk.content(), model);
    EXPECT_EQ(disk.block().statistics().errors, 0U);
}

class BlockHostile : public ::testing::TestWithParam<HostileCase> {};

TEST_P(BlockHostile, DriverIsAnsweredAndNothingElseIsTouched) {
    const vmm::testing::TemporaryDirectory directory;
    const std::string path = directory.write("disk", std::string(kSectors * kSector, 'd'));
    const auto read_a_sector = [](VirtioRig& rig) {
        const GuestAddress header = rig.allocate(sizeof(Header));
        EXPECT_TRUE(rig.memory().store(header, Header{kIn, 0, 1}));
        const GuestAddress data = rig.allocate(kSector + 1);
        rig.queue(0).add({{header, sizeof(Header)}, {data, kSector + 1, kWritable}});
    };
    run_hostile_case(GetParam(),
                     {.make = [&] { return std::make_unique<Block>("blk0", DiskImage(path, {}), BlockConfig{}); },
                      .queue = 0,
                      .looks_at_once = true,
                      .request = read_a_sector,
                      .works =
                          [&](VirtioRig& rig) {
                              read_a_sector(rig);
                              rig.ring(0);
                              const auto used = rig.wait_for_used(0);
                              return used && used->length == kSector + 1;
                          }});
}

INSTANTIATE_TEST_SUITE_P(Every, BlockHostile, ::testing::ValuesIn(hostile_cases()), hostile_case_name);

// If the device expects several requests, it asks for a doorbell only with the last of them. A request must not wait
// for another one that never comes.
TEST(VirtioBlock, AnswersLargeRequestsHoweverManyComeTogether) {
    constexpr std::uint32_t kBytes = 1 << 20;
    Disk disk({.sectors = 65536});
    VirtioRig& rig = disk.rig();
    const GuestAddress header = rig.allocate(sizeof(Header));
    const GuestAddress data = rig.allocate(kBytes);
    const GuestAddress status = rig.allocate(1);
    ASSERT_TRUE(rig.memory().store(header, Header{kIn, 0, 0}));
    const auto add = [&](int count) {
        for (int i = 0; i < count; ++i) {
            rig.queue(0).add({{header, sizeof(Header)}, {data, kBytes, kWritable}, {status, 1, kWritable}});
            rig.ring(0); // if the device wants that
        }
    };
    const auto take = [&](int count) {
        for (int i = 0; i < count; ++i) {
            const auto used = rig.wait_for_used(0);
            ASSERT_TRUE(used) << "after 5 s";
            EXPECT_EQ(used->length, kBytes + 1);
        }
    };
    constexpr int kDepth = 8;
    constexpr int kRequests = 300;
    add(kDepth);
    for (int i = 0; i < kRequests; ++i) { // Eight are always in flight, so there are few interrupts.
        rig.queue(0).ask_for_interrupt();
        take(1);
        ASSERT_FALSE(HasFatalFailure());
        add(1);
    }
    EXPECT_LT(rig.irq().take(), kRequests * 2U / 3);
    take(kDepth);
    std::mt19937 random(1); // NOLINT(cert-msc51-cpp): the same each time.
    for (int round = 0; round < 100; ++round) {
        const int count = std::uniform_int_distribution<int>(1, 2 * kDepth)(random);
        add(count);
        take(count);
        ASSERT_FALSE(HasFatalFailure());
    }
}

TEST(VirtioBlock, IsResetWithRequestsUnderWayAndServesAgain) {
    Disk disk({.sectors = 65536});
    VirtioRig& rig = disk.rig();
    const GuestAddress data = rig.allocate(1 << 20);
    for (int round = 0; round < 20; ++round) {
        for (int i = 0; i < 30; ++i) {
            const GuestAddress header = rig.allocate(16);
            ASSERT_TRUE(rig.memory().store(header, Header{kOut, 0, static_cast<std::uint64_t>(i) * 2048}));
            rig.queue(0).add({{header, 16}, {data, 1 << 20}, {rig.allocate(1), 1, kWritable}});
        }
        rig.driver().ring(0);
        ASSERT_TRUE(rig.reset());
        EXPECT_TRUE(disk.block().is_idle());
        ASSERT_TRUE(rig.start());
    }
    EXPECT_EQ(disk.write(0, std::string(kSector, 'x')), kOk);
}

} // namespace
} // namespace vmm::devices::testing
