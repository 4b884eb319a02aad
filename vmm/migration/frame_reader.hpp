// Takes frames off a connection.
#pragma once

#include <cstddef>
#include <memory>
#include <span>
#include <vector>

#include "vmm/migration/channel.hpp"
#include "vmm/migration/frames.hpp"

struct ZSTD_DCtx_s;

namespace vmm {

/// Reads frames, which may be any bytes. Threads: one.
class FrameReader {
  public:
    /// `channel` outlives it.
    explicit FrameReader(Channel& channel);
    ~FrameReader();
    FrameReader(const FrameReader&) = delete;
    FrameReader& operator=(const FrameReader&) = delete;

    /// The header of the next frame: one that can be, whatever the memory is, and no kAsk. Throws as
    /// Channel::receive(), and Error.
    [[nodiscard]] FrameHeader next();
    /// Puts the pages of the frame with `header` to `memory`, which is as long as it says. Throws likewise: what is in
    /// `memory` may be anything then.
    void take(const FrameHeader& header, std::span<std::byte> memory);

  private:
    struct FreeContext {
        void operator()(ZSTD_DCtx_s* context) const noexcept;
    };
    void check(const FrameHeader& header, std::span<const std::byte> payload) const;
    void unpack(const FrameHeader& header, std::span<std::byte> memory);

    Channel& channel_;
    std::vector<std::byte> packed_;
    std::unique_ptr<ZSTD_DCtx_s, FreeContext> context_; ///< from the first compressed frame on
};

} // namespace vmm
