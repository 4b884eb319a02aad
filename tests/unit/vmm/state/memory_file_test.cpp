#include "vmm/state/memory_file.hpp"

#include <gtest/gtest.h>

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <optional>
#include <random>
#include <string>
#include <vector>

#include "kvm/host/unique_fd.hpp"
#include "support/host_errors.hpp"
#include "support/host_guest_range.hpp"
#include "support/host_temporary_directory.hpp"
#include "vmm/state/crc32c.hpp"

namespace vmm {
namespace {

using testing::error_of;
using testing::mentions;
using testing::range;
using testing::TemporaryDirectory;

constexpr std::uint64_t kPage = 4 * kKiB;
constexpr std::uint64_t kLowBytes = 5 * kMiB; // The last chunk of the region is shorter than the others.
constexpr std::uint64_t kHighBase = 4 * kGiB;
constexpr std::uint64_t kHighBytes = 4 * kMiB;

/// Sets the bit of page `page`.
void set(std::vector<std::uint64_t>& pages, std::uint64_t page) {
    pages[page / 64] |= std::uint64_t{1} << (page % 64);
}

struct Guest {
    std::array<GuestRange, 2> layout{GuestRange{GuestAddress{0}, kLowBytes},
                                     GuestRange{GuestAddress{kHighBase}, kHighBytes}};
    GuestMemory memory{layout, PageSize::k4K};
    prefault::Placement placement{.ranges = {{layout[0], {}}, {layout[1], {}}}, .node_cpus = {}};

    void fill(GuestRange part, unsigned seed) const {
        std::mt19937_64 random{seed};
        for (std::uint64_t offset = 0; offset < part.size; offset += sizeof(std::uint64_t)) {
            ASSERT_TRUE(memory.store(GuestAddress{to_integer(part.base) + offset}, random() | 1U));
        }
    }
    [[nodiscard]] std::string content() const {
        std::string all;
        for (const MemoryRegion& region : memory.regions()) {
            const auto bytes = region.bytes();
            all.append(reinterpret_cast<const char*>(bytes.data()), bytes.size());
        }
        return all;
    }
};

struct MemoryFileTest : ::testing::Test {
    TemporaryDirectory directory;
    std::string path = directory / "memory";
    Guest guest;
    MemoryLayout layout{guest.layout};
    UniqueFd fd{::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600)};
    MemoryFile file{.fd = fd.get(), .name = path};
    MemoryMovers movers{.workers = 3};
    std::optional<MemoryWriter> writer;

    void SetUp() override {
        ASSERT_EQ(::ftruncate(fd.get(), static_cast<off_t>(layout.file_bytes())), 0);
        writer.emplace(guest.memory, guest.placement, layout, file, movers);
    }
    [[nodiscard]] bool read_into(const Guest& other, const std::stop_token& stop = {}) const {
        return read_memory(other.memory, other.placement, {layout, writer->index(), std::span(&file, 1)}, movers, stop);
    }
};

TEST_F(MemoryFileTest, WhatIsWrittenIsReadBack) {
    guest.fill(range(0, kPage), 1);
    guest.fill(range(3 * kPage, 2 * kPage), 2);
    guest.fill(range(kLowBytes - kPage, kPage), 3);
    guest.fill(range(kHighBase + 2 * kMiB, 2 * kMiB), 4);
    ASSERT_TRUE(writer->write_all({}));
    EXPECT_EQ(writer->written_bytes(), 4 * kPage + 2 * kMiB);
    const Guest other;
    ASSERT_TRUE(read_into(other));
    EXPECT_TRUE(other.content() == guest.content());
}

TEST_F(MemoryFileTest, LiesWhereTheLayoutSays) {
    guest.fill(range(kHighBase, kPage), 1);
    ASSERT_TRUE(writer->write_all({}));
    std::vector<std::byte> page(kPage);
    ASSERT_EQ(::pread(fd.get(), page.data(), page.size(), 6 * kMiB), static_cast<ssize_t>(kPage));
    EXPECT_EQ(std::memcmp(page.data(), guest.memory.at(range(kHighBase, kPage))->data(), kPage), 0);
}

TEST_F(MemoryFileTest, ZeroPagesAreHoles) {
    guest.fill(range(0, kPage), 1);
    ASSERT_TRUE(writer->write_all({}));
    ASSERT_EQ(writer->index().size(), layout.chunks());
    EXPECT_FALSE(writer->index()[0].is_hole);
    EXPECT_EQ(writer->index()[0].crc32c, crc32c(*guest.memory.at(range(0, kMemoryChunkBytes))));
    for (std::size_t i = 1; i < layout.chunks(); ++i) {
        EXPECT_EQ(writer->index()[i], MemoryChunk{}) << i;
    }
    struct stat status {};
    ASSERT_EQ(::fstat(fd.get(), &status), 0);
    EXPECT_EQ(static_cast<std::uint64_t>(status.st_size), layout.file_bytes());
    EXPECT_LT(static_cast<std::uint64_t>(status.st_blocks) * 512, kMemoryChunkBytes);
}

TEST_F(MemoryFileTest, WhatIsTheSameInTheBaseIsLeftOut) {
    guest.fill(range(0, kLowBytes), 1);
    guest.fill(range(kHighBase, 2 * kMiB), 2);
    ASSERT_TRUE(writer->write_all({}));
    const MemorySource base{layout, writer->index(), std::span(&file, 1)};

    guest.fill(range(2 * kMiB + 3 * kPage, kPage), 3); // changed
    guest.fill(range(kHighBase + 2 * kMiB, kPage), 4); // was a hole
    const UniqueFd other_fd(::open((directory / "other").c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600));
    ASSERT_EQ(::ftruncate(other_fd.get(), static_cast<off_t>(layout.file_bytes())), 0);
    const MemoryFile other_file{.fd = other_fd.get(), .name = directory / "other"};
    MemoryWriter second(guest.memory, guest.placement, layout, other_file, movers, &base);
    ASSERT_TRUE(second.write_all({}));
    EXPECT_EQ(second.written_bytes(), 2 * kMiB + kPage);
    EXPECT_EQ(second.based_bytes(), 2 * kMiB + kMiB + 2 * kMiB);

    // A page in a chunk that was left out changes, and the whole chunk is written.
    guest.fill(range(5 * kPage, kPage), 5);
    std::vector<std::vector<std::uint64_t>> pages{std::vector<std::uint64_t>(kLowBytes / kPage / 64 + 1),
                                                  std::vector<std::uint64_t>(kHighBytes / kPage / 64)};
    set(pages[0], 5);
    ASSERT_TRUE(second.write_pages(pages, {}));
    EXPECT_EQ(second.based_bytes(), kMiB + 2 * kMiB);
    EXPECT_EQ(second.written_bytes(), 4 * kMiB + kPage);

    const Guest read_back;
    const std::array files{other_file, file};
    ASSERT_TRUE(read_memory(read_back.memory, read_back.placement, {layout, second.index(), files}, movers, {}));
    EXPECT_TRUE(read_back.content() == guest.content());
}

TEST_F(MemoryFileTest, PagesAreWrittenAgainWhateverIsInThem) {
    guest.fill(range(0, 4 * kPage), 1);
    guest.fill(range(kHighBase, kPage), 2);
    ASSERT_TRUE(writer->write_all({}));
    // One page becomes zero, one gets different content, and one is written in a chunk that was a hole.
    ASSERT_TRUE(guest.memory.copy_in(GuestAddress{kPage}, std::vector<std::byte>(kPage)));
    guest.fill(range(2 * kPage, kPage), 3);
    guest.fill(range(kHighBase + 3 * kMiB, kPage), 4);
    std::vector<std::vector<std::uint64_t>> pages{std::vector<std::uint64_t>(kLowBytes / kPage / 64 + 1),
                                                  std::vector<std::uint64_t>(kHighBytes / kPage / 64)};
    set(pages[0], 1);
    set(pages[0], 2);
    set(pages[1], 3 * kMiB / kPage);
    ASSERT_TRUE(writer->write_pages(pages, {}));
    EXPECT_EQ(writer->written_bytes(), 8 * kPage);
    const Guest other;
    ASSERT_TRUE(read_into(other));
    EXPECT_TRUE(other.content() == guest.content());
}

TEST_F(MemoryFileTest, AFlippedBitIsFound) {
    guest.fill(range(0, kPage), 1);
    ASSERT_TRUE(writer->write_all({}));
    std::byte value{};
    ASSERT_EQ(::pread(fd.get(), &value, 1, 100), 1);
    value ^= std::byte{0x10};
    ASSERT_EQ(::pwrite(fd.get(), &value, 1, 100), 1);
    const Guest other;
    const std::string error = error_of([&] { static_cast<void>(read_into(other)); });
    EXPECT_TRUE(mentions(error, "damaged"));
    EXPECT_TRUE(mentions(error, path));
}

TEST_F(MemoryFileTest, AFileThatEndsTooEarlyIsFound) {
    guest.fill(range(kHighBase + 2 * kMiB, kPage), 1);
    ASSERT_TRUE(writer->write_all({}));
    ASSERT_EQ(::ftruncate(fd.get(), kMiB), 0);
    const Guest other;
    EXPECT_TRUE(mentions(error_of([&] { static_cast<void>(read_into(other)); }), "ends too early"));
}

TEST_F(MemoryFileTest, AFullDiskIsNamed) {
    guest.fill(range(0, kPage), 1);
    const UniqueFd full(::open("/dev/full", O_WRONLY | O_CLOEXEC));
    const MemoryFile broken{.fd = full.get(), .name = "/a/memory"};
    MemoryWriter to_full(guest.memory, guest.placement, layout, broken, movers);
    const std::string error = error_of([&] { static_cast<void>(to_full.write_all({})); });
    EXPECT_TRUE(mentions(error, "/a/memory"));
    EXPECT_TRUE(mentions(error, "make room"));
}

TEST_F(MemoryFileTest, AStopIsObeyed) {
    std::stop_source stop;
    stop.request_stop();
    EXPECT_FALSE(writer->write_all(stop.get_token()));
    const Guest other;
    EXPECT_FALSE(read_into(other, stop.get_token()));
}

TEST_F(MemoryFileTest, TellsHowFarItIs) {
    std::uint64_t last = 0;
    std::uint64_t whole = 0;
    movers.progress = [&](std::uint64_t done, std::uint64_t total) {
        EXPECT_GE(done, last);
        last = done;
        whole = total;
    };
    ASSERT_TRUE(writer->write_all({}));
    EXPECT_EQ(last, kLowBytes + kHighBytes);
    EXPECT_EQ(whole, last);
}

} // namespace
} // namespace vmm
