#include "devices/frame_stream.hpp"

#include <arpa/inet.h>
#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <climits>
#include <cstring>
#include <utility>

#include "kvm/host/retry.hpp"

namespace vmm::devices {

namespace {

constexpr std::size_t kLengthBytes = sizeof(std::uint32_t);
constexpr std::size_t kLeastFrame = 14; ///< the Ethernet header
constexpr std::size_t kMostFrame = FrameLink::kMostBytes - FrameLink::kHeaderBytes;
/// The buffer holds this many frames of the largest size.
constexpr std::size_t kInputBytes = 4 * (kLengthBytes + kMostFrame);

/// Copies `bytes` into the buffers, from byte `offset` of them on. Bytes that do not fit are left out.
void scatter(std::span<const iovec> buffers, std::size_t offset, std::span<const std::byte> bytes) noexcept {
    for (const iovec& buffer : buffers) {
        if (bytes.empty()) {
            return;
        }
        if (offset >= buffer.iov_len) {
            offset -= buffer.iov_len;
            continue;
        }
        const std::size_t count = std::min(bytes.size(), buffer.iov_len - offset);
        std::memcpy(static_cast<std::byte*>(buffer.iov_base) + offset, bytes.data(), count);
        bytes = bytes.subspan(count);
        offset = 0;
    }
}

/// Copies from the buffers, from byte `offset` of them on, until `out` is full. Returns the number of bytes copied.
std::size_t gather_some(std::span<std::byte> out, std::span<const iovec> buffers, std::size_t offset) noexcept {
    std::size_t copied = 0;
    for (const iovec& buffer : buffers) {
        const std::size_t skipped = std::min(offset, buffer.iov_len);
        offset -= skipped;
        const std::size_t count = std::min(out.size() - copied, buffer.iov_len - skipped);
        if (count != 0) {
            std::memcpy(out.data() + copied, static_cast<const std::byte*>(buffer.iov_base) + skipped, count);
            copied += count;
        }
    }
    return copied;
}

/// Appends the content of the buffers from byte `offset` on.
void gather(std::vector<std::byte>& out, std::span<const iovec> buffers, std::size_t offset) {
    for (const iovec& buffer : buffers) {
        if (offset >= buffer.iov_len) {
            offset -= buffer.iov_len;
            continue;
        }
        const auto* const base = static_cast<const std::byte*>(buffer.iov_base);
        out.insert(out.end(), base + offset, base + buffer.iov_len);
        offset = 0;
    }
}

} // namespace

FrameStream::FrameStream(UniqueFd socket, std::unique_ptr<FrameFilter> filter,
                         std::function<void(const std::string&)> kept)
    : socket_(std::move(socket)), filter_(std::move(filter)), kept_(std::move(kept)), input_(kInputBytes) {
    rest_.reserve(kLengthBytes + kMostFrame); // So that keeping a rest cannot fail.
}

// ---- From the host

/// Returns true if something was read.
bool FrameStream::read_more() noexcept {
    if (input_begin_ != 0) {
        std::memmove(input_.data(), input_.data() + input_begin_, input_end_ - input_begin_);
        input_end_ -= std::exchange(input_begin_, 0);
    }
    const ssize_t count = uninterrupted(
        [&] { return ::recv(socket_.get(), input_.data() + input_end_, input_.size() - input_end_, MSG_DONTWAIT); });
    if (count > 0) {
        input_end_ += static_cast<std::size_t>(count);
        return true;
    }
    up_ = count < 0 && would_block(errno);
    return false;
}

std::ptrdiff_t FrameStream::receive(std::span<const iovec> buffers) {
    while (up_) {
        const std::size_t there = input_end_ - input_begin_;
        std::uint32_t length = 0;
        if (there >= kLengthBytes) {
            std::memcpy(&length, input_.data() + input_begin_, kLengthBytes);
            length = ntohl(length);
            if (length > kMostFrame) { // The beginning of the next frame cannot be known.
                up_ = false;
                break;
            }
        }
        if (there < kLengthBytes || there - kLengthBytes < length) {
            if (!read_more()) {
                break;
            }
            continue;
        }
        const std::span<const std::byte> frame(input_.data() + input_begin_ + kLengthBytes, length);
        input_begin_ += kLengthBytes + length;
        if (length < kLeastFrame) {
            continue;
        }
        if (filter_) {
            filter_->to_guest(frame);
        }
        constexpr std::array<std::byte, kHeaderBytes> kNoHeader{};
        scatter(buffers, 0, kNoHeader);
        scatter(buffers, kHeaderBytes, frame);
        return static_cast<std::ptrdiff_t>(kHeaderBytes + length);
    }
    return up_ ? -EAGAIN : -ENOTCONN;
}

// ---- To the host

void FrameStream::send_rest() noexcept {
    while (has_rest()) {
        const ssize_t count = uninterrupted([&] {
            return ::send(socket_.get(), rest_.data() + rest_begin_, rest_.size() - rest_begin_,
                          MSG_DONTWAIT | MSG_NOSIGNAL);
        });
        if (count < 0) {
            up_ = would_block(errno);
            return;
        }
        rest_begin_ += static_cast<std::size_t>(count);
    }
}

/// If `filter` is null, the frame is not judged.
int FrameStream::send(std::span<const iovec> frame, FrameFilter* filter) {
    send_rest();
    if (!up_) {
        return -ENOTCONN;
    }
    if (has_rest()) {
        return -EAGAIN;
    }
    std::size_t bytes = 0;
    for (const iovec& piece : frame) {
        bytes += piece.iov_len;
    }
    // The length and the copy of the head need one more piece each.
    if (bytes < kHeaderBytes + kLeastFrame || bytes > kMostBytes || frame.size() + 2 > IOV_MAX) {
        return -EMSGSIZE;
    }
    bytes -= kHeaderBytes;
    std::uint32_t length = htonl(static_cast<std::uint32_t>(bytes));
    // These are 16 KiB, of which `count` pieces are used. Clearing all of them would take longer than the rest of this
    // function.
    std::array<iovec, IOV_MAX> pieces __attribute__((uninitialized));
    pieces[0] = {&length, kLengthBytes};
    std::size_t count = 1;
    std::size_t skip = kHeaderBytes;
    std::array<std::byte, FrameFilter::kHeadBytes> head;
    if (filter != nullptr) {
        const std::size_t copied = gather_some(head, frame, skip);
        const auto verdict = filter->to_host(std::span(head).first(copied), bytes);
        if (verdict != FrameFilter::Verdict::kPass) {
            if (verdict == FrameFilter::Verdict::kHostsOwn && kept_) {
                kept_(FrameFilter::destination(std::span(head).first(copied)));
            }
            return -EPERM;
        }
        pieces[count++] = {head.data(), copied};
        skip += copied;
    }
    for (const iovec& piece : frame) {
        const std::size_t skipped = std::min(skip, piece.iov_len);
        skip -= skipped;
        if (skipped != piece.iov_len) {
            pieces[count++] = {static_cast<std::byte*>(piece.iov_base) + skipped, piece.iov_len - skipped};
        }
    }
    return send_pieces(std::span(pieces).first(count));
}

int FrameStream::send_pieces(std::span<iovec> pieces) {
    msghdr message{};
    message.msg_iov = pieces.data();
    message.msg_iovlen = pieces.size();
    const ssize_t sent = uninterrupted([&] { return ::sendmsg(socket_.get(), &message, MSG_DONTWAIT | MSG_NOSIGNAL); });
    if (sent < 0) {
        if (would_block(errno)) {
            return -EAGAIN;
        }
        up_ = false;
        return -ENOTCONN;
    }
    rest_.clear();
    rest_begin_ = 0;
    gather(rest_, pieces, static_cast<std::size_t>(sent));
    return 0;
}

} // namespace vmm::devices
