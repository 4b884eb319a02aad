#include "vmm/migration/frames.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "support/host_errors.hpp"
#include "support/vmm_migration_ends.hpp"
#include "vmm/state/crc32c.hpp"

namespace vmm {
namespace {

using testing::error_of;
using testing::frame_of;
using testing::mentions;

/// The message about `header`, or "". Its checksum is made right.
std::string refusal_of_frame(FrameHeader header) {
    header.seal();
    return error_of([&] {
        header.check("somebody");
        return 0;
    });
}

TEST(MigrationFrame, LiesOnTheWireAsDocumented) {
    const FrameHeader header = frame_of(FrameKind::kZero, 0x1122334455667000, 0x3000);
    std::array<std::uint8_t, 28> wanted{'V',  'M',  'P',  'G',  2,    0,    0, 0, 0x00, 0x70, 0x66, 0x55, 0x44, 0x33,
                                        0x22, 0x11, 0x00, 0x30, 0x00, 0x00, 0, 0, 0,    0,    0,    0,    0,    0};
    const auto bytes = header.as_bytes();
    EXPECT_TRUE(std::ranges::equal(bytes.first(28), std::as_bytes(std::span(wanted))));
    EXPECT_EQ(header.header_crc32c, crc32c(std::as_bytes(std::span(wanted))));
    EXPECT_EQ(refusal_of_frame(header), "");
}

TEST(MigrationFrame, WhatCanBeIsTaken) {
    const std::vector<std::byte> payload(kMostFrameBytes);
    EXPECT_EQ(refusal_of_frame(frame_of(FrameKind::kRaw, 0, kMostFrameBytes, payload)), "");
    EXPECT_EQ(refusal_of_frame(frame_of(FrameKind::kZero, ~std::uint64_t{0} - 4095, 4096)), "");
    EXPECT_EQ(refusal_of_frame(frame_of(FrameKind::kZstd, 0, 4096, std::span(payload).first(1))), "");
    EXPECT_EQ(refusal_of_frame(frame_of(FrameKind::kZstd, 0, 4096, std::span(payload).first(4096))), "");
    EXPECT_EQ(refusal_of_frame(frame_of(FrameKind::kAsk, 4096, 2 * kMiB)), "");
    EXPECT_EQ(refusal_of_frame(frame_of(FrameKind::kSync, ~std::uint64_t{0}, 0)), "");
}

TEST(MigrationFrame, EveryChangedByteOfAHeaderIsNoticed) {
    const FrameHeader header = frame_of(FrameKind::kZero, 0x5000, 0x3000);
    for (std::size_t i = 0; i < sizeof header; ++i) {
        FrameHeader changed = header;
        std::as_writable_bytes(std::span(&changed, 1))[i] ^= std::byte{0x10};
        const std::string said = error_of([&] {
            changed.check("somebody");
            return 0;
        });
        EXPECT_TRUE(mentions(said, "somebody sends something else than pages")) << i;
    }
}

TEST(MigrationFrame, WhatCannotBeIsRefusedWhateverItsChecksumSays) {
    const std::vector<std::byte> payload(2 * kMostFrameBytes);
    const auto of = [&](FrameKind kind, std::uint64_t address, std::uint32_t bytes, std::size_t payload_bytes) {
        return frame_of(kind, address, bytes, std::span(payload).first(payload_bytes));
    };
    std::vector<FrameHeader> wrong{
        of(FrameKind{0}, 0, 4096, 0),
        of(FrameKind{6}, 0, 4096, 0),
        of(FrameKind::kAsk, 0, 2 * kMiB + 4096, 0),
        of(FrameKind::kAsk, 0, 4096, 4096),
        of(FrameKind::kAsk, 0, 0, 0),
        of(FrameKind{0xffff}, 0, 4096, 0),
        of(FrameKind::kRaw, 0, 0, 0),
        of(FrameKind::kRaw, 0, 4095, 4095),
        of(FrameKind::kRaw, 0, 8192, 4096),
        of(FrameKind::kRaw, 0, 4096, 8192),
        of(FrameKind::kRaw, 1, 4096, 4096),
        of(FrameKind::kRaw, 0, kMostFrameBytes + 4096, kMostFrameBytes + 4096),
        of(FrameKind::kZero, 0, 4096, 1),
        of(FrameKind::kZero, 0, 0xfffff000, 0),
        of(FrameKind::kZero, 2048, 4096, 0),
        of(FrameKind::kZstd, 0, 4096, 0),
        of(FrameKind::kZstd, 0, 4096, 4097),
        of(FrameKind::kZstd, 0, 0, 0),
        of(FrameKind::kSync, 1, 4096, 0),
        of(FrameKind::kSync, 1, 0, 1),
    };
    wrong.push_back(of(FrameKind::kZero, 0, 4096, 0));
    wrong.back().reserved = 1;
    for (const FrameHeader& header : wrong) {
        EXPECT_TRUE(mentions(refusal_of_frame(header), "somebody sends a frame that cannot be"))
            << static_cast<unsigned>(header.kind) << ", " << header.bytes << ", " << header.payload_bytes;
    }
    FrameHeader other = of(FrameKind::kZero, 0, 4096, 0);
    other.magic = 0;
    EXPECT_TRUE(mentions(refusal_of_frame(other), "something else than pages"));
}

} // namespace
} // namespace vmm
