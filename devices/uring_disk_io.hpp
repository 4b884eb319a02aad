// A disk's I/O by io_uring.
#pragma once

#include <memory>
#include <vector>

#include "devices/disk_io.hpp"
#include "kvm/host/error.hpp"

namespace vmm::devices {

/// A ring for one disk. It is restricted (IORING_REGISTER_RESTRICTIONS) to the operations of DiskIo, on the descriptors
/// that it was made with.
///
/// Threads: one at a time. If the thread that queued an operation ends, the kernel cancels it.
class UringDiskIo final : public DiskIo {
  public:
    /// The whole ring exists and works afterwards.
    /// Throws UringRefused or Error.
    UringDiskIo(const DiskFiles& files, unsigned depth);
    ~UringDiskIo() override;

    [[nodiscard]] DiskIoKind kind() const noexcept override { return DiskIoKind::kUring; }
    [[nodiscard]] bool register_buffers(std::span<const std::span<std::byte>> buffers) override;
    [[nodiscard]] int fd() const noexcept override;
    [[nodiscard]] bool has_room() const noexcept override { return in_flight_ < depth_; }
    void read(std::uint64_t token, std::uint64_t offset, std::span<const iovec> pieces) override;
    void write(std::uint64_t token, std::uint64_t offset, std::span<const iovec> pieces) override;
    void flush(std::uint64_t token) override;
    void allocate(std::uint64_t token, int mode, std::uint64_t offset, std::uint64_t bytes) override;
    [[nodiscard]] bool submit() override;
    [[nodiscard]] std::size_t reap(std::span<Completion> completions) override;
    /// Does nothing, because all queued operations have begun when submit() returns true.
    void abandon() override {}

  private:
    struct Ring;
    void transfer(bool write, std::uint64_t token, std::uint64_t offset, std::span<const iovec> pieces);
    [[nodiscard]] int buffer_of(const iovec& piece) const noexcept;
    [[nodiscard]] int file_of(std::uint64_t offset) const noexcept;

    unsigned depth_;
    unsigned in_flight_ = 0;
    std::uint64_t tail_begins_;
    std::vector<iovec> buffers_;
    std::unique_ptr<Ring> ring_;
};

/// This process or this kernel does not support what UringDiskIo needs. There are other ways.
class UringRefused : public Error {
  public:
    using Error::Error;
};

} // namespace vmm::devices
