#include "devices/virtio/net_control.hpp"

#include <algorithm>
#include <array>
#include <cerrno>
#include <span>
#include <utility>

#include "devices/virtio/driver_link.hpp"
#include "devices/virtio/net_features.hpp"

namespace vmm::devices::virtio {

namespace {

constexpr std::uint16_t kCommands = 0; ///< its only queue
constexpr std::uint16_t kAnnounce = 2; ///< of the status: the driver is asked to announce the guest (5.1.6.5.4)

/// The beginning of a command (5.1.6.5), and the answer at its end.
struct Command {
    std::uint8_t kind = 0;
    std::uint8_t command = 0;

    friend bool operator==(const Command&, const Command&) = default;
};
constexpr Command kAcknowledgeAnnouncement{3, 0};
constexpr Command kSetPairs{4, 0};
constexpr std::byte kDone{0};
constexpr std::byte kNotDone{1};

Identity identity_of_control(const std::string& name) {
    Identity identity;
    identity.id = DeviceId::kNet;
    identity.name = name;
    identity.queue_sizes = {NetControl::kQueueSize};
    return identity;
}

/// A RARP request (RFC 903) by the guest for itself, to all, with an empty header. It has the least length of an
/// Ethernet frame.
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

NetControl::NetControl(const std::string& name, Whole whole, bool told_up, const std::optional<MacAddress>& announced)
    : SynchronousDevice(identity_of_control(name)), whole_(std::move(whole)), told_up_(told_up) {
    if (announced) {
        announcement_ = announcement_of(*announced);
        next_announcement_.emplace();
        announcements_left_ = kAnnouncements;
        is_announcement_due_ = true;
        asks_to_announce_ = true;
    }
}

void NetControl::begin(std::uint64_t features) {
    can_announce_ = (features & net_features::kGuestAnnounce) != 0;
    has_pairs_ = (features & net_features::kMultiQueue) != 0;
}

void NetControl::end() noexcept {
    announcements_left_ = 0; // Another driver comes, and announces itself.
    is_announcement_due_ = false;
    asks_to_announce_ = false;
    if (std::exchange(has_asked_to_announce_, false)) {
        tell_status();
    }
}

std::vector<Source> NetControl::sources() const {
    std::vector<Source> sources = SynchronousDevice::sources();
    if (is_active() && announcements_left_ != 0) {
        sources.push_back(next_announcement_->source());
    }
    return sources;
}

bool NetControl::waits_for(int fd) const {
    return fd == SynchronousDevice::sources().front().fd ||
           (next_announcement_ && fd == next_announcement_->source().fd);
}

void NetControl::serve() {
    obey_some();
    if (asks_to_announce_ && can_announce_ && !std::exchange(has_asked_to_announce_, true)) {
        tell_status();
    }
    announce();
    look_at_link();
}

void NetControl::look_at_link() {
    if (whole_.is_up() == told_up_) {
        return;
    }
    told_up_ = !told_up_; // It is up again only after a restore, with another link.
    tell_status();
    if (!told_up_ && whole_.link_lost) {
        std::exchange(whole_.link_lost, {})();
    }
}

void NetControl::tell_status() {
    const auto status =
        static_cast<std::uint16_t>((told_up_ ? kLinkUp : 0U) | (asks_to_announce_ && can_announce_ ? kAnnounce : 0U));
    driver().change_config(kStatusOffset, std::as_bytes(std::span(&status, 1)));
}

// ---- What the driver commands

void NetControl::obey_some() {
    Queue* const queue = working_queue(kCommands);
    for (int commands = 0; queue != nullptr && commands < kQueueSize; ++commands) {
        if (!take(kCommands, command_)) {
            return;
        }
        const bool is_done = obey(command_);
        const std::byte answer = is_done ? kDone : kNotDone;
        std::uint32_t written = 0;
        if (command_.writable_bytes != 0) { // The answer is the last writable byte (5.1.6.5).
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

/// Returns true if the command exists and was executed.
bool NetControl::obey(const Chain& chain) {
    Command command;
    if (copy_from(chain, 0, std::as_writable_bytes(std::span(&command, 1))) != sizeof command) {
        return false;
    }
    return (command == kAcknowledgeAnnouncement && obey_acknowledgement()) ||
           (command == kSetPairs && obey_pairs(chain));
}

bool NetControl::obey_acknowledgement() {
    if (!can_announce_) {
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

/// 5.1.6.5.5. After the answer, frames come by no other pair.
bool NetControl::obey_pairs(const Chain& chain) const {
    std::uint16_t pairs = 0;
    return has_pairs_ &&
           copy_from(chain, sizeof(Command), std::as_writable_bytes(std::span(&pairs, 1))) == sizeof pairs &&
           whole_.use_pairs(pairs);
}

// ---- Announcements

void NetControl::look_at_source(int fd) {
    if (next_announcement_ && fd == next_announcement_->source().fd) {
        next_announcement_->take(fd);
        is_announcement_due_ = announcements_left_ != 0;
    }
}

/// Sends the announcement that is due, if there is one. If the link has no room for it, it is tried again later.
void NetControl::announce() {
    if (!std::exchange(is_announcement_due_, false)) {
        return;
    }
    const std::array<iovec, 1> frame{{{announcement_.data(), announcement_.size()}}};
    if (whole_.link.send_own(frame) != -EAGAIN) {
        --announcements_left_;
    }
    if (announcements_left_ != 0) {
        next_announcement_->set(Alarm::Clock::now() + kBetweenAnnouncements);
    }
}

} // namespace vmm::devices::virtio
