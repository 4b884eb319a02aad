// A virtio device for the tests: it answers each request with the content of the request.
#pragma once

#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cassert>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "devices/virtio/device.hpp"
#include "devices/virtio/driver_link.hpp"
#include "devices/virtio/queue.hpp"
#include "kvm/host/unique_fd.hpp"

namespace vmm::devices::testing {

/// Copies the readable part of a request to its writable part, for two queues of 256 and 8 entries. A test can make its
/// work with the host take as long as it likes: hold() and release().
///
/// Threads: those of virtio::Device; release() any.
class EchoDevice final : public virtio::Device {
  public:
    static constexpr std::uint64_t kFeatureA = 1ULL << 0;
    static constexpr std::uint64_t kFeatureB = 1ULL << 41;
    static constexpr std::uint64_t kFeatures = kFeatureA | kFeatureB;
    static constexpr std::uint16_t kQueueSize = 256;
    static constexpr std::uint16_t kSmallQueueSize = 8;
    static constexpr std::size_t kConfigBytes = 13;
    /// The one byte of the configuration space that the driver may write, and its bits.
    static constexpr std::size_t kWritableByte = 4;
    static constexpr std::byte kWritableBits{0x0f};

    EchoDevice() : release_(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) {
        assert(release_);
        identity_.id = virtio::DeviceId::kEntropy;
        identity_.name = "echo0";
        identity_.features = kFeatures;
        identity_.queue_sizes = {kQueueSize, kSmallQueueSize};
        for (std::size_t i = 0; i < kConfigBytes; ++i) {
            identity_.config.push_back(static_cast<std::byte>(0x10 + i));
        }
        identity_.config_writable.resize(kWritableByte + 1);
        identity_.config_writable[kWritableByte] = kWritableBits;
    }

    // ---- For the test

    /// From now on requests are taken, but not answered.
    void hold() noexcept { holds_ = true; }
    /// Lets the device answer those requests, in its next turn, and answer later ones at once.
    void release() {
        const std::uint64_t one = 1;
        [[maybe_unused]] const auto written = ::write(release_.get(), &one, sizeof(one));
    }
    [[nodiscard]] std::size_t held() const noexcept { return held_.size(); }
    [[nodiscard]] bool is_active() const noexcept { return driver_ != nullptr; }
    [[nodiscard]] std::uint64_t features() const noexcept { return features_; }
    [[nodiscard]] bool has_queue(std::size_t index) const { return queues_.at(index).has_value(); }
    [[nodiscard]] std::uint64_t answered() const noexcept { return answered_; }
    [[nodiscard]] int stops() const noexcept { return stops_; }

    // ---- Virtio::Device

    [[nodiscard]] const virtio::Identity& identity() const noexcept override { return identity_; }
    void activate(virtio::Activation activation, virtio::DriverLink& driver) override {
        assert(driver_ == nullptr && held_.empty());
        features_ = activation.features;
        queues_ = std::move(activation.queues);
        driver_ = &driver;
        for (std::size_t index = 0; index < queues_.size(); ++index) {
            doorbell(static_cast<std::uint16_t>(index));
        }
    }
    void doorbell(std::uint16_t index) override {
        if (driver_ == nullptr || paused_ || index >= queues_.size() || !queues_[index] || is_stopping(index)) {
            return;
        }
        virtio::Queue& queue = *queues_[index];
        virtio::Chain chain;
        do {
            queue.suppress_doorbells();
            for (auto popped = queue.pop(chain); popped != virtio::Queue::Pop::kEmpty; popped = queue.pop(chain)) {
                if (popped == virtio::Queue::Pop::kBroken) {
                    driver_->fail(queue.why());
                    return;
                }
                if (holds_) {
                    held_.emplace_back(index, chain);
                } else {
                    answer(queue, chain);
                }
            }
        } while (queue.ask_for_doorbell());
        if (queue.wants_interrupt()) {
            driver_->notify(virtio::QueueSet::of(index));
        }
    }
    [[nodiscard]] std::vector<virtio::Source> sources() const override { return {{release_.get(), EPOLLIN}}; }
    void ready(int fd, std::uint32_t /*events*/) override {
        std::uint64_t count = 0;
        [[maybe_unused]] const auto got = ::read(fd, &count, sizeof(count));
        holds_ = false;
        for (const auto& [index, chain] : std::exchange(held_, {})) {
            if (driver_ != nullptr && !is_stopping(index)) {
                answer(*queues_[index], chain);
            }
        }
        for (std::size_t index = 0; index < queues_.size(); ++index) {
            doorbell(static_cast<std::uint16_t>(index));
            if (driver_ != nullptr && queues_[index] && !is_stopping(static_cast<std::uint16_t>(index)) &&
                queues_[index]->wants_interrupt()) {
                driver_->notify(virtio::QueueSet::of(static_cast<std::uint16_t>(index)));
            }
        }
    }
    void stop() override {
        ++stops_;
        driver_ = nullptr;
        paused_ = false;
        stopping_.clear();
    }
    [[nodiscard]] bool is_idle() const noexcept override { return driver_ == nullptr && held_.empty(); }
    void stop_queue(std::uint16_t index) override { stopping_.push_back(index); }
    [[nodiscard]] bool is_queue_idle(std::uint16_t index) const noexcept override {
        return std::ranges::none_of(held_, [index](const auto& each) { return each.first == index; });
    }
    void restart_queue(std::uint16_t index, virtio::Queue queue) override {
        std::erase(stopping_, index);
        queues_.at(index) = std::move(queue);
        doorbell(index);
    }
    void pause() override { paused_ = true; }
    [[nodiscard]] bool is_paused() const noexcept override { return paused_ && held_.empty(); }
    void resume() override {
        paused_ = false;
        for (std::size_t index = 0; index < queues_.size(); ++index) {
            doorbell(static_cast<std::uint16_t>(index));
        }
    }
    [[nodiscard]] std::vector<std::optional<virtio::Queue::State>> queue_states() const override {
        std::vector<std::optional<virtio::Queue::State>> states;
        if (driver_ != nullptr) {
            for (const std::optional<virtio::Queue>& queue : queues_) {
                states.push_back(queue ? std::optional(queue->state()) : std::nullopt);
            }
        }
        return states;
    }

  private:
    [[nodiscard]] bool is_stopping(std::uint16_t index) const noexcept {
        return std::ranges::find(stopping_, index) != stopping_.end();
    }
    void answer(virtio::Queue& queue, const virtio::Chain& chain) {
        std::array<std::byte, 4096> part;
        std::uint64_t offset = 0;
        while (true) {
            const std::size_t there = virtio::copy_from(chain, offset, part);
            const std::size_t fitted = virtio::copy_to(chain, offset, std::span(part).first(there));
            offset += fitted;
            if (fitted < part.size() || offset >= kMostBytes) {
                break;
            }
        }
        queue.push(chain.head, static_cast<std::uint32_t>(offset));
        ++answered_;
    }

    /// At most so many bytes of a request are echoed: 4 GiB take long.
    static constexpr std::uint64_t kMostBytes = 1 << 20;

    virtio::Identity identity_;
    UniqueFd release_;
    virtio::DriverLink* driver_ = nullptr; ///< while it is active
    std::uint64_t features_ = 0;
    std::vector<std::optional<virtio::Queue>> queues_;
    std::vector<std::uint16_t> stopping_;
    std::vector<std::pair<std::uint16_t, virtio::Chain>> held_;
    bool holds_ = false;
    bool paused_ = false;
    std::uint64_t answered_ = 0;
    int stops_ = 0;
};

} // namespace vmm::devices::testing
