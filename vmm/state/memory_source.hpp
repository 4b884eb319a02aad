// The memory of a snapshot, to be read.
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

/// A memory file as it is open. Both descriptors are loans.
struct MemoryFile {
    int fd = -1;
    int direct_fd = -1; ///< the same with O_DIRECT; -1: its file system has none
    std::string name;   ///< for messages
};

/// Where the content of a guest's memory is. All that it refers to is a loan.
struct MemorySource {
    const MemoryLayout& layout;
    const MemoryIndex& index;
    std::span<const MemoryFile> files; ///< MemoryChunk::file counts them
};

/// Where one thread gets chunks of memory from.
///
/// Threads: the one that made it.
class ChunkSource {
  public:
    ChunkSource() = default;
    virtual ~ChunkSource() = default;
    ChunkSource(const ChunkSource&) = delete;
    ChunkSource& operator=(const ChunkSource&) = delete;

    /// Gets chunk `chunk` to `bytes`, as long as MemoryLayout::chunk() says. Returns false, with nothing that counts in
    /// `bytes`, if it is all zero. Throws Error: it cannot be had.
    [[nodiscard]] virtual bool read(std::size_t chunk, std::span<std::byte> bytes) = 0;
};

/// Reads chunks of memory from files, and compares each with its checksum.
///
/// Threads: the one that made it.
class ChunkReader final : public ChunkSource {
  public:
    /// Opens nothing yet. What `source` refers to outlives it.
    explicit ChunkReader(const MemorySource& source) : source_(source), transfers_(source.files.size()) {}

    /// Reads chunk `chunk` to `bytes`, as long as MemoryLayout::chunk() says. Returns false, with nothing read, if it
    /// is all zero. Throws Error: the file cannot be read, or is damaged; `bytes` are something else then.
    [[nodiscard]] bool read(std::size_t chunk, std::span<std::byte> bytes) override;

  private:
    const MemorySource source_;
    std::vector<std::unique_ptr<Transfers>> transfers_; ///< of each file, from its first chunk on
};

} // namespace vmm
