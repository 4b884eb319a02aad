#include "kvm/host/write_log.hpp"

#include <gtest/gtest.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "kvm/host/guest_memory.hpp"
#include "support/host_guest_range.hpp"

namespace vmm {
namespace {

using testing::range;

constexpr std::uint64_t kPage = WriteLog::kPageBytes;
constexpr std::uint64_t kRegionBytes = 2 * kMiB;
constexpr std::uint64_t kHighBase = 4 * kGiB;

struct WriteLogTest : ::testing::Test {
    std::array<GuestRange, 2> layout{GuestRange{GuestAddress{0}, kRegionBytes},
                                     GuestRange{GuestAddress{kHighBase}, kRegionBytes}};
    GuestMemory memory{layout, PageSize::k4K};
    WriteLog log{memory.regions()};

    [[nodiscard]] std::vector<std::uint64_t> marked(std::size_t region) {
        const std::vector<std::uint64_t> words = log.take(region);
        std::vector<std::uint64_t> pages;
        for (std::uint64_t page = 0; page < words.size() * 64; ++page) {
            if ((words[page / 64] >> (page % 64) & 1U) != 0) {
                pages.push_back(page);
            }
        }
        return pages;
    }
    [[nodiscard]] std::span<std::byte> bytes(std::uint64_t base, std::uint64_t size) const {
        return memory.at(range(base, size)).value();
    }
};

TEST_F(WriteLogTest, IsEmptyAtFirst) {
    EXPECT_TRUE(marked(0).empty());
    EXPECT_TRUE(marked(1).empty());
}

TEST_F(WriteLogTest, MarksEachPageThatIsTouched) {
    log.mark(bytes(kPage - 1, 2));
    EXPECT_EQ(marked(0), (std::vector<std::uint64_t>{0, 1}));
    EXPECT_TRUE(marked(1).empty());
}

TEST_F(WriteLogTest, MarksAreTakenOnce) {
    log.mark(bytes(0, 1));
    EXPECT_EQ(marked(0).size(), 1U);
    EXPECT_TRUE(marked(0).empty());
}

TEST_F(WriteLogTest, MarksAcrossWordsAndToTheLastPage) {
    log.mark(bytes(62 * kPage, 68 * kPage));
    std::vector<std::uint64_t> expected;
    for (std::uint64_t page = 62; page < 130; ++page) {
        expected.push_back(page);
    }
    EXPECT_EQ(marked(0), expected);
    log.mark(bytes(kHighBase + kRegionBytes - 1, 1));
    EXPECT_EQ(marked(1), std::vector<std::uint64_t>{kRegionBytes / kPage - 1});
}

TEST_F(WriteLogTest, MarksRangesOfAnyValue) {
    log.mark(range(kRegionBytes - kPage, UINT64_MAX));
    EXPECT_EQ(marked(0), std::vector<std::uint64_t>{kRegionBytes / kPage - 1});
    EXPECT_EQ(marked(1).size(), kRegionBytes / kPage);
    log.mark(range(kRegionBytes, kMiB));
    log.mark(range(UINT64_MAX, UINT64_MAX));
    log.mark(range(0, 0));
    EXPECT_TRUE(marked(0).empty());
    EXPECT_TRUE(marked(1).empty());
}

TEST_F(WriteLogTest, IgnoresOtherMemory) {
    const std::vector<std::byte> other(3 * kPage);
    log.mark(other);
    log.mark(std::span<const std::byte>());
    EXPECT_TRUE(marked(0).empty());
    EXPECT_TRUE(marked(1).empty());
}

TEST_F(WriteLogTest, HearsOfWhatMemoryIsWrittenFor) {
    memory.log_writes(&log);
    ASSERT_TRUE(memory.store(GuestAddress{5 * kPage}, std::uint64_t{1}));
    EXPECT_EQ(marked(0), std::vector<std::uint64_t>{5});
    ASSERT_TRUE(memory.copy_in(GuestAddress{kHighBase + 7}, std::vector<std::byte>(kPage)));
    EXPECT_EQ(marked(1), (std::vector<std::uint64_t>{0, 1}));
    memory.note_write(bytes(9 * kPage, 1));
    EXPECT_EQ(marked(0), std::vector<std::uint64_t>{9});
    ASSERT_TRUE(memory.discard(bytes(3 * kPage, 2 * kPage)));
    EXPECT_EQ(marked(0), (std::vector<std::uint64_t>{3, 4}));
    ASSERT_TRUE(memory.load<std::uint64_t>(GuestAddress{0}));
    memory.log_writes(nullptr);
    ASSERT_TRUE(memory.store(GuestAddress{0}, std::uint64_t{1}));
    EXPECT_TRUE(marked(0).empty());
}

} // namespace
} // namespace vmm
