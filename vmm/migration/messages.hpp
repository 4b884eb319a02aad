// What the two ends of a migration tell each other, apart from the pages of memory (docs/migration.md).
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "kvm/host/guest_address.hpp"
#include "vmm/migration/channel.hpp"
#include "vmm/migration/session_id.hpp"

namespace vmm {

/// The versions of the protocol that are spoken here. Each version understands the one before: whoever is newer speaks
/// as the older one does.
inline constexpr std::uint32_t kOldestProtocol = 1;
inline constexpr std::uint32_t kNewestProtocol = 1;

/// Most streams of pages that one migration has.
inline constexpr std::uint32_t kMostStreams = 16;

enum class MessageType : std::uint32_t {
    // From the source, first on a connection: what the connection is for.
    kHello = 1,    ///< Hello: a guest wants to come
    kStream = 2,   ///< Stream: pages will follow
    kResume = 3,   ///< Resume: the connections were cut, and the migration goes on
    kServe = 5,    ///< Serve: the destination will ask for parts of memory here (post-copy)
    kQuestion = 4, ///< Question: has the guest been taken?

    // From the source, later.
    kFirstState = 16, ///< the state of the machine as it is now (encode_state()): what it will look like
    kMemory = 17,     ///< Memory: descriptors of files that are the guest's memory follow
    kPostCopy = 23,   ///< PostCopy: the guest goes over now, and these parts of memory follow
    kLastState = 18,  ///< LastState, with which the guest goes on; no page follows
    kCommit = 19,     ///< the guest is the destination's from now on
    kNotYet = 24,     ///< the guest goes on at the source: a last state that came is void, and another may follow
    kAbort = 20,      ///< Why: the guest stays at the source
    kAsk = 22,        ///< Round, of no pages: is the second level full? kSynced is the answer
    kFarewell = 21,   ///< the source knows that the guest runs, and is about to end

    // From the destination.
    kWelcome = 32,  ///< Welcome
    kAccept = 33,   ///< memory is there: pages may come
    kResumed = 34,  ///< Resumed
    kSynced = 35,   ///< Round: all pages of a round have been put into memory
    kPrepared = 36, ///< Prepared: all is there, and the guest could run
    kRunning = 37,  ///< the guest runs from now on
    kRefused = 38,  ///< Why: the guest does not run here, and will not
    kAnswer = 39,   ///< Answer, to kQuestion
    kComplete = 40, ///< all of memory is here (post-copy): the source is not needed any more
};

/// A message as it is on the wire: a header of 16 bytes (type, length, CRC-32C of the body, CRC-32C of the header's
/// first 12 bytes; little-endian), and a body.
struct Message {
    MessageType type{};
    std::vector<std::byte> body{};
};

/// Sends it. Throws as Channel::send().
void send_message(Channel& channel, MessageType type, std::span<const std::byte> body = {});
/// Receives the next one. Throws as Channel::receive(), and Error: what came is no message, or a longer one than there
/// can be of its type.
[[nodiscard]] Message receive_message(Channel& channel);
/// As receive_message(), of what comes first on a connection: one of the first five types. Others are refused before
/// memory is made for them.
[[nodiscard]] Message receive_first_message(Channel& channel);

// The bodies. Each is CBOR, an object; members that are not known are ignored. decode() throws Error: the body is none.

struct Hello {
    std::uint32_t oldest_protocol = kOldestProtocol;
    std::uint32_t newest_protocol = kNewestProtocol;
    SessionId session{};
    std::uint32_t streams = 1;
    bool shares_memory = false; ///< the guest's memory comes as files, and no page is sent
    bool may_post_copy = false; ///< the guest may go over before all of its memory has
    std::string config{};       ///< JSON: what the guest's machine is configured with; at most 1 MiB
    std::string vmm_version{};  ///< for messages
    std::string process{};      ///< own_process_name(): the source
};
struct Stream {
    SessionId session{};
    std::uint32_t index = 0;
    std::uint32_t attempt = 0; ///< how often the migration was resumed before
};
struct Serve {
    SessionId session{};
    std::uint32_t index = 0;
};
struct Resume {
    SessionId session{};
};
struct PostCopy {
    std::uint32_t connections = 2; ///< that kServe will come on, at least 2
    /// A bit for each chunk of memory (MemoryLayout) that is not whole, the first in bit 0 of the first byte.
    std::vector<std::byte> absent_chunks{};
};
struct Question {
    SessionId session{};
};
struct Welcome {
    std::uint32_t protocol = kNewestProtocol;
    std::string process{}; ///< own_process_name(): the destination
};
struct Resumed {
    std::vector<std::uint64_t> applied_frames{}; ///< of each stream, since the migration began
    /// The destination takes streams with this Stream::attempt from now on. The source cannot count attempts itself,
    /// because an answer may be lost. Older versions do not send it.
    std::optional<std::uint32_t> attempt{};
};
struct Round {
    std::uint64_t number = 0;
    bool is_full = false; ///< the destination's second level; it may be full later
};
struct Prepared {
    std::uint64_t mapped_bytes = 0; ///< what KVM has mapped in the second level, by its own count
    double fill_seconds = 0;        ///< how long the prefault took
};
struct LastState {
    std::vector<std::byte> state{}; ///< encode_state()
    bool is_paused = false;         ///< the guest stands still there, too, until somebody lets it go on
};
struct Answer {
    bool is_taken = false; ///< the guest runs at the destination, or will; otherwise it never will
};
struct Why {
    std::string text{}; ///< a message of Error; of what is received, each byte that is no printable ASCII is "?"
};
struct SharedFile {
    GuestRange range{};
    std::uint64_t file_offset = 0;
    std::uint32_t descriptor = 0; ///< its place among those that follow
};
struct SharedMemory {
    std::vector<SharedFile> files{};
};

[[nodiscard]] std::vector<std::byte> encode(const Hello& value);
[[nodiscard]] std::vector<std::byte> encode(const Stream& value);
[[nodiscard]] std::vector<std::byte> encode(const Serve& value);
[[nodiscard]] std::vector<std::byte> encode(const PostCopy& value);
[[nodiscard]] std::vector<std::byte> encode(const Resume& value);
[[nodiscard]] std::vector<std::byte> encode(const Question& value);
[[nodiscard]] std::vector<std::byte> encode(const Welcome& value);
[[nodiscard]] std::vector<std::byte> encode(const Resumed& value);
[[nodiscard]] std::vector<std::byte> encode(const Round& value);
[[nodiscard]] std::vector<std::byte> encode(const Prepared& value);
[[nodiscard]] std::vector<std::byte> encode(const LastState& value);
[[nodiscard]] std::vector<std::byte> encode(const Answer& value);
[[nodiscard]] std::vector<std::byte> encode(const Why& value);
[[nodiscard]] std::vector<std::byte> encode(const SharedMemory& value);

/// Throws Error.
template <typename Body>
[[nodiscard]] Body decode(const Message& message);

/// The newest version that both speak. Throws Error: there is none.
[[nodiscard]] std::uint32_t choose_protocol(const Hello& hello);

} // namespace vmm
