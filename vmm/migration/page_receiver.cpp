#include "vmm/migration/page_receiver.hpp"

#include <zstd.h>

#include <algorithm>
#include <cstring>
#include <string>
#include <utility>

#include "kvm/host/error.hpp"
#include "kvm/host/format.hpp"
#include "vmm/machine/vcpu_thread.hpp"
#include "vmm/migration/frames.hpp"
#include "vmm/state/crc32c.hpp"

namespace vmm {

/// Takes frames off one stream.
class PageReceiver::Unpacker {
  public:
    Unpacker(const GuestMemory& memory, Channel& channel) : memory_(memory), channel_(channel) {}

    /// The next header; its range is memory, unless it is a kSync.
    FrameHeader next() {
        FrameHeader header;
        channel_.receive(std::as_writable_bytes(std::span(&header, 1)));
        header.check(channel_.name());
        return header;
    }

    /// Puts what follows `header` into memory. Returns how many bytes followed.
    std::size_t apply(const FrameHeader& header) {
        const auto bytes = memory_.at(header.range(), hint_);
        if (!bytes) {
            throw Error(vmm::format("{} sends pages at {}, where the guest has no memory", channel_.name(),
                                    to_string(header.range())));
        }
        switch (header.kind) {
        case FrameKind::kZero:
            std::memset(bytes->data(), 0, bytes->size()); // The pages stay, and so do their mappings.
            break;
        case FrameKind::kRaw:
            channel_.receive(*bytes);
            check(header, *bytes);
            break;
        case FrameKind::kZstd:
            unpack(header, *bytes);
            break;
        case FrameKind::kSync:
            break;
        }
        return header.payload_bytes;
    }

  private:
    struct FreeContext {
        void operator()(ZSTD_DCtx* context) const noexcept { ZSTD_freeDCtx(context); }
    };

    void check(const FrameHeader& header, std::span<const std::byte> payload) const {
        if (crc32c(payload) != header.payload_crc32c) {
            throw Error("pages from " + channel_.name() + " at " + to_string(header.range()) +
                        " were changed on their way (try again, or use another network)");
        }
    }

    void unpack(const FrameHeader& header, std::span<std::byte> bytes) {
        packed_.resize(kMostFrameBytes);
        const std::span<std::byte> packed = std::span(packed_).first(header.payload_bytes);
        channel_.receive(packed);
        check(header, packed);
        if (!context_) {
            context_.reset(ZSTD_createDCtx());
            if (!context_) {
                throw std::bad_alloc();
            }
        }
        const std::size_t size =
            ZSTD_decompressDCtx(context_.get(), bytes.data(), bytes.size(), packed.data(), packed.size());
        if (ZSTD_isError(size) != 0 || size != bytes.size()) {
            throw Error("pages from " + channel_.name() + " at " + to_string(header.range()) +
                        " are not what their compression says (try again without compression)");
        }
    }

    const GuestMemory& memory_;
    Channel& channel_;
    GuestMemory::Hint hint_;
    std::vector<std::byte> packed_;
    std::unique_ptr<ZSTD_DCtx, FreeContext> context_;
};

PageReceiver::PageReceiver(const GuestMemory& memory, unsigned streams, Callbacks callbacks)
    : memory_(memory), callbacks_(std::move(callbacks)), streams_(streams) {}

PageReceiver::~PageReceiver() {
    cut();
}

void PageReceiver::add(unsigned index, std::unique_ptr<Channel> channel) {
    const std::lock_guard hold(lock_);
    if (index >= streams_.size()) {
        throw Error(vmm::format("there are {} streams of pages, and none has the number {}", streams_.size(), index));
    }
    Stream& stream = streams_[index];
    if (stream.channel) {
        throw Error(vmm::format("stream {} of pages is there already", index));
    }
    stream.channel = std::move(channel);
    try {
        stream.thread = start_thread("a stream of a migration", [this, &stream] { receive(stream); });
    } catch (...) {
        stream.channel.reset();
        throw;
    }
}

void PageReceiver::cut() noexcept {
    std::vector<std::thread> threads;
    {
        const std::lock_guard hold(lock_);
        for (Stream& stream : streams_) {
            if (stream.channel) {
                stream.channel->shut_down();
                threads.push_back(std::move(stream.thread));
            }
        }
    }
    for (std::thread& thread : threads) {
        thread.join();
    }
    const std::lock_guard hold(lock_);
    for (Stream& stream : streams_) {
        stream.channel.reset();
    }
}

std::vector<std::uint64_t> PageReceiver::applied_frames() const {
    const std::lock_guard hold(lock_);
    std::vector<std::uint64_t> counts;
    for (const Stream& stream : streams_) {
        counts.push_back(stream.applied_frames);
    }
    return counts;
}

void PageReceiver::receive(Stream& stream) noexcept {
    try {
        receive_all(stream);
    } catch (...) {
        callbacks_.failed(std::current_exception());
    }
}

void PageReceiver::receive_all(Stream& stream) {
    Unpacker unpacker(memory_, *stream.channel);
    for (;;) {
        const FrameHeader header = unpacker.next();
        if (header.kind == FrameKind::kSync) {
            note_sync(stream, header.address);
            continue;
        }
        received_bytes_ += sizeof header + unpacker.apply(header);
        const std::lock_guard hold(lock_);
        ++stream.applied_frames;
    }
}

void PageReceiver::note_sync(Stream& stream, std::uint64_t round) {
    {
        const std::lock_guard hold(lock_);
        stream.synced_round = round;
        if (!std::ranges::all_of(streams_, [round](const Stream& one) { return one.synced_round == round; })) {
            return;
        }
    }
    callbacks_.synced(round);
}

} // namespace vmm
