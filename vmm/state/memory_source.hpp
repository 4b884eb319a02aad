// The memory of a snapshot, for reading.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "vmm/state/memory_index.hpp"
#include "vmm/state/memory_layout.hpp"
#include "vmm/state/transfers.hpp"

namespace vmm {

/// An open memory file. Both descriptors are loans.
struct MemoryFile {
    int fd = -1;
    int direct_fd = -1; ///< the same with O_DIRECT; -1: its file system has none
    std::string name;   ///< for messages
};

/// The place where a guest's memory is stored. It refers only to loans.
struct MemorySource {
    const MemoryLayout& layout;
    const MemoryIndex& index;
    std::span<const MemoryFile> files; ///< MemoryChunk::file is an index of this list
};

/// The source from which one thread gets chunks of memory.
///
/// Threads: the one that made it.
class ChunkSource {
  public:
    ChunkSource() = default;
    virtual ~ChunkSource() = default;
    ChunkSource(const ChunkSource&) = delete;
    ChunkSource& operator=(const ChunkSource&) = delete;

    /// Gets chunk `chunk` into `bytes`, which is as long as MemoryLayout::chunk() says. If the chunk is all zero, it
    /// returns false, and the content of `bytes` is undefined. Throws Error if the chunk cannot be had.
    [[nodiscard]] virtual bool read(std::size_t chunk, std::span<std::byte> bytes) = 0;
};

/// Reads chunks of memory from files, and compares each with its checksum.
///
/// Threads: the one that made it.
class ChunkReader final : public ChunkSource {
  public:
    /// Opens nothing yet. The objects to which `source` refers must outlive it.
    explicit ChunkReader(const MemorySource& source) : source_(source), transfers_(source.files.size()) {}

    /// Reads chunk `chunk` into `bytes`, which is as long as MemoryLayout::chunk() says. If the chunk is all zero, it
    /// reads nothing and returns false. Throws Error if the file cannot be read, or is damaged; then the content of
    /// `bytes` is undefined.
    [[nodiscard]] bool read(std::size_t chunk, std::span<std::byte> bytes) override;

  private:
    const MemorySource source_;
    std::vector<std::unique_ptr<Transfers>> transfers_; ///< one for each file, made when its first chunk is read
};

} // namespace vmm
