// Reads and writes of a file that are under way at once.
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

/// Moves bytes between memory and one file, several pieces at a time: by io_uring, or by threads where the host has
/// none. What the kernel did in part is asked for again.
///
/// Threads: the one that made it.
class Transfers {
  public:
    /// `fd` is a loan. `name` is the file's, for messages. `cached` is true if `fd` is without O_DIRECT. Throws Error:
    /// the host has no descriptor or no thread for it.
    Transfers(int fd, std::string name, bool cached);
    /// Waits for what is under way.
    ~Transfers();
    Transfers(const Transfers&) = delete;
    Transfers& operator=(const Transfers&) = delete;

    /// These begin to write or to read `bytes` at `offset`, and may wait until earlier transfers are done. The caller
    /// leaves the bytes where they are until finish(). Throws Error: an earlier transfer failed.
    void write(std::uint64_t offset, std::span<const std::byte> bytes);
    void read(std::uint64_t offset, std::span<std::byte> bytes);
    /// Waits until all is done. Throws Error: one of them failed.
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
