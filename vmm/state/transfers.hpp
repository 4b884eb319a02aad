// Reads and writes of one file, several of them in flight at once.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <memory>
#include <span>
#include <string>

#include <sys/uio.h>

#include "devices/disk_io.hpp"

namespace vmm {

/// Moves bytes between memory and one file, several pieces at a time: by io_uring, or by threads if the host has no
/// io_uring. If the kernel does only a part of a transfer, the rest is requested again.
///
/// Threads: the one that made it.
class Transfers {
  public:
    /// `fd` is a loan. `name` is the name of the file, for messages. `cached` is true if `fd` is without O_DIRECT.
    /// Throws Error if the host has no descriptor or no thread left.
    Transfers(int fd, std::string name, bool cached);
    /// Waits for transfers that are under way.
    ~Transfers();
    Transfers(const Transfers&) = delete;
    Transfers& operator=(const Transfers&) = delete;

    /// Begin to write or to read `bytes` at `offset`, and may wait until earlier transfers are done. The caller must
    /// keep the bytes valid and in place until finish(). Throws Error if an earlier transfer failed.
    void write(std::uint64_t offset, std::span<const std::byte> bytes);
    void read(std::uint64_t offset, std::span<std::byte> bytes);
    /// Waits until all transfers are done. Throws Error if one of them failed.
    void finish();

  private:
    static constexpr unsigned kDepth = 16;
    static constexpr std::size_t kMostBytesAtOnce = std::size_t{512} << 10;

    struct Piece {
        bool is_write = false;
        std::uint64_t offset = 0;
        iovec bytes{};
    };
    void begin(bool is_write, std::uint64_t offset, std::span<std::byte> bytes);
    void queue(std::size_t slot);
    void wait_for_some();
    [[noreturn]] void fail(const Piece& piece, int error_number) const;

    std::string name_;
    std::unique_ptr<devices::DiskIo> io_;
    std::array<Piece, kDepth> pieces_{};
    std::deque<std::size_t> free_; ///< slots of `pieces_`
};

} // namespace vmm
