// A disk's I/O if the host has stricter alignment rules than the guest (O_DIRECT).
#pragma once

#include <sys/uio.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "devices/disk_io.hpp"

namespace vmm::devices {

/// What the host demands of an operation, in bytes. All are powers of two, except `free_from`.
struct DiskAlignment {
    std::uint32_t offset = 1;             ///< of offsets, lengths, and the length of each piece
    std::uint32_t memory = 1;             ///< of the address of each piece
    std::uint64_t free_from = UINT64_MAX; ///< a multiple of `offset`; from there on, nothing is demanded
};

/// Passes on operations that meet the demands, and sends the others through its own memory, which is bounded. If a
/// write begins or ends within a block of the host, the block is read, changed and written, and no other write to the
/// block runs meanwhile. If an operation meets the demands only in part, that part is done, and the result says how
/// much it was.
///
/// Threads: as DiskIo.
class AlignedDiskIo final : public DiskIo {
  public:
    /// `host` takes `depth` operations at once, and so does this object.
    AlignedDiskIo(std::unique_ptr<DiskIo> host, unsigned depth, const DiskAlignment& alignment);
    ~AlignedDiskIo() override;

    [[nodiscard]] DiskIoKind kind() const noexcept override { return host_->kind(); }
    [[nodiscard]] bool register_buffers(std::span<const std::span<std::byte>> buffers) override {
        return host_->register_buffers(buffers);
    }
    [[nodiscard]] int fd() const noexcept override { return host_->fd(); }
    [[nodiscard]] bool has_room() const noexcept override { return !free_.empty(); }
    void read(std::uint64_t token, std::uint64_t offset, std::span<const iovec> pieces) override;
    void write(std::uint64_t token, std::uint64_t offset, std::span<const iovec> pieces) override;
    void flush(std::uint64_t token) override;
    void allocate(std::uint64_t token, int mode, std::uint64_t offset, std::uint64_t bytes) override;
    [[nodiscard]] bool submit() override { return host_->submit(); }
    [[nodiscard]] std::size_t reap(std::span<Completion> completions) override;
    void abandon() override;

    /// The size of each piece of its own memory, in bytes, and the largest number of such pieces.
    static constexpr std::size_t kBufferBytes = std::size_t{1} << 20;
    static constexpr std::size_t kMostBuffers = 4;

  private:
    struct Operation;
    class Buffer;

    [[nodiscard]] Operation& begin(std::uint64_t token, std::uint64_t offset, std::span<const iovec> pieces);
    void plan(Operation& operation) const;
    void start(Operation& operation);
    void start_in_turn(Operation& operation);
    void start_with_buffer(Operation& operation);
    [[nodiscard]] bool must_wait(const Operation& operation) const;
    [[nodiscard]] bool is_fit(const iovec& piece) const noexcept;
    [[nodiscard]] bool go_on(Operation& operation, int& result);
    void end(Operation& operation);
    void start_waiting();

    std::unique_ptr<DiskIo> host_;
    DiskAlignment alignment_;
    std::vector<std::unique_ptr<Operation>> operations_; ///< by the token given to the host
    std::vector<Operation*> free_;
    std::vector<Operation*> changing_;           ///< operations that have begun to change the disk
    std::vector<Operation*> waiting_for_range_;  ///< in order of arrival
    std::vector<Operation*> waiting_for_buffer_; ///< in order of arrival
    std::vector<std::unique_ptr<Buffer>> buffers_;
    std::vector<Buffer*> free_buffers_;
    std::vector<Completion> done_; ///< operations that came back without the host
};

} // namespace vmm::devices
