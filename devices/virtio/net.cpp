#include "devices/virtio/net.hpp"

#include <sys/epoll.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <climits>
#include <cstring>
#include <utility>

#include "devices/virtio/driver_link.hpp"
#include "kvm/host/error.hpp"

namespace vmm::devices::virtio {

namespace {

// Feature bits (5.1.3).
constexpr std::uint64_t kChecksum = 1ULL << 0;
constexpr std::uint64_t kGuestChecksum = 1ULL << 1;
constexpr std::uint64_t kMac = 1ULL << 5;
constexpr std::uint64_t kGuestTso4 = 1ULL << 7;
constexpr std::uint64_t kGuestTso6 = 1ULL << 8;
constexpr std::uint64_t kGuestEcn = 1ULL << 9;
constexpr std::uint64_t kHostTso4 = 1ULL << 11;
constexpr std::uint64_t kHostTso6 = 1ULL << 12;
constexpr std::uint64_t kHostEcn = 1ULL << 13;
constexpr std::uint64_t kMergeBuffers = 1ULL << 15;
constexpr std::uint64_t kStatus = 1ULL << 16;
constexpr std::uint64_t kControlQueue = 1ULL << 17;
constexpr std::uint64_t kGuestAnnounce = 1ULL << 21;

constexpr std::uint16_t kReceive = 0;
constexpr std::uint16_t kTransmit = 1;
constexpr std::uint16_t kControl = 2;
constexpr std::uint16_t kLinkUp = 1;
constexpr std::uint16_t kAnnounce = 2; ///< of the status: the driver is asked to announce the guest (5.1.6.5.4)
/// What stands at the beginning of a command (5.1.6.5), and the answer at its end.
struct Command {
    std::uint8_t kind = 0;
    std::uint8_t command = 0;
};
constexpr std::uint8_t kOfAnnouncements = 3;
constexpr std::uint8_t kAcknowledged = 0;
constexpr std::byte kDone{0};
constexpr std::byte kNotDone{1};
constexpr std::size_t kStatusOffset = sizeof(MacAddress); ///< in the configuration space (5.1.4)
constexpr std::size_t kFlagsOffset = 0;                   ///< flags in the header (5.1.6)
constexpr std::size_t kSegmentationOffset = 1;            ///< gso_type
constexpr std::size_t kBufferCountOffset = 10;            ///< num_buffers

Identity identity_of(std::string name, const FrameLink& link, const MacAddress& mac) {
    Identity identity;
    identity.id = DeviceId::kNet;
    identity.name = std::move(name);
    identity.queue_sizes = {Net::kQueueSize, Net::kQueueSize, Net::kControlQueueSize};
    identity.first_queues = 2;
    identity.features = kMac | kMergeBuffers | kStatus | kControlQueue | kGuestAnnounce;
    if (link.has_offloads()) {
        identity.features |=
            kChecksum | kGuestChecksum | kGuestTso4 | kGuestTso6 | kGuestEcn | kHostTso4 | kHostTso6 | kHostEcn;
    }
    identity.config.resize(sizeof(mac) + sizeof(kLinkUp)); // mac, le16 status (5.1.4)
    std::memcpy(identity.config.data(), mac.data(), mac.size());
    std::memcpy(identity.config.data() + kStatusOffset, &kLinkUp, sizeof(kLinkUp));
    return identity;
}

/// A request of RARP (RFC 903) by the guest for itself, to all, with a header that says nothing. It has the least
/// length of an Ethernet frame.
std::vector<std::byte> announcement_of(const MacAddress& mac) {
    constexpr std::size_t kLeastFrame = 60;
    std::vector<std::byte> frame(FrameLink::kHeaderBytes + kLeastFrame);
    std::size_t at = FrameLink::kHeaderBytes;
    const auto put = [&frame, &at](std::span<const std::uint8_t> bytes) {
        std::ranges::copy(std::as_bytes(bytes), frame.begin() + static_cast<std::ptrdiff_t>(at));
        at += bytes.size();
    };
    constexpr MacAddress kAll{0xff, 0xff, 0xff, 0xff, 0xff, 0xff};
    constexpr std::array<std::uint8_t, 2> kRarp{0x80, 0x35};
    // Ethernet, IPv4, the sizes of their addresses, "request reverse".
    constexpr std::array<std::uint8_t, 8> kRequest{0, 1, 0x08, 0x00, 6, 4, 0, 3};
    constexpr std::array<std::uint8_t, 4> kNoAddress{};
    put(kAll);
    put(mac);
    put(kRarp);
    put(kRequest);
    put(mac);
    put(kNoAddress);
    put(mac);
    put(kNoAddress);
    return frame;
}

} // namespace

Net::Net(std::string name, std::unique_ptr<FrameLink> link, const MacAddress& mac, std::function<void()> link_lost,
         const NetState& state, const std::optional<MacAddress>& announced)
    : SynchronousDevice(identity_of(std::move(name), *link, mac)), link_(std::move(link)),
      link_lost_(std::move(link_lost)), told_up_(state.link_up), frame_(FrameLink::kMostBytes),
      frame_bytes_(state.frame.size()) {
    if (frame_bytes_ > frame_.size() || (frame_bytes_ != 0 && frame_bytes_ <= FrameLink::kHeaderBytes)) {
        throw Error("cannot restore the device " + identity().name + ": the frame that it holds is none");
    }
    std::ranges::copy(state.frame, frame_.begin());
    if (announced) {
        announcement_ = announcement_of(*announced);
        next_announcement_.emplace();
        announcements_left_ = kAnnouncements;
        is_announcement_due_ = true;
        asks_to_announce_ = true;
    }
}

DeviceState Net::state() const {
    const auto frame = std::span(frame_).first(frame_bytes_);
    return NetState{{frame.begin(), frame.end()}, told_up_};
}

Net::Net(std::string name, Tap tap, const MacAddress& mac)
    : Net(std::move(name), std::make_unique<Tap>(std::move(tap)), mac) {}

void Net::begin(std::uint64_t features) {
    const auto has = [features](std::uint64_t feature) { return (features & feature) != 0; };
    can_announce_ = has(kGuestAnnounce);
    merges_ = has(kMergeBuffers);
    checksums_ = has(kGuestChecksum);
    segments_ = checksums_ && (has(kGuestTso4) || has(kGuestTso6));
    link_->set_offloads({has(kGuestChecksum), has(kGuestTso4), has(kGuestTso6), has(kGuestEcn)});
}

void Net::end() noexcept {
    frame_bytes_ = 0;
    announcements_left_ = 0; // Another driver comes, and says itself who it is.
    is_announcement_due_ = false;
    asks_to_announce_ = false;
    if (std::exchange(has_asked_to_announce_, false)) {
        tell_status();
    }
    link_->set_offloads({});
}

void Net::forget_queue(std::uint16_t index) noexcept {
    if (index == kReceive) {
        buffers_taken_ = 0;
        room_ = 0;
        wants_buffers_ = false;
    } else if (index == kTransmit) {
        is_sending_ = false;
    }
}

std::uint16_t Net::put_back(std::uint16_t index) noexcept {
    const std::size_t taken = index == kReceive ? buffers_taken_ : (index == kTransmit && is_sending_ ? 1 : 0);
    forget_queue(index);
    return static_cast<std::uint16_t>(taken);
}

std::vector<Source> Net::sources() const {
    std::vector<Source> sources = SynchronousDevice::sources();
    if (!is_active() || !link_->is_up()) {
        return sources;
    }
    const bool receives = has_working_queue(kReceive) && !wants_buffers_;
    const std::uint32_t events =
        (receives ? static_cast<std::uint32_t>(EPOLLIN) : 0U) |
        (is_sending_ || is_announcement_due_ || link_->has_rest() ? static_cast<std::uint32_t>(EPOLLOUT) : 0U);
    if (events != 0) {
        sources.push_back({link_->fd(), events});
    }
    if (announcements_left_ != 0) {
        sources.push_back(next_announcement_->source());
    }
    return sources;
}

void Net::look_at_doorbell(std::uint16_t index) {
    wants_buffers_ = wants_buffers_ && index != kReceive;
}

Net::Statistics Net::statistics() const noexcept {
    return {received_.load(std::memory_order_relaxed), sent_.load(std::memory_order_relaxed),
            dropped_.load(std::memory_order_relaxed)};
}

void Net::serve() {
    obey_some();
    if (asks_to_announce_ && can_announce_ && !std::exchange(has_asked_to_announce_, true)) {
        tell_status();
    }
    link_->send_rest();
    announce();
    send_some();
    receive_some();
    look_at_link();
}

void Net::look_at_link() {
    if (link_->is_up() == told_up_) {
        return;
    }
    told_up_ = !told_up_; // Up again after a restore only, with another link.
    tell_status();
    if (told_up_) {
        return;
    }
    ask_for_another_turn(); // A frame that waited for room has to go, too.
    if (link_lost_) {
        std::exchange(link_lost_, {})();
    }
}

void Net::tell_status() {
    const auto status =
        static_cast<std::uint16_t>((told_up_ ? kLinkUp : 0U) | (asks_to_announce_ && can_announce_ ? kAnnounce : 0U));
    driver().change_config(kStatusOffset, std::as_bytes(std::span(&status, 1)));
}

// --- What the driver commands ---------------------------------------------------------------------------------------

void Net::obey_some() {
    Queue* const queue = working_queue(kControl);
    for (int commands = 0; queue != nullptr && commands < kControlQueueSize; ++commands) {
        if (!take(kControl, command_)) {
            return;
        }
        const bool is_done = obey(command_);
        const std::byte answer = is_done ? kDone : kNotDone;
        std::uint32_t written = 0;
        if (command_.writable_bytes != 0) { // The answer is the last byte that may be written (5.1.6.5).
            written = static_cast<std::uint32_t>(
                copy_to(command_, command_.writable_bytes - 1, std::span(&answer, 1)) != 0 ? command_.writable_bytes
                                                                                           : 0);
        }
        queue->push(command_.head, written);
    }
    if (queue != nullptr) {
        ask_for_another_turn();
    }
}

/// Whether the command is one that there is, and was obeyed.
bool Net::obey(const Chain& chain) {
    Command command;
    if (copy_from(chain, 0, std::as_writable_bytes(std::span(&command, 1))) != sizeof command ||
        command.kind != kOfAnnouncements || command.command != kAcknowledged || !can_announce_) {
        return false;
    }
    if (asks_to_announce_) {
        asks_to_announce_ = false;
        has_asked_to_announce_ = false;
        tell_status(); // "MUST clear VIRTIO_NET_S_ANNOUNCE ... before it marks the command buffer as used"
                       // (5.1.6.5.4.2).
    }
    return true;
}

// --- Announcements ---------------------------------------------------------------------------------------------------

void Net::look_at_source(int fd) {
    if (next_announcement_ && fd == next_announcement_->source().fd) {
        next_announcement_->take(fd);
        is_announcement_due_ = announcements_left_ != 0;
    }
}

/// Sends the announcement that is due, if there is one and the link has room for it.
void Net::announce() {
    if (!is_announcement_due_) {
        return;
    }
    const std::array<iovec, 1> frame{{{announcement_.data(), announcement_.size()}}};
    if (link_->send_own(frame) == -EAGAIN) {
        return; // EPOLLOUT says when.
    }
    is_announcement_due_ = false;
    if (--announcements_left_ != 0) {
        next_announcement_->set(Alarm::Clock::now() + kBetweenAnnouncements);
    }
}

// --- To the host ----------------------------------------------------------------------------------------------------

void Net::send_some() {
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
            return; // EPOLLOUT says when.
        }
        (result == 0 ? sent_ : dropped_).fetch_add(1, std::memory_order_relaxed);
        queue->push(sending_.head, 0);
    }
    ask_for_another_turn();
}

int Net::send(const Chain& chain) {
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

// --- To the guest ------------------------------------------------------------------------------------------------

void Net::receive_some() {
    buffers_left_ = kMostBuffersATurn;
    for (int frames = 0; frames < kMostFramesATurn; ++frames) {
        if (wants_buffers_ || !has_working_queue(kReceive)) {
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
                return; // None, or the interface is down; what comes later wakes us.
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

/// Whether the host can write a frame of any size into the buffers taken, as pieces_ has them.
bool Net::receive_into_buffers() {
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

/// Takes buffers from the guest until they hold `bytes`, as far as it has them. Returns false if the queue is broken.
bool Net::take_buffers(std::size_t bytes) {
    Queue& queue = *working_queue(kReceive);
    // All buffers of the queue together may still be too little.
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

/// Gives the guest the frame that is there. Returns false if it has no buffers for that now.
bool Net::deliver() {
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
            ask_for_another_turn(); // The frame waits for it.
            return false;
        }
        wants_buffers_ = !queue.ask_for_doorbell();
    } while (!wants_buffers_);
    if (wants_buffers_) {
        return false;
    }
    // A header in pieces over several buffers is refused (5.1.6.3.1 has each buffer be larger than it).
    const bool has_header = buffers_.front().writable_bytes >= FrameLink::kHeaderBytes;
    if (room_ >= frame_bytes_ && has_header) {
        hand_over(std::span<const std::byte>(frame_).first(frame_bytes_), frame_bytes_);
    } else {
        dropped_.fetch_add(1, std::memory_order_relaxed);
        if (!has_header || buffers_taken_ == queue.size()) {
            for (std::size_t i = 0; i < buffers_taken_; ++i) { // Of no use to anybody.
                queue.push(buffers_[i].head, 0);
            }
            buffers_taken_ = 0;
            room_ = 0;
        }
    }
    frame_bytes_ = 0;
    return true;
}

/// Takes out of the header what the guest did not agree to (5.1.6.4.1). The tap tells of checksums that it has seen to
/// be good, and frames that waited in it when the driver changed were made for the driver before.
void Net::clean_header() {
    constexpr std::byte kNothing{0};
    if (!checksums_) {
        copy_to(buffers_.front(), kFlagsOffset, std::span(&kNothing, 1));
    }
    if (!segments_) {
        copy_to(buffers_.front(), kSegmentationOffset, std::span(&kNothing, 1));
    }
}

/// Gives the buffers that hold `bytes` back: with `frame` in them or, if it is empty, with what the host wrote there.
void Net::hand_over(std::span<const std::byte> frame, std::size_t bytes) {
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
    // The rest moves to the front. The chains that were used keep their memory behind it.
    std::ranges::rotate(buffers_, buffers_.begin() + static_cast<std::ptrdiff_t>(needed));
    buffers_taken_ -= needed;
    received_.fetch_add(1, std::memory_order_relaxed);
}

} // namespace vmm::devices::virtio
