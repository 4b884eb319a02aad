#include "vmm/state/memory_source.hpp"

#include "kvm/host/error.hpp"
#include "vmm/state/crc32c.hpp"

namespace vmm {

bool ChunkReader::read(std::size_t chunk, std::span<std::byte> bytes) {
    const MemoryChunk& known = source_.index[chunk];
    if (known.is_hole) {
        return false;
    }
    const MemoryFile& file = source_.files[known.file];
    std::unique_ptr<Transfers>& transfers = transfers_[known.file];
    if (!transfers) {
        transfers = std::make_unique<Transfers>(file.fd, file.name, true);
    }
    const MemoryPiece piece = source_.layout.chunk(chunk);
    transfers->read(piece.file_offset, bytes);
    transfers->finish();
    if (crc32c(bytes) != known.crc32c) {
        throw Error("the snapshot is damaged: " + file.name + " is not what was written for guest memory " +
                    to_string(piece.range) + " (`vmm snapshot verify` looks at all of it; use another copy)");
    }
    return true;
}

} // namespace vmm
