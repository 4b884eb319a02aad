// IncomingGuest with handmade sources, good and bad ones.

#include "vmm/migration/incoming_guest.hpp"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <future>
#include <memory>
#include <mutex>
#include <optional>
#include <stop_token>
#include <string>
#include <utility>
#include <vector>

#include "kvm/host/stoppable_read.hpp"
#include "support/host_errors.hpp"
#include "support/host_temporary_directory.hpp"
#include "support/host_waiting.hpp"
#include "support/vmm_full_state.hpp"
#include "support/vmm_migration_ends.hpp"
#include "vmm/migration.hpp"
#include "vmm/state/state_file.hpp"

namespace vmm {
namespace {

using testing::error_of;
using testing::eventually;
using testing::FullState;
using testing::kPatience;
using testing::mentions;
using testing::message_header;

const std::vector<std::byte>& arriving_state() {
    static const std::vector<std::byte> kBytes = encode_state(FullState::make());
    return kBytes;
}

/// A file in memory; empty if it cannot be made.
UniqueFd memory_file(std::uint64_t bytes, unsigned flags, int seals) {
    UniqueFd file(::memfd_create("guest", MFD_CLOEXEC | flags));
    if (file && (::ftruncate(file.get(), static_cast<off_t>(bytes)) != 0 ||
                 (seals != 0 && ::fcntl(file.get(), F_ADD_SEALS, seals) != 0))) {
        file.reset();
    }
    return file;
}
UniqueFd sealed_file(std::uint64_t bytes) {
    return memory_file(bytes, MFD_ALLOW_SEALING, F_SEAL_SHRINK);
}

class MigrationIncomingGuest : public ::testing::Test {
  protected:
    MigrationIncomingGuest() {
        guest_.emplace(
            IncomingGuest::Options{.address = {.kind = MigrationAddress::Kind::kUnix, .path = directory_ / "guest"}},
            [this](LogLevel, std::string_view line) {
                const std::lock_guard hold(lock_);
                said_ += line;
                said_ += '\n';
            });
        waiting_ = std::async(std::launch::async, [this] { guest_->wait(stop_.get_token()); });
    }
    ~MigrationIncomingGuest() override {
        stop_.request_stop();
        if (waiting_.valid()) {
            waiting_.wait();
        }
    }

    std::unique_ptr<Channel> connect() const {
        auto channel = connect_channel(guest_->address(), {}, -1, kPatience);
        channel->set_patience(kPatience);
        return channel;
    }
    std::unique_ptr<Channel> connect_and_say(const Hello& hello) const {
        auto channel = connect();
        send_message(*channel, MessageType::kHello, encode(hello));
        return channel;
    }
    /// A source that was accepted.
    std::unique_ptr<Channel> welcomed(const Hello& hello) const {
        auto channel = connect_and_say(hello);
        EXPECT_EQ(receive_message(*channel).type, MessageType::kWelcome);
        return channel;
    }
    /// The destination's message against it; "" if it says something else.
    static std::string refusal(Channel& channel) {
        const Message message = receive_message(channel);
        return message.type == MessageType::kRefused ? decode<Why>(message).text : "";
    }
    /// True if a guest that is allowed to come arrives now.
    void expect_next_arrives(const Hello& hello = {.config = "{}"}) {
        const auto source = welcomed(hello);
        send_message(*source, MessageType::kFirstState, arriving_state());
        ASSERT_EQ(waiting_.wait_for(kPatience), std::future_status::ready);
        waiting_.get();
        EXPECT_EQ(guest_->config(), hello.config);
        EXPECT_FALSE(guest_->hands_memory_over());
        EXPECT_EQ(guest_->impl().announced.first_state.machine.vcpus.size(), 2U);
    }
    bool is_said(const std::string& what) const {
        return eventually([&] {
            const std::lock_guard hold(lock_);
            return mentions(said_, what);
        });
    }

    testing::TemporaryDirectory directory_;
    mutable std::mutex lock_;
    std::string said_;
    std::optional<IncomingGuest> guest_;
    std::stop_source stop_;
    std::future<void> waiting_;
};

TEST_F(MigrationIncomingGuest, ArrivesWithWhatItSays) {
    EXPECT_THROW(static_cast<void>(guest_->config()), UsageError);
    expect_next_arrives({.streams = 3, .config = "{\"memory\": 1}", .vmm_version = "9.9"});
    EXPECT_EQ(guest_->impl().announced.hello.streams, 3U);
}

TEST_F(MigrationIncomingGuest, GarbageIsSentAwayAndTheNextCanCome) {
    const auto other = connect();
    other->send(std::as_bytes(std::span(std::string_view("SSH-2.0-OpenSSH_9.2p1 Debian-2\r\n"))));
    EXPECT_TRUE(is_said("is no migration"));
    expect_next_arrives();
}

TEST_F(MigrationIncomingGuest, WhatBelongsToAnotherMigrationIsRefused) {
    const auto stream = connect();
    send_message(*stream, MessageType::kStream, encode(Stream{}));
    EXPECT_TRUE(mentions(refusal(*stream), "of which nothing is known here"));
    const auto resume = connect();
    send_message(*resume, MessageType::kResume, encode(Resume{}));
    EXPECT_TRUE(mentions(refusal(*resume), "of which nothing is known here"));
    expect_next_arrives();
}

TEST_F(MigrationIncomingGuest, AGuestThatIsNotKnownWasNotTaken) {
    const auto source = connect();
    send_message(*source, MessageType::kQuestion, encode(Question{}));
    const Message answer = receive_message(*source);
    ASSERT_EQ(answer.type, MessageType::kAnswer);
    EXPECT_FALSE(decode<Answer>(answer).is_taken);
    expect_next_arrives();
}

TEST_F(MigrationIncomingGuest, VersionsThatAreTooOldOrTooNewAreRefused) {
    for (const auto& [oldest, newest] : {std::pair{0U, kOldestProtocol - 1},
                                         std::pair{kNewestProtocol + 1, 0xffffffffU}, std::pair{0xffffffffU, 0U}}) {
        const auto source = connect_and_say({.oldest_protocol = oldest, .newest_protocol = newest});
        EXPECT_TRUE(mentions(refusal(*source), "use versions of vmm that are next to each other"));
    }
    expect_next_arrives({.oldest_protocol = kNewestProtocol, .newest_protocol = 99});
}

TEST_F(MigrationIncomingGuest, TheVersionThatBothSpeakIsWhatItIsWelcomedWith) {
    const auto source = connect_and_say({.oldest_protocol = 0, .newest_protocol = 0xffffffff});
    EXPECT_EQ(decode<Welcome>(receive_message(*source)).protocol, kNewestProtocol);
    source->shut_down();
    expect_next_arrives();
}

TEST_F(MigrationIncomingGuest, AHelloThatCannotBeIsRefused) {
    const auto empty = connect();
    send_message(*empty, MessageType::kHello);
    EXPECT_NE(refusal(*empty), "");
    const auto garbage = connect();
    send_message(*garbage, MessageType::kHello, std::vector<std::byte>(1000, std::byte{0x9f}));
    EXPECT_NE(refusal(*garbage), "");
    expect_next_arrives();
}

TEST_F(MigrationIncomingGuest, SomethingElseInsteadOfAStateIsRefused) {
    const auto source = welcomed({});
    send_message(*source, MessageType::kCommit);
    EXPECT_TRUE(mentions(refusal(*source), "does not say what the machine looks like"));
    const auto aborted = welcomed({});
    send_message(*aborted, MessageType::kAbort, encode(Why{"no"}));
    EXPECT_NE(refusal(*aborted), "");
    expect_next_arrives();
}

TEST_F(MigrationIncomingGuest, ASourceThatGoesIsForgotten) {
    welcomed({}).reset();
    connect_and_say({}).reset();
    const auto half = welcomed({});
    half->send(message_header(static_cast<std::uint32_t>(MessageType::kFirstState), 1'000'000, 0));
    half->send(std::vector<std::byte>(1000));
    half->shut_down();
    expect_next_arrives();
}

TEST_F(MigrationIncomingGuest, AStateThatIsDamagedIsRefused) {
    std::vector<std::byte> damaged = arriving_state();
    damaged[damaged.size() / 2] ^= std::byte{1};
    const auto source = welcomed({});
    send_message(*source, MessageType::kFirstState, damaged);
    EXPECT_NE(refusal(*source), "");

    const auto empty = welcomed({});
    send_message(*empty, MessageType::kFirstState);
    EXPECT_NE(refusal(*empty), "");

    SnapshotState without_vcpus = FullState::make();
    without_vcpus.machine.vcpus.clear();
    const std::string said = error_of([&] { return encode_state(without_vcpus); });
    if (said.empty()) { // a state may have this, but a machine may not
        const auto nobody = welcomed({});
        send_message(*nobody, MessageType::kFirstState, encode_state(without_vcpus));
        EXPECT_TRUE(mentions(refusal(*nobody), "has no vCPU"));
    }
    expect_next_arrives();
}

TEST_F(MigrationIncomingGuest, AStateThatIsTooLargeIsRefusedBeforeItComes) {
    const auto source = welcomed({});
    source->send(message_header(static_cast<std::uint32_t>(MessageType::kFirstState),
                                static_cast<std::uint32_t>(kMostStateBytes + 1), 0));
    EXPECT_TRUE(mentions(refusal(*source), "message of type 16"));
    expect_next_arrives();
}

TEST_F(MigrationIncomingGuest, AStopEndsTheWait) {
    stop_.request_stop();
    EXPECT_THROW(waiting_.get(), StoppedError);
}

TEST_F(MigrationIncomingGuest, AStopEndsTheWaitForASourceThatIsSilent) {
    const auto source = welcomed({});
    source->send(message_header(static_cast<std::uint32_t>(MessageType::kFirstState), 1'000'000, 0));
    source->send(std::vector<std::byte>(1000));
    stop_.request_stop();
    EXPECT_THROW(waiting_.get(), StoppedError);
}

TEST_F(MigrationIncomingGuest, OneThatIsRefusedLaterHearsWhyAndTheNextCanCome) {
    const auto source = welcomed({.config = "{}"});
    send_message(*source, MessageType::kFirstState, arriving_state());
    ASSERT_EQ(waiting_.wait_for(kPatience), std::future_status::ready);
    waiting_.get();
    guest_->refuse("its machine has another disk");
    EXPECT_EQ(refusal(*source), "its machine has another disk");
    EXPECT_THROW(static_cast<void>(guest_->config()), UsageError);
    waiting_ = std::async(std::launch::async, [this] { guest_->wait(stop_.get_token()); });
    expect_next_arrives();
}

TEST_F(MigrationIncomingGuest, NobodyCanBeWaitedForWhereNobodyListensAnyMore) {
    expect_next_arrives();
    guest_->refuse("no");
    guest_->impl().reception.reset();
    EXPECT_THROW(guest_->wait(), UsageError);
}

/// A guest whose memory comes as files, for the ranges in FullState.
class MigrationSharedMemory : public MigrationIncomingGuest {
  protected:
    static constexpr GuestRange kLow{GuestAddress{0}, 5 * kMiB};
    static constexpr GuestRange kHigh{GuestAddress{4 * kGiB}, 2 * kMiB};

    /// A source that describes its memory, and sends the files, if there are any.
    std::unique_ptr<Channel> hand_over(const SharedMemory& memory, const std::vector<int>& files) const {
        auto source = welcomed({.shares_memory = true, .config = "{}"});
        send_message(*source, MessageType::kFirstState, arriving_state());
        send_message(*source, MessageType::kMemory, encode(memory));
        if (!files.empty()) {
            source->send_descriptors(files);
        }
        return source;
    }
    void expect_refused(const SharedMemory& memory, const std::vector<int>& files, const std::string& why) {
        const auto source = hand_over(memory, files);
        const std::string said = refusal(*source);
        EXPECT_TRUE(mentions(said, why)) << said;
    }

    UniqueFd low_ = sealed_file(kLow.size);
    UniqueFd high_ = sealed_file(kHigh.size);
    SharedMemory memory_{{{kLow, 0, 0}, {kHigh, 0, 1}}};
};

TEST_F(MigrationSharedMemory, ArrivesWithItsFiles) {
    const auto source = hand_over(memory_, {low_.get(), high_.get()});
    ASSERT_EQ(waiting_.wait_for(kPatience), std::future_status::ready);
    waiting_.get();
    EXPECT_TRUE(guest_->hands_memory_over());
    const auto& announced = guest_->impl().announced;
    ASSERT_EQ(announced.files.size(), 2U);
    EXPECT_EQ(::lseek(announced.files[1].get(), 0, SEEK_END), static_cast<off_t>(kHigh.size));
    ASSERT_EQ(announced.shared_memory.files.size(), 2U);
    EXPECT_EQ(announced.shared_memory.files[0].range, kLow);
}

TEST_F(MigrationSharedMemory, OneFileMayBeSeveralPieces) {
    const UniqueFd both = sealed_file(kLow.size + kHigh.size);
    const UniqueFd other = sealed_file(0);
    const auto source =
        hand_over({{{kHigh, 0, 0}, {kLow, kHigh.size, 0}}}, {both.get(), other.get()}); // each descriptor is counted
    ASSERT_EQ(waiting_.wait_for(kPatience), std::future_status::ready);
    waiting_.get();
    EXPECT_TRUE(guest_->hands_memory_over());
}

TEST_F(MigrationSharedMemory, WithoutDescriptorsItIsRefused) {
    const auto source = hand_over(memory_, {});
    source->send(std::array<std::byte, 1>{});
    EXPECT_TRUE(mentions(refusal(*source), "another number of pieces"));
    const auto other = hand_over(memory_, {});
    other->send(std::array{std::byte{7}});
    EXPECT_TRUE(mentions(refusal(*other), "something else has come"));
    hand_over(memory_, {}).reset();
    expect_next_arrives();
}

TEST_F(MigrationSharedMemory, AnotherNumberOfFilesIsRefused) {
    expect_refused(memory_, {low_.get()}, "another number of pieces");
    expect_refused(memory_, {low_.get(), high_.get(), high_.get()}, "another number of pieces");
    expect_refused({{{kLow, 0, 0}}}, {low_.get()}, "another number of pieces");
    expect_next_arrives();
}

TEST_F(MigrationSharedMemory, MoreDescriptorsThanAreTakenAreRefused) {
    expect_refused(memory_, std::vector<int>(64, low_.get()), "another number of pieces");
    expect_next_arrives();
}

TEST_F(MigrationSharedMemory, FilesThatCouldShrinkAreRefused) {
    const UniqueFd unsealed = memory_file(kHigh.size, MFD_ALLOW_SEALING, 0);
    expect_refused(memory_, {low_.get(), unsealed.get()}, "no sealed file in memory");
    const UniqueFd grows = memory_file(kHigh.size, MFD_ALLOW_SEALING, F_SEAL_GROW | F_SEAL_SEAL);
    expect_refused(memory_, {low_.get(), grows.get()}, "no sealed file in memory");
    const UniqueFd ordinary(::open(directory_.path().c_str(), O_TMPFILE | O_RDWR | O_CLOEXEC, 0600));
    if (ordinary && ::ftruncate(ordinary.get(), static_cast<off_t>(kHigh.size)) == 0) {
        expect_refused(memory_, {low_.get(), ordinary.get()}, "no sealed file in memory");
    }
    const UniqueFd null(::open("/dev/null", O_RDWR | O_CLOEXEC));
    expect_refused(memory_, {low_.get(), null.get()}, "no sealed file in memory");
    expect_next_arrives();
}

TEST_F(MigrationSharedMemory, FilesThatAreTooShortAreRefused) {
    const UniqueFd less = sealed_file(kHigh.size - 1);
    expect_refused(memory_, {low_.get(), less.get()}, "shorter than it");
    for (const std::uint64_t offset : {std::uint64_t{1}, kHigh.size, kHigh.size + 1, ~std::uint64_t{0},
                                       ~std::uint64_t{0} - kHigh.size + 1, std::uint64_t{1} << 63U}) {
        expect_refused({{{kLow, 0, 0}, {kHigh, offset, 1}}}, {low_.get(), high_.get()}, "shorter than it");
    }
    expect_next_arrives();
}

TEST_F(MigrationSharedMemory, RangesThatAreNotTheGuestsAreRefused) {
    for (const GuestRange range :
         {GuestRange{GuestAddress{4 * kGiB + 4096}, kHigh.size}, GuestRange{GuestAddress{4 * kGiB}, kHigh.size - 4096},
          GuestRange{GuestAddress{0}, ~std::uint64_t{0}}, GuestRange{GuestAddress{0}, 0}}) {
        expect_refused({{{kLow, 0, 0}, {range, 0, 1}}}, {low_.get(), high_.get()}, "the guest has no memory at");
    }
    expect_next_arrives();
}

TEST_F(MigrationSharedMemory, APieceThatComesTwiceIsRefused) {
    expect_refused({{{kHigh, 0, 0}, {kHigh, 0, 1}}}, {low_.get(), high_.get()}, "comes twice");
    expect_next_arrives();
}

TEST_F(MigrationSharedMemory, ADescriptorThatThereIsNotIsRefused) {
    expect_refused({{{kLow, 0, 0}, {kHigh, 0, 2}}}, {low_.get(), high_.get()}, "a file is missing");
    expect_refused({{{kLow, 0, 15}, {kHigh, 0, 0}}}, {low_.get(), high_.get()}, "a file is missing");
    expect_next_arrives();
}

TEST_F(MigrationSharedMemory, SomethingElseInsteadOfMemoryIsRefused) {
    const auto source = welcomed({.shares_memory = true});
    send_message(*source, MessageType::kFirstState, arriving_state());
    send_message(*source, MessageType::kLastState, encode(LastState{arriving_state(), false}));
    EXPECT_TRUE(mentions(refusal(*source), "does not hand its memory over"));
    expect_next_arrives();
}

} // namespace
} // namespace vmm
