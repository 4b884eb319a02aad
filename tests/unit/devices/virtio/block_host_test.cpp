// virtio-blk and the layers between it and the host: what a guest sees, how much of its work is with the host at once,
// what a stop leaves undone, and the effects of a failed flush.

#include <gtest/gtest.h>

#include <sys/mount.h>
#include <sys/resource.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <memory>
#include <optional>
#include <random>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "devices/virtio/block.hpp"
#include "kvm/host/error.hpp"
#include "support/devices_held_disk_io.hpp"
#include "support/devices_virtio_driver.hpp"
#include "support/host_errors.hpp"
#include "support/host_loop_device.hpp"
#include "support/host_temporary_directory.hpp"

namespace vmm::devices::testing {
namespace {

using virtio::Block;
using virtio::BlockConfig;
using vmm::testing::content_of;
using vmm::testing::mentions;
using Kind = HeldDiskIo::Kind;

/// The kernel keeps the files of a closed io_uring a little longer.
constexpr std::chrono::seconds kPatience{60};
constexpr std::uint64_t kSector = 512;
enum Type : std::uint32_t { kIn = 0, kOut = 1, kFlush = 4, kDiscard = 11, kWriteZeroes = 13 };
constexpr std::uint8_t kOk = 0;
constexpr std::uint8_t kIoError = 1;
constexpr std::uint8_t kUntouched = 0xee;
constexpr std::uint64_t kFeatureFlush = 1ULL << 9;

struct Header {
    std::uint32_t type = kIn;
    std::uint32_t reserved = 0;
    std::uint64_t sector = 0;
};

/// A driver of a disk.
class Driver {
  public:
    explicit Driver(Block& block, std::uint64_t features = ~std::uint64_t{0}) : rig_(block) {
        EXPECT_TRUE(rig_.start(features));
    }

    VirtioRig& rig() { return rig_; }

    /// Begins a request; returns the address of its status.
    GuestAddress begin(const Header& header, const std::vector<Buffer>& data, std::uint16_t queue = 0) {
        const GuestAddress front = rig_.allocate(sizeof(Header));
        const GuestAddress status = rig_.allocate(1);
        EXPECT_TRUE(rig_.memory().store(front, header) && rig_.memory().store(status, kUntouched));
        std::vector<Buffer> buffers{{front, sizeof(Header)}};
        buffers.insert(buffers.end(), data.begin(), data.end());
        buffers.push_back({status, 1, kWritable});
        rig_.queue(queue).add(buffers);
        rig_.ring(queue);
        rig_.settle();
        return status;
    }
    std::uint8_t status(GuestAddress at) { return *rig_.memory().load<std::uint8_t>(at); }
    /// The status that a request ends with.
    std::uint8_t request(const Header& header, const std::vector<Buffer>& data = {}, std::uint16_t queue = 0) {
        const GuestAddress at = begin(header, data, queue);
        EXPECT_TRUE(rig_.wait_for_used(queue));
        return status(at);
    }
    std::uint8_t write(std::uint64_t sector, const std::string& text) {
        const GuestAddress at = rig_.allocate(text.size());
        EXPECT_TRUE(rig_.memory().copy_in(at, std::as_bytes(std::span(text))));
        return request({kOut, 0, sector}, {{at, static_cast<std::uint32_t>(text.size())}});
    }
    std::string read(std::uint64_t sector, std::uint32_t bytes) {
        const GuestAddress at = rig_.allocate(bytes);
        EXPECT_EQ(request({kIn, 0, sector}, {{at, bytes, kWritable}}), kOk);
        std::string text(bytes, '\0');
        EXPECT_TRUE(rig_.memory().copy_out(at, std::as_writable_bytes(std::span(text))));
        return text;
    }
    std::uint8_t range(Type type, std::uint64_t sector, std::uint32_t sectors) {
        struct Segment {
            std::uint64_t sector;
            std::uint32_t sectors;
            std::uint32_t flags;
        };
        const GuestAddress at = rig_.allocate(sizeof(Segment));
        EXPECT_TRUE(rig_.memory().store(at, Segment{sector, sectors, 0}));
        return request({type, 0, 0}, {{at, sizeof(Segment)}});
    }

  private:
    VirtioRig rig_;
};

// ---- Where the image lies, and how its I/O is done

struct Place {
    enum class Where { kFile, kTmpfs, kLoop512, kLoop4096 };
    Where where = Where::kFile;
    bool direct = false;
    DiskIoKind io = DiskIoKind::kUring;
    std::uint32_t sector_bytes = 512;
};

class BlockPlaces : public ::testing::TestWithParam<Place> {
  protected:
    static constexpr std::uint64_t kSectors = 4096;

    void SetUp() override {
        const Place& place = GetParam();
        path_ = directory_.write("disk", "");
        if (place.where == Place::Where::kTmpfs) {
            shm_ = "/dev/shm/vmm-test-disk." + std::to_string(::getpid());
            path_ = shm_;
            std::ofstream(path_, std::ios::binary).close();
            if (!std::filesystem::exists(path_)) {
                GTEST_SKIP() << "there is no tmpfs at /dev/shm";
            }
        }
        backing_ = path_;
        // tmpfs and some other file systems do not say what direct I/O needs there. This size is not a multiple of
        // 4096.
        const bool odd = place.where == Place::Where::kTmpfs && place.sector_bytes == 512;
        std::filesystem::resize_file(path_, kSectors * kSector + (odd ? kSector : 0));
        if (place.where == Place::Where::kLoop512 || place.where == Place::Where::kLoop4096) {
            loop_.emplace(path_, place.where == Place::Where::kLoop512 ? 512 : 4096);
            if (!loop_->is_there()) {
                GTEST_SKIP() << "no loop device can be made here";
            }
            path_ = loop_->path();
        }
        make();
    }
    void make() {
        const Place& place = GetParam();
        BlockConfig config;
        config.io = place.io;
        driver_.reset();
        block_.reset();
        std::optional<DiskImage> image;
        try {
            image.emplace(path_, DiskImage::Options{.direct = place.direct, .sector_bytes = place.sector_bytes});
        } catch (const Error& error) {
            ASSERT_TRUE(mentions(error.what(), "direct")) << error.what();
            GTEST_SKIP() << error.what();
        }
        block_ = std::make_unique<Block>("blk0", *std::move(image), config);
        driver_ = std::make_unique<Driver>(*block_);
    }
    void TearDown() override {
        driver_.reset();
        block_.reset();
        loop_.reset();
        if (!shm_.empty()) {
            std::filesystem::remove(shm_);
        }
    }
    /// The content of the backing file, when all is written.
    std::string content() {
        EXPECT_EQ(driver_->request({kFlush, 0, 0}), kOk);
        return content_of(backing_);
    }

    vmm::testing::TemporaryDirectory directory_;
    std::string path_;
    std::string backing_;
    std::string shm_;
    std::optional<vmm::testing::LoopDevice> loop_;
    std::unique_ptr<Block> block_;
    std::unique_ptr<Driver> driver_;
};

std::string place_name(const ::testing::TestParamInfo<Place>& info) {
    constexpr std::array<const char*, 4> kWhere{"File", "Tmpfs", "Loop512", "Loop4096"};
    return std::string(kWhere.at(static_cast<std::size_t>(info.param.where))) + (info.param.direct ? "Direct" : "") +
           (info.param.io == DiskIoKind::kThreads ? "Threads" : "") + (info.param.sector_bytes == 4096 ? "Of4096" : "");
}

INSTANTIATE_TEST_SUITE_P(
    Of, BlockPlaces,
    ::testing::Values(Place{.direct = true}, Place{.io = DiskIoKind::kThreads},
                      Place{.where = Place::Where::kTmpfs, .direct = true},
                      Place{.where = Place::Where::kTmpfs, .direct = true, .io = DiskIoKind::kThreads},
                      Place{.where = Place::Where::kTmpfs, .direct = true, .sector_bytes = 4096},
                      Place{.where = Place::Where::kLoop512, .direct = true}, Place{.where = Place::Where::kLoop4096},
                      Place{.where = Place::Where::kLoop4096, .direct = true},
                      Place{.where = Place::Where::kLoop4096, .direct = true, .io = DiskIoKind::kThreads}),
    place_name);

// What broke: if the host wanted direct I/O in blocks of 4096, the guest got sectors of 4096 bytes, and the partition
// moved to 16384.
TEST_P(BlockPlaces, APartitionAtSector2048LiesThereOnEveryHost) {
    constexpr std::uint64_t kBlkSize = 20; // Offsets in the configuration space (virtio 1.2, 5.2.4).
    constexpr std::uint64_t kPhysicalExponent = 24;
    constexpr std::uint64_t kDiscardAlignment = 44;
    RegisterDriver& registers = driver_->rig().driver();
    EXPECT_EQ(registers.read_config<std::uint32_t>(kBlkSize), GetParam().sector_bytes);
    EXPECT_EQ(registers.read_config<std::uint8_t>(kPhysicalExponent), GetParam().sector_bytes == 512 ? 3 : 0);
    EXPECT_EQ(registers.read_config<std::uint32_t>(kDiscardAlignment), 8U);
    const std::string text = "the first sector of a partition" + std::string(kSector - 31, '.');
    EXPECT_EQ(driver_->write(2048, text), kOk);
    EXPECT_EQ(driver_->read(2048, kSector), text);
    EXPECT_EQ(content().substr(2048 * kSector, kSector), text);
}

TEST_P(BlockPlaces, SectorsOfOneBlockAreWrittenAtOnceAndNoneIsLost) {
    std::string model = content();
    std::mt19937 random(5); // NOLINT(cert-msc51-cpp): the same each time.
    VirtioRig& rig = driver_->rig();
    const GuestAddress memory = rig.allocate(32 * 2048);
    for (int round = 0; round < 40; ++round) {
        // Adjacent pieces of 1 to 3 sectors, in unaligned memory.
        std::uint64_t sector = random() % 64;
        for (std::uint64_t i = 0; i < 32; ++i) {
            const std::uint64_t sectors = 1 + random() % 3;
            const GuestAddress header = memory + (i * 2048);
            const GuestAddress data = header + 32 + random() % 64;
            std::string text(sectors * kSector, static_cast<char>(random()));
            ASSERT_TRUE(rig.memory().store(header, Header{kOut, 0, sector}));
            ASSERT_TRUE(rig.memory().copy_in(data, std::as_bytes(std::span(text))));
            rig.queue(0).add(
                {{header, 16}, {data, static_cast<std::uint32_t>(text.size())}, {header + 16, 1, kWritable}});
            model.replace(sector * kSector, text.size(), text);
            sector += sectors;
        }
        rig.ring(0);
        for (std::uint64_t i = 0; i < 32; ++i) {
            ASSERT_TRUE(rig.wait_for_used(0));
        }
        for (std::uint64_t i = 0; i < 32; ++i) {
            ASSERT_EQ(driver_->status(memory + (i * 2048) + 16), kOk);
        }
    }
    EXPECT_EQ(content(), model);
    EXPECT_EQ(driver_->read(0, 200 * kSector), model.substr(0, 200 * kSector));
}

TEST_P(BlockPlaces, ItsEndIsReadAndWrittenToTheLastSectorAndStaysWhereItIs) {
    const std::uint64_t size = content().size();
    const std::uint64_t last = size / kSector - 1;
    const std::string text(3 * kSector, 'e');
    EXPECT_EQ(driver_->write(last - 2, text), kOk);
    EXPECT_EQ(driver_->read(last - 2, 3 * kSector), text);
    EXPECT_EQ(driver_->write(last, std::string(kSector, 'f')), kOk);
    EXPECT_EQ(driver_->read(last - 9, 10 * kSector),
              std::string(7 * kSector, '\0') + text.substr(kSector) + std::string(kSector, 'f'));
    const std::string whole = content();
    EXPECT_EQ(whole.size(), size);
    EXPECT_EQ(whole.substr(last * kSector), std::string(kSector, 'f'));
}

TEST_P(BlockPlaces, ZeroesExactlyWhatItIsToldAndDiscardsNoMore) {
    std::string model(512 * kSector, 'z');
    ASSERT_EQ(driver_->write(0, model), kOk);
    ASSERT_EQ(driver_->write(0, model), kOk);
    for (const auto& [first, count] : {std::pair{1U, 1U}, {9U, 30U}, {64U, 16U}, {103U, 2U}, {127U, 100U}}) {
        EXPECT_EQ(driver_->range(kWriteZeroes, first, count), kOk);
        model.replace(first * kSector, count * kSector, std::string(count * kSector, '\0'));
    }
    EXPECT_EQ(driver_->range(kDiscard, 301, 3), kOk);
    EXPECT_EQ(driver_->range(kDiscard, 403, 50), kOk);
    const std::string whole = content().substr(0, model.size());
    EXPECT_EQ(whole.substr(0, 301 * kSector), model.substr(0, 301 * kSector));
    for (std::size_t sector = 301; sector < 512; ++sector) {
        const bool discarded = (sector >= 301 && sector < 304) || (sector >= 403 && sector < 453);
        const std::string here = whole.substr(sector * kSector, kSector);
        EXPECT_TRUE(here == std::string(kSector, 'z') || (discarded && here == std::string(kSector, '\0'))) << sector;
    }
    EXPECT_EQ(driver_->read(0, 301 * kSector), model.substr(0, 301 * kSector));
}

// ---- With I/O that a test holds

class BlockHeld : public ::testing::Test {
  protected:
    void make(unsigned queues = 1, std::uint64_t features = ~std::uint64_t{0}) {
        const std::string path = directory_.write("disk", "");
        std::filesystem::resize_file(path, 4ULL << 30); // none of it exists
        auto io = std::make_unique<HeldDiskIo>();
        io_ = io.get();
        BlockConfig config;
        config.queues = queues;
        config.warn = [this](const std::string& line) { warnings_.push_back(line); };
        block_ = std::make_unique<Block>("blk0", DiskImage(path, {}), std::move(io), config);
        driver_ = std::make_unique<Driver>(*block_, features);
    }
    void TearDown() override {
        if (io_ != nullptr) {
            while (!io_->held().empty()) {
                io_->release_all();
                driver_->rig().settle();
            }
        }
    }
    /// A request of `pieces` buffers that all are the same `bytes`.
    GuestAddress begin_long(Type type, std::uint32_t bytes, std::size_t pieces, std::uint16_t queue = 0) {
        VirtioRig& rig = driver_->rig();
        if (!buffer_) {
            buffer_ = rig.allocate(bytes);
        }
        const GuestAddress front = rig.allocate(sizeof(Header));
        const GuestAddress status = rig.allocate(1);
        EXPECT_TRUE(rig.memory().store(front, Header{type, 0, 0}) && rig.memory().store(status, kUntouched));
        std::vector<Buffer> buffers{{front, sizeof(Header)}};
        buffers.insert(buffers.end(), pieces, Buffer{*buffer_, bytes, type == kIn});
        buffers.push_back({status, 1, kWritable});
        const auto head = rig.queue(queue).make_indirect_chain(rig.allocate(16 * buffers.size()), buffers);
        rig.queue(queue).publish(head);
        rig.ring(queue);
        rig.settle();
        return status;
    }
    void release(Kind kind, int error = 0) {
        ASSERT_TRUE(io_->release(kind, error));
        driver_->rig().settle();
    }

    vmm::testing::TemporaryDirectory directory_;
    std::vector<std::string> warnings_;
    HeldDiskIo* io_ = nullptr; ///< the block's
    std::unique_ptr<Block> block_;
    std::unique_ptr<Driver> driver_;
    std::optional<GuestAddress> buffer_;
};

// What broke: 256 reads of 1 GiB each from overlapping descriptors were all with the host at once. All of them were
// completed after the guest had gone.
TEST_F(BlockHeld, ReadsOfAGibibyteEachAreDoneInBoundedPiecesAndNotGoneOnWithAfterAStop) {
    make();
    for (int i = 0; i < 200; ++i) {
        begin_long(kIn, 8 << 20, 128);
        ASSERT_LE(io_->held_bytes(), Block::kMostBytesAtOnce);
    }
    for (int i = 0; i < 500; ++i) {
        release(Kind::kRead);
        ASSERT_LE(io_->held_bytes(), Block::kMostBytesAtOnce);
        ASSERT_FALSE(io_->held().empty());
    }
    EXPECT_LE(io_->largest(), Block::kMostOperationBytes);
    const std::uint64_t begun = io_->begun();
    driver_->rig().driver().write(reg::kStatus, 0);
    driver_->rig().settle();
    EXPECT_NE(driver_->rig().driver().status(), 0U) << "what is with the host is waited for";
    io_->release_all();
    EXPECT_TRUE(driver_->rig().pump_until([&] { return driver_->rig().driver().status() == 0; }));
    EXPECT_EQ(io_->begun(), begun) << "nothing begins after the stop";
    EXPECT_TRUE(io_->held().empty());
    EXPECT_TRUE(block_->is_idle());
}

TEST_F(BlockHeld, WritesAndZeroesAreBoundedToo) {
    make();
    begin_long(kOut, 8 << 20, 64);
    EXPECT_EQ(driver_->rig().queue(0).used_index(), 0U);
    struct Segment {
        std::uint64_t sector = 0;
        std::uint32_t sectors = Block::kMostSectors;
        std::uint32_t flags = 0;
    };
    VirtioRig& rig = driver_->rig();
    for (const Type type : {kDiscard, kWriteZeroes}) {
        const GuestAddress at = rig.allocate(sizeof(Segment));
        ASSERT_TRUE(rig.memory().store(at, Segment{}));
        driver_->begin({type, 0, 0}, {{at, sizeof(Segment)}});
    }
    EXPECT_LE(io_->held_bytes(), Block::kMostBytesAtOnce);
    EXPECT_LE(io_->largest(), Block::kMostOperationBytes);
    release(Kind::kAllocate);
    release(Kind::kWrite);
    const std::uint64_t begun = io_->begun();
    rig.driver().write(reg::kStatus, 0);
    io_->release_all();
    EXPECT_TRUE(rig.pump_until([&] { return rig.driver().status() == 0; }));
    EXPECT_EQ(io_->begun(), begun);
}

TEST_F(BlockHeld, LongRequestsOfOneQueueLeaveTheOthersTheirTurn) {
    make(2);
    for (int i = 0; i < 254; ++i) {
        begin_long(kIn, 8 << 20, 128, 0);
    }
    const GuestAddress data = driver_->rig().allocate(kSector);
    const GuestAddress status = driver_->begin({kIn, 0, 7}, {{data, kSector, kWritable}}, 1);
    ASSERT_FALSE(io_->held().empty());
    EXPECT_EQ(io_->held().back().offset, 7 * kSector) << "it is with the host at once";
    while (driver_->status(status) == kUntouched) {
        release(Kind::kRead);
    }
    EXPECT_EQ(driver_->status(status), kOk);
}

TEST_F(BlockHeld, AQueueThatIsResetLeavesTheRestOfItsWorkUndone) {
    make(2);
    for (int i = 0; i < 20; ++i) {
        begin_long(kIn, 8 << 20, 128, 0);
    }
    const std::uint64_t begun = io_->begun();
    block_->stop_queue(0);
    EXPECT_FALSE(block_->is_queue_idle(0));
    io_->release_all();
    driver_->rig().settle();
    EXPECT_TRUE(block_->is_queue_idle(0));
    EXPECT_EQ(io_->begun(), begun);
}

TEST_F(BlockHeld, LongRequestsAreDoneToTheirEndAndTakeTurns) {
    make();
    const GuestAddress first = begin_long(kIn, 8 << 20, 4);
    const GuestAddress second = begin_long(kIn, 8 << 20, 4);
    std::size_t released = 0;
    while (driver_->status(first) == kUntouched || driver_->status(second) == kUntouched) {
        release(Kind::kRead);
        ++released;
    }
    EXPECT_EQ(released, 2 * (32ULL << 20) / Block::kMostOperationBytes);
    EXPECT_EQ(driver_->status(first), kOk);
    EXPECT_EQ(driver_->status(second), kOk);
}

// What broke: the kernel reports only once that it could not write, and the next fdatasync() succeeds.
TEST_F(BlockHeld, AFlushThatFailedIsNotForgottenWhateverTheGuestDoes) {
    make();
    const GuestAddress data = driver_->rig().allocate(4096);
    driver_->begin({kOut, 0, 100}, {{data, 4096}});
    release(Kind::kWrite);
    const GuestAddress flush = driver_->begin({kFlush, 0, 0}, {});
    release(Kind::kFlush, EIO);
    EXPECT_EQ(driver_->status(flush), kIoError);
    ASSERT_EQ(warnings_.size(), 1U);
    EXPECT_TRUE(mentions(warnings_.front(), "at most bytes 51200 to 55295")) << warnings_.front();
    const std::uint64_t begun = io_->begun();
    EXPECT_EQ(driver_->request({kFlush, 0, 0}), kIoError);
    ASSERT_TRUE(driver_->rig().reset());
    ASSERT_TRUE(driver_->rig().start());
    EXPECT_EQ(driver_->request({kFlush, 0, 0}), kIoError);
    EXPECT_EQ(io_->begun(), begun) << "the host is not asked again: it would say that all is well";
    EXPECT_EQ(warnings_.size(), 1U);
}

TEST_F(BlockHeld, AFlushThatFailedSaysWhatWasNotFlushedBeforeAndNoMore) {
    make();
    const GuestAddress data = driver_->rig().allocate(4096);
    driver_->begin({kOut, 0, 0}, {{data, 4096}});
    release(Kind::kWrite);
    driver_->begin({kFlush, 0, 0}, {});
    release(Kind::kFlush);
    driver_->begin({kOut, 0, 16}, {{data, 512}}); // still with the host while the next flush fails
    driver_->begin({kFlush, 0, 0}, {});
    release(Kind::kFlush, ENOSPC);
    ASSERT_EQ(warnings_.size(), 1U);
    EXPECT_TRUE(mentions(warnings_.front(), "at most bytes 8192 to 8703")) << warnings_.front();
}

TEST_F(BlockHeld, AFlushThatFailedWithNothingWrittenSaysThatItDoesNotKnow) {
    make();
    driver_->begin({kFlush, 0, 0}, {});
    release(Kind::kFlush, EIO);
    ASSERT_EQ(warnings_.size(), 1U);
    EXPECT_TRUE(mentions(warnings_.front(), "not known where")) << warnings_.front();
}

TEST_F(BlockHeld, FlushesThatComeTogetherShareTheErrorThatTheKernelSaysOnce) {
    make();
    std::vector<GuestAddress> flushes;
    for (int i = 0; i < 5; ++i) {
        flushes.push_back(driver_->begin({kFlush, 0, 0}, {}));
    }
    EXPECT_EQ(io_->begun(), 1U) << "one at a time, so that none takes another one's error";
    release(Kind::kFlush, EIO);
    for (const GuestAddress status : flushes) {
        EXPECT_EQ(driver_->status(status), kIoError);
    }
}

TEST_F(BlockHeld, FlushesThatComeTogetherAreDoneWithTheNext) {
    make();
    std::vector<GuestAddress> flushes;
    for (int i = 0; i < 5; ++i) {
        flushes.push_back(driver_->begin({kFlush, 0, 0}, {}));
    }
    release(Kind::kFlush);
    EXPECT_EQ(driver_->status(flushes[0]), kOk);
    EXPECT_EQ(driver_->status(flushes[1]), kUntouched) << "the first may have begun before what it is to flush came";
    release(Kind::kFlush);
    for (const GuestAddress status : flushes) {
        EXPECT_EQ(driver_->status(status), kOk);
    }
    EXPECT_EQ(io_->begun(), 2U);
}

TEST_F(BlockHeld, WithoutFlushesAWriteThatDidNotReachTheDiskFailsAndSoDoAllAfterIt) {
    make(1, ~kFeatureFlush);
    const GuestAddress data = driver_->rig().allocate(4096);
    const GuestAddress write = driver_->begin({kOut, 0, 0}, {{data, 4096}});
    release(Kind::kWrite);
    EXPECT_EQ(driver_->status(write), kUntouched) << "not before it is on stable storage";
    release(Kind::kFlush, EIO);
    EXPECT_EQ(driver_->status(write), kIoError);
    const GuestAddress next = driver_->begin({kOut, 0, 0}, {{data, 4096}});
    release(Kind::kWrite);
    EXPECT_EQ(driver_->status(next), kIoError);
}

TEST_F(BlockHeld, AWriteThatFailedIsNoFlushThatFailed) {
    make();
    const GuestAddress data = driver_->rig().allocate(4096);
    const GuestAddress write = driver_->begin({kOut, 0, 0}, {{data, 4096}});
    release(Kind::kWrite, ENOSPC);
    EXPECT_EQ(driver_->status(write), kIoError);
    const GuestAddress flush = driver_->begin({kFlush, 0, 0}, {});
    release(Kind::kFlush);
    EXPECT_EQ(driver_->status(flush), kOk) << "the guest was told of that write";
}

TEST_F(BlockHeld, AFlushThatFailsWhileTheDeviceIsResetIsNotForgottenEither) {
    make();
    driver_->begin({kFlush, 0, 0}, {});
    driver_->rig().driver().write(reg::kStatus, 0);
    driver_->rig().settle();
    release(Kind::kFlush, EIO);
    EXPECT_TRUE(driver_->rig().pump_until([&] { return driver_->rig().driver().status() == 0; }));
    EXPECT_EQ(warnings_.size(), 1U);
    ASSERT_TRUE(driver_->rig().start());
    EXPECT_EQ(driver_->request({kFlush, 0, 0}), kIoError);
}

// ---- On a host that fails

TEST(BlockOnAFullHost, FlushesFailFromTheFirstFailureOn) {
    const vmm::testing::TemporaryDirectory directory;
    const std::string small = directory / "small";
    std::filesystem::create_directory(small);
    if (::mount("tmpfs", small.c_str(), "tmpfs", 0, "size=1M") != 0) {
        GTEST_SKIP() << "no tmpfs can be mounted here: " << errno_reason(errno);
    }
    const struct Unmount {
        std::string path;
        ~Unmount() { ::umount2(path.c_str(), MNT_DETACH); }
    } unmount{small};
    const std::string path = small + "/disk";
    std::ofstream(path, std::ios::binary).close();
    std::filesystem::resize_file(path, 8 << 20);
    const vmm::testing::LoopDevice loop(path);
    if (!loop.is_there()) {
        GTEST_SKIP() << "no loop device can be made here";
    }
    for (const DiskIoKind io : {DiskIoKind::kUring, DiskIoKind::kThreads}) {
        std::vector<std::string> warnings;
        BlockConfig config;
        config.io = io;
        config.warn = [&](const std::string& line) { warnings.push_back(line); };
        Block block("blk0", DiskImage(loop.path(), {.patience = kPatience}), config);
        Driver driver(block);
        ASSERT_EQ(driver.request({kFlush, 0, 0}), kOk);
        EXPECT_EQ(driver.write(2048, std::string(2 << 20, 'x')), kOk) << "into the page cache";
        EXPECT_EQ(driver.request({kFlush, 0, 0}), kIoError);
        EXPECT_EQ(driver.request({kFlush, 0, 0}), kIoError);
        ASSERT_EQ(warnings.size(), 1U);
        EXPECT_TRUE(mentions(warnings.front(), "at most bytes 1048576 to 3145727")) << warnings.front();
    }
}

// What broke: the ring was made, dropped and made again. So a process that had just enough descriptors died when the
// driver was ready.
TEST(BlockDescriptors, AreAllThereWhenItIsMade) {
    const vmm::testing::TemporaryDirectory directory;
    const std::string path = directory.write("disk", std::string(64 * kSector, 'd'));
    for (const DiskIoKind io : {DiskIoKind::kUring, DiskIoKind::kThreads}) {
        BlockConfig config;
        config.io = io;
        Block block("blk0", DiskImage(path, {.patience = kPatience}), config);
        std::optional<VirtioRig> rig(std::in_place, block);
        rlimit before{};
        ASSERT_EQ(::getrlimit(RLIMIT_NOFILE, &before), 0);
        const int lowest = ::dup(STDERR_FILENO);
        ::close(lowest);
        rlimit none = before;
        none.rlim_cur = static_cast<rlim_t>(lowest);
        ASSERT_EQ(::setrlimit(RLIMIT_NOFILE, &none), 0);
        const bool started = rig->start();
        std::optional<Used> used;
        if (started) {
            const GuestAddress front = rig->allocate(sizeof(Header));
            const GuestAddress data = rig->allocate(kSector + 1);
            EXPECT_TRUE(rig->memory().store(front, Header{kIn, 0, 1}));
            rig->queue(0).add({{front, sizeof(Header)}, {data, kSector + 1, kWritable}});
            rig->ring(0);
            used = rig->wait_for_used(0);
        }
        ::setrlimit(RLIMIT_NOFILE, &before);
        EXPECT_TRUE(started);
        ASSERT_TRUE(used);
        EXPECT_EQ(used->length, kSector + 1);
        rig.reset();
    }
}

} // namespace
} // namespace vmm::devices::testing
