// virtio-vsock against a small guest and programs of the host (virtio 1.2, 5.10).

#include <gtest/gtest.h>

#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "devices/virtio/vsock.hpp"
#include "kvm/host/error.hpp"
#include "kvm/host/unique_fd.hpp"
#include "support/devices_hostile_driver.hpp"
#include "support/devices_virtio_driver.hpp"
#include "support/host_errors.hpp"
#include "support/host_pipe.hpp"
#include "support/host_temporary_directory.hpp"

namespace vmm::devices::testing {
namespace {

using virtio::Vsock;
using virtio::VsockConfig;
using vmm::testing::error_of;
using vmm::testing::mentions;
using vmm::testing::TemporaryDirectory;

constexpr std::uint64_t kGuestCid = 42;
constexpr std::uint64_t kHostCid = 2;
enum Operation : std::uint16_t {
    kRequest = 1,
    kResponse,
    kReset,
    kShutdown,
    kReadWrite,
    kCreditUpdate,
    kCreditRequest
};
constexpr std::uint32_t kGuestRoom = 64 * 1024;

/// The header on the wire: its 44 bytes without the padding of alignment.
struct Header {
    std::uint64_t source_cid = kGuestCid;
    std::uint64_t destination_cid = kHostCid;
    std::uint32_t source_port = 0;
    std::uint32_t destination_port = 0;
    std::uint32_t length = 0;
    std::uint16_t type = 1;
    std::uint16_t operation = 0;
    std::uint32_t flags = 0;
    std::uint32_t buffer_bytes = kGuestRoom;
    std::uint32_t forwarded_bytes = 0;
};
constexpr std::size_t kHeaderBytes = 44;

struct Packet {
    Header header;
    std::string bytes;
};

sockaddr_un address_of(const std::string& path) {
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    path.copy(address.sun_path, sizeof(address.sun_path) - 1);
    return address;
}

UniqueFd stream_socket() {
    return UniqueFd(::socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
}

/// A program of the host that connects to the device.
UniqueFd connect_to(const std::string& path) {
    UniqueFd fd = stream_socket();
    const sockaddr_un address = address_of(path);
    EXPECT_EQ(::connect(fd.get(), reinterpret_cast<const sockaddr*>(&address), sizeof(address)), 0);
    return fd;
}

/// A program that waits for the guest.
UniqueFd listen_at(const std::string& path) {
    UniqueFd fd = stream_socket();
    const sockaddr_un address = address_of(path);
    EXPECT_EQ(::bind(fd.get(), reinterpret_cast<const sockaddr*>(&address), sizeof(address)), 0);
    EXPECT_EQ(::listen(fd.get(), 8), 0);
    return fd;
}

void say(const UniqueFd& fd, std::string_view text) {
    EXPECT_EQ(::send(fd.get(), text.data(), text.size(), MSG_NOSIGNAL), static_cast<ssize_t>(text.size()));
}

class VsockTest : public ::testing::Test {
  protected:
    static constexpr std::uint16_t kToGuest = 0;
    static constexpr std::uint16_t kFromGuest = 1;
    static constexpr std::uint32_t kBufferBytes = 4096;

    void SetUp() override {
        ASSERT_TRUE(rig_.start());
        offer_buffers(32);
    }

    void offer_buffers(int count) {
        for (int i = 0; i < count; ++i) {
            const GuestAddress address = rig_.allocate(kBufferBytes);
            by_head_[rig_.queue(kToGuest).add({{address, kBufferBytes, kWritable}})] = address;
        }
        rig_.ring(kToGuest);
    }

    void send(Header header, const std::string& bytes = {}) {
        header.length = header.length == 0 ? static_cast<std::uint32_t>(bytes.size()) : header.length;
        const GuestAddress at = rig_.allocate(kHeaderBytes + bytes.size());
        EXPECT_TRUE(rig_.memory().copy_in(at, std::as_bytes(std::span(&header, 1)).first(kHeaderBytes)));
        EXPECT_TRUE(rig_.memory().copy_in(at + kHeaderBytes, std::as_bytes(std::span(bytes))));
        rig_.queue(kFromGuest).add({{at, static_cast<std::uint32_t>(kHeaderBytes + bytes.size())}});
        rig_.ring(kFromGuest);
        rig_.settle();
        while (rig_.queue(kFromGuest).take_used()) {
        }
    }

    /// The next packet for the guest; its buffer is offered again.
    std::optional<Packet> receive() {
        const auto used = rig_.wait_for_used(kToGuest);
        if (!used) {
            return std::nullopt;
        }
        const GuestAddress at = by_head_.at(static_cast<std::uint16_t>(used->id));
        Packet packet;
        EXPECT_GE(used->length, kHeaderBytes);
        EXPECT_TRUE(
            rig_.memory().copy_out(at, std::as_writable_bytes(std::span(&packet.header, 1)).first(kHeaderBytes)));
        EXPECT_EQ(used->length, kHeaderBytes + packet.header.length);
        packet.bytes.resize(packet.header.length);
        EXPECT_TRUE(rig_.memory().copy_out(at + kHeaderBytes, std::as_writable_bytes(std::span(packet.bytes))));
        if (gives_buffers_back_) {
            by_head_[rig_.queue(kToGuest).add({{at, kBufferBytes, kWritable}})] = at;
            rig_.ring(kToGuest);
        }
        return packet;
    }
    Operation receive_operation() {
        const auto packet = receive();
        return packet ? static_cast<Operation>(packet->header.operation) : Operation{};
    }
    bool is_quiet() {
        rig_.settle();
        return !rig_.queue(kToGuest).take_used().has_value();
    }

    /// The data that the program has received until now.
    std::string heard(const UniqueFd& fd, std::size_t bytes) {
        std::string text;
        rig_.pump_until([&] {
            std::array<char, 65536> piece{};
            const ssize_t count = ::recv(fd.get(), piece.data(), piece.size(), MSG_DONTWAIT);
            text.append(piece.data(), count > 0 ? static_cast<std::size_t>(count) : 0);
            return text.size() >= bytes || count == 0;
        });
        return text;
    }
    bool is_closed(const UniqueFd& fd) {
        return rig_.pump_until([&] {
            char byte = 0;
            const ssize_t count = ::recv(fd.get(), &byte, 1, MSG_DONTWAIT);
            return count == 0 || (count < 0 && errno == ECONNRESET);
        });
    }

    static Header from_guest(Operation operation, std::uint32_t guest_port, std::uint32_t host_port) {
        Header header;
        header.operation = operation;
        header.source_port = guest_port;
        header.destination_port = host_port;
        return header;
    }

    /// A program connects to `port` of the guest, which accepts. Sets host_port_.
    UniqueFd begin_from_host(std::uint32_t port) {
        UniqueFd program = connect_to(path_);
        say(program, "CONNECT " + std::to_string(port) + "\n");
        const auto request = receive();
        EXPECT_TRUE(request && request->header.operation == kRequest);
        host_port_ = request ? request->header.source_port : 0;
        send(from_guest(kResponse, port, host_port_));
        EXPECT_EQ(heard(program, 1), "OK " + std::to_string(host_port_) + "\n");
        return program;
    }
    /// The guest connects to a program that waits at `port`.
    UniqueFd begin_from_guest(const UniqueFd& listener, std::uint32_t guest_port, std::uint32_t port) {
        send(from_guest(kRequest, guest_port, port));
        EXPECT_EQ(receive_operation(), kResponse);
        return UniqueFd(::accept4(listener.get(), nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC));
    }

    TemporaryDirectory directory_;
    std::string path_ = directory_.path().string() + "/v";
    std::chrono::steady_clock::time_point now_ = std::chrono::steady_clock::now(); ///< the device's
    Vsock vsock_{"vsock0", VsockConfig{kGuestCid, path_, {}, [this] { return now_; }}};
    VirtioRig rig_{vsock_};
    std::map<std::uint16_t, GuestAddress> by_head_;
    std::uint32_t host_port_ = 0;
    bool gives_buffers_back_ = true;
};

TEST_F(VsockTest, SaysTheCidOfTheGuestInItsConfiguration) { // 5.10.4
    std::uint64_t cid = 0;
    rig_.transport().read(reg::kConfig, std::as_writable_bytes(std::span(&cid, 1)));
    EXPECT_EQ(cid, kGuestCid);
}

TEST_F(VsockTest, CarriesBytesOfAConnectionThatAProgramBegan) {
    const UniqueFd program = begin_from_host(1234);
    say(program, "hello");
    const auto packet = receive();
    ASSERT_TRUE(packet);
    EXPECT_EQ(packet->header.operation, kReadWrite);
    EXPECT_EQ(packet->header.source_cid, kHostCid);
    EXPECT_EQ(packet->header.destination_cid, kGuestCid);
    EXPECT_EQ(packet->header.source_port, host_port_);
    EXPECT_EQ(packet->header.destination_port, 1234U);
    EXPECT_EQ(packet->header.buffer_bytes, Vsock::kBufferBytes);
    EXPECT_EQ(packet->bytes, "hello");
    send(from_guest(kReadWrite, 1234, host_port_), "world");
    EXPECT_EQ(heard(program, 5), "world");
}

TEST_F(VsockTest, GivesTheGuestWhatFollowsTheGreetingAtOnce) {
    const UniqueFd program = connect_to(path_);
    say(program, "CONNECT 7\nand more");
    const auto request = receive();
    ASSERT_TRUE(request);
    send(from_guest(kResponse, 7, request->header.source_port));
    const auto packet = receive();
    ASSERT_TRUE(packet);
    EXPECT_EQ(packet->bytes, "and more");
}

TEST_F(VsockTest, CarriesBytesOfAConnectionThatTheGuestBegan) {
    const UniqueFd listener = listen_at(path_ + "_80");
    const UniqueFd program = begin_from_guest(listener, 5000, 80);
    ASSERT_TRUE(program);
    send(from_guest(kReadWrite, 5000, 80), "question");
    EXPECT_EQ(heard(program, 8), "question");
    say(program, "answer");
    const auto packet = receive();
    ASSERT_TRUE(packet);
    EXPECT_EQ(packet->bytes, "answer");
}

TEST_F(VsockTest, RefusesAConnectionForWhichNobodyWaits) {
    send(from_guest(kRequest, 5000, 80));
    EXPECT_EQ(receive_operation(), kReset);
}

TEST_F(VsockTest, ClosesAProgramWhoseConnectionTheGuestRefuses) {
    const UniqueFd program = connect_to(path_);
    say(program, "CONNECT 9\n");
    const auto request = receive();
    ASSERT_TRUE(request);
    send(from_guest(kReset, 9, request->header.source_port));
    EXPECT_TRUE(is_closed(program));
}

TEST_F(VsockTest, ClosesAProgramThatDoesNotSayWhere) {
    for (const char* const words : {"HELLO\n", "CONNECT\n", "CONNECT x\n", "CONNECT 1 \n", "CONNECT 4294967296\n",
                                    "CONNECT -1\n", "\n", "CONNECT 1111111111111111111111111111"}) {
        const UniqueFd program = connect_to(path_);
        say(program, words);
        EXPECT_TRUE(is_closed(program)) << words;
    }
    EXPECT_TRUE(is_quiet());
}

TEST_F(VsockTest, TellsTheGuestThatAProgramSendsNoMore) { // 5.10.6.5
    const UniqueFd program = begin_from_host(1);
    say(program, "last");
    ::shutdown(program.get(), SHUT_WR);
    EXPECT_EQ(receive()->bytes, "last");
    const auto packet = receive();
    ASSERT_TRUE(packet);
    EXPECT_EQ(packet->header.operation, kShutdown);
    EXPECT_EQ(packet->header.flags, 2U);
    send(from_guest(kReadWrite, 1, host_port_), "still heard");
    EXPECT_EQ(heard(program, 11), "still heard");
}

TEST_F(VsockTest, GivesAProgramAllBytesBeforeTheEndOfAConnectionThatTheGuestShutsDown) {
    const UniqueFd program = begin_from_host(1);
    send(from_guest(kReadWrite, 1, host_port_), "bytes");
    Header shutdown = from_guest(kShutdown, 1, host_port_);
    shutdown.flags = 3;
    send(shutdown);
    EXPECT_EQ(receive_operation(), kReset); // 5.10.6.5: the answer to a shutdown of both directions
    EXPECT_EQ(heard(program, 6), "bytes");
}

TEST_F(VsockTest, SendsNoMoreThanTheGuestHasRoomFor) { // 5.10.6.3.2
    const UniqueFd program = begin_from_host(1);
    Header update = from_guest(kCreditUpdate, 1, host_port_);
    update.buffer_bytes = 10;
    send(update);
    say(program, "0123456789abcde");
    EXPECT_EQ(receive()->bytes, "0123456789");
    EXPECT_TRUE(is_quiet());
    update.forwarded_bytes = 10;
    send(update);
    EXPECT_EQ(receive()->bytes, "abcde");
}

TEST_F(VsockTest, EndsAConnectionWhoseGuestSendsMoreThanThereIsRoomFor) { // 5.10.6.3.1
    const UniqueFd program = begin_from_host(1);
    const std::string much(32 * 1024, 'x');
    Operation last{};
    for (int i = 0; i < 64 && last != kReset; ++i) { // the program never reads
        send(from_guest(kReadWrite, 1, host_port_), much);
        while (!is_quiet()) {
            last = kReset; // Room is announced only when the program reads something.
        }
    }
    EXPECT_EQ(last, kReset);
}

TEST_F(VsockTest, SaysAgainHowMuchRoomThereIsWhenAProgramHasTakenMuch) {
    const UniqueFd program = begin_from_host(1);
    const std::string much(16 * 1024, 'x');
    std::size_t sent = 0;
    for (int i = 0; i < 4; ++i) {
        send(from_guest(kReadWrite, 1, host_port_), much);
        sent += much.size();
        EXPECT_EQ(heard(program, much.size()).size(), much.size());
    }
    const auto packet = receive();
    ASSERT_TRUE(packet);
    EXPECT_EQ(packet->header.operation, kCreditUpdate);
    EXPECT_EQ(packet->header.forwarded_bytes, sent) << "the answer to the program is none of the guest's bytes";
}

// If a peer has forwarded more than it was sent, Linux takes it for a peer without any room, and never sends again.
TEST_F(VsockTest, DoesNotCountItsAnswerToTheProgramAmongTheGuestsBytes) { // 5.10.6.3
    const UniqueFd program = begin_from_host(1);
    send(from_guest(kCreditRequest, 1, host_port_));
    const auto packet = receive();
    ASSERT_TRUE(packet);
    EXPECT_EQ(packet->header.operation, kCreditUpdate);
    EXPECT_EQ(packet->header.forwarded_bytes, 0U);
}

TEST_F(VsockTest, AnswersARequestForCredit) {
    const UniqueFd program = begin_from_host(1);
    send(from_guest(kCreditRequest, 1, host_port_));
    EXPECT_EQ(receive_operation(), kCreditUpdate);
}

TEST_F(VsockTest, ResetsWhatItDoesNotKnow) { // 5.10.6.4.2
    for (const Operation operation : {kResponse, kShutdown, kReadWrite, kCreditUpdate, kCreditRequest}) {
        send(from_guest(operation, 77, 88));
        EXPECT_EQ(receive_operation(), kReset) << operation;
    }
    Header wrong = from_guest(kRequest, 1, 2);
    wrong.type = 3;
    send(wrong);
    EXPECT_EQ(receive_operation(), kReset);
    wrong = from_guest(kRequest, 1, 2);
    wrong.destination_cid = 99;
    send(wrong);
    EXPECT_EQ(receive_operation(), kReset);
    send(from_guest(kReset, 77, 88));
    EXPECT_TRUE(is_quiet()) << "a reset is not answered by a reset";
}

TEST_F(VsockTest, IgnoresAPacketOfAnotherCidAndOneWithoutAHeader) {
    Header wrong = from_guest(kRequest, 1, 2);
    wrong.source_cid = kGuestCid + 1;
    send(wrong);
    const GuestAddress at = rig_.allocate(16);
    rig_.queue(kFromGuest).add({{at, 10}});
    rig_.ring(kFromGuest);
    EXPECT_TRUE(is_quiet());
    EXPECT_TRUE(rig_.queue(kFromGuest).take_used().has_value()) << "its buffer is given back all the same";
    EXPECT_TRUE(rig_.is_alive());
}

TEST_F(VsockTest, ResetsAPacketThatSaysItIsLongerThanItIs) {
    const UniqueFd program = begin_from_host(1);
    Header header = from_guest(kReadWrite, 1, host_port_);
    header.length = 0x7fffffff;
    send(header, "x");
    EXPECT_EQ(receive_operation(), kReset);
}

TEST_F(VsockTest, HoldsNoMoreConnectionsThanItMay) {
    const UniqueFd listener = listen_at(path_ + "_80");
    std::vector<UniqueFd> programs;
    std::size_t refused = 0;
    for (std::uint32_t port = 0; port < Vsock::kMostConnections + 5; ++port) {
        send(from_guest(kRequest, port, 80));
        refused += receive_operation() == kReset ? 1 : 0;
        programs.emplace_back(::accept4(listener.get(), nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC));
    }
    EXPECT_EQ(refused, 5U);
}

TEST_F(VsockTest, KeepsWhatItHasForAGuestThatOffersNoBuffers) {
    gives_buffers_back_ = false;
    std::vector<UniqueFd> programs;
    for (int i = 0; i < 40; ++i) { // there are 32 buffers
        programs.push_back(connect_to(path_));
        say(programs.back(), "CONNECT 1\n");
    }
    rig_.settle();
    int requests = 0;
    while (rig_.queue(kToGuest).take_used()) {
        ++requests;
    }
    EXPECT_EQ(requests, 32);
    offer_buffers(16);
    rig_.settle();
    while (rig_.queue(kToGuest).take_used()) {
        ++requests;
    }
    EXPECT_EQ(requests, 40);
}

TEST_F(VsockTest, ClosesAllConnectionsAtAReset) {
    const UniqueFd program = begin_from_host(1);
    EXPECT_TRUE(rig_.reset());
    EXPECT_TRUE(is_closed(program));
    by_head_.clear();
    ASSERT_TRUE(rig_.start());
    offer_buffers(8);
    const UniqueFd again = begin_from_host(1);
    say(again, "x");
    EXPECT_EQ(receive()->bytes, "x");
}

TEST_F(VsockTest, SaysOnceHowMuchRoomThereIsWhileTheGuestDoesNotListen) {
    const UniqueFd listener = listen_at(path_ + "_80");
    const UniqueFd program = begin_from_guest(listener, 7, 80);
    gives_buffers_back_ = false;
    for (int i = 0; i < 32; ++i) { // as much as takes all its buffers
        send(from_guest(kCreditRequest, 7, 80));
        ASSERT_EQ(receive_operation(), kCreditUpdate);
    }
    send(from_guest(kReadWrite, 7, 80), std::string(Vsock::kBufferBytes / 2, 'x'));
    for (int i = 0; i < 50; ++i) {
        send(from_guest(kReadWrite, 7, 80), "y");
    }
    offer_buffers(32);
    EXPECT_EQ(receive_operation(), kCreditUpdate);
    EXPECT_TRUE(is_quiet());
}

// 5.10.6.1.2: "MUST be processed even when the rx virtqueue is full so long as there are additional resources".
TEST_F(VsockTest, TakesPacketsThoughTheGuestOffersNoBuffers) {
    gives_buffers_back_ = false;
    for (std::uint32_t i = 0; i < 100; ++i) { // there are 32 buffers
        send(from_guest(kReadWrite, i, 99));
    }
    EXPECT_EQ(rig_.queue(kFromGuest).used_index(), 100U);
}

// 5.10.6.3.2: "All packets associated with a stream flow MUST contain valid information in buf_alloc and fwd_cnt".
TEST_F(VsockTest, EachPacketSaysHowMuchRoomThereIsAndWhatHasBeenTaken) {
    const UniqueFd listener = listen_at(path_ + "_80");
    const UniqueFd program = begin_from_guest(listener, 7, 80);
    send(from_guest(kReadWrite, 7, 80), "12345");
    EXPECT_EQ(heard(program, 5), "12345");
    say(program, "hello");
    const auto bytes = receive();
    ASSERT_TRUE(bytes && bytes->header.operation == kReadWrite);
    EXPECT_EQ(bytes->header.buffer_bytes, Vsock::kBufferBytes);
    EXPECT_EQ(bytes->header.forwarded_bytes, 5U);
    ::shutdown(program.get(), SHUT_WR);
    const auto end = receive();
    ASSERT_TRUE(end && end->header.operation == kShutdown);
    EXPECT_EQ(end->header.buffer_bytes, Vsock::kBufferBytes);
    EXPECT_EQ(end->header.forwarded_bytes, 5U);
}

// There is always data of the program to read, and no way to the guest.
TEST_F(VsockTest, ComesToRestWhereTheQueueToTheGuestIsBrokenOrStopped) {
    for (const bool broken : {false, true}) {
        ASSERT_TRUE(rig_.reset());
        by_head_.clear();
        ASSERT_TRUE(rig_.start());
        offer_buffers(8);
        const UniqueFd program = begin_from_host(1);
        if (broken) {
            rig_.queue(kToGuest).publish(0xffff);
            say(program, std::string(Vsock::kBufferBytes, 'x')); // it needs more buffers than there are
        } else {
            rig_.driver().write(reg::kQueueSel, kToGuest);
            rig_.driver().write(reg::kQueueReady, 0);
            rig_.settle();
            say(program, "hello");
        }
        int turns = 0;
        while (turns < 100 && rig_.pump().turn()) {
            ++turns;
        }
        EXPECT_LT(turns, 100) << "it spins";
        EXPECT_EQ(rig_.needs_reset(), broken);
    }
}

// A driver may offer buffers that are too small for a packet, again and again, while the device looks at them.
TEST_F(VsockTest, BuffersOfNoUseDoNotKeepItForEver) {
    ASSERT_TRUE(rig_.reset());
    ASSERT_TRUE(rig_.start());
    send(from_guest(kReadWrite, 1, 99)); // it must be answered
    const GuestAddress small = rig_.allocate(kHeaderBytes);
    for (int i = 0; i < 200; ++i) {
        rig_.queue(kToGuest).add({{small, kHeaderBytes, kWritable}});
    }
    vsock_.doorbell(kToGuest);
    EXPECT_LT(rig_.queue(kToGuest).used_index(), 200U) << "in one turn";
    rig_.settle();
    EXPECT_EQ(rig_.queue(kToGuest).used_index(), 200U);
}

// ---- Whoever does not answer, does not read, or leaves

std::size_t open_descriptors() {
    std::size_t count = 0;
    for ([[maybe_unused]] const auto& each : std::filesystem::directory_iterator("/proc/self/fd")) {
        ++count;
    }
    return count;
}

TEST_F(VsockTest, ProgramsThatLeaveBeforeTheGuestAnswersHoldNothing) {
    const std::size_t before = open_descriptors();
    for (std::size_t i = 0; i < Vsock::kMostConnections + 50; ++i) {
        UniqueFd program = connect_to(path_);
        say(program, "CONNECT 1\n");
        ASSERT_EQ(receive_operation(), kRequest) << i;
        program.reset();
        ASSERT_EQ(receive_operation(), kReset) << i;
    }
    EXPECT_EQ(open_descriptors(), before);
    const UniqueFd program = begin_from_host(1);
}

TEST_F(VsockTest, ProgramsThatLeaveAllAtOnceHoldNothing) {
    const std::size_t before = open_descriptors();
    {
        std::vector<UniqueFd> programs;
        for (std::size_t i = 0; i < Vsock::kMostConnections; ++i) {
            programs.push_back(connect_to(path_));
            say(programs.back(), "CONNECT 1\n");
            ASSERT_EQ(receive_operation(), kRequest) << i;
        }
    }
    for (std::size_t i = 0; i < Vsock::kMostConnections; ++i) {
        ASSERT_EQ(receive_operation(), kReset) << i;
    }
    EXPECT_EQ(open_descriptors(), before);
    const UniqueFd program = begin_from_host(1);
}

TEST_F(VsockTest, TheGuestHearsNothingOfARequestThatItHadNoBufferFor) {
    ASSERT_TRUE(rig_.reset());
    by_head_.clear();
    ASSERT_TRUE(rig_.start());
    for (int i = 0; i < 300; ++i) {
        const UniqueFd program = connect_to(path_);
        say(program, "CONNECT 1\n");
        rig_.settle();
    }
    rig_.settle();
    offer_buffers(32);
    EXPECT_TRUE(is_quiet());
}

TEST_F(VsockTest, AGuestThatDoesNotAnswerIsNotWaitedForForEver) {
    const UniqueFd program = connect_to(path_);
    say(program, "CONNECT 1\n");
    ASSERT_EQ(receive_operation(), kRequest);
    now_ += Vsock::kAnswerTime - std::chrono::milliseconds{1};
    rig_.driver().ring(kFromGuest);
    EXPECT_TRUE(is_quiet());
    now_ += std::chrono::milliseconds{1};
    rig_.driver().ring(kFromGuest);
    EXPECT_EQ(receive_operation(), kReset);
    EXPECT_TRUE(is_closed(program));
}

TEST_F(VsockTest, AGuestThatAnswersHasAllTheTimeAfterwards) {
    const UniqueFd program = begin_from_host(1);
    now_ += 100 * (Vsock::kAnswerTime + Vsock::kGreetingTime + Vsock::kLeftTime);
    rig_.driver().ring(kFromGuest);
    EXPECT_TRUE(is_quiet());
    say(program, "x");
    EXPECT_EQ(receive()->bytes, "x");
}

TEST_F(VsockTest, AProgramThatDoesNotSayWhereIsClosedAfterAWhile) {
    const UniqueFd program = connect_to(path_);
    say(program, "CONN");
    rig_.settle();
    now_ += Vsock::kGreetingTime;
    rig_.driver().ring(kFromGuest);
    EXPECT_TRUE(is_closed(program));
}

TEST_F(VsockTest, AProgramForWhichThereIsNoRoomIsClosedAtOnce) {
    std::vector<UniqueFd> silent;
    for (std::size_t i = 0; i < Vsock::kMostGreetings; ++i) {
        silent.push_back(connect_to(path_));
        rig_.settle();
    }
    const UniqueFd one_more = connect_to(path_);
    EXPECT_TRUE(is_closed(one_more));
    silent.front().reset();
    rig_.settle();
    const UniqueFd program = begin_from_host(1);
}

TEST_F(VsockTest, NeitherSideTakesTheRoomOfTheOther) {
    std::vector<UniqueFd> programs;
    for (std::size_t i = 0; i < Vsock::kMostConnections; ++i) {
        programs.push_back(begin_from_host(static_cast<std::uint32_t>(i)));
    }
    const UniqueFd refused = connect_to(path_);
    say(refused, "CONNECT 1\n");
    EXPECT_TRUE(is_closed(refused));
    // The guest's own connections are counted separately, with the same limit.
    const UniqueFd listener = listen_at(path_ + "_80");
    for (std::size_t i = 0; i < Vsock::kMostConnections; ++i) {
        programs.push_back(begin_from_guest(listener, 1000 + static_cast<std::uint32_t>(i), 80));
    }
    send(from_guest(kRequest, 99, 80));
    EXPECT_EQ(receive_operation(), kReset);
    // A connection that ends makes room.
    programs.front().reset();
    EXPECT_EQ(receive_operation(), kShutdown);
    const UniqueFd program = begin_from_host(7);
}

/// The guest has no room for the program's data, and the program closes its connection.
void leave_behind(UniqueFd program, std::string_view text) {
    say(program, text);
}

TEST_F(VsockTest, WhatAProgramLeavesBehindWaitsForTheGuest) {
    UniqueFd program = begin_from_host(1);
    Header header = from_guest(kCreditUpdate, 1, host_port_);
    header.buffer_bytes = 0;
    send(header);
    leave_behind(std::move(program), "last words");
    EXPECT_TRUE(is_quiet());
    header.operation = kReadWrite;
    send(header, "for nobody");
    EXPECT_TRUE(is_quiet());
    send(from_guest(kCreditUpdate, 1, host_port_));
    EXPECT_EQ(receive()->bytes, "last words");
    const auto end = receive();
    ASSERT_TRUE(end);
    EXPECT_EQ(end->header.operation, kShutdown);
    EXPECT_EQ(end->header.flags, 3U);
    EXPECT_EQ(end->header.forwarded_bytes, 10U) << "the guest is not to wait for room";
}

TEST_F(VsockTest, WhatAProgramLeavesBehindIsNotKeptForEver) {
    const std::size_t before = open_descriptors();
    UniqueFd program = begin_from_host(1);
    Header header = from_guest(kCreditUpdate, 1, host_port_);
    header.buffer_bytes = 0;
    send(header);
    leave_behind(std::move(program), "last words");
    EXPECT_TRUE(is_quiet());
    now_ += Vsock::kLeftTime;
    rig_.driver().ring(kFromGuest);
    EXPECT_EQ(receive_operation(), kReset);
    EXPECT_EQ(open_descriptors(), before);
}

TEST_F(VsockTest, WhatProgramsLeftBehindMakesRoomForOthers) {
    for (std::size_t i = 0; i < Vsock::kMostConnections; ++i) {
        UniqueFd program = begin_from_host(static_cast<std::uint32_t>(i));
        Header header = from_guest(kCreditUpdate, static_cast<std::uint32_t>(i), host_port_);
        header.buffer_bytes = 0;
        send(header);
        leave_behind(std::move(program), "last words");
        rig_.settle();
        now_ += std::chrono::milliseconds{1};
    }
    const UniqueFd program = connect_to(path_);
    say(program, "CONNECT 1000\n");
    const auto reset = receive();
    ASSERT_TRUE(reset && reset->header.operation == kReset);
    EXPECT_EQ(reset->header.destination_port, 0U) << "the oldest one";
    EXPECT_EQ(receive_operation(), kRequest);
}

TEST_F(VsockTest, AProgramThatGoesAfterItsEndWasToldHoldsNothing) {
    const std::size_t before = open_descriptors();
    UniqueFd program = begin_from_host(1);
    ::shutdown(program.get(), SHUT_WR);
    const auto half = receive();
    ASSERT_TRUE(half && half->header.operation == kShutdown);
    EXPECT_EQ(half->header.flags, 2U);
    program.reset(); // the guest answers none of that
    const auto whole = receive();
    ASSERT_TRUE(whole && whole->header.operation == kShutdown);
    EXPECT_EQ(whole->header.flags, 3U);
    EXPECT_EQ(open_descriptors(), before);
}

TEST_F(VsockTest, AProgramThatNeverAcceptsAndLeavesIsNoticed) {
    UniqueFd listener = listen_at(path_ + "_80");
    send(from_guest(kRequest, 7, 80));
    EXPECT_EQ(receive_operation(), kResponse);
    Header header = from_guest(kCreditUpdate, 7, 80);
    header.buffer_bytes = 0; // the guest reads nothing, either
    send(header);
    listener.reset();
    EXPECT_EQ(receive_operation(), kShutdown);
}

TEST_F(VsockTest, OneProgramThatSaysMuchDoesNotKeepOthersFromTheGuest) {
    const UniqueFd loud = begin_from_host(1);
    const std::uint32_t loud_port = host_port_;
    const UniqueFd quiet = begin_from_host(2);
    say(loud, std::string(kGuestRoom, 'x'));
    say(quiet, "x");
    bool heard_quiet = false;
    for (int packets = 0; packets < 20 && !heard_quiet; ++packets) { // 4052 bytes each: 17 packets of the loud program
        const auto packet = receive();
        ASSERT_TRUE(packet);
        heard_quiet = packet->header.source_port != loud_port;
    }
    EXPECT_TRUE(heard_quiet);
}

TEST_F(VsockTest, AProgramIsClosedWhereNoDescriptorIsLeft) {
    const UniqueFd program = stream_socket();
    rlimit before{};
    ASSERT_EQ(::getrlimit(RLIMIT_NOFILE, &before), 0);
    const UniqueFd next(::dup(program.get()));
    const rlimit none{static_cast<rlim_t>(next.get()), before.rlim_max};
    ASSERT_EQ(::setrlimit(RLIMIT_NOFILE, &none), 0);
    const sockaddr_un address = address_of(path_);
    EXPECT_EQ(::connect(program.get(), reinterpret_cast<const sockaddr*>(&address), sizeof(address)), 0);
    EXPECT_TRUE(is_closed(program));
    ASSERT_EQ(::setrlimit(RLIMIT_NOFILE, &before), 0);
    const UniqueFd again = begin_from_host(1);
}

class VsockHostile : public ::testing::TestWithParam<HostileCase> {};

void ask_for_credit(VirtioRig& rig) {
    Header header;
    header.operation = kCreditRequest;
    const GuestAddress at = rig.allocate(kHeaderBytes);
    EXPECT_TRUE(rig.memory().copy_in(at, std::as_bytes(std::span(&header, 1)).first(kHeaderBytes)));
    rig.queue(1).add({{at, kHeaderBytes}});
}
bool is_told_that_nobody_is_there(VirtioRig& rig) {
    rig.queue(0).add({{rig.allocate(4096), 4096, kWritable}});
    ask_for_credit(rig);
    rig.ring(0);
    rig.ring(1);
    const auto used = rig.wait_for_used(0);
    return used && used->length == kHeaderBytes;
}

TEST_P(VsockHostile, DriverIsAnsweredAndNothingElseIsTouched) {
    const TemporaryDirectory directory;
    run_hostile_case(GetParam(),
                     {.make =
                          [&] {
                              return std::make_unique<Vsock>("vsock0", VsockConfig{kGuestCid, directory / "v"});
                          },
                      .queue = 1,
                      .looks_at_once = true,
                      .request = ask_for_credit,
                      .works = is_told_that_nobody_is_there});
}

// Programs wait for the guest, so that the device looks at the queue to it.
TEST_P(VsockHostile, DriverOfTheQueueToTheGuestIsAnsweredAndNothingElseIsTouched) {
    const TemporaryDirectory directory;
    std::vector<UniqueFd> programs;
    const auto make = [&] {
        auto vsock = std::make_unique<Vsock>("vsock0", VsockConfig{kGuestCid, directory / "v"});
        for (int i = 0; i < 20; ++i) {
            programs.push_back(connect_to(directory / "v"));
            say(programs.back(), "CONNECT 1\n");
        }
        return vsock;
    };
    run_hostile_case(GetParam(), {.make = make,
                                  .queue = 0,
                                  .looks_at_once = false,
                                  .request =
                                      [](VirtioRig& rig) {
                                          rig.queue(0).add({{rig.allocate(64), 64, kWritable}});
                                      },
                                  .works = is_told_that_nobody_is_there});
}

INSTANTIATE_TEST_SUITE_P(Every, VsockHostile, ::testing::ValuesIn(hostile_cases()), hostile_case_name);

// 5.10.6.4.2: "guest_cid configuration field MUST NOT contain a reserved CID" (5.10.4).
TEST(VsockSocket, IsNotMadeForAReservedCid) {
    const TemporaryDirectory directory;
    for (const std::uint32_t cid : {0U, 1U, 2U, UINT32_MAX}) {
        EXPECT_TRUE(mentions(error_of([&] {
                                 const Vsock vsock("vsock0", {cid, directory / "v"});
                             }),
                             "are for guests"))
            << cid;
    }
}

TEST(VsockSocket, ThatCannotBeMadeNamesThePath) {
    const TemporaryDirectory directory;
    const std::string path = directory.path().string() + "/v";
    const auto make = [](const std::string& at, std::uint32_t cid = 3) {
        return error_of([&] { const Vsock vsock("vsock0", {cid, at}); });
    };
    EXPECT_TRUE(mentions(make(directory.path().string() + "/none/v"), "/none/v"));
    EXPECT_TRUE(mentions(make(""), "1 to 96 bytes"));
    EXPECT_TRUE(mentions(make("/" + std::string(120, 'x')), "1 to 96 bytes"));
    EXPECT_TRUE(mentions(make(path, 2), "CID 2"));
    {
        const Vsock first("vsock0", {3, path});
        EXPECT_TRUE(mentions(make(path), "another process uses it"));
    }
    EXPECT_NE(::access(path.c_str(), F_OK), 0) << "the socket goes with the device";
    EXPECT_EQ(make(path), "");
}

TEST(VsockSocket, IsNotMadeWhereTheGuestOfAnotherOneCouldConnectTo) {
    const TemporaryDirectory directory;
    for (const char* const name : {"v_1", "v_0", "v_1024", "v_4294967295", "_7", "v_1_2", "v_99999999999"}) {
        const std::string error = error_of([&] { const Vsock vsock("vsock0", {3, directory / name}); });
        EXPECT_TRUE(mentions(error, "take another name")) << name << ": " << error;
        EXPECT_NE(::access((directory / name).c_str(), F_OK), 0);
    }
    for (const char* const name : {"v", "v1", "v_", "v_1.sock", "1", "v_a1", "v-1"}) {
        EXPECT_EQ(error_of([&] { const Vsock vsock("vsock0", {3, directory / name}); }), "") << name;
    }
    EXPECT_TRUE(mentions(error_of([&] { virtio::check_vsock_path(std::string("a\0b", 3)); }), "a byte of zero"));
}

/// A socket file without a listener, as after SIGKILL.
void leave_socket(const std::string& path) {
    static_cast<void>(listen_at(path));
    ASSERT_EQ(::access(path.c_str(), F_OK), 0);
}

TEST(VsockSocket, LeftBehindByAKilledProcessIsReplaced) {
    const TemporaryDirectory directory;
    const std::string path = directory / "v";
    leave_socket(path);
    std::vector<std::string> said;
    const VsockConfig config{.path = path, .warn = [&said](const std::string& line) { said.push_back(line); }};
    {
        const Vsock vsock("vsock0", config);
        EXPECT_TRUE(connect_to(path)) << "somebody listens now";
        ASSERT_EQ(said.size(), 1U);
        EXPECT_TRUE(mentions(said.front(), path)) << said.front();
        EXPECT_TRUE(mentions(error_of([&] { const Vsock second("vsock1", config); }), "another process uses it"));
        EXPECT_TRUE(connect_to(path)) << "the first one's is still there";
    }
    EXPECT_NE(::access(path.c_str(), F_OK), 0);
    EXPECT_EQ(said.size(), 1U);
}

TEST(VsockSocket, ThatIsInUseIsNeverReplaced) {
    const TemporaryDirectory directory;
    const std::string path = directory / "v";
    UniqueFd fd(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
    const sockaddr_un address = address_of(path);
    ASSERT_EQ(::bind(fd.get(), reinterpret_cast<const sockaddr*>(&address), sizeof(address)), 0);
    ASSERT_EQ(::listen(fd.get(), 0), 0);
    std::vector<UniqueFd> waiting; // until its queue is full, like that of a stopped process
    for (bool full = false; !full;) {
        waiting.push_back(stream_socket());
        full = ::connect(waiting.back().get(), reinterpret_cast<const sockaddr*>(&address), sizeof(address)) != 0;
    }
    EXPECT_TRUE(mentions(error_of([&] { const Vsock vsock("vsock0", {3, path}); }), "another process uses it"));
    EXPECT_EQ(::access(path.c_str(), F_OK), 0);
}

TEST(VsockSocket, FilesThatAreNoSocketOfOursStay) {
    const TemporaryDirectory directory;
    const auto make = [](const std::string& path) { return error_of([&] { const Vsock vsock("vsock0", {3, path}); }); };
    const std::string file = directory.write("file", "precious");
    EXPECT_TRUE(mentions(make(file), "no socket")) << make(file);
    EXPECT_EQ(vmm::testing::content_of(file), "precious");
    leave_socket(directory / "stale");
    const std::string link = directory / "link";
    ASSERT_EQ(::symlink((directory / "stale").c_str(), link.c_str()), 0);
    EXPECT_TRUE(mentions(make(link), "no socket")) << make(link);
    EXPECT_EQ(::access((directory / "stale").c_str(), F_OK), 0);
    const std::string datagrams = directory / "datagrams";
    {
        const UniqueFd other(::socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0));
        const sockaddr_un address = address_of(datagrams);
        ASSERT_EQ(::bind(other.get(), reinterpret_cast<const sockaddr*>(&address), sizeof(address)), 0);
        EXPECT_NE(make(datagrams), "");
        EXPECT_EQ(::access(datagrams.c_str(), F_OK), 0);
    }
    if (::geteuid() == 0) { // Only root can make it look like another user's.
        const std::string others = directory / "others";
        leave_socket(others);
        ASSERT_EQ(::chown(others.c_str(), 12345, 12345), 0);
        EXPECT_TRUE(mentions(make(others), "another user's")) << make(others);
        EXPECT_EQ(::access(others.c_str(), F_OK), 0);
    }
}

TEST(VsockSocket, ThatWasReplacedByAnotherIsLeftAlone) {
    const TemporaryDirectory directory;
    const std::string path = directory / "v";
    UniqueFd another;
    {
        const Vsock vsock("vsock0", {3, path});
        ASSERT_EQ(::unlink(path.c_str()), 0);
        another = listen_at(path);
    }
    EXPECT_TRUE(connect_to(path));
}

TEST(VsockSocket, OfManyProcessesThatFindOneLeftBehindExactlyOneHasIt) {
    const TemporaryDirectory directory;
    const std::string path = directory / "v";
    for (int round = 0; round < 20; ++round) {
        leave_socket(path);
        constexpr int kProcesses = 8;
        const vmm::testing::Pipe made;
        const vmm::testing::Pipe end;
        std::vector<pid_t> children;
        for (int i = 0; i < kProcesses; ++i) {
            const pid_t child = ::fork();
            if (child == 0) {
                try {
                    const Vsock vsock("vsock0", {3, path});
                    static_cast<void>(::write(made.writer.get(), "+", 1));
                    char byte = 0; // until all have tried
                    static_cast<void>(::read(end.reader.get(), &byte, 1));
                } catch (const Error&) {
                    static_cast<void>(::write(made.writer.get(), "-", 1));
                }
                ::_exit(0);
            }
            children.push_back(child);
        }
        std::string results;
        while (results.size() < kProcesses) {
            std::array<char, kProcesses> piece{};
            const ssize_t count = ::read(made.reader.get(), piece.data(), piece.size());
            ASSERT_GT(count, 0);
            results.append(piece.data(), static_cast<std::size_t>(count));
        }
        EXPECT_EQ(std::count(results.begin(), results.end(), '+'), 1) << results;
        ASSERT_EQ(::write(end.writer.get(), "e", 1), 1);
        for (const pid_t child : children) {
            ASSERT_EQ(::waitpid(child, nullptr, 0), child);
        }
        ::unlink(path.c_str());
    }
}

} // namespace
} // namespace vmm::devices::testing
