#include "vmm/migration/messages.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string>
#include <utility>
#include <vector>

#include <nlohmann/json.hpp>

#include "support/host_errors.hpp"
#include "support/host_waiting.hpp"
#include "support/vmm_migration_ends.hpp"
#include "vmm/state/cbor.hpp"
#include "vmm/state/snapshot_files.hpp"
#include "vmm/state/state_file.hpp"

namespace vmm {
namespace {

using testing::ChannelEnds;
using testing::error_of;
using testing::kPatience;
using testing::mentions;
using testing::message_header;

SessionId numbered_session() {
    SessionId session{};
    for (std::size_t i = 0; i < session.size(); ++i) {
        session[i] = static_cast<std::byte>(i + 1);
    }
    return session;
}

/// `value` as the other end gets it: encoded and decoded. The type does not matter to decode().
template <typename Body>
Body there_and_back(const Body& value) {
    return decode<Body>({MessageType::kHello, encode(value)});
}

/// The message about `body` after `change` has changed its members.
template <typename Body, typename Change>
std::string refusal_of_body(const Body& body, const Change& change) {
    CborValue members = from_cbor(encode(body), "a test");
    change(members);
    return error_of([&] { return decode<Body>({MessageType::kHello, to_cbor(members)}); });
}

TEST(MigrationMessage, ABodyIsTheSameAtTheOtherEnd) {
    const Hello hello = there_and_back(Hello{.oldest_protocol = 3,
                                             .newest_protocol = 70000,
                                             .session = numbered_session(),
                                             .streams = 16,
                                             .shares_memory = true,
                                             .may_post_copy = true,
                                             .config = "{\"a\": \"\xff\n\"}",
                                             .vmm_version = "1.2.3"});
    EXPECT_EQ(hello.oldest_protocol, 3U);
    EXPECT_EQ(hello.newest_protocol, 70000U);
    EXPECT_EQ(hello.session, numbered_session());
    EXPECT_EQ(hello.streams, 16U);
    EXPECT_TRUE(hello.shares_memory);
    EXPECT_TRUE(hello.may_post_copy);
    EXPECT_EQ(hello.config, "{\"a\": \"\xff\n\"}");
    EXPECT_EQ(hello.vmm_version, "1.2.3");

    const Stream stream = there_and_back(Stream{numbered_session(), 15, 0xffffffff});
    EXPECT_EQ(stream.session, numbered_session());
    EXPECT_EQ(stream.index, 15U);
    EXPECT_EQ(stream.attempt, 0xffffffffU);
    EXPECT_EQ(there_and_back(Resume{numbered_session()}).session, numbered_session());
    EXPECT_EQ(there_and_back(Question{numbered_session()}).session, numbered_session());
    EXPECT_EQ(there_and_back(Welcome{7}).protocol, 7U);
    EXPECT_EQ(there_and_back(Resumed{{1}, 7}).attempt, 7U);
    EXPECT_EQ(there_and_back(Resumed{{1}, std::nullopt}).attempt, std::nullopt);
    EXPECT_EQ(there_and_back(Resumed{{1, ~std::uint64_t{0}, 0}, 1}).applied_frames,
              (std::vector<std::uint64_t>{1, ~std::uint64_t{0}, 0}));
    const Round round = there_and_back(Round{~std::uint64_t{0}, true});
    EXPECT_EQ(round.number, ~std::uint64_t{0});
    EXPECT_TRUE(round.is_full);
    const Prepared prepared = there_and_back(Prepared{123, 1.5});
    EXPECT_EQ(prepared.mapped_bytes, 123U);
    EXPECT_EQ(prepared.fill_seconds, 1.5);
    EXPECT_EQ(there_and_back(Prepared{0, -1}).fill_seconds, 0);
    EXPECT_TRUE(there_and_back(Answer{true}).is_taken);
    const LastState last = there_and_back(LastState{{std::byte{7}, std::byte{9}}, true});
    EXPECT_EQ(last.state, (std::vector{std::byte{7}, std::byte{9}}));
    EXPECT_TRUE(last.is_paused);
    EXPECT_EQ(there_and_back(Serve{numbered_session(), 16}).session, numbered_session());
    EXPECT_EQ(there_and_back(Serve{numbered_session(), 16}).index, 16U);
    const PostCopy post_copy = there_and_back(PostCopy{17, {std::byte{1}, std::byte{0x80}}});
    EXPECT_EQ(post_copy.connections, 17U);
    EXPECT_EQ(post_copy.absent_chunks, (std::vector{std::byte{1}, std::byte{0x80}}));
    EXPECT_EQ(there_and_back(Why{"it failed (try again)"}).text, "it failed (try again)");

    const SharedMemory memory = there_and_back(
        SharedMemory{{{{GuestAddress{0}, 4096}, 5, 15}, {{GuestAddress{~std::uint64_t{0}}, ~std::uint64_t{0}}, 0, 0}}});
    ASSERT_EQ(memory.files.size(), 2U);
    EXPECT_EQ(memory.files[0].range, (GuestRange{GuestAddress{0}, 4096}));
    EXPECT_EQ(memory.files[0].file_offset, 5U);
    EXPECT_EQ(memory.files[0].descriptor, 15U);
    EXPECT_EQ(memory.files[1].range, (GuestRange{GuestAddress{~std::uint64_t{0}}, ~std::uint64_t{0}}));
}

TEST(MigrationMessage, WhatANewerVersionAddsIsIgnored) {
    EXPECT_EQ(refusal_of_body(Hello{}, [](CborValue& hello) { hello["compression"] = "lz9"; }), "");
    EXPECT_EQ(refusal_of_body(Answer{}, [](CborValue& answer) { answer["why"] = CborValue::array({1, 2}); }), "");
}

TEST(MigrationMessage, ABodyThatCannotBeIsRefused) {
    const auto set = [](const char* name, CborValue value) {
        return [name, value = std::move(value)](CborValue& members) { members[name] = value; };
    };
    const auto erase = [](const char* name) { return [name](CborValue& members) { members.erase(name); }; };
    const Hello hello;
    for (const char* name : {"oldest_protocol", "newest_protocol", "session", "streams", "shares_memory", "config"}) {
        EXPECT_TRUE(mentions(refusal_of_body(hello, erase(name)), name)) << name;
        EXPECT_TRUE(mentions(refusal_of_body(hello, set(name, CborValue::array())), name)) << name;
    }
    EXPECT_TRUE(mentions(refusal_of_body(hello, set("streams", 0)), "streams"));
    EXPECT_TRUE(mentions(refusal_of_body(hello, set("streams", 17)), "streams"));
    EXPECT_TRUE(mentions(refusal_of_body(hello, set("streams", -1)), "streams"));
    EXPECT_TRUE(mentions(refusal_of_body(hello, set("newest_protocol", std::uint64_t{1} << 32U)), "newest_protocol"));
    for (const std::size_t bytes : {0U, 15U, 17U}) {
        EXPECT_TRUE(mentions(
            refusal_of_body(hello, set("session", CborValue::binary(std::vector<std::uint8_t>(bytes)))), "session"));
    }
    EXPECT_TRUE(mentions(refusal_of_body(Stream{}, set("index", 16)), "index"));
    EXPECT_TRUE(mentions(refusal_of_body(Serve{}, set("index", 17)), "index"));
    const PostCopy post_copy{2, {std::byte{1}}};
    EXPECT_TRUE(mentions(refusal_of_body(post_copy, set("connections", 1)), "connections"));
    EXPECT_TRUE(mentions(refusal_of_body(post_copy, set("connections", 18)), "connections"));
    EXPECT_TRUE(mentions(refusal_of_body(post_copy, set("absent_chunks", CborValue::binary({}))), "absent_chunks"));
    EXPECT_TRUE(
        mentions(refusal_of_body(Resumed{{1}, 1}, set("applied_frames", CborValue::array())), "applied_frames"));
    EXPECT_TRUE(
        mentions(refusal_of_body(Resumed{{1}, 1}, set("applied_frames", CborValue::array({CborValue::array({1, 2})}))),
                 "applied_frames"));
    EXPECT_NE(refusal_of_body(Resumed{std::vector<std::uint64_t>(16), 1},
                              [](CborValue& resumed) {
                                  resumed["applied_frames"].push_back(CborValue::array({std::uint64_t{0}}));
                              }),
              "");
    EXPECT_NE(refusal_of_body(SharedMemory{{{{GuestAddress{0}, 1}, 0, 0}}},
                              [](CborValue& memory) { memory["files"][0]["descriptor"] = 16; }),
              "");
    EXPECT_NE(refusal_of_body(SharedMemory{{{{GuestAddress{0}, 1}, 0, 0}}},
                              [](CborValue& memory) {
                                  for (int i = 0; i < 16; ++i) {
                                      memory["files"].push_back(memory["files"][0]);
                                  }
                              }),
              "");
    for (const CborValue& other : {CborValue(), CborValue(5), CborValue::array(), CborValue("text")}) {
        EXPECT_NE(error_of([&] { return decode<Round>({MessageType::kAsk, to_cbor(other)}); }), "");
    }
    EXPECT_NE(error_of([&] { return decode<Round>({MessageType::kAsk, {}}); }), "");
}

TEST(MigrationMessage, WhyDrivesNoTerminal) {
    EXPECT_EQ(there_and_back(Why{"no\n\x1b[2J room\x7f \xc2\x9b"}).text, "no??[2J room? ??");
    EXPECT_EQ(there_and_back(Why{std::string(10'000, 'x')}).text, std::string(4096, 'x'));
}

class MigrationWire : public ::testing::Test {
  protected:
    void send(std::span<const std::byte> bytes) { ends_.source->send(bytes); }
    std::string refusal() {
        return error_of([this] { return receive_message(*ends_.destination); });
    }

    ChannelEnds ends_{kPatience};
};

TEST_F(MigrationWire, AMessageLiesOnTheWireAsDocumented) {
    const std::array body{std::byte{1}, std::byte{2}, std::byte{3}};
    send_message(*ends_.source, MessageType::kAsk, body);
    std::vector<std::byte> wanted = message_header(22, 3, crc32c(body));
    wanted.insert(wanted.end(), body.begin(), body.end());
    std::vector<std::byte> bytes(wanted.size());
    ends_.destination->receive(bytes);
    EXPECT_EQ(bytes, wanted);
}

TEST_F(MigrationWire, MessagesAreReceivedInTheirOrder) {
    send_message(*ends_.source, MessageType::kHello, encode(Hello{.config = std::string(9'999, 'x')}));
    send_message(*ends_.source, MessageType::kCommit);
    send_message(*ends_.source, MessageType::kStream, encode(Stream{numbered_session(), 1, 2}));
    const Message hello = receive_message(*ends_.destination);
    EXPECT_EQ(hello.type, MessageType::kHello);
    EXPECT_EQ(decode<Hello>(hello).config, std::string(9'999, 'x'));
    const Message commit = receive_message(*ends_.destination);
    EXPECT_EQ(commit.type, MessageType::kCommit);
    EXPECT_TRUE(commit.body.empty());
    EXPECT_EQ(decode<Stream>(receive_first_message(*ends_.destination)).index, 1U);
}

TEST_F(MigrationWire, EveryChangedByteIsNoticed) {
    const std::array body{std::byte{1}, std::byte{2}, std::byte{3}};
    std::vector<std::byte> whole = message_header(22, 3, crc32c(body));
    whole.insert(whole.end(), body.begin(), body.end());
    for (std::size_t i = 0; i < whole.size(); ++i) {
        ChannelEnds ends(kPatience);
        std::vector<std::byte> changed = whole;
        changed[i] ^= std::byte{1};
        ends.source->send(changed);
        const std::string said = error_of([&] { return receive_message(*ends.destination); });
        EXPECT_TRUE(mentions(said, i < 16 ? "is no migration" : "was changed on its way")) << i << ": " << said;
    }
}

TEST_F(MigrationWire, TypesThatThereAreNotAreRefused) {
    for (const std::uint32_t type : {0U, 6U, 15U, 25U, 31U, 41U, 0xffffffffU}) {
        ChannelEnds ends(kPatience);
        ends.source->send(message_header(type, 0, 0));
        EXPECT_TRUE(mentions(error_of([&] { return receive_message(*ends.destination); }),
                             "a message of type " + std::to_string(type)));
    }
}

TEST_F(MigrationWire, MoreThanThereCanBeOfATypeIsRefusedBeforeItComes) {
    struct Limit {
        MessageType type;
        std::size_t most_bytes;
    };
    constexpr std::size_t kSmallBody = 16 * kKiB;
    for (const Limit limit :
         {Limit{MessageType::kHello, snapshot_files::kMostConfigBytes + kSmallBody},
          Limit{MessageType::kFirstState, kMostStateBytes},
          Limit{MessageType::kLastState, kMostStateBytes + kSmallBody}, Limit{MessageType::kStream, kSmallBody},
          Limit{MessageType::kMemory, kSmallBody}, Limit{MessageType::kRefused, kSmallBody},
          Limit{MessageType::kCommit, 0}, Limit{MessageType::kPostCopy, 1 * kMiB + kSmallBody},
          Limit{MessageType::kComplete, 0}, Limit{MessageType::kFarewell, 0}, Limit{MessageType::kAccept, 0},
          Limit{MessageType::kRunning, 0}}) {
        const auto type = static_cast<std::uint32_t>(limit.type);
        for (const std::uint32_t bytes : {static_cast<std::uint32_t>(limit.most_bytes + 1), 0xffffffffU}) {
            ChannelEnds ends(kPatience);
            ends.source->send(message_header(type, bytes, 0));
            EXPECT_TRUE(mentions(error_of([&] { return receive_message(*ends.destination); }),
                                 "a message of type " + std::to_string(type)));
        }
        // The reader waits for the maximum size.
        ChannelEnds ends(kPatience);
        ends.source->send(message_header(type, static_cast<std::uint32_t>(limit.most_bytes), 0));
        ends.source->shut_down();
        EXPECT_EQ(mentions(error_of([&] { return receive_message(*ends.destination); }), "the connection has ended"),
                  limit.most_bytes != 0);
    }
}

TEST_F(MigrationWire, TheFirstMessageSaysWhatTheConnectionIsFor) {
    for (const MessageType type : {MessageType::kHello, MessageType::kStream, MessageType::kResume, MessageType::kServe,
                                   MessageType::kQuestion}) {
        send_message(*ends_.source, type);
        EXPECT_EQ(receive_first_message(*ends_.destination).type, type);
    }
    for (const MessageType type : {MessageType::kFirstState, MessageType::kLastState, MessageType::kCommit,
                                   MessageType::kAbort, MessageType::kWelcome, MessageType::kAnswer}) {
        ChannelEnds ends(kPatience);
        // The body never comes, and nothing waits for it.
        ends.source->send(message_header(static_cast<std::uint32_t>(type), type == MessageType::kCommit ? 0 : 99, 0));
        EXPECT_TRUE(
            mentions(error_of([&] { return receive_first_message(*ends.destination); }), "cannot be the first"));
    }
}

TEST_F(MigrationWire, AConnectionThatEndsWithinAMessageIsALinkError) {
    const std::vector<std::byte> header = message_header(22, 3, 0);
    for (const std::size_t bytes : {std::size_t{0}, std::size_t{1}, std::size_t{15}, std::size_t{16}}) {
        ChannelEnds ends(kPatience);
        if (bytes != 0) {
            ends.source->send(std::span(header).first(bytes));
        }
        ends.source->shut_down();
        EXPECT_THROW(static_cast<void>(receive_message(*ends.destination)), LinkError) << bytes;
    }
}

TEST_F(MigrationWire, AByteNowAndThenDoesNotPutADeadlineOff) {
    ends_.destination->set_deadline(std::chrono::steady_clock::now() + std::chrono::milliseconds(100));
    send(std::array{std::byte{1}});
    EXPECT_TRUE(mentions(refusal(), "it has taken longer than it may"));
    ends_.destination->set_deadline(Channel::kNoDeadline);
    send_message(*ends_.source, MessageType::kCommit);
    EXPECT_EQ(receive_message(*ends_.destination).type, MessageType::kCommit);
}

TEST(MigrationProtocol, TheNewestThatBothSpeakIsChosen) {
    const auto chosen = [](std::uint32_t oldest, std::uint32_t newest) {
        return choose_protocol({.oldest_protocol = oldest, .newest_protocol = newest});
    };
    EXPECT_EQ(chosen(kOldestProtocol, kNewestProtocol), kNewestProtocol);
    EXPECT_EQ(chosen(0, kNewestProtocol), kNewestProtocol);
    EXPECT_EQ(chosen(kNewestProtocol, 0xffffffff), kNewestProtocol);
    for (const auto& [oldest, newest] : {std::pair{0U, kOldestProtocol - 1}, std::pair{kNewestProtocol + 1, 99U},
                                         std::pair{2U, 1U}, std::pair{0xffffffffU, 0U}}) {
        EXPECT_TRUE(mentions(error_of([&, one = oldest, other = newest] { return chosen(one, other); }),
                             "speaks the versions " + std::to_string(oldest)));
    }
}

} // namespace
} // namespace vmm
