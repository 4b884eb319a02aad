#include "vmm/machine/virtio_thread.hpp"

#include <poll.h>
#include <sys/epoll.h>

#include <algorithm>
#include <cassert>
#include <string>
#include <utility>

#include "prefault/host/cpu_list.hpp"

namespace vmm {

using devices::virtio::Negotiation;
using devices::virtio::QueueSet;
using devices::virtio::Source;

namespace {

/// The queues that belong to no lane.
QueueSet queues_of_the_device(devices::virtio::Device& device) {
    QueueSet of_lanes;
    for (const devices::virtio::Lane* const lane : device.lanes()) {
        lane->queues().each([&](std::uint16_t index) { of_lanes.add(index); });
    }
    QueueSet own;
    const auto count = static_cast<std::uint16_t>(device.identity().queue_sizes.size());
    for (std::uint16_t index = 0; index < count; ++index) {
        if (!of_lanes.contains(index)) {
            own.add(index);
        }
    }
    return own;
}

} // namespace

VirtioThread::VirtioThread(const Wiring& wiring)
    : wiring_(wiring), interrupts_once_(wiring.goes_on), sources_(loop_,
                                                                  [this](int fd, std::uint32_t events) {
                                                                      if (!quitting_ || draining_) {
                                                                          wiring_.device.ready(fd, events);
                                                                      }
                                                                  }),
      pause_wanted_(wiring.paused), own_queues_(queues_of_the_device(wiring.device)), lanes_(begin_lanes(wiring)),
      thread_(wiring.device.identity().name, [this] { body(); }) {}

VirtioThread::~VirtioThread() {
    join();
}

void VirtioThread::end() noexcept {
    quitting_ = true;
    quit_.signal();
    for (LaneThread& lane : lanes_) {
        lane.end();
    }
}

std::deque<LaneThread> VirtioThread::begin_lanes(const Wiring& wiring) {
    std::deque<LaneThread> lanes;
    const devices::virtio::Identity& identity = wiring.device.identity();
    for (devices::virtio::Lane* const lane : wiring.device.lanes()) {
        lanes.emplace_back(LaneThread::Wiring{*lane, identity.name + "." + std::to_string(lanes.size() + 1),
                                              thread_kind_of(identity.id), wiring.doorbells, wiring.stop,
                                              wiring.sandbox, wiring.rung, wiring.cpus});
    }
    return lanes;
}

void VirtioThread::join() noexcept {
    end();
    thread_.join();
    for (LaneThread& lane : lanes_) {
        lane.join();
    }
}

bool VirtioThread::join_until(std::chrono::steady_clock::time_point deadline) noexcept {
    end();
    bool joined = thread_.join_until(deadline);
    for (LaneThread& lane : lanes_) {
        joined = lane.join_until(deadline) && joined;
    }
    return joined;
}

std::exception_ptr VirtioThread::failure() const noexcept {
    std::exception_ptr failure = failure_;
    for (const LaneThread& lane : lanes_) {
        failure = failure ? failure : lane.failure();
    }
    return failure;
}

void VirtioThread::body() noexcept {
    try {
        const devices::virtio::Identity& identity = wiring_.device.identity();
        prefault::bind_this_thread(wiring_.cpus);
        wiring_.sandbox.confine(thread_kind_of(identity.id), identity.name);
        [[maybe_unused]] bool watched = loop_.watch(quit_.fd(), EPOLLIN, [](std::uint32_t) {}); // It ends a wait.
        watched = loop_.watch(wiring_.work.fd(), EPOLLIN, [this](std::uint32_t) {
            wiring_.work.clear();
            work_left_ = told_to_pause_;
            if (!told_to_pause_ || stands_) {
                serve_negotiation();
            }
        }) && watched;
        watched = loop_.watch(pause_asked_.fd(), EPOLLIN, [this](std::uint32_t) { pause_asked_.clear(); }) && watched;
        own_queues_.each([&](std::uint16_t index) {
            watched = loop_.watch(wiring_.doorbells[index].fd(), EPOLLIN, [this, index](std::uint32_t) {
                wiring_.doorbells[index].clear();
                if (wiring_.rung != nullptr) {
                    wiring_.rung->fetch_add(1, std::memory_order_relaxed);
                }
                if (active_ && !quitting_ && !told_to_pause_) { // if not, Device::resume() looks at all queues later
                    wiring_.device.doorbell(index);
                }
            }) && watched;
        });
        assert(watched);
        if (wiring_.paused) {
            begin_pause();
        }
        while (!quitting_) {
            follow_pause();
            watch_sources();
            loop_.run_once(-1);
            serve_resets_first();
            finish_resets();
        }
    } catch (...) {
        failure_ = std::current_exception();
        wiring_.stop.request_for_failure();
    }
    drain();
    end_waiting();
}

void VirtioThread::watch_sources() {
    sources_.follow(stands_still_ ? std::vector<Source>{} : wiring_.device.sources());
}

/// A device with many descriptors may have more of them ready than the loop takes at once. The driver's reset must not
/// wait for all of them.
void VirtioThread::serve_resets_first() {
    constexpr std::size_t kFew = 8;
    if (sources_.size() <= kFew || quitting_) {
        return;
    }
    pollfd work{wiring_.work.fd(), POLLIN, 0};
    if (::poll(&work, 1, 0) == 1) {
        wiring_.work.clear();
        serve_negotiation();
    }
}

void VirtioThread::serve_negotiation() {
    Negotiation::Work work =
        wiring_.negotiation.take_work(told_to_pause_ ? Negotiation::Take::kReset : Negotiation::Take::kAll);
    stands_ = work.stands;
    if (work.reset) {
        if (active_) {
            wiring_.device.stop();
        }
        resetting_ = true;
        resetting_queues_.clear();
        finish_resets();
    }
    if (work.activation) {
        active_ = true;
        QueueSet enabled;
        const auto count = static_cast<std::uint16_t>(work.activation->queues.size());
        for (std::uint16_t index = 0; index < count; ++index) {
            if (work.activation->queues[index]) {
                enabled.add(index);
            }
        }
        wiring_.device.activate(*std::move(work.activation), wiring_.driver);
        if (std::exchange(interrupts_once_, false)) {
            wiring_.driver.notify(enabled);
        }
    }
    for (const std::uint16_t index : work.queue_resets) {
        wiring_.device.stop_queue(index);
        resetting_queues_.push_back(index);
    }
    for (auto& [index, queue] : work.restarts) {
        wiring_.device.restart_queue(index, queue);
    }
}

void VirtioThread::finish_resets() {
    if (resetting_ && (!active_ || wiring_.device.is_idle())) {
        resetting_ = false;
        active_ = false;
        if (told_to_pause_) {
            wiring_.device.pause(); // the reset has ended the pause of the device
        }
        wiring_.negotiation.finish_reset();
    }
    const auto idle = [this](std::uint16_t index) {
        if (!wiring_.device.is_queue_idle(index)) {
            return false;
        }
        wiring_.negotiation.finish_queue_reset(index);
        return true;
    };
    std::erase_if(resetting_queues_, idle);
}

void VirtioThread::pause() noexcept {
    {
        const std::lock_guard hold(pause_lock_);
        pause_wanted_ = true;
    }
    pause_asked_.signal();
}

void VirtioThread::resume() noexcept {
    {
        const std::lock_guard hold(pause_lock_);
        pause_wanted_ = false;
    }
    pause_changed_.notify_all();
    pause_asked_.signal();
}

bool VirtioThread::wait_until_paused(std::chrono::steady_clock::time_point deadline) noexcept {
    std::unique_lock hold(pause_lock_);
    pause_changed_.wait_until(hold, deadline, [this] { return is_paused_ || !pause_wanted_ || nobody_waits_; });
    return is_paused_ && pause_wanted_;
}

void VirtioThread::end_waiting() noexcept {
    {
        const std::lock_guard hold(pause_lock_);
        nobody_waits_ = true;
    }
    pause_changed_.notify_all();
}

/// Goes as far as possible now towards a pause, or towards its end, as was asked for last.
void VirtioThread::follow_pause() {
    bool wanted = stands_;
    {
        const std::lock_guard hold(pause_lock_);
        wanted = wanted || pause_wanted_;
        // If a pause is asked for after a resume, the caller waits for that new pause.
        is_paused_ = pause_wanted_ && stands_still_;
    }
    if (!wanted) {
        end_pause();
        return;
    }
    if (stands_still_) {
        finish_standing();
        pause_changed_.notify_all();
        return;
    }
    if (!told_to_pause_) {
        serve_negotiation();
        if (resetting_ || !resetting_queues_.empty()) {
            return;
        }
        begin_pause();
    }
    if (wiring_.device.is_paused()) {
        stands_still_ = true;
        {
            const std::lock_guard hold(pause_lock_);
            is_paused_ = pause_wanted_;
        }
        finish_standing();
        pause_changed_.notify_all();
    }
}

void VirtioThread::finish_standing() {
    if (stands_) {
        wiring_.negotiation.finish_standing();
    }
}

void VirtioThread::begin_pause() {
    told_to_pause_ = true;
    wiring_.device.pause();
}

void VirtioThread::end_pause() {
    if (!told_to_pause_) {
        return;
    }
    told_to_pause_ = false;
    stands_still_ = false;
    wiring_.device.resume();
    if (std::exchange(work_left_, false)) {
        serve_negotiation();
    }
}

/// Finishes the device's work with the host. The machine has ended, or ends because of a failure, so the device gets no
/// new work.
void VirtioThread::drain() noexcept {
    stands_still_ = false;
    try {
        if (!active_) {
            return;
        }
        if (!resetting_) {
            wiring_.device.stop();
        }
        draining_ = true;
        loop_.unwatch(quit_.fd()); // It stays readable, so the loop would return at once each time.
        while (!wiring_.device.is_idle()) {
            watch_sources();
            loop_.run_once(-1);
        }
    } catch (...) {
        if (!failure_) {
            failure_ = std::current_exception();
        }
    }
}

} // namespace vmm
