// Data from the source of a migration: messages, and frames of pages.

#include <zstd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <exception>
#include <memory>
#include <optional>
#include <semaphore>
#include <span>
#include <utility>
#include <vector>

#include "fuzz/input.hpp"
#include "fuzz/require.hpp"
#include "fuzz/targets.hpp"
#include "kvm/host/error.hpp"
#include "support/vmm_migration_ends.hpp"
#include "vmm/migration/messages.hpp"
#include "vmm/migration/page_receiver.hpp"
#include "vmm/migration/remote_chunks.hpp"

namespace vmm::fuzz {

namespace {

using testing::ChannelEnds;
using testing::frame_of;
using testing::message_header;

constexpr std::chrono::seconds kPeerPatience{20};
/// As much as a socket buffers while nobody receives.
constexpr std::size_t kMostWireBytes = 96 * kKiB;

using Wire = std::vector<std::byte>;

void append(Wire& wire, std::span<const std::byte> bytes) {
    wire.insert(wire.end(), bytes.begin(), bytes.end());
}

void check_refusal(const Error& error) {
    require(error.what()[0] != '\0', "a peer is refused without a word");
    require(std::strchr(error.what(), '\n') == nullptr, "a peer is refused in more than one line");
}

// ---- Messages

template <typename Body>
void decode_as(const Message& message) {
    std::optional<Body> body;
    try {
        body = decode<Body>(message);
    } catch (const Error& error) {
        check_refusal(error);
        return;
    }
    // A message that was read can be written, and is then read with the same content.
    const std::vector<std::byte> once = encode(*body);
    require(encode(decode<Body>({message.type, once})) == once, "a message is another when it is read again");
}

void decode_as_said(const Message& message) {
    switch (message.type) {
    case MessageType::kHello:
        return decode_as<Hello>(message);
    case MessageType::kStream:
        return decode_as<Stream>(message);
    case MessageType::kServe:
        return decode_as<Serve>(message);
    case MessageType::kResume:
        return decode_as<Resume>(message);
    case MessageType::kQuestion:
        return decode_as<Question>(message);
    case MessageType::kMemory:
        return decode_as<SharedMemory>(message);
    case MessageType::kPostCopy:
        return decode_as<PostCopy>(message);
    case MessageType::kLastState:
        return decode_as<LastState>(message);
    case MessageType::kAbort:
    case MessageType::kRefused:
        return decode_as<Why>(message);
    case MessageType::kAsk:
    case MessageType::kSynced:
        return decode_as<Round>(message);
    case MessageType::kWelcome:
        return decode_as<Welcome>(message);
    case MessageType::kResumed:
        return decode_as<Resumed>(message);
    case MessageType::kPrepared:
        return decode_as<Prepared>(message);
    case MessageType::kAnswer:
        return decode_as<Answer>(message);
    default: // The other types have no body, or a state, which has a target of its own.
        return;
    }
}

/// Unchanged bytes, or a message with right or with wrong checksums.
Wire wire_of_messages(Input& input) {
    Wire wire;
    while (!input.empty() && wire.size() < kMostWireBytes) {
        const std::uint8_t how = input.byte();
        const std::uint32_t type = how % 4 == 3 ? input.take<std::uint32_t>() : input.byte();
        const std::span<const std::byte> body = input.take_bytes(input.take<std::uint16_t>());
        const auto length = static_cast<std::uint32_t>(body.size());
        if (how % 4 == 0) {
            append(wire, body);
            continue;
        }
        append(wire, message_header(type, how % 4 == 2 ? input.take<std::uint32_t>() : length,
                                    crc32c(body) + (how >= 0xf0 ? 1 : 0)));
        append(wire, body);
    }
    wire.resize(std::min(wire.size(), kMostWireBytes));
    return wire;
}

void receive_messages(Input& input) {
    ChannelEnds ends(kPeerPatience);
    const bool begins = input.byte() % 2 == 0;
    ends.source->send(wire_of_messages(input));
    ends.source.reset();
    try {
        decode_as_said(begins ? receive_first_message(*ends.destination) : receive_message(*ends.destination));
        for (;;) {
            decode_as_said(receive_message(*ends.destination));
        }
    } catch (const Error& error) {
        check_refusal(error);
    }
}

// ---- Pages

constexpr std::uint64_t kFuzzPage = 4096;
/// The host's memory has a page before, between and behind the ranges. None of these pages is the guest's.
constexpr std::size_t kLowPages = 66;
constexpr std::size_t kHighPages = 2;
constexpr GuestRange kLowRange{GuestAddress{0}, kLowPages* kFuzzPage};
constexpr GuestRange kHighRange{GuestAddress{4 * kGiB}, kHighPages* kFuzzPage};
constexpr std::size_t kAllPages = 1 + kLowPages + 1 + kHighPages + 1;

class FuzzMemory {
  public:
    FuzzMemory() : host_(kAllPages * kFuzzPage, std::byte{0xee}) {
        for (const MemoryRegion& region : memory_.regions()) {
            std::memset(region.host, 0, region.range.size);
        }
    }

    [[nodiscard]] const GuestMemory& memory() const { return memory_; }
    void require_nothing_else_was_written() const {
        for (const std::size_t page : {std::size_t{0}, kLowPages + 1, kAllPages - 1}) {
            const auto bytes = std::span(host_).subspan(page * kFuzzPage, kFuzzPage);
            require(std::ranges::all_of(bytes, [](std::byte byte) { return byte == std::byte{0xee}; }),
                    "memory beside the guest's was written");
        }
    }

  private:
    std::vector<std::byte> host_;
    std::array<MemoryRegion, 2> regions_{MemoryRegion{kLowRange, host_.data() + kFuzzPage},
                                         MemoryRegion{kHighRange, host_.data() + (kLowPages + 2) * kFuzzPage}};
    GuestMemory memory_{std::span<const MemoryRegion>(regions_), PageSize::k4K};
};

std::uint64_t take_address(Input& input) {
    const std::uint8_t where = input.byte();
    const std::uint64_t page = input.byte() * kFuzzPage;
    switch (where % 8) {
    case 0:
        return input.take<std::uint64_t>();
    case 1:
        return to_integer(kHighRange.base) + page;
    case 2:
        return to_integer(kHighRange.base) - page;
    case 3:
        return 0 - page;
    default:
        return page % kLowRange.size;
    }
}

/// The frames that a correct source would have sent.
struct GoodFrames {
    std::vector<GuestRange> ranges;
    std::vector<std::vector<std::byte>> contents;
    bool are_over = false; ///< one has come that is not good, or may not be
};

/// Makes one frame. If it is one that must be taken, adds it to `good`.
void append_frame(Wire& wire, Input& input, GoodFrames& good) {
    const std::uint8_t how = input.byte();
    const std::uint64_t address = take_address(input);
    const std::uint32_t bytes =
        how >= 0xf8 ? input.take<std::uint32_t>() : static_cast<std::uint32_t>((input.byte() % 65 + 1) * kFuzzPage);
    std::vector<std::byte> content(std::min<std::size_t>(bytes, kMostFrameBytes));
    const std::span<const std::byte> pattern = input.take_bytes(input.byte());
    for (std::size_t at = 0; at < content.size() && !pattern.empty(); ++at) {
        content[at] = pattern[at % pattern.size()];
    }
    FrameKind kind{};
    std::vector<std::byte> payload;
    switch (how % 6) {
    case 0:
        kind = FrameKind::kRaw;
        payload = content;
        break;
    case 1:
        kind = FrameKind::kZero;
        std::ranges::fill(content, std::byte{0});
        break;
    case 2:
        kind = FrameKind::kZstd;
        payload.resize(ZSTD_compressBound(content.size()));
        payload.resize(ZSTD_compress(payload.data(), payload.size(), content.data(), content.size(), 1));
        break;
    case 3: // data that was not packed, or was packed from another size
        kind = FrameKind::kZstd;
        payload.assign(pattern.begin(), pattern.end());
        break;
    case 4:
        kind = FrameKind::kSync;
        break;
    default:
        kind = FrameKind{input.take<std::uint16_t>()};
        payload.assign(pattern.begin(), pattern.end());
        break;
    }
    FrameHeader header = frame_of(kind, address, kind == FrameKind::kSync ? 0 : bytes, payload);
    const bool is_changed = (how >> 5U) == 5;
    if (is_changed) { // The checksum is made right, or is left wrong.
        std::as_writable_bytes(std::span(&header, 1))[input.byte() % sizeof header] ^= std::byte{input.byte()};
        if (how % 2 == 0) {
            header.seal();
        }
    }
    if (wire.size() + sizeof header + payload.size() > kMostWireBytes) {
        return;
    }
    append(wire, header.as_bytes());
    append(wire, payload);
    if (how % 6 == 4 && !is_changed) {
        return; // The end of a round.
    }
    const bool is_good = !is_changed && how % 6 <= 2 && bytes <= kMostFrameBytes && bytes != 0 &&
                         bytes % kFuzzPage == 0 && address % kFuzzPage == 0 && payload.size() <= bytes &&
                         (kLowRange.contains(header.range()) || kHighRange.contains(header.range()));
    good.are_over = good.are_over || !is_good;
    if (!good.are_over) {
        good.ranges.push_back(header.range());
        good.contents.push_back(content);
    }
}

void receive_pages(Input& input) {
    FuzzMemory memory;
    const unsigned streams = 1 + input.byte() % 2;
    std::counting_semaphore<> ended(0);
    std::atomic<unsigned> synced = 0;
    PageReceiver receiver(memory.memory(), streams,
                          {.synced = [&](std::uint64_t) { ++synced; },
                           .failed =
                               [&](std::exception_ptr why) {
                                   try {
                                       std::rethrow_exception(std::move(why));
                                   } catch (const Error& error) {
                                       check_refusal(error);
                                   }
                                   ended.release();
                               }});
    std::vector<GoodFrames> good(streams);
    std::vector<Wire> wires(streams);
    while (!input.empty()) {
        const std::size_t stream = input.byte() % streams;
        append_frame(wires[stream], input, good[stream]);
    }
    // The streams are sent one after the other, because a source sends a page by only one stream at a time, and these
    // send the same pages.
    for (unsigned i = 0; i < streams; ++i) {
        ChannelEnds ends(kPeerPatience);
        receiver.add(i, std::move(ends.destination));
        try {
            ends.source->send(wires[i]);
        } catch (const LinkError&) { // It may have been refused meanwhile.
        }
        ends.source.reset();
        ended.acquire(); // By now its connection has ended.
    }
    receiver.cut();
    const std::vector<std::uint64_t> applied = receiver.applied_frames();
    for (unsigned i = 0; i < streams; ++i) {
        require(applied[i] >= good[i].ranges.size(), "good pages were not taken");
        require(good[i].are_over || applied[i] == good[i].ranges.size(), "pages were taken that were not sent");
    }
    memory.require_nothing_else_was_written();
    if (streams == 1 && !good[0].are_over) {
        FuzzMemory model;
        for (std::size_t i = 0; i < good[0].ranges.size(); ++i) {
            std::ranges::copy(good[0].contents[i], model.memory().at(good[0].ranges[i])->begin());
        }
        for (std::size_t region = 0; region < 2; ++region) {
            require(
                std::ranges::equal(memory.memory().regions()[region].bytes(), model.memory().regions()[region].bytes()),
                "pages are not what was sent");
        }
    }
}

/// The same frames as an answer to a request for a chunk.
void receive_chunk(Input& input) {
    Wire wire;
    GoodFrames good;
    while (!input.empty()) {
        append_frame(wire, input, good);
    }
    const std::array ranges{kLowRange, kHighRange};
    const MemoryLayout layout(ranges);
    ChannelEnds ends(kPeerPatience);
    ends.source->send(wire);
    RemoteChunks chunks(layout, std::move(ends.destination));
    std::byte ask[sizeof(FrameHeader)]; // NOLINT(*-avoid-c-arrays)
    // A random program never has the end of the requested chunk.
    ends.source->send(frame_of(FrameKind::kSync, to_integer(kLowRange.base), 0).as_bytes());
    std::vector<std::byte> bytes(kLowRange.size);
    try {
        static_cast<void>(chunks.read(0, bytes));
    } catch (const Error& error) {
        check_refusal(error);
    }
    ends.source->receive(ask);
}

} // namespace

void migration(Bytes program) {
    Input input(program);
    switch (input.byte() % 4) {
    case 0:
        return receive_messages(input);
    case 1:
        return receive_chunk(input);
    default:
        return receive_pages(input);
    }
}

} // namespace vmm::fuzz
