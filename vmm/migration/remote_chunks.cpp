#include "vmm/migration/remote_chunks.hpp"

#include <cstring>
#include <string>
#include <utility>

#include "kvm/host/error.hpp"
#include "vmm/migration/frame_reader.hpp"
#include "vmm/migration/frames.hpp"

namespace vmm {

RemoteChunks::RemoteChunks(const MemoryLayout& layout, std::shared_ptr<Channel> channel)
    : layout_(layout), channel_(std::move(channel)) {}

RemoteChunks::~RemoteChunks() = default;

bool RemoteChunks::read(std::size_t chunk, std::span<std::byte> bytes) {
    const GuestRange range = layout_.chunk(chunk).range;
    FrameHeader ask{
        .kind = FrameKind::kAsk, .address = to_integer(range.base), .bytes = static_cast<std::uint32_t>(range.size)};
    ask.seal();
    channel_->send(ask.as_bytes());
    std::memset(bytes.data(), 0, bytes.size()); // Zero pages are left out.
    FrameReader reader(*channel_);
    std::uint64_t received = 0;
    for (;;) {
        const FrameHeader header = reader.next();
        if (header.kind == FrameKind::kSync) {
            if (header.address != ask.address) {
                throw Error(channel_->name() + " answers something else than what was asked");
            }
            return received != 0;
        }
        if (!range.contains(header.range())) {
            throw Error(channel_->name() + " sends pages that were not asked for");
        }
        received += header.bytes;
        if (received > range.size) { // It could go on for ever.
            throw Error(channel_->name() + " sends pages more than once");
        }
        reader.take(header, bytes.subspan(to_integer(header.range().base) - to_integer(range.base), header.bytes));
    }
}

} // namespace vmm
