#include "vmm/migration/frames.hpp"

#include "kvm/host/error.hpp"
#include "kvm/host/format.hpp"
#include "kvm/host/write_log.hpp"
#include "vmm/state/crc32c.hpp"
#include "vmm/state/memory_layout.hpp"

namespace vmm {

namespace {

std::uint32_t checksum_of(const FrameHeader& header) {
    return crc32c(header.as_bytes().first(offsetof(FrameHeader, header_crc32c)));
}

bool can_be(const FrameHeader& header) {
    switch (header.kind) {
    case FrameKind::kSync:
        return header.bytes == 0 && header.payload_bytes == 0;
    case FrameKind::kAsk:
    case FrameKind::kZero:
        return header.payload_bytes == 0;
    case FrameKind::kRaw:
        return header.payload_bytes == header.bytes;
    case FrameKind::kZstd:
        return header.payload_bytes != 0 && header.payload_bytes <= header.bytes;
    }
    return false;
}

} // namespace

void FrameHeader::seal() noexcept {
    header_crc32c = checksum_of(*this);
}

void FrameHeader::check(std::string_view who) const {
    if (magic != kMagic || header_crc32c != checksum_of(*this)) {
        throw Error(std::string(who) + " sends something else than pages of memory (try again)");
    }
    const bool has_pages = kind != FrameKind::kSync;
    if (!can_be(*this) || reserved != 0 ||
        (has_pages && (bytes == 0 || bytes > (kind == FrameKind::kAsk ? kMemoryChunkBytes : kMostFrameBytes) ||
                       !is_aligned(bytes, WriteLog::kPageBytes) || !is_aligned(address, WriteLog::kPageBytes)))) {
        throw Error(vmm::format("{} sends a frame that cannot be (kind {}, {} bytes at {:#x}, {} of them on the wire)",
                                who, static_cast<unsigned>(kind), bytes, address, payload_bytes));
    }
}

} // namespace vmm
