// A disk's I/O without a host: a test sees each operation, and decides when and how it completes.
#pragma once

#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <span>
#include <vector>

#include "devices/disk_io.hpp"
#include "kvm/host/unique_fd.hpp"

namespace vmm::devices::testing {

class HeldDiskIo final : public DiskIo {
  public:
    enum class Kind { kRead, kWrite, kFlush, kAllocate };
    struct Operation {
        Kind kind = Kind::kFlush;
        std::uint64_t token = 0;
        std::uint64_t offset = 0;
        std::uint64_t bytes = 0;
    };

    // ---- The test's side

    /// The operations in flight, in the order in which they were begun.
    [[nodiscard]] const std::deque<Operation>& held() const { return held_; }
    [[nodiscard]] std::uint64_t held_bytes() const {
        std::uint64_t bytes = 0;
        for (const Operation& operation : held_) {
            bytes += operation.bytes;
        }
        return bytes;
    }
    [[nodiscard]] std::uint64_t begun() const { return begun_; } ///< since it was made
    [[nodiscard]] std::uint64_t largest() const { return largest_; }

    /// Completes the first operation of `kind`, with all requested bytes or with `error`. False if there is none.
    bool release(Kind kind, int error = 0) {
        const auto found =
            std::find_if(held_.begin(), held_.end(), [kind](const Operation& each) { return each.kind == kind; });
        if (found == held_.end()) {
            return false;
        }
        const bool moves = kind == Kind::kRead || kind == Kind::kWrite;
        come_back({found->token, error != 0 ? -error : moves ? static_cast<int>(found->bytes) : 0});
        held_.erase(found);
        return true;
    }
    void release_all() {
        while (!held_.empty() && release(held_.front().kind)) {
        }
    }

    // ---- The device's side

    [[nodiscard]] DiskIoKind kind() const noexcept override { return DiskIoKind::kUring; }
    [[nodiscard]] bool register_buffers(std::span<const std::span<std::byte>> /*buffers*/) override { return true; }
    [[nodiscard]] int fd() const noexcept override { return event_.get(); }
    [[nodiscard]] bool has_room() const noexcept override { return true; }
    void read(std::uint64_t token, std::uint64_t offset, std::span<const iovec> pieces) override {
        begin({Kind::kRead, token, offset, bytes_of(pieces)});
    }
    void write(std::uint64_t token, std::uint64_t offset, std::span<const iovec> pieces) override {
        begin({Kind::kWrite, token, offset, bytes_of(pieces)});
    }
    void flush(std::uint64_t token) override { begin({Kind::kFlush, token, 0, 0}); }
    void allocate(std::uint64_t token, int /*mode*/, std::uint64_t offset, std::uint64_t bytes) override {
        begin({Kind::kAllocate, token, offset, bytes});
    }
    [[nodiscard]] bool submit() override { return true; }
    [[nodiscard]] std::size_t reap(std::span<Completion> completions) override {
        const std::size_t count = std::min(completions.size(), back_.size());
        std::copy_n(back_.begin(), count, completions.begin());
        back_.erase(back_.begin(), back_.begin() + static_cast<std::ptrdiff_t>(count));
        if (back_.empty()) {
            std::uint64_t value = 0;
            [[maybe_unused]] const auto got = ::read(event_.get(), &value, sizeof(value));
        }
        return count;
    }
    void abandon() override {} // all of it has begun

  private:
    static std::uint64_t bytes_of(std::span<const iovec> pieces) {
        std::uint64_t bytes = 0;
        for (const iovec& piece : pieces) {
            bytes += piece.iov_len;
        }
        return bytes;
    }
    void begin(const Operation& operation) {
        held_.push_back(operation);
        largest_ = std::max(largest_, operation.bytes);
        ++begun_;
    }
    void come_back(const Completion& completion) {
        back_.push_back(completion);
        const std::uint64_t one = 1;
        [[maybe_unused]] const auto put = ::write(event_.get(), &one, sizeof(one));
    }

    UniqueFd event_{::eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC)};
    std::deque<Operation> held_;
    std::vector<Completion> back_;
    std::uint64_t begun_ = 0;
    std::uint64_t largest_ = 0;
};

} // namespace vmm::devices::testing
