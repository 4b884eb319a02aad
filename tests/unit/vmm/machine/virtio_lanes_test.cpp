// The threads of a network interface of several pairs of queues.
#include "vmm/machine/virtio_thread.hpp"

#include <gtest/gtest.h>

#include <dirent.h>
#include <fcntl.h>
#include <sys/socket.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <fstream>
#include <memory>
#include <set>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "devices/frame_link.hpp"
#include "devices/tap.hpp"
#include "devices/virtio/mmio_transport.hpp"
#include "devices/virtio/net.hpp"
#include "kvm/host/event_fd.hpp"
#include "kvm/host/guest_memory.hpp"
#include "kvm/host/unique_fd.hpp"
#include "support/devices_recording_irq.hpp"
#include "support/devices_virtio_driver.hpp"
#include "support/host_waiting.hpp"
#include "vmm/stop_request.hpp"

namespace vmm {
namespace {

using devices::testing::DriverQueue;
using vmm::testing::eventually;

constexpr unsigned kPairsOfThreads = 3;
constexpr std::uint16_t kControl = 2 * kPairsOfThreads;
constexpr std::uint32_t kBytes = devices::FrameLink::kHeaderBytes + 60;

std::set<std::string> names_of_threads() {
    std::set<std::string> names;
    DIR* const tasks = ::opendir("/proc/self/task");
    for (const dirent* entry = ::readdir(tasks); entry != nullptr; entry = ::readdir(tasks)) {
        std::ifstream file(std::string("/proc/self/task/") + entry->d_name + "/comm");
        std::string name;
        std::getline(file, name);
        names.insert(name);
    }
    ::closedir(tasks);
    return names;
}

/// A network with its threads, and a driver that has set up all of its queues.
class VirtioLanes : public ::testing::Test {
  protected:
    VirtioLanes() {
        std::vector<std::unique_ptr<devices::FrameLink>> links;
        for (unsigned i = 0; i < kPairsOfThreads; ++i) {
            std::array<int, 2> fds{-1, -1};
            EXPECT_EQ(::socketpair(AF_UNIX, SOCK_DGRAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, fds.data()), 0);
            links.push_back(std::make_unique<devices::Tap>(UniqueFd(fds[0])));
            ends.emplace_back(fds[1]);
        }
        net = std::make_unique<devices::virtio::Net>("net0", std::move(links),
                                                     devices::MacAddress{0x52, 0x54, 0, 0, 0, 9});
        transport = std::make_unique<devices::virtio::MmioTransport>(
            net->identity(), memory, irq,
            devices::virtio::Negotiation::Hooks{.work = [this] { work.signal(); },
                                                .doorbell = [this](std::uint16_t index) { doorbells[index].signal(); },
                                                .patience = vmm::testing::kPatience});
        driver = std::make_unique<devices::testing::RegisterDriver>(*transport);
        thread = std::make_unique<VirtioThread>(
            VirtioThread::Wiring{*net, transport->negotiation(), *transport, doorbells, work, stop, sandbox});
    }

    void start() {
        ASSERT_TRUE(driver->negotiate(driver->device_features()));
        queues.clear();
        for (std::uint16_t index = 0; index <= kControl; ++index) {
            const std::uint16_t size = index == kControl ? 64 : 256;
            queues.push_back(std::make_unique<DriverQueue>(memory, GuestAddress{0x10000ULL * (index + 1)}, size));
            ASSERT_TRUE(driver->enable_queue(index, queues.back()->geometry()));
        }
        driver->add_status(devices::virtio::kStatusDriverOk);
        ASSERT_TRUE(memory.store(GuestAddress{kBase}, std::array<std::uint8_t, 5>{4, 0, kPairsOfThreads, 0, 0xee}));
        queues[kControl]->add({{GuestAddress{kBase}, 4}, {GuestAddress{kBase + 4}, 1, true}});
        driver->ring(kControl);
        ASSERT_TRUE(eventually([&] { return queues[kControl]->take_used().has_value(); }));
        ASSERT_EQ(memory.load<std::uint8_t>(GuestAddress{kBase + 4}), std::uint8_t{0});
    }
    void offer(unsigned pair) {
        queues[2 * pair]->add({{GuestAddress{kBase + 0x1000 + 0x1000 * pair}, 2048, true}});
        driver->ring(static_cast<std::uint16_t>(2 * pair));
    }
    void transmit(unsigned pair) {
        queues[2 * pair + 1]->add({{GuestAddress{kBase + 0x100}, kBytes}});
        driver->ring(static_cast<std::uint16_t>(2 * pair + 1));
    }
    [[nodiscard]] bool is_heard(unsigned pair) const {
        return eventually([&] {
            std::array<std::byte, 256> frame{};
            return ::read(ends[pair].get(), frame.data(), frame.size()) > 0;
        });
    }
    void send(unsigned pair) const {
        const std::array<std::byte, kBytes> frame{};
        static_cast<void>(::write(ends[pair].get(), frame.data(), frame.size()));
    }

    static constexpr std::uint64_t kBase = 1 * kMiB;
    const std::array<GuestRange, 1> layout{GuestRange{GuestAddress{0}, 2 * kMiB}};
    const GuestMemory memory{layout, PageSize::k4K};
    const Sandbox sandbox{SandboxMode::kOff};
    devices::testing::RecordingIrq irq;
    StopRequest stop;
    EventFd work;
    std::deque<EventFd> doorbells{std::size_t{kControl} + 1};
    std::vector<UniqueFd> ends;
    std::unique_ptr<devices::virtio::Net> net;
    std::unique_ptr<devices::virtio::MmioTransport> transport;
    std::unique_ptr<devices::testing::RegisterDriver> driver;
    std::vector<std::unique_ptr<DriverQueue>> queues;
    std::unique_ptr<VirtioThread> thread;
};

TEST_F(VirtioLanes, EachPairHasAThreadOfItsName) {
    EXPECT_TRUE(eventually([] {
        const std::set<std::string> names = names_of_threads();
        return names.contains("net0") && names.contains("net0.1") && names.contains("net0.2");
    }));
}

TEST_F(VirtioLanes, EachPairMovesFrames) {
    start();
    for (unsigned pair = 0; pair < kPairsOfThreads; ++pair) {
        transmit(pair);
        EXPECT_TRUE(is_heard(pair)) << pair;
        EXPECT_TRUE(eventually([&] { return queues[2 * pair + 1]->take_used().has_value(); })) << pair;
        offer(pair);
        send(pair);
        EXPECT_TRUE(eventually([&] { return queues[2 * pair]->take_used().has_value(); })) << pair;
    }
    thread->join();
    EXPECT_EQ(thread->failure(), nullptr);
}

TEST_F(VirtioLanes, NothingMovesWhileItIsPausedAndNothingIsLost) {
    start();
    thread->pause();
    ASSERT_TRUE(thread->wait_until_paused(std::chrono::steady_clock::now() + vmm::testing::kPatience));
    for (unsigned pair = 0; pair < kPairsOfThreads; ++pair) {
        transmit(pair);
        offer(pair);
        send(pair);
    }
    EXPECT_EQ(net->statistics().sent + net->statistics().received, 0U);
    EXPECT_EQ(net->queue_states().size(), kControl + 1U);
    thread->resume();
    for (unsigned pair = 0; pair < kPairsOfThreads; ++pair) {
        EXPECT_TRUE(is_heard(pair)) << pair;
        EXPECT_TRUE(eventually([&] { return queues[2 * pair]->take_used().has_value(); })) << pair;
    }
}

// When the write of a reset returns, the reset is done: no thread touches the rings any more, however much comes by
// each pair.
TEST_F(VirtioLanes, AResetEndsTheTurnsOfAllThreads) {
    std::atomic<bool> ends_now = false;
    std::thread flood([&] {
        while (!ends_now) {
            for (unsigned pair = 0; pair < kPairsOfThreads; ++pair) {
                send(pair);
            }
        }
    });
    for (int round = 0; round < 20; ++round) {
        start();
        for (unsigned pair = 0; pair < kPairsOfThreads; ++pair) {
            for (int i = 0; i < 50; ++i) {
                offer(pair);
            }
        }
        driver->write(devices::testing::reg::kStatus, 0);
        ASSERT_EQ(driver->status(), 0U);
        std::array<std::uint16_t, kPairsOfThreads> used{};
        for (unsigned pair = 0; pair < kPairsOfThreads; ++pair) {
            used[pair] = queues[2 * pair]->used_index();
        }
        std::this_thread::yield();
        for (unsigned pair = 0; pair < kPairsOfThreads; ++pair) {
            EXPECT_EQ(queues[2 * pair]->used_index(), used[pair]);
        }
    }
    ends_now = true;
    flood.join();
    thread->join();
    EXPECT_EQ(thread->failure(), nullptr);
}

} // namespace
} // namespace vmm
