#include "devices/virtio/synchronous_device.hpp"

#include "devices/virtio/driver_link.hpp"

namespace vmm::devices::virtio {

void SynchronousDevice::activate(Activation activation, DriverLink& driver) {
    driver_ = &driver;
    queues_ = std::move(activation.queues);
    begin(activation.features);
    turn();
}

void SynchronousDevice::doorbell(std::uint16_t index) {
    look_at_doorbell(index);
    turn();
}

void SynchronousDevice::ready(int fd, std::uint32_t /*events*/) {
    look_at_work_outside(fd);
    if (paused_) {
        return;
    }
    another_turn_.take(fd);
    look_at_source(fd);
    turn();
}

void SynchronousDevice::stop() {
    for (std::size_t index = 0; index < identity_.queue_sizes.size(); ++index) {
        forget_queue(static_cast<std::uint16_t>(index));
    }
    queues_.clear();
    end();
    driver_ = nullptr;
    paused_ = false;
}

void SynchronousDevice::stop_queue(std::uint16_t index) {
    if (index < queues_.size()) {
        queues_[index].reset();
        forget_queue(index);
    }
}

void SynchronousDevice::restart_queue(std::uint16_t index, Queue queue) {
    if (index < queues_.size()) {
        queues_[index] = std::move(queue);
        turn();
    }
}

void SynchronousDevice::pause() {
    paused_ = true;
    for (std::uint16_t index = 0; index < queue_count(); ++index) {
        if (queues_[index]) {
            queues_[index]->put_back(put_back(index));
        }
    }
}

void SynchronousDevice::resume() {
    paused_ = false;
    turn();
}

std::vector<std::optional<Queue::State>> SynchronousDevice::queue_states() const {
    std::vector<std::optional<Queue::State>> states;
    for (const std::optional<Queue>& queue : queues_) {
        states.push_back(queue ? std::optional(queue->state()) : std::nullopt);
    }
    return states;
}

void SynchronousDevice::turn() {
    if (!is_active() || paused_) {
        return;
    }
    serve();
    QueueSet wanted;
    for (std::uint16_t index = 0; index < queue_count(); ++index) { // Requests pushed before a queue broke count, too.
        if (queues_[index] && queues_[index]->wants_interrupt()) {
            wanted.add(index);
        }
    }
    driver_->notify(wanted);
}

bool SynchronousDevice::has_working_queue(std::uint16_t index) const noexcept {
    return index < queues_.size() && queues_[index] && !queues_[index]->is_broken();
}

Queue* SynchronousDevice::working_queue(std::uint16_t index) noexcept {
    return has_working_queue(index) ? &*queues_[index] : nullptr;
}

bool SynchronousDevice::take(std::uint16_t index, Chain& chain) {
    Queue* const queue = working_queue(index);
    if (queue == nullptr) {
        return false;
    }
    do {
        switch (queue->pop(chain)) {
        case Queue::Pop::kChain:
            return true;
        case Queue::Pop::kBroken:
            driver_->fail(queue->why());
            return false;
        case Queue::Pop::kEmpty:
            break;
        }
    } while (queue->ask_for_doorbell());
    return false;
}

} // namespace vmm::devices::virtio
