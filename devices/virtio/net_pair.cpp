#include "devices/virtio/net_pair.hpp"

#include <sys/epoll.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <climits>
#include <utility>

#include "devices/virtio/driver_link.hpp"
#include "devices/virtio/net_features.hpp"
#include "kvm/host/error.hpp"

namespace vmm::devices::virtio {

namespace {

// The header of a frame (5.1.6).
constexpr std::size_t kFlagsOffset = 0;
constexpr std::size_t kSegmentationOffset = 1; ///< gso_type
constexpr std::size_t kBufferCountOffset = 10; ///< num_buffers

Identity identity_of_pair(const std::string& name) {
    Identity identity;
    identity.id = DeviceId::kNet;
    identity.name = name;
    identity.queue_sizes = {NetPair::kQueueSize, NetPair::kQueueSize};
    return identity;
}

} // namespace

NetPair::NetPair(const std::string& name, std::unique_ptr<FrameLink> link, bool receives,
                 std::function<void()> link_lost, std::span<const std::byte> frame)
    : SynchronousDevice(identity_of_pair(name)), link_(std::move(link)), link_lost_(std::move(link_lost)),
      receives_(receives), frame_(FrameLink::kMostBytes), frame_bytes_(frame.size()) {
    if (frame_bytes_ > frame_.size() || (frame_bytes_ != 0 && frame_bytes_ <= FrameLink::kHeaderBytes)) {
        throw Error("cannot restore the device " + name + ": the frame that it holds is none");
    }
    std::ranges::copy(frame, frame_.begin());
}

std::vector<std::byte> NetPair::frame() const {
    const auto frame = std::span(frame_).first(frame_bytes_);
    return {frame.begin(), frame.end()};
}

bool NetPair::set_receiving(bool receiving) noexcept {
    if (receiving == receives_) {
        return true;
    }
    if (!link_->set_attached(receiving)) {
        return false;
    }
    receives_ = receiving;
    if (!receiving && frame_bytes_ != 0) {
        frame_bytes_ = 0;
        dropped_.fetch_add(1, std::memory_order_relaxed);
    }
    return true;
}

void NetPair::begin(std::uint64_t features) {
    const auto has = [features](std::uint64_t feature) { return (features & feature) != 0; };
    merges_ = has(net_features::kMergeBuffers);
    checksums_ = has(net_features::kGuestChecksum);
    segments_ = checksums_ && (has(net_features::kGuestTso4) || has(net_features::kGuestTso6));
}

void NetPair::end() noexcept {
    frame_bytes_ = 0;
}

void NetPair::forget_queue(std::uint16_t index) noexcept {
    if (index == kReceive) {
        buffers_taken_ = 0;
        room_ = 0;
        wants_buffers_ = false;
    } else if (index == kTransmit) {
        is_sending_ = false;
    }
}

std::uint16_t NetPair::put_back(std::uint16_t index) noexcept {
    const std::size_t taken = index == kReceive ? buffers_taken_ : (index == kTransmit && is_sending_ ? 1 : 0);
    forget_queue(index);
    return static_cast<std::uint16_t>(taken);
}

std::vector<Source> NetPair::sources() const {
    std::vector<Source> sources = SynchronousDevice::sources();
    if (!is_active() || is_paused() || !link_->is_up()) {
        return sources;
    }
    const bool receives = receives_ && has_working_queue(kReceive) && !wants_buffers_;
    const std::uint32_t events = (receives ? static_cast<std::uint32_t>(EPOLLIN) : 0U) |
                                 (is_sending_ || link_->has_rest() ? static_cast<std::uint32_t>(EPOLLOUT) : 0U);
    if (events != 0) {
        sources.push_back({link_->fd(), events});
    }
    return sources;
}

void NetPair::look_at_doorbell(std::uint16_t index) {
    wants_buffers_ = wants_buffers_ && index != kReceive;
}

void NetPair::serve() {
    link_->send_rest();
    send_some();
    receive_some();
    if (!link_->is_up() && !std::exchange(told_of_loss_, true)) {
        is_up_.store(false);
        look_again(); // A frame that waited for room must go, too.
        link_lost_();
    }
}

// ---- To the host

void NetPair::send_some() {
    Queue* const queue = working_queue(kTransmit);
    if (queue == nullptr) {
        return;
    }
    queue->suppress_doorbells();
    for (int frames = 0; frames < kMostFramesATurn; ++frames) {
        if (!is_sending_ && !take(kTransmit, sending_)) {
            return;
        }
        const int result = send(sending_);
        is_sending_ = result == -EAGAIN;
        if (is_sending_) {
            return; // EPOLLOUT reports when there is room.
        }
        (result == 0 ? sent_ : dropped_).fetch_add(1, std::memory_order_relaxed);
        queue->push(sending_.head, 0);
    }
    ask_for_another_turn();
}

int NetPair::send(const Chain& chain) {
    if (chain.readable_bytes <= FrameLink::kHeaderBytes || chain.readable_bytes > FrameLink::kMostBytes ||
        chain.readable.size() > IOV_MAX) {
        return -EMSGSIZE;
    }
    pieces_.clear();
    for (const std::span<std::byte> buffer : chain.readable) {
        pieces_.push_back({buffer.data(), buffer.size()});
    }
    return link_->send(pieces_); // The kernel copies the header before it checks it.
}

// ---- To the guest

void NetPair::receive_some() {
    buffers_left_ = kMostBuffersATurn;
    for (int frames = 0; frames < kMostFramesATurn; ++frames) {
        if (!receives_ || wants_buffers_ || !has_working_queue(kReceive)) {
            return;
        }
        if (buffers_left_ == 0) {
            break;
        }
        if (frame_bytes_ == 0) {
            if (!take_buffers(FrameLink::kMostBytes)) {
                return;
            }
            const bool direct = receive_into_buffers();
            const std::array<iovec, 1> frame{{{frame_.data(), frame_.size()}}};
            const std::ptrdiff_t bytes = link_->receive(direct ? std::span<const iovec>(pieces_) : frame);
            if (bytes <= static_cast<std::ptrdiff_t>(FrameLink::kHeaderBytes)) {
                return; // There is none, or the interface is down. A later frame wakes us.
            }
            if (direct) {
                hand_over({}, static_cast<std::size_t>(bytes));
                continue;
            }
            frame_bytes_ = static_cast<std::size_t>(bytes);
        }
        if (!deliver()) {
            return;
        }
    }
    ask_for_another_turn();
}

/// True if the host can write a frame of any size into the buffers taken. It then sets pieces_ to these buffers.
bool NetPair::receive_into_buffers() {
    if (room_ < FrameLink::kMostBytes || buffers_.front().writable_bytes < FrameLink::kHeaderBytes) {
        return false;
    }
    pieces_.clear();
    for (std::size_t i = 0; i < buffers_taken_; ++i) {
        for (const std::span<std::byte> buffer : buffers_[i].writable) {
            pieces_.push_back({buffer.data(), buffer.size()});
        }
    }
    return pieces_.size() <= IOV_MAX;
}

/// Takes buffers from the guest until they hold `bytes`, or the guest has no more. Returns false if the queue is
/// broken.
bool NetPair::take_buffers(std::size_t bytes) {
    Queue& queue = *working_queue(kReceive);
    // All buffers of the queue together may still be too small.
    const std::size_t most = merges_ ? queue.size() : 1;
    while ((room_ < bytes || buffers_taken_ == 0) && buffers_taken_ < most && buffers_left_ > 0) {
        if (buffers_.size() == buffers_taken_) {
            buffers_.emplace_back();
        }
        switch (queue.pop(buffers_[buffers_taken_])) {
        case Queue::Pop::kBroken:
            driver().fail(queue.why());
            return false;
        case Queue::Pop::kEmpty:
            return true;
        case Queue::Pop::kChain:
            room_ += buffers_[buffers_taken_].writable_bytes;
            ++buffers_taken_;
            --buffers_left_;
            break;
        }
    }
    return true;
}

/// Delivers the present frame to the guest. Returns false if the guest has no buffers for it now.
bool NetPair::deliver() {
    Queue& queue = *working_queue(kReceive);
    const std::size_t most = merges_ ? queue.size() : 1;
    do {
        if (!take_buffers(frame_bytes_)) {
            return false;
        }
        if ((room_ >= frame_bytes_ && buffers_taken_ != 0) || buffers_taken_ == most) {
            break;
        }
        if (buffers_left_ == 0) {
            ask_for_another_turn(); // The frame waits for that turn.
            return false;
        }
        wants_buffers_ = !queue.ask_for_doorbell();
    } while (!wants_buffers_);
    if (wants_buffers_) {
        return false;
    }
    // A header that is split over several buffers is refused (5.1.6.3.1 requires each buffer to be larger than the
    // header).
    const bool has_header = buffers_.front().writable_bytes >= FrameLink::kHeaderBytes;
    if (room_ >= frame_bytes_ && has_header) {
        hand_over(std::span<const std::byte>(frame_).first(frame_bytes_), frame_bytes_);
    } else {
        dropped_.fetch_add(1, std::memory_order_relaxed);
        if (!has_header || buffers_taken_ == queue.size()) {
            for (std::size_t i = 0; i < buffers_taken_; ++i) { // They are of no use.
                queue.push(buffers_[i].head, 0);
            }
            buffers_taken_ = 0;
            room_ = 0;
        }
    }
    frame_bytes_ = 0;
    return true;
}

/// Removes from the header what the guest did not agree to (5.1.6.4.1). The tap reports checksums that it has checked,
/// and frames that waited in it when the driver changed were made for the driver before.
void NetPair::clean_header() {
    constexpr std::byte kNothing{0};
    if (!checksums_) {
        copy_to(buffers_.front(), kFlagsOffset, std::span(&kNothing, 1));
    }
    if (!segments_) {
        copy_to(buffers_.front(), kSegmentationOffset, std::span(&kNothing, 1));
    }
}

/// Gives back the buffers that hold `bytes`, with `frame` in them. If `frame` is empty, the host has written the frame
/// there.
void NetPair::hand_over(std::span<const std::byte> frame, std::size_t bytes) {
    Queue& queue = *working_queue(kReceive);
    std::size_t needed = 0;
    for (std::size_t left = bytes; left != 0; ++needed) {
        const std::size_t here = std::min<std::size_t>(left, buffers_[needed].writable_bytes);
        if (!frame.empty()) {
            copy_to(buffers_[needed], 0, frame.subspan(bytes - left, here));
        }
        left -= here;
    }
    clean_header();
    const auto count = static_cast<std::uint16_t>(needed);
    copy_to(buffers_.front(), kBufferCountOffset, std::as_bytes(std::span(&count, 1)));
    for (std::size_t i = 0, left = bytes; i < needed; ++i) {
        const std::size_t here = std::min<std::size_t>(left, buffers_[i].writable_bytes);
        left -= here;
        room_ -= buffers_[i].writable_bytes;
        queue.push(buffers_[i].head, static_cast<std::uint32_t>(here));
    }
    // The rest moves to the front. The used chains follow, and keep their memory.
    std::ranges::rotate(buffers_, buffers_.begin() + static_cast<std::ptrdiff_t>(needed));
    buffers_taken_ -= needed;
    received_.fetch_add(1, std::memory_order_relaxed);
}

} // namespace vmm::devices::virtio
