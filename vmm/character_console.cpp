#include "vmm/character_console.hpp"

#include <poll.h>
#include <sys/epoll.h>
#include <unistd.h>

#include <cassert>
#include <cerrno>
#include <chrono>
#include <utility>

namespace vmm {

CharacterConsole::CharacterConsole(const CharacterConfig& config, std::function<void()> stop)
    : config_(config), stop_(std::move(stop)) {
    if (config_.output_fd >= 0) {
        output_.emplace(config_.output_fd);
    }
    input_ended_ = config_.input_fd < 0;
}

devices::CharacterPort::Callbacks CharacterConsole::callbacks() {
    return {[this] { output_ready_.signal(); }, [this] { input_room_.signal(); }};
}

void CharacterConsole::attach(devices::CharacterPort& port, EventLoop& loop) {
    assert(port_ == nullptr);
    port_ = &port;
    loop_ = &loop;
    bool watched = loop.watch(output_ready_.fd(), EPOLLIN, [this](std::uint32_t) {
        output_ready_.clear();
        pump_output();
    });
    watched = loop.watch(input_room_.fd(), EPOLLIN, [this](std::uint32_t) {
        input_room_.clear();
        feed_input();
    }) && watched;
    assert(watched);
    feed_input();
}

CharacterConsole::Drained CharacterConsole::drain_output() {
    for (std::size_t taken = 0;;) {
        if (pending_start_ == pending_end_) {
            if ((output_ || config_.sink) && taken >= kMostAtOnce) {
                return Drained::kMoreLeft;
            }
            pending_start_ = 0;
            pending_end_ = port_->take_output(pending_output_);
            if (pending_end_ == 0) {
                return Drained::kAll;
            }
            taken += pending_end_;
            if (config_.sink) {
                config_.sink(std::span(pending_output_).first(pending_end_));
            }
        }
        const auto left = std::span(pending_output_).first(pending_end_).subspan(pending_start_);
        const NonblockingOutput::Result result =
            output_ ? output_->write(left)
                    : NonblockingOutput::Result{NonblockingOutput::Status::kWritten, left.size()};
        switch (result.status) {
        case NonblockingOutput::Status::kWritten:
            pending_start_ += result.written;
            break;
        case NonblockingOutput::Status::kWouldBlock:
            return Drained::kBlocked;
        case NonblockingOutput::Status::kClosed:
            lost_output_bytes_ += left.size();
            pending_start_ = pending_end_;
            break;
        }
    }
}

void CharacterConsole::pump_output() {
    if (waiting_for_writable_) {
        return;
    }
    const Drained drained = drain_output();
    if (drained == Drained::kMoreLeft) {
        output_ready_.signal(); // The rest after whatever else is ready has had its turn.
    } else if (drained == Drained::kBlocked) {
        waiting_for_writable_ = loop_->watch(output_->fd(), EPOLLOUT, [this](std::uint32_t) {
            loop_->unwatch(output_->fd());
            waiting_for_writable_ = false;
            pump_output();
        });
    }
}

void CharacterConsole::flush(int timeout_ms) {
    using Clock = std::chrono::steady_clock;
    const auto deadline = Clock::now() + std::chrono::milliseconds(timeout_ms);
    for (Drained drained = drain_output(); drained != Drained::kAll; drained = drain_output()) {
        if (drained == Drained::kMoreLeft) {
            continue; // What is in the ring is bounded, and no guest adds to it now.
        }
        const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(deadline - Clock::now()).count();
        pollfd ready{output_->fd(), POLLOUT, 0};
        if (left <= 0 || ::poll(&ready, 1, static_cast<int>(left)) == 0) {
            do {
                lost_output_bytes_ += pending_end_ - pending_start_;
                pending_start_ = 0;
                pending_end_ = port_->take_output(pending_output_);
            } while (pending_end_ != 0);
            return;
        }
    }
}

void CharacterConsole::feed_input() {
    for (;;) {
        const std::size_t accepted = port_->feed_input(pending_input_);
        pending_input_.erase(pending_input_.begin(), pending_input_.begin() + static_cast<std::ptrdiff_t>(accepted));
        if (!pending_input_.empty()) {
            // The guest is behind: no more is read until it has made room. A person's stop key is still to be heard,
            // so a terminal stays watched.
            if (input_watched_ && !config_.escape_keys) {
                loop_->unwatch(config_.input_fd);
                input_watched_ = false;
            }
            return;
        }
        if (input_ended_) {
            return;
        }
        if (!input_always_ready_) {
            if (!input_watched_) {
                input_watched_ = loop_->watch(config_.input_fd, EPOLLIN, [this](std::uint32_t) { read_input(); });
                input_always_ready_ = !input_watched_;
            }
            if (input_watched_) {
                return;
            }
        }
        read_input();
        if (pending_input_.empty()) {
            return;
        }
    }
}

void CharacterConsole::read_input() {
    constexpr std::size_t kMostPending = 4096; // what a person may type ahead of a guest that does not read
    std::array<std::byte, 256> buffer{};
    ssize_t count = 0;
    do {
        count = ::read(config_.input_fd, buffer.data(), buffer.size());
    } while (count < 0 && errno == EINTR);
    if (count < 0 && errno == EAGAIN) {
        return;
    }
    if (count <= 0) {
        input_ended_ = true;
        loop_->unwatch(config_.input_fd);
        input_watched_ = false;
        return;
    }
    std::span<const std::byte> bytes = std::span(buffer).first(static_cast<std::size_t>(count));
    EscapeKeys::Result typed;
    if (config_.escape_keys) {
        typed = escape_keys_.filter(bytes);
        bytes = typed.for_guest;
    }
    if (pending_input_.size() + bytes.size() <= kMostPending) {
        pending_input_.insert(pending_input_.end(), bytes.begin(), bytes.end());
    }
    if (typed.help && config_.show_help) {
        config_.show_help();
    }
    if (typed.stop) {
        stop_();
    }
    if (input_watched_) {
        feed_input();
    }
}

} // namespace vmm
