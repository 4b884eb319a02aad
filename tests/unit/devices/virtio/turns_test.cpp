// The largest amount of work that a guest can ask for at once, for each device: how much of it one turn does, and that
// no more is done when the device is stopped (docs/devices.md has the table).

#include <gtest/gtest.h>
#include <sys/socket.h>
#include <sys/un.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "devices/frame_stream.hpp"
#include "devices/virtio/balloon.hpp"
#include "devices/virtio/console.hpp"
#include "devices/virtio/net.hpp"
#include "devices/virtio/rng.hpp"
#include "devices/virtio/vsock.hpp"
#include "kvm/host/unique_fd.hpp"
#include "support/devices_virtio_driver.hpp"
#include "support/host_pipe.hpp"
#include "support/host_temporary_directory.hpp"

namespace vmm::devices::testing {
namespace {

using virtio::Balloon;
using virtio::Console;
using virtio::Net;
using virtio::Rng;
using virtio::Vsock;

/// Adds as many requests as the queue holds, each with `buffers`.
void fill_queue(VirtioRig& rig, std::uint16_t index, const std::vector<Buffer>& buffers) {
    const std::uint32_t size = rig.driver().queue_size_max(index);
    for (std::uint32_t i = 0; i + buffers.size() <= size; i += static_cast<std::uint32_t>(buffers.size())) {
        rig.queue(index).add(buffers);
    }
}

/// Stops the device by a reset of the driver. Only work that was taken until then is ever done.
template <typename Count>
void expect_nothing_after_a_stop(VirtioRig& rig, Count count) {
    const auto before = count();
    ASSERT_TRUE(rig.reset());
    rig.settle();
    EXPECT_EQ(count(), before);
}

TEST(VirtioTurns, ARequestForGigabytesOfEntropyIsAFewKilobytes) {
    std::uint64_t given = 0;
    Rng rng("rng0", [&given](std::span<std::byte> bytes) {
        given += bytes.size();
        return true;
    });
    VirtioRig rig(rng);
    ASSERT_TRUE(rig.start());
    // The same 16 MiB repeatedly: 1 GiB in all.
    fill_queue(rig, 0, {{GuestAddress{16 * kMiB}, static_cast<std::uint32_t>(16 * kMiB), kWritable}});
    rng.doorbell(0);
    EXPECT_LE(given, Rng::kMostBytesATurn);
    EXPECT_LT(rig.queue(0).used_index(), 64U) << "the rest waits for another turn";
    expect_nothing_after_a_stop(rig, [&] { return given; });
}

TEST(VirtioTurns, AConsoleTakesGigabytesInPieces) {
    Console console("con0", {}, std::nullopt, 4096);
    VirtioRig rig(console);
    ASSERT_TRUE(rig.start());
    fill_queue(rig, 1, {{GuestAddress{16 * kMiB}, static_cast<std::uint32_t>(16 * kMiB), 0}});
    console.doorbell(1);
    EXPECT_EQ(rig.queue(1).used_index(), 1U) << "one is more than a turn's bytes already";
    EXPECT_EQ(console.dropped_output_bytes(), 16 * kMiB - 4096);
    expect_nothing_after_a_stop(rig, [&] { return console.dropped_output_bytes(); });
}

TEST(VirtioTurns, ABalloonLooksAtSoManyPagesAndThenAtEverythingElse) {
    Balloon balloon("balloon0", 0, false);
    VirtioRig rig(balloon);
    ASSERT_TRUE(rig.start());
    // Every second page of 16 MiB, repeatedly, so that no page can be joined with its neighbour.
    std::vector<std::uint32_t> pages;
    for (std::uint64_t i = 0; i < Balloon::kMostPages; ++i) {
        pages.push_back(static_cast<std::uint32_t>(16 * kMiB / Balloon::kPageBytes + i * 2 % 4096));
    }
    const GuestAddress at = rig.allocate(pages.size() * sizeof(std::uint32_t));
    ASSERT_TRUE(rig.memory().copy_in(at, std::as_bytes(std::span(pages))));
    fill_queue(rig, 0, {{at, static_cast<std::uint32_t>(pages.size() * sizeof(std::uint32_t)), 0}});
    balloon.doorbell(0);
    EXPECT_LE(balloon.statistics().inflated, Balloon::kMostPagesATurn * Balloon::kPageBytes);
    EXPECT_EQ(rig.queue(0).used_index(), 0U) << "the first request is not done yet";
    balloon.doorbell(0);
    balloon.doorbell(0);
    balloon.doorbell(0);
    EXPECT_EQ(rig.queue(0).used_index(), 1U) << "and is not forgotten";
    expect_nothing_after_a_stop(rig, [&] { return balloon.statistics().inflated; });
}

TEST(VirtioTurns, ABalloonGivesBackSoMuchOfWhatIsReportedAndThenLooksAtEverythingElse) {
    Balloon balloon("balloon0", 0, true);
    VirtioRig rig(balloon);
    ASSERT_TRUE(rig.start());
    fill_queue(rig, 4, {{GuestAddress{16 * kMiB}, static_cast<std::uint32_t>(16 * kMiB), kWritable}}); // 2 GiB
    balloon.doorbell(4);
    EXPECT_LE(balloon.statistics().reported, Balloon::kMostReportedATurn);
    EXPECT_GT(balloon.statistics().reported, 0U);
    expect_nothing_after_a_stop(rig, [&] { return balloon.statistics().reported; });
}

TEST(VirtioTurns, ABalloonGivesBackAllThatIsReportedInHoweverManyTurns) {
    Balloon balloon("balloon0", 0, true);
    VirtioRig rig(balloon);
    ASSERT_TRUE(rig.start());
    fill_queue(rig, 4, {{GuestAddress{16 * kMiB}, static_cast<std::uint32_t>(16 * kMiB), kWritable}});
    rig.driver().ring(4);
    EXPECT_TRUE(rig.pump_until([&] { return rig.queue(4).used_index() == 128; }));
    EXPECT_EQ(balloon.statistics().reported, 128 * 16 * kMiB);
}

TEST(VirtioTurns, ANetworkSendsSoManyFramesATurn) {
    vmm::testing::SocketPair ends;
    Net net("net0", std::make_unique<FrameStream>(std::move(ends.theirs)), {2, 0, 0, 0, 0, 1});
    VirtioRig rig(net);
    ASSERT_TRUE(rig.start());
    fill_queue(rig, 1, {{GuestAddress{16 * kMiB}, 12 + 60, 0}});
    std::array<char, 1 << 16> heard{};
    net.doorbell(1);
    EXPECT_LE(rig.queue(1).used_index(), Net::kMostFramesATurn);
    while (::recv(ends.ours.get(), heard.data(), heard.size(), MSG_DONTWAIT) > 0) {
    }
    expect_nothing_after_a_stop(rig, [&] { return net.statistics().sent; });
}

TEST(VirtioTurns, ANetworkTakesSoManyBuffersATurnHoweverUselessTheyAre) {
    vmm::testing::SocketPair ends;
    Net net("net0", std::make_unique<FrameStream>(std::move(ends.theirs)), {2, 0, 0, 0, 0, 1});
    VirtioRig rig(net);
    ASSERT_TRUE(rig.start());
    // Each buffer has one byte. The whole queue cannot hold a frame, so the frame is dropped, and the buffers come
    // again.
    const GuestAddress at = rig.allocate(16);
    const auto refill = [&] {
        while (rig.queue(0).take_used()) {
        }
        for (int i = 0; i < Net::kQueueSize; ++i) {
            rig.queue(0).add({{at, 1, kWritable}});
        }
    };
    refill();
    std::string frames;
    for (int i = 0; i < 2 * Net::kMostFramesATurn; ++i) {
        frames += std::string("\0\0\5\xdc", 4) + std::string(1500, 'x');
    }
    std::size_t said = 0;
    while (said < frames.size()) {
        const ssize_t count = ::send(ends.ours.get(), frames.data() + said, frames.size() - said, MSG_DONTWAIT);
        if (count <= 0) {
            break;
        }
        said += static_cast<std::size_t>(count);
    }
    const std::uint64_t there = said / 1504;
    ASSERT_GT(there, 16U);
    for (int turns = 0; turns < 1000 && net.statistics().dropped < there; ++turns) {
        const std::uint64_t before = net.statistics().dropped;
        rig.driver().ring(0);
        rig.pump().turn();
        EXPECT_LE(net.statistics().dropped - before, 2U * Net::kMostBuffersATurn / Net::kQueueSize + 2);
        refill();
    }
    EXPECT_EQ(net.statistics().dropped, there);
    EXPECT_TRUE(rig.is_alive());
}

TEST(VirtioTurns, AVsockTakesSoManyBytesATurn) {
    const vmm::testing::TemporaryDirectory directory;
    Vsock vsock("vsock0", {.guest_cid = 3, .path = directory / "v"});
    VirtioRig rig(vsock);
    ASSERT_TRUE(rig.start());
    // Programs that do not read, with connections, and for each a packet that fills a buffer.
    const UniqueFd listener(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    const std::string path = directory / "v_80";
    path.copy(address.sun_path, sizeof(address.sun_path) - 1);
    ASSERT_EQ(::bind(listener.get(), reinterpret_cast<const sockaddr*>(&address), sizeof(address)), 0);
    ASSERT_EQ(::listen(listener.get(), 200), 0);
    struct {
        std::uint64_t from = 3;
        std::uint64_t to = 2;
        std::uint32_t from_port = 0;
        std::uint32_t to_port = 80;
        std::uint32_t length = 0;
        std::uint16_t type = 1;
        std::uint16_t operation = 1;
        std::array<std::uint32_t, 3> rest{};
    } header;
    const auto add = [&](std::uint32_t port, std::uint16_t operation, std::uint32_t length) {
        header.from_port = port;
        header.operation = operation;
        header.length = length;
        const GuestAddress at = rig.allocate(48);
        EXPECT_TRUE(rig.memory().copy_in(at, std::as_bytes(std::span(&header, 1)).first(44)));
        if (length == 0) {
            rig.queue(1).add({{at, 44, 0}});
        } else {
            rig.queue(1).add({{at, 44, 0}, {GuestAddress{16 * kMiB}, length, 0}});
        }
    };
    constexpr std::uint32_t kConnections = 100;
    for (std::uint32_t port = 0; port < kConnections; ++port) {
        add(port, 1, 0);
    }
    rig.driver().ring(1);
    rig.settle();
    ASSERT_EQ(rig.queue(1).used_index(), kConnections);
    while (rig.queue(1).take_used()) {
    }
    for (std::uint32_t port = 0; port < kConnections; ++port) {
        add(port, 5, Vsock::kBufferBytes);
    }
    vsock.doorbell(1);
    const std::uint32_t packets = rig.queue(1).used_index() - kConnections;
    EXPECT_LE(packets, Vsock::kMostBytesATurn / Vsock::kBufferBytes);
    EXPECT_GT(packets, 0U);
    ASSERT_TRUE(rig.reset());
}

} // namespace
} // namespace vmm::devices::testing
