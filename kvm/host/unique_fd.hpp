// Ownership of one file descriptor.
#pragma once

#include <unistd.h>

#include <utility>

#include "kvm/host/export.hpp"

VMM_API_BEGIN
namespace vmm {

/// Owns a file descriptor and closes it. A plain `int` descriptor elsewhere in the project is a loan.
class UniqueFd {
  public:
    UniqueFd() noexcept = default;
    explicit UniqueFd(int fd) noexcept : fd_(fd) {}
    UniqueFd(UniqueFd&& other) noexcept : fd_(std::exchange(other.fd_, kNone)) {}
    UniqueFd& operator=(UniqueFd&& other) noexcept {
        if (this != &other) {
            reset(std::exchange(other.fd_, kNone));
        }
        return *this;
    }
    UniqueFd(const UniqueFd&) = delete;
    UniqueFd& operator=(const UniqueFd&) = delete;
    ~UniqueFd() { reset(); }

    /// The descriptor, on loan; negative if none is owned.
    [[nodiscard]] int get() const noexcept { return fd_; }
    [[nodiscard]] explicit operator bool() const noexcept { return fd_ >= 0; }

    /// Closes what is owned and takes `fd` instead.
    void reset(int fd = kNone) noexcept {
        if (fd_ >= 0) {
            ::close(fd_);
        }
        fd_ = fd;
    }

  private:
    static constexpr int kNone = -1;
    int fd_ = kNone;
};

} // namespace vmm
VMM_API_END
