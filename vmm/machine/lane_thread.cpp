#include "vmm/machine/lane_thread.hpp"

#include <sys/epoll.h>

#include <cassert>
#include <utility>

#include "prefault/host/cpu_list.hpp"

namespace vmm {

LaneThread::LaneThread(Wiring wiring)
    : wiring_(std::move(wiring)), sources_(loop_,
                                           [this](int fd, std::uint32_t events) {
                                               if (!quitting_) {
                                                   wiring_.lane.ready(fd, events);
                                               }
                                           }),
      thread_(wiring_.name, [this] { body(); }) {}

void LaneThread::end() noexcept {
    quitting_ = true;
    quit_.signal();
}

void LaneThread::join() noexcept {
    end();
    thread_.join();
}

bool LaneThread::join_until(std::chrono::steady_clock::time_point deadline) noexcept {
    end();
    return thread_.join_until(deadline);
}

void LaneThread::body() noexcept {
    try {
        prefault::bind_this_thread(wiring_.cpus);
        wiring_.sandbox.confine(wiring_.kind, wiring_.name);
        [[maybe_unused]] const bool watched = loop_.watch(quit_.fd(), EPOLLIN, [](std::uint32_t) {}); // It ends a wait.
        assert(watched);
        watch_doorbells();
        while (!quitting_) {
            sources_.follow(wiring_.lane.sources());
            loop_.run_once(-1);
        }
    } catch (...) {
        failure_ = std::current_exception();
        wiring_.stop.request_for_failure();
    }
}

void LaneThread::watch_doorbells() {
    wiring_.lane.queues().each([this](std::uint16_t index) {
        [[maybe_unused]] const bool watched =
            loop_.watch(wiring_.doorbells[index].fd(), EPOLLIN, [this, index](std::uint32_t) {
                wiring_.doorbells[index].clear();
                if (wiring_.rung != nullptr) {
                    wiring_.rung->fetch_add(1, std::memory_order_relaxed);
                }
                if (!quitting_) {
                    wiring_.lane.doorbell(index);
                }
            });
        assert(watched);
    });
}

} // namespace vmm
