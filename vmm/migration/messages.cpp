#include "vmm/migration/messages.hpp"

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <utility>

#include "kvm/host/error.hpp"
#include "kvm/host/format.hpp"
#include "kvm/host/guest_memory.hpp"
#include "vmm/migration/peer_process.hpp"
#include "vmm/state/cbor.hpp"
#include "vmm/state/crc32c.hpp"
#include "vmm/state/fields.hpp"
#include "vmm/state/snapshot_files.hpp"
#include "vmm/state/state_file.hpp"

namespace vmm {

namespace {

static_assert(std::endian::native == std::endian::little, "numbers are sent as they lie in memory");

struct MessageHeader {
    std::uint32_t type = 0;
    std::uint32_t body_bytes = 0;
    std::uint32_t body_crc32c = 0;
    std::uint32_t header_crc32c = 0; ///< of the three before
};
static_assert(sizeof(MessageHeader) == 16);

constexpr std::size_t kMostTextBytes = 4096;
constexpr std::size_t kMostVersionBytes = 64;
constexpr std::size_t kMostChunkBytes = 1 * kMiB; ///< a bit for each 2 MiB: 16 TiB of memory

std::uint32_t checksum_of(const MessageHeader& header) {
    return crc32c(std::as_bytes(std::span(&header, 1)).first(offsetof(MessageHeader, header_crc32c)));
}

/// The most bytes that the body of a message of `type` has; nothing if there is no such type.
std::optional<std::size_t> most_body_bytes(std::uint32_t type) {
    constexpr std::size_t kSmall = 16 * kKiB;
    switch (static_cast<MessageType>(type)) {
    case MessageType::kHello:
        return snapshot_files::kMostConfigBytes + kSmall;
    case MessageType::kFirstState:
        return kMostStateBytes;
    case MessageType::kLastState:
        return kMostStateBytes + kSmall;
    case MessageType::kStream:
    case MessageType::kResume:
    case MessageType::kServe:
    case MessageType::kQuestion:
    case MessageType::kMemory:
    case MessageType::kAbort:
    case MessageType::kAsk:
    case MessageType::kWelcome:
    case MessageType::kResumed:
    case MessageType::kSynced:
    case MessageType::kPrepared:
    case MessageType::kRefused:
    case MessageType::kAnswer:
        return kSmall;
    case MessageType::kPostCopy:
        return kMostChunkBytes + kSmall;
    case MessageType::kCommit:
    case MessageType::kComplete:
    case MessageType::kNotYet:
    case MessageType::kFarewell:
    case MessageType::kAccept:
    case MessageType::kRunning:
        return 0;
    }
    return std::nullopt;
}

constexpr FieldPath kOfSaving{nullptr, "message", std::nullopt, true};
constexpr FieldPath kOfReading{nullptr, "message", std::nullopt, false};

// One description of each body both writes and reads it (vmm/state/fields.hpp).

void describe(auto& fields, auto&& hello, const Hello& /*tag*/) {
    fields.number("oldest_protocol", hello.oldest_protocol);
    fields.number("newest_protocol", hello.newest_protocol);
    fields.raw("session", hello.session);
    fields.number("streams", hello.streams, {1, kMostStreams});
    fields.flag("shares_memory", hello.shares_memory);
    fields.flag("may_post_copy", hello.may_post_copy);
    fields.text("config", hello.config, snapshot_files::kMostConfigBytes);
    fields.text("vmm_version", hello.vmm_version, kMostVersionBytes);
    fields.text("process", hello.process, kMostProcessNameBytes);
}
void describe(auto& fields, auto&& stream, const Stream& /*tag*/) {
    fields.raw("session", stream.session);
    fields.number("index", stream.index, {0, kMostStreams - 1});
    fields.number("attempt", stream.attempt);
}
void describe(auto& fields, auto&& serve, const Serve& /*tag*/) {
    fields.raw("session", serve.session);
    fields.number("index", serve.index, {0, kMostStreams});
}
void describe(auto& fields, auto&& post_copy, const PostCopy& /*tag*/) {
    fields.number("connections", post_copy.connections, {2, kMostStreams + 1});
    fields.bytes("absent_chunks", post_copy.absent_chunks, {1, kMostChunkBytes});
}
void describe(auto& fields, auto&& resume, const Resume& /*tag*/) {
    fields.raw("session", resume.session);
}
void describe(auto& fields, auto&& question, const Question& /*tag*/) {
    fields.raw("session", question.session);
}
void describe(auto& fields, auto&& welcome, const Welcome& /*tag*/) {
    fields.number("protocol", welcome.protocol);
    fields.text("process", welcome.process, kMostProcessNameBytes);
}
void describe(auto& fields, auto&& resumed, const Resumed& /*tag*/) {
    fields.rows("applied_frames", resumed.applied_frames, {1, kMostStreams},
                [](auto& row, auto& count) { row.number(count); });
    fields.number("attempt", resumed.attempt);
}
void describe(auto& fields, auto&& round, const Round& /*tag*/) {
    fields.number("number", round.number);
    fields.flag("is_full", round.is_full);
}
void describe(auto& fields, auto&& prepared, const Prepared& /*tag*/) {
    fields.number("mapped_bytes", prepared.mapped_bytes);
    auto microseconds = static_cast<std::uint64_t>(std::max(prepared.fill_seconds, 0.0) * 1e6);
    fields.number("fill_us", microseconds);
    if constexpr (!std::is_const_v<std::remove_reference_t<decltype(prepared)>>) {
        prepared.fill_seconds = static_cast<double>(microseconds) / 1e6;
    }
}
void describe(auto& fields, auto&& last, const LastState& /*tag*/) {
    fields.bytes("state", last.state, {1, kMostStateBytes});
    fields.flag("is_paused", last.is_paused);
}
void describe(auto& fields, auto&& answer, const Answer& /*tag*/) {
    fields.flag("is_taken", answer.is_taken);
}
void describe(auto& fields, auto&& why, const Why& /*tag*/) {
    fields.text("text", why.text, kMostTextBytes);
    if constexpr (!std::is_const_v<std::remove_reference_t<decltype(why)>>) {
        // It is shown on a terminal here, which what the other end says must not drive.
        std::ranges::replace_if(
            why.text, [](char byte) { return byte < ' ' || byte > '~'; }, '?');
    }
}
void describe(auto& fields, auto&& memory, const SharedMemory& /*tag*/) {
    fields.list("files", memory.files, {1, GuestMemory::kMaxRegions}, [](auto& inner, auto& file) {
        inner.number("base", file.range.base);
        inner.number("bytes", file.range.size);
        inner.number("file_offset", file.file_offset);
        inner.number("descriptor", file.descriptor, {0, GuestMemory::kMaxRegions - 1});
    });
}

template <typename Body>
std::vector<std::byte> encoded(const Body& body) {
    CborValue object;
    FieldWriter writer(object, kOfSaving);
    describe(writer, body, body);
    return to_cbor(object);
}

template <typename Body>
Body decoded(const Message& message) {
    Body body;
    const CborValue object = from_cbor(message.body, "a message of the migration");
    FieldReader reader(object, kOfReading);
    describe(reader, body, body);
    return body; // What else is in it is for newer versions.
}

} // namespace

void send_message(Channel& channel, MessageType type, std::span<const std::byte> body) {
    MessageHeader header;
    header.type = static_cast<std::uint32_t>(type);
    header.body_bytes = static_cast<std::uint32_t>(body.size());
    header.body_crc32c = crc32c(body);
    header.header_crc32c = checksum_of(header);
    const std::array pieces{std::as_bytes(std::span(&header, 1)), body};
    channel.send(std::span(pieces).first(body.empty() ? 1 : 2));
}

namespace {

/// What is said first is a few KiB long, but for the configuration of a guest.
bool may_be_first(std::uint32_t type) {
    switch (static_cast<MessageType>(type)) {
    case MessageType::kHello:
    case MessageType::kStream:
    case MessageType::kResume:
    case MessageType::kServe:
    case MessageType::kQuestion:
        return true;
    default:
        return false;
    }
}

Message receive_message_that(Channel& channel, bool is_first) {
    MessageHeader header;
    channel.receive(std::as_writable_bytes(std::span(&header, 1)));
    if (header.header_crc32c != checksum_of(header)) {
        throw Error("what " + channel.name() + " sends is no migration (is another program at the other end?)");
    }
    const auto most = most_body_bytes(header.type);
    if (is_first && most && !may_be_first(header.type)) {
        throw Error(vmm::format("{} begins with a message of type {}, which cannot be the first (use versions of vmm "
                                "that are next to each other)",
                                channel.name(), header.type));
    }
    if (!most || header.body_bytes > *most) {
        throw Error(vmm::format("{} sends a message of type {} with {} bytes, which there is not in this version of "
                                "the protocol (use versions of vmm that are next to each other)",
                                channel.name(), header.type, header.body_bytes));
    }
    Message message{static_cast<MessageType>(header.type), {}};
    // Nobody makes this process hold memory for what has not come.
    constexpr std::size_t kPiece = std::size_t{1} << 20U;
    while (message.body.size() < header.body_bytes) {
        const std::size_t before = message.body.size();
        message.body.resize(std::min<std::size_t>(header.body_bytes, before + kPiece));
        channel.receive(std::span(message.body).subspan(before));
    }
    if (crc32c(message.body) != header.body_crc32c) {
        throw Error("a message from " + channel.name() + " was changed on its way (try again, or use another network)");
    }
    return message;
}

} // namespace

Message receive_message(Channel& channel) {
    return receive_message_that(channel, false);
}
Message receive_first_message(Channel& channel) {
    return receive_message_that(channel, true);
}

std::vector<std::byte> encode(const Hello& value) {
    return encoded(value);
}
std::vector<std::byte> encode(const Stream& value) {
    return encoded(value);
}
std::vector<std::byte> encode(const Serve& value) {
    return encoded(value);
}
std::vector<std::byte> encode(const PostCopy& value) {
    return encoded(value);
}
std::vector<std::byte> encode(const Resume& value) {
    return encoded(value);
}
std::vector<std::byte> encode(const Question& value) {
    return encoded(value);
}
std::vector<std::byte> encode(const Welcome& value) {
    return encoded(value);
}
std::vector<std::byte> encode(const Resumed& value) {
    return encoded(value);
}
std::vector<std::byte> encode(const Round& value) {
    return encoded(value);
}
std::vector<std::byte> encode(const Prepared& value) {
    return encoded(value);
}
std::vector<std::byte> encode(const LastState& value) {
    return encoded(value);
}
std::vector<std::byte> encode(const Answer& value) {
    return encoded(value);
}
std::vector<std::byte> encode(const Why& value) {
    return encoded(Why{value.text.substr(0, kMostTextBytes)});
}
std::vector<std::byte> encode(const SharedMemory& value) {
    return encoded(value);
}

template <typename Body>
Body decode(const Message& message) {
    return decoded<Body>(message);
}
template Hello decode(const Message& message);
template Stream decode(const Message& message);
template Serve decode(const Message& message);
template PostCopy decode(const Message& message);
template Resume decode(const Message& message);
template Question decode(const Message& message);
template Welcome decode(const Message& message);
template Resumed decode(const Message& message);
template Round decode(const Message& message);
template Prepared decode(const Message& message);
template LastState decode(const Message& message);
template Answer decode(const Message& message);
template Why decode(const Message& message);
template SharedMemory decode(const Message& message);

std::uint32_t choose_protocol(const Hello& hello) {
    const std::uint32_t newest = std::min(hello.newest_protocol, kNewestProtocol);
    if (newest < kOldestProtocol || newest < hello.oldest_protocol) {
        throw Error(vmm::format("the other end speaks the versions {} to {} of the protocol of migrations, and this "
                                "vmm speaks {} to {} (use versions of vmm that are next to each other)",
                                hello.oldest_protocol, hello.newest_protocol, kOldestProtocol, kNewestProtocol));
    }
    return newest;
}

} // namespace vmm
