#include "vmm/migration/page_receiver.hpp"

#include <algorithm>
#include <string>
#include <utility>

#include "kvm/host/error.hpp"
#include "kvm/host/format.hpp"
#include "kvm/host/thread.hpp"
#include "vmm/migration/frame_reader.hpp"
#include "vmm/migration/frames.hpp"

namespace vmm {

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
    const std::lock_guard one_at_a_time(cutting_);
    {
        const std::lock_guard hold(lock_);
        for (const Stream& stream : streams_) {
            if (stream.channel) {
                stream.channel->shut_down();
            }
        }
    }
    for (Stream& stream : streams_) {
        std::thread thread;
        {
            const std::lock_guard hold(lock_);
            if (!stream.channel) {
                continue;
            }
            stream.channel->shut_down(); // It may have been added a moment ago.
            thread = std::move(stream.thread);
        }
        thread.join();
        const std::lock_guard hold(lock_);
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
    FrameReader reader(*stream.channel);
    GuestMemory::Hint hint;
    for (;;) {
        const FrameHeader header = reader.next();
        if (header.kind == FrameKind::kSync) {
            note_sync(stream, header.address);
            continue;
        }
        const auto bytes = memory_.at(header.range(), hint);
        if (!bytes) {
            throw Error(vmm::format("{} sends pages at {}, where the guest has no memory", stream.channel->name(),
                                    to_string(header.range())));
        }
        reader.take(header, *bytes);
        received_bytes_ += sizeof header + header.payload_bytes;
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
