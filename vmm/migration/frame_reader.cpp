#include "vmm/migration/frame_reader.hpp"

#include <zstd.h>

#include <cstring>
#include <new>
#include <string>

#include "kvm/host/error.hpp"
#include "vmm/state/crc32c.hpp"

namespace vmm {

FrameReader::FrameReader(Channel& channel) : channel_(channel) {}
FrameReader::~FrameReader() = default;

void FrameReader::FreeContext::operator()(ZSTD_DCtx_s* context) const noexcept {
    ZSTD_freeDCtx(context);
}

FrameHeader FrameReader::next() {
    FrameHeader header;
    channel_.receive(std::as_writable_bytes(std::span(&header, 1)));
    header.check(channel_.name());
    if (header.kind == FrameKind::kAsk) {
        throw Error(channel_.name() + " asks for pages, which it has itself");
    }
    return header;
}

void FrameReader::take(const FrameHeader& header, std::span<std::byte> memory) {
    switch (header.kind) {
    case FrameKind::kZero:
        std::memset(memory.data(), 0, memory.size()); // The pages stay, and so do their mappings.
        break;
    case FrameKind::kRaw:
        channel_.receive(memory);
        check(header, memory);
        break;
    case FrameKind::kZstd:
        unpack(header, memory);
        break;
    case FrameKind::kAsk:
    case FrameKind::kSync:
        break;
    }
}

void FrameReader::check(const FrameHeader& header, std::span<const std::byte> payload) const {
    if (crc32c(payload) != header.payload_crc32c) {
        throw Error("pages from " + channel_.name() + " at " + to_string(header.range()) +
                    " were changed on their way (try again, or use another network)");
    }
}

void FrameReader::unpack(const FrameHeader& header, std::span<std::byte> memory) {
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
        ZSTD_decompressDCtx(context_.get(), memory.data(), memory.size(), packed.data(), packed.size());
    if (ZSTD_isError(size) != 0 || size != memory.size()) {
        throw Error("pages from " + channel_.name() + " at " + to_string(header.range()) +
                    " are not what their compression says (try again without compression)");
    }
}

} // namespace vmm
