#include "prefault/host/warm_piece.hpp"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <linux/falloc.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include <algorithm>
#include <fstream>
#include <string>

#include "support/host_errors.hpp"
#include "support/host_temporary_directory.hpp"
#include "support/prefault_stop.hpp"
#include "support/prefault_warm.hpp"

namespace vmm::prefault {
namespace {

using testing::duplicate;
using testing::kWarmPiece;
using testing::make_memfd;
using testing::make_warm_piece;
using vmm::testing::error_of;

constexpr int kSealed = F_SEAL_SHRINK | F_SEAL_GROW;

/// What a client receives of a piece that a pool has made.
WarmPiece received(const WarmPiece& made) {
    return {duplicate(made.fd()), made.bytes(), PageSize::k4K, std::nullopt};
}

std::string refusal_of(UniqueFd file, std::uint64_t bytes = kWarmPiece, PageSize page_size = PageSize::k4K) {
    return error_of([&] { return WarmPiece(std::move(file), bytes, page_size, std::nullopt).bytes(); });
}

TEST(WarmPiece, ItsPagesExistAndAreZero) {
    const WarmPiece piece = make_warm_piece();
    struct stat file {};
    ASSERT_EQ(::fstat(piece.fd(), &file), 0);
    EXPECT_EQ(static_cast<std::uint64_t>(file.st_blocks) * 512, kWarmPiece);
    const Mapping mapping = Mapping::shared_file(piece.fd(), kWarmPiece, "test");
    EXPECT_TRUE(std::ranges::all_of(mapping.bytes(), [](std::byte byte) { return byte == std::byte{0}; }));
}

TEST(WarmPiece, StopEndsTheMaking) {
    const auto piece = WarmPiece::make(
        {kWarmPiece, PageSize::k4K}, NumaTopology::read(), Workforce{}, [](std::uint64_t, const std::stop_token&) {},
        vmm::testing::stop_requested_already());
    EXPECT_FALSE(piece);
}

TEST(WarmPiece, EveryChunkIsReported) {
    std::uint64_t made = 0;
    const auto piece = WarmPiece::make({4 * kWarmPiece, PageSize::k4K}, NumaTopology::read(), Workforce{},
                                       [&](std::uint64_t bytes, const std::stop_token&) { made += bytes; }, {});
    EXPECT_TRUE(piece);
    EXPECT_EQ(made, 4 * kWarmPiece);
}

TEST(WarmPiece, IsCutToWhatIsWanted) {
    WarmPiece piece = make_warm_piece();
    piece.cut_and_seal(kMiB);
    EXPECT_EQ(piece.bytes(), kMiB);
    EXPECT_TRUE(piece.is_sealed());
    EXPECT_EQ(received(piece).bytes(), kMiB);
}

TEST(WarmPiece, ClaimedByOneIsRefusedToAnother) {
    WarmPiece piece = make_warm_piece();
    piece.cut_and_seal(kWarmPiece);
    WarmPiece first = received(piece);
    WarmPiece second = received(piece);
    const Mapping mapping = Mapping::shared_file(first.fd(), kWarmPiece, "test");
    first.claim();
    EXPECT_EQ(error_of([&] {
                  second.claim();
                  return 0;
              }),
              "it was handed out to another process, too");
    EXPECT_EQ(refusal_of(duplicate(piece.fd())), "it was handed out before");
}

TEST(WarmPiece, ClaimedCanBeWrittenByItsOwnerAlone) {
    WarmPiece piece = make_warm_piece();
    piece.cut_and_seal(kWarmPiece);
    WarmPiece owned = received(piece);
    const Mapping mapping = Mapping::shared_file(owned.fd(), kWarmPiece, "test");
    owned.claim();
    EXPECT_LT(owned.fd(), 0);
    mapping.data()[kWarmPiece - 1] = std::byte{1};
    EXPECT_EQ(::mmap(nullptr, kWarmPiece, PROT_READ | PROT_WRITE, MAP_SHARED, piece.fd(), 0), MAP_FAILED);
    EXPECT_LT(::pwrite(piece.fd(), "x", 1, 0), 0);
    EXPECT_LT(::fallocate(piece.fd(), FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, 4096), 0);
    EXPECT_LT(::ftruncate(piece.fd(), 4096), 0);
}

TEST(WarmPiece, WhoseSizeMayChangeIsRefused) {
    EXPECT_EQ(refusal_of(make_memfd(kWarmPiece, 0)), "its size is not sealed");
    EXPECT_EQ(refusal_of(make_memfd(kWarmPiece, F_SEAL_GROW)), "its size is not sealed");
}

TEST(WarmPiece, OfAnotherSizeIsRefused) {
    EXPECT_EQ(refusal_of(make_memfd(kMiB, kSealed)), "it has another size than was said");
    EXPECT_EQ(refusal_of(make_memfd(0, kSealed), 0), "it has another size than was said");
    EXPECT_EQ(refusal_of(make_memfd(100, kSealed), 100), "it has another size than was said");
}

TEST(WarmPiece, ThatNobodyMayWriteIsRefused) {
    EXPECT_EQ(refusal_of(make_memfd(kWarmPiece, kSealed | F_SEAL_WRITE)), "it was handed out before");
    const UniqueFd file = make_memfd(kWarmPiece, kSealed);
    UniqueFd reader(::open(("/proc/self/fd/" + std::to_string(file.get())).c_str(), O_RDONLY | O_CLOEXEC));
    ASSERT_TRUE(reader);
    EXPECT_EQ(refusal_of(std::move(reader)), "it cannot be read and written");
}

TEST(WarmPiece, WithoutPagesCannotBeClaimed) {
    WarmPiece piece(make_memfd(kWarmPiece, kSealed), kWarmPiece, PageSize::k4K, std::nullopt);
    EXPECT_EQ(error_of([&] {
                  piece.claim();
                  return 0;
              }),
              "not all of its pages exist");
}

TEST(WarmPiece, OfOtherPagesIsRefused) {
    EXPECT_EQ(refusal_of(make_memfd(kWarmPiece, kSealed), kWarmPiece, PageSize::k2M), "it is no file of huge pages");
}

TEST(WarmPiece, ThatIsNoMemoryIsRefused) {
    EXPECT_EQ(refusal_of(UniqueFd(::open("/dev/null", O_RDWR | O_CLOEXEC))), "it is no file in memory");
    EXPECT_EQ(refusal_of(UniqueFd(::open("/proc/self/coredump_filter", O_RDWR | O_CLOEXEC))),
              "it is no file of shared memory");
    EXPECT_EQ(refusal_of(UniqueFd()), "it cannot be read and written");
}

} // namespace
} // namespace vmm::prefault
