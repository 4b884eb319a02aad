// PageSender::serve() with RemoteChunks, and both with handmade peers.

#include "vmm/migration/remote_chunks.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <future>
#include <memory>
#include <stop_token>
#include <string>
#include <utility>
#include <vector>

#include "support/host_errors.hpp"
#include "support/host_waiting.hpp"
#include "support/vmm_migration_ends.hpp"
#include "support/vmm_migration_link.hpp"
#include "vmm/migration/page_sender.hpp"

namespace vmm {
namespace {

using testing::ChannelEnds;
using testing::error_of;
using testing::frame_of;
using testing::kPatience;
using testing::mentions;

constexpr std::array kServedLayout{GuestRange{GuestAddress{0}, 3 * kMiB}, GuestRange{GuestAddress{4 * kGiB}, 8192}};

class MigrationRemoteChunks : public ::testing::Test {
  protected:
    /// The message about a chunk if `answer` sends any data after the request.
    std::string refusal(const std::function<void(Channel&)>& answer) const {
        ChannelEnds ends(kPatience);
        answer(*ends.source);
        RemoteChunks chunks(layout_, std::move(ends.destination));
        std::vector<std::byte> bytes(kMemoryChunkBytes);
        return error_of([&] { return chunks.read(0, bytes); });
    }

    GuestMemory memory_{kServedLayout, PageSize::k4K};
    MemoryLayout layout_{kServedLayout};
};

TEST_F(MigrationRemoteChunks, AreWhatTheSourceHas) {
    const std::vector<std::byte> random = testing::random_bytes(3 * kMiB);
    std::memcpy(memory_.regions()[0].host, random.data(), 1 * kMiB);
    std::memcpy(memory_.regions()[1].host + 4096, random.data(), 4096);
    for (const Compression compression : kCompressions) {
        PageSender sender(memory_, {.compression = compression});
        ChannelEnds ends(kPatience);
        auto served = std::async(std::launch::async, [&] { sender.serve(*ends.source, {}); });
        RemoteChunks chunks(layout_, std::move(ends.destination));
        std::vector<std::byte> bytes(kMemoryChunkBytes, std::byte{0xaa});
        ASSERT_EQ(layout_.chunks(), 3U);
        for (const std::size_t chunk : {0U, 2U, 0U}) {
            const std::span<std::byte> there = std::span(bytes).first(layout_.chunk(chunk).range.size);
            EXPECT_TRUE(chunks.read(chunk, there));
            EXPECT_TRUE(std::ranges::equal(there, *memory_.at(layout_.chunk(chunk).range))) << chunk;
        }
        EXPECT_FALSE(chunks.read(1, std::span(bytes).first(layout_.chunk(1).range.size))); // it is zero
        EXPECT_TRUE(is_zero(std::span(bytes).first(layout_.chunk(1).range.size)));
        ends.source->shut_down();
        EXPECT_THROW(served.get(), LinkError);
    }
}

TEST_F(MigrationRemoteChunks, WhatWasNotAskedForIsRefused) {
    const std::vector<std::byte> page(4096);
    const auto send = [&](std::uint64_t address) {
        return [&page, address](Channel& source) {
            source.send(frame_of(FrameKind::kRaw, address, 4096, page).as_bytes());
            source.send(page);
        };
    };
    EXPECT_TRUE(mentions(refusal(send(2 * kMiB)), "were not asked for"));
    EXPECT_TRUE(mentions(refusal(send(4 * kGiB)), "were not asked for"));
    EXPECT_TRUE(mentions(refusal(send(~std::uint64_t{0} - 4095)), "were not asked for"));
    EXPECT_TRUE(mentions(refusal([](Channel& source) { source.send(frame_of(FrameKind::kSync, 4096, 0).as_bytes()); }),
                         "something else"));
    EXPECT_TRUE(mentions(refusal([](Channel& source) { source.send(frame_of(FrameKind::kAsk, 0, 4096).as_bytes()); }),
                         "asks for pages"));
}

TEST_F(MigrationRemoteChunks, AnAnswerThatDoesNotEndIsRefused) {
    EXPECT_TRUE(mentions(refusal([](Channel& source) {
                             for (std::uint64_t bytes = 0; bytes <= kMemoryChunkBytes; bytes += kMostFrameBytes) {
                                 source.send(frame_of(FrameKind::kZero, 0, kMostFrameBytes).as_bytes());
                             }
                         }),
                         "more than once"));
}

TEST_F(MigrationRemoteChunks, NobodyIsServedWhatTheGuestHasNot) {
    for (const FrameHeader& ask :
         {frame_of(FrameKind::kAsk, 3 * kMiB, 4096), frame_of(FrameKind::kAsk, 2 * kMiB, 2 * kMiB),
          frame_of(FrameKind::kAsk, ~std::uint64_t{0} - 4095, 8192), frame_of(FrameKind::kZero, 0, 4096),
          frame_of(FrameKind::kSync, 0, 0)}) {
        PageSender sender(memory_, {});
        ChannelEnds ends(kPatience);
        ends.destination->send(ask.as_bytes());
        const std::string said = error_of([&] {
            sender.serve(*ends.source, {});
            return 0;
        });
        EXPECT_TRUE(mentions(said, "asks for memory that there is not")) << said;
    }
}

TEST_F(MigrationRemoteChunks, AStopEndsServing) {
    PageSender sender(memory_, {});
    ChannelEnds ends(kPatience);
    std::stop_source stop;
    stop.request_stop();
    sender.serve(*ends.source, stop.get_token());
}

} // namespace
} // namespace vmm
