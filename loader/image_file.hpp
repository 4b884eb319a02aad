// An input file, e.g. a kernel or an initrd.
#pragma once

#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "kvm/host/guest_address.hpp"
#include "kvm/host/guest_memory.hpp"
#include "kvm/host/unique_fd.hpp"

namespace vmm::loader {

/// An open file that is read and never mapped, so that a file that is cut short meanwhile causes an error, not a
/// SIGBUS. A pipe is read to its end at once into anonymous memory, and is then like any other file. Bytes that are
/// already in memory can also be used as a file.
///
/// Threads: const after construction. Each read has its own offset, so any thread may read.
class ImageFile {
  public:
    /// The most bytes that are taken from a pipe, which may have no end. It is more than any kernel has, including its
    /// debug information.
    static constexpr std::uint64_t kMaxStreamBytes = kGiB;

    /// Opens `path` for reading: a regular file, a block device or a pipe; it waits for the writer of a pipe. `stop_fd`
    /// becomes readable when a stop is requested, which ends all waiting and reading; it is a loan that must outlive
    /// the file, and negative if there is none. Throws Error: cannot open or read it, a directory, a character device,
    /// a pipe that gives more than `max_stream_bytes`. Throws StoppedError.
    explicit ImageFile(std::string path, std::uint64_t max_stream_bytes = kMaxStreamBytes, int stop_fd = -1);

    /// Uses the bytes of `owner`, called `name` in messages, without copying them. Null means no bytes.
    ImageFile(std::string name, std::shared_ptr<const std::vector<std::byte>> owner) noexcept;

    /// Uses a copy of `bytes`, called `name` in messages.
    static ImageFile from_bytes(std::string name, std::span<const std::byte> bytes);

    /// The path by which the file was opened, for messages.
    [[nodiscard]] const std::string& name() const noexcept { return name_; }
    /// The size when the file was opened, in bytes.
    [[nodiscard]] std::uint64_t size() const noexcept { return size_; }

    /// Fills `out` from `offset` on. Returns false if that is not wholly inside the file. Correct for every value of
    /// `offset`. Throws Error if the host cannot read the file, and StoppedError.
    [[nodiscard]] bool read_at(std::uint64_t offset, std::span<std::byte> out) const;

    /// A copy of the object at `offset`; nothing if it is not wholly inside the file. Throws as read_at() does.
    template <typename T>
    [[nodiscard]] std::optional<T> load(std::uint64_t offset) const {
        static_assert(std::is_trivially_copyable_v<T>);
        std::array<std::byte, sizeof(T)> raw;
        if (!read_at(offset, raw)) {
            return std::nullopt;
        }
        return std::bit_cast<T>(raw);
    }

    /// Reads `length` bytes from `offset` on directly into guest memory at `target`, which must be RAM. Throws Error if
    /// the host cannot read the file, or if the file has become too short.
    void read_into(const GuestMemory& memory, GuestAddress target, std::uint64_t offset, std::uint64_t length) const;

  private:
    std::string name_;
    UniqueFd fd_;
    std::shared_ptr<const std::vector<std::byte>> bytes_; ///< instead of fd_
    std::uint64_t size_ = 0;
    int stop_fd_ = -1;
};

/// Writes zeros over `range` of guest memory, which must be RAM.
void fill_with_zeros(const GuestMemory& memory, GuestRange range);

} // namespace vmm::loader
