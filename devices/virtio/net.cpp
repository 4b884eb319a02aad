#include "devices/virtio/net.hpp"

#include <algorithm>
#include <cassert>
#include <cstring>
#include <iterator>
#include <span>
#include <utility>

#include "devices/virtio/driver_link.hpp"
#include "devices/virtio/net_features.hpp"
#include "kvm/host/error.hpp"

namespace vmm::devices::virtio {

namespace {

constexpr std::uint16_t kQueuesOfAPair = 2;
static_assert(kQueuesOfAPair * Net::kMostPairs + 1 <= QueueSet::kMostQueues);

/// mac, le16 status, le16 max_virtqueue_pairs (5.1.4)
constexpr std::size_t kPairsOffset = NetControl::kStatusOffset + sizeof(NetControl::kLinkUp);

Identity identity_of(std::string name, bool has_offloads, std::uint16_t pairs, const MacAddress& mac) {
    using namespace net_features;
    Identity identity;
    identity.id = DeviceId::kNet;
    identity.name = std::move(name);
    identity.queue_sizes.assign(static_cast<std::size_t>(kQueuesOfAPair) * pairs, NetPair::kQueueSize);
    identity.queue_sizes.push_back(NetControl::kQueueSize);
    identity.first_queues = pairs == 1 ? kQueuesOfAPair : 0;
    identity.features = kMac | kMergeBuffers | kStatus | kControlQueue | kGuestAnnounce;
    if (has_offloads) {
        identity.features |=
            kChecksum | kGuestChecksum | kGuestTso4 | kGuestTso6 | kGuestEcn | kHostTso4 | kHostTso6 | kHostEcn;
    }
    identity.config.resize(kPairsOffset);
    std::memcpy(identity.config.data(), mac.data(), mac.size());
    std::memcpy(identity.config.data() + NetControl::kStatusOffset, &NetControl::kLinkUp, sizeof(NetControl::kLinkUp));
    if (pairs > 1) {
        identity.features |= kMultiQueue;
        identity.config.resize(kPairsOffset + sizeof(pairs));
        std::memcpy(identity.config.data() + kPairsOffset, &pairs, sizeof(pairs));
    }
    return identity;
}

FrameOffloads offloads_of(std::uint64_t features) noexcept {
    const auto has = [features](std::uint64_t feature) { return (features & feature) != 0; };
    return {has(net_features::kGuestChecksum), has(net_features::kGuestTso4), has(net_features::kGuestTso6),
            has(net_features::kGuestEcn)};
}

std::vector<std::unique_ptr<FrameLink>> one(std::unique_ptr<FrameLink> link) {
    std::vector<std::unique_ptr<FrameLink>> links;
    links.push_back(std::move(link));
    return links;
}

/// Throws Error if `state` belongs to a device with another number of pairs.
void check_pairs(const std::string& name, const NetState& state, std::size_t pairs) {
    if (state.pairs &&
        (state.pairs->frames.size() + 1 != pairs || state.pairs->used == 0 || state.pairs->used > pairs)) {
        throw Error("cannot restore the device " + name + ": it had another number of queues than the " +
                    std::to_string(pairs) + " pairs of now (configure it as the one whose state was saved)");
    }
}

} // namespace

// ---- One pair

Net::PairLane::PairLane(std::uint16_t number, std::unique_ptr<NetPair> pair, std::function<void()> not_ours)
    : first_queue_(static_cast<std::uint16_t>(kQueuesOfAPair * number)), pair_(std::move(pair)),
      not_ours_(std::move(not_ours)) {}

template <typename Act>
auto Net::PairLane::with(Act act) {
    const std::lock_guard hold(mutex_);
    if (first_queue_ != 0) {
        pair_->look_again();
    }
    return act(*pair_);
}

template <typename See>
auto Net::PairLane::see(See see) const {
    const std::lock_guard hold(mutex_);
    return see(std::as_const(*pair_));
}

QueueSet Net::PairLane::queues() const noexcept {
    QueueSet queues;
    queues.add(first_queue_ + NetPair::kReceive);
    queues.add(first_queue_ + NetPair::kTransmit);
    return queues;
}

void Net::PairLane::doorbell(std::uint16_t index) {
    {
        const std::lock_guard hold(mutex_);
        if (pair_->is_running()) {
            pair_->doorbell(static_cast<std::uint16_t>(index - first_queue_));
            return;
        }
    }
    not_ours_();
}

std::vector<Source> Net::PairLane::sources() const {
    return see([](const NetPair& pair) { return pair.sources(); });
}

void Net::PairLane::ready(int fd, std::uint32_t events) {
    const std::lock_guard hold(mutex_);
    pair_->ready(fd, events);
}

void Net::PairLane::activate(Activation activation, DriverLink& driver) {
    driver_.connect(driver, first_queue_);
    with([&](NetPair& pair) { pair.activate(std::move(activation), driver_); });
}

// ---- The whole

Net::Net(std::string name, std::vector<std::unique_ptr<FrameLink>> links, const MacAddress& mac,
         std::function<void()> link_lost, const NetState& state, const std::optional<MacAddress>& announced)
    : identity_(
          identity_of(std::move(name), links.at(0)->has_offloads(), static_cast<std::uint16_t>(links.size()), mac)),
      lanes_([&] {
          assert(links.size() <= kMostPairs);
          check_pairs(identity_.name, state, links.size());
          std::deque<PairLane> lanes;
          const auto count = static_cast<std::uint16_t>(links.size());
          for (std::uint16_t i = 0; i < count; ++i) {
              const std::vector<std::byte> none;
              const std::vector<std::byte>& frame =
                  i == 0 ? state.frame : (state.pairs ? state.pairs->frames[i - 1U] : none);
              const auto look = [this] { control_.look_again(); };
              lanes.emplace_back(i, std::make_unique<NetPair>(identity_.name, std::move(links[i]), i == 0, look, frame),
                                 look);
          }
          return lanes;
      }()),
      control_(identity_.name,
               {lanes_.front().own_pair().link(), [this] { return is_up(); },
                [this](std::uint16_t pairs) { return use_pairs(pairs); }, std::move(link_lost)},
               state.link_up, announced),
      control_at_(static_cast<std::uint16_t>(identity_.queue_sizes.size() - 1)),
      used_(state.pairs ? state.pairs->used : std::uint16_t{1}) {
    for (std::uint16_t i = 1; i < pair_count(); ++i) {
        if (!lanes_[i].with([&](NetPair& pair) { return pair.set_receiving(i < used_); })) {
            throw Error("cannot restore the device " + identity_.name + ": the host refuses " + std::to_string(used_) +
                        " queues of its interface (see who has them)");
        }
    }
}

Net::Net(std::string name, std::unique_ptr<FrameLink> link, const MacAddress& mac, std::function<void()> link_lost,
         const NetState& state, const std::optional<MacAddress>& announced)
    : Net(std::move(name), one(std::move(link)), mac, std::move(link_lost), state, announced) {}

Net::Net(std::string name, Tap tap, const MacAddress& mac)
    : Net(std::move(name), std::make_unique<Tap>(std::move(tap)), mac) {}

void Net::activate(Activation activation, DriverLink& driver) {
    is_active_ = true;
    has_pairs_ = (activation.features & net_features::kMultiQueue) != 0;
    control_at_ = static_cast<std::uint16_t>(has_pairs_ ? kQueuesOfAPair * pair_count() : kQueuesOfAPair);
    if (!has_pairs_) {
        static_cast<void>(use_pairs(1));
    }
    unused_ = std::move(activation.queues);
    const auto take = [this](std::size_t first, std::size_t count) {
        std::vector<std::optional<Queue>> queues;
        for (std::size_t index = first; index < first + count; ++index) {
            queues.push_back(std::exchange(unused_[index], std::nullopt));
        }
        return queues;
    };
    lanes_.front().own_pair().link().set_offloads(offloads_of(activation.features));
    const std::uint16_t active = has_pairs_ ? pair_count() : std::uint16_t{1};
    for (std::uint16_t i = 0; i < active; ++i) {
        lanes_[i].activate({activation.features, take(static_cast<std::size_t>(kQueuesOfAPair) * i, kQueuesOfAPair)},
                           driver);
    }
    // This comes last, because a waiting command may be about any pair.
    control_driver_.connect(driver, control_at_);
    control_.activate({activation.features, take(control_at_, 1)}, control_driver_);
}

void Net::stop() {
    is_active_ = false;
    control_.stop();
    used_ = 1;
    for (std::uint16_t i = 0; i < pair_count(); ++i) {
        lanes_[i].with([&](NetPair& pair) {
            pair.stop();
            static_cast<void>(pair.set_receiving(i < used_));
        });
    }
    unused_.clear();
    lanes_.front().own_pair().link().set_offloads({});
}

/// 5.1.6.5.5. Refuses a pair that the driver has not set up, because frames that come by it would be lost.
bool Net::use_pairs(std::uint16_t pairs) {
    if (pairs == 0 || pairs > pair_count()) {
        return false;
    }
    const auto set = [this](std::uint16_t i, bool receiving) {
        return lanes_[i].with([&](NetPair& pair) { return pair.set_receiving(receiving); });
    };
    for (std::uint16_t i = used_; i < pairs; ++i) {
        if (!lanes_[i].see([](const NetPair& pair) { return pair.has_both_queues(); })) {
            return false;
        }
    }
    for (std::uint16_t i = used_; i < pairs; ++i) {
        if (!set(i, true)) {
            while (i-- > used_) {
                static_cast<void>(set(i, false));
            }
            return false;
        }
    }
    for (std::uint16_t i = pairs; i < used_; ++i) {
        static_cast<void>(set(i, false));
    }
    used_ = pairs;
    return true;
}

bool Net::is_up() const noexcept {
    return std::ranges::all_of(lanes_, [](const PairLane& lane) { return lane.pair().is_up(); });
}

Net::Place Net::place_of(std::uint16_t index) noexcept {
    if (index == control_at_) {
        return {.is_control = true};
    }
    if (index < kQueuesOfAPair || (has_pairs_ && index < kQueuesOfAPair * pair_count())) {
        return {.lane = &lanes_[index / kQueuesOfAPair], .index = static_cast<std::uint16_t>(index % kQueuesOfAPair)};
    }
    return {};
}

void Net::doorbell(std::uint16_t index) {
    if (const Place place = place_of(index); place.is_control) {
        control_.doorbell(0);
    } else if (place.lane != nullptr) {
        place.lane->doorbell(index);
    }
}

std::vector<Source> Net::sources() const {
    std::vector<Source> sources = control_.sources();
    std::ranges::copy(lanes_.front().sources(), std::back_inserter(sources));
    return sources;
}

void Net::ready(int fd, std::uint32_t events) {
    if (control_.waits_for(fd)) {
        control_.ready(fd, events);
    } else {
        lanes_.front().ready(fd, events);
    }
}

std::vector<Lane*> Net::lanes() noexcept {
    std::vector<Lane*> lanes;
    for (std::size_t i = 1; i < lanes_.size(); ++i) {
        lanes.push_back(&lanes_[i]);
    }
    return lanes;
}

void Net::stop_queue(std::uint16_t index) {
    if (const Place place = place_of(index); place.is_control) {
        control_.stop_queue(0);
    } else if (place.lane != nullptr) {
        place.lane->with([&](NetPair& pair) { pair.stop_queue(place.index); });
    } else if (index < unused_.size()) {
        unused_[index].reset();
    }
}

void Net::restart_queue(std::uint16_t index, Queue queue) {
    if (const Place place = place_of(index); place.is_control) {
        control_.restart_queue(0, queue);
    } else if (place.lane != nullptr) {
        place.lane->with([&](NetPair& pair) { pair.restart_queue(place.index, queue); });
    } else if (index < unused_.size()) {
        unused_[index] = queue;
    }
}

void Net::pause() {
    control_.pause();
    for (PairLane& lane : lanes_) {
        lane.with([](NetPair& pair) { pair.pause(); });
    }
}

void Net::resume() {
    control_.resume();
    for (PairLane& lane : lanes_) {
        lane.with([](NetPair& pair) { pair.resume(); });
    }
}

std::vector<std::optional<Queue::State>> Net::queue_states() const {
    std::vector<std::optional<Queue::State>> states;
    if (!is_active_) {
        return states;
    }
    for (const std::optional<Queue>& queue : unused_) {
        states.push_back(queue ? std::optional(queue->state()) : std::nullopt);
    }
    states[control_at_] = control_.queue_states().front();
    for (std::size_t i = 0; i < (has_pairs_ ? lanes_.size() : 1); ++i) {
        const auto of_pair = lanes_[i].see([](const NetPair& pair) { return pair.queue_states(); });
        std::ranges::copy(of_pair, states.begin() + static_cast<std::ptrdiff_t>(kQueuesOfAPair * i));
    }
    return states;
}

DeviceState Net::state() const {
    const auto frame_of = [](const PairLane& lane) {
        return lane.see([](const NetPair& pair) { return pair.frame(); });
    };
    NetState state{frame_of(lanes_.front()), control_.told_up(), {}};
    if (pair_count() > 1) {
        state.pairs.emplace().used = used_;
        for (std::size_t i = 1; i < lanes_.size(); ++i) {
            state.pairs->frames.push_back(frame_of(lanes_[i]));
        }
    }
    return state;
}

Net::Statistics Net::statistics() const noexcept {
    Statistics all;
    for (const PairLane& lane : lanes_) {
        const Statistics of_pair = lane.pair().statistics();
        all.received += of_pair.received;
        all.sent += of_pair.sent;
        all.dropped += of_pair.dropped;
    }
    return all;
}

} // namespace vmm::devices::virtio
