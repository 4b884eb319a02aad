#include "vmm/state/verify_memory.hpp"

#include <pthread.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstddef>
#include <exception>
#include <mutex>
#include <span>
#include <string>
#include <system_error>
#include <thread>
#include <vector>

#include "kvm/host/error.hpp"
#include "kvm/host/format.hpp"
#include "kvm/host/retry.hpp"
#include "vmm/state/crc32c.hpp"

namespace vmm {

namespace {

/// What the threads share.
class MemoryVerifier {
  public:
    MemoryVerifier(const SnapshotReader& snapshot, const VerifyProgress& progress)
        : snapshot_(snapshot), progress_(progress) {}

    /// Checks chunks until there are no more, or one is wrong.
    void run() noexcept {
        std::size_t chunk = 0;
        try {
            std::vector<std::byte> buffer(kMemoryChunkBytes);
            for (chunk = next_++; chunk < snapshot_.layout().chunks() && !has_failed_; chunk = next_++) {
                check(chunk, buffer);
            }
        } catch (...) {
            note_failure(chunk, std::current_exception());
        }
    }

    /// Throws the error of the first wrong chunk.
    void finish() const {
        if (failure_) {
            std::rethrow_exception(failure_);
        }
    }

  private:
    void check(std::size_t index, std::span<std::byte> buffer) {
        const MemoryPiece piece = snapshot_.layout().chunk(index);
        const MemoryChunk& known = (*snapshot_.state().memory)[index];
        if (known.is_hole && is_hole_in_file(piece)) {
            note_progress(piece.range.size);
            return;
        }
        const std::span<std::byte> content = buffer.first(static_cast<std::size_t>(piece.range.size));
        read(file_of(index), piece, content);
        const bool is_right = known.is_hole
                                  ? std::ranges::all_of(content, [](std::byte byte) { return byte == std::byte{0}; })
                                  : crc32c(content) == known.crc32c;
        if (!is_right) {
            throw Error(format("the snapshot {} is damaged: guest memory {}, at offset {:#x} of {}, is not what "
                               "was saved (take another snapshot)",
                               snapshot_.directory().string(), to_string(piece.range), piece.file_offset,
                               file_of(index).name));
        }
        note_progress(piece.range.size);
    }

    /// Whether the file has no data in the whole piece.
    [[nodiscard]] bool is_hole_in_file(const MemoryPiece& piece) const {
        const auto begin = static_cast<off_t>(piece.file_offset);
        const off_t data = ::lseek(snapshot_.memory_fd(), begin, SEEK_DATA);
        // There may be no data up to the end of the file.
        if (data < 0) {
            return errno == ENXIO;
        }
        return data >= begin + static_cast<off_t>(piece.range.size);
    }

    [[nodiscard]] const MemoryFile& file_of(std::size_t chunk) const {
        const MemorySource memory = snapshot_.memory();
        return memory.files[memory.index[chunk].file];
    }

    static void read(const MemoryFile& file, const MemoryPiece& piece, std::span<std::byte> content) {
        std::uint64_t offset = piece.file_offset;
        while (!content.empty()) {
            const ssize_t got = uninterrupted(
                [&] { return ::pread(file.fd, content.data(), content.size(), static_cast<off_t>(offset)); });
            if (got < 0) {
                const int error_number = errno;
                throw_errno(error_number, format("read {} bytes at {:#x} of {}", content.size(), offset, file.name),
                            error_number == EIO ? "the disk fails: take another snapshot" : "");
            }
            if (got == 0) {
                throw Error(format("cannot read {}: it has become shorter (leave a snapshot as it is)", file.name));
            }
            content = content.subspan(static_cast<std::size_t>(got));
            offset += static_cast<std::uint64_t>(got);
        }
    }

    void note_progress(std::uint64_t bytes) {
        const std::lock_guard lock(mutex_);
        done_bytes_ += bytes;
        if (progress_) {
            progress_(done_bytes_, snapshot_.layout().memory_bytes());
        }
    }

    void note_failure(std::size_t chunk, std::exception_ptr failure) noexcept {
        has_failed_ = true;
        const std::lock_guard lock(mutex_);
        if (!failure_ || chunk < failed_chunk_) {
            failure_ = std::move(failure);
            failed_chunk_ = chunk;
        }
    }

    const SnapshotReader& snapshot_;
    const VerifyProgress& progress_;
    std::atomic<std::size_t> next_ = 0;
    std::atomic<bool> has_failed_ = false;

    std::mutex mutex_; ///< guards all below
    std::uint64_t done_bytes_ = 0;
    std::exception_ptr failure_;
    std::size_t failed_chunk_ = 0;
};

} // namespace

void verify_memory(const SnapshotReader& snapshot, unsigned threads, const VerifyProgress& progress) {
    MemoryVerifier verifier(snapshot, progress);
    {
        std::vector<std::jthread> others;
        try {
            for (unsigned i = 1; i < threads; ++i) {
                others.emplace_back([&verifier, name = "verify" + std::to_string(i)] {
                    ::pthread_setname_np(::pthread_self(), name.c_str());
                    verifier.run();
                });
            }
        } catch (const std::system_error&) { // If there cannot be more threads, the existing ones do the work.
        }
        verifier.run();
    }
    verifier.finish();
}

} // namespace vmm
