// Memory of a guest that has come before it.
#pragma once

#include <cstddef>
#include <memory>
#include <span>

#include "vmm/migration/channel.hpp"
#include "vmm/state/memory_layout.hpp"
#include "vmm/state/memory_source.hpp"

namespace vmm {

/// Asks the source of a migration for chunks of memory (post-copy). What comes is checked as the frames of a stream.
///
/// Threads: the one that made it.
class RemoteChunks final : public ChunkSource {
  public:
    /// `layout` outlives it. The source has given this connection for it (MessageType::kServe).
    RemoteChunks(const MemoryLayout& layout, std::shared_ptr<Channel> channel);
    ~RemoteChunks() override;

    [[nodiscard]] bool read(std::size_t chunk, std::span<std::byte> bytes) override;

  private:
    const MemoryLayout& layout_;
    std::shared_ptr<Channel> channel_;
};

} // namespace vmm
