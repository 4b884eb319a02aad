#include "vmm/machine/character_console.hpp"

#include <poll.h>
#include <sys/epoll.h>
#include <unistd.h>

#include <algorithm>
#include <cassert>
#include <cerrno>
#include <exception>
#include <utility>

#include "kvm/host/error.hpp"
#include "kvm/host/retry.hpp"

namespace vmm {

std::string why_output_is_lost(int error_number) {
    switch (error_number) {
    case EPIPE:
    case ECONNRESET:
        return "whoever read them has gone";
    case ENOSPC:
        return "the disk is full (free some room)";
    case EDQUOT:
        return "the disk quota is used up (free some room)";
    case EFBIG:
        return "the file may not grow (raise `ulimit -f`)";
    case EIO:
        return "its terminal has hung up, or its disk has failed";
    default:
        return errno_reason(error_number);
    }
}

CharacterConsole::CharacterConsole(CharacterConfig config, std::function<void()> stop)
    : config_(std::move(config)), stop_(std::move(stop)) {
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
            if (is_connected() && taken >= kMostAtOnce) {
                return Drained::kMoreLeft;
            }
            pending_start_ = 0;
            pending_end_ = port_->take_output(pending_output_);
            if (pending_end_ == 0) {
                return Drained::kAll;
            }
            taken += pending_end_;
            taken_bytes_ += pending_end_;
            give_to_sink(std::span(pending_output_).first(pending_end_));
        }
        const auto left = std::span(pending_output_).first(pending_end_).subspan(pending_start_);
        if (output_given_up_) {
            write_off(left.size(), 0);
            pending_start_ = pending_end_;
            continue;
        }
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
            write_off(left.size(), result.error_number);
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
        output_ready_.signal(); // The rest is written after other handlers had their turn.
    } else if (drained == Drained::kBlocked) {
        waiting_for_writable_ = loop_->watch(output_->fd(), EPOLLOUT, [this](std::uint32_t) {
            loop_->unwatch(output_->fd());
            waiting_for_writable_ = false;
            pump_output();
        });
    }
}

void CharacterConsole::give_to_sink(std::span<const std::byte> bytes) {
    if (!config_.sink) {
        return;
    }
    if (sink_failed_) {
        lost_by_sink_.bytes += bytes.size();
        return;
    }
    try {
        config_.sink(bytes);
    } catch (...) {
        sink_failed_ = true;
        lost_by_sink_.bytes += bytes.size();
        throw;
    }
}

void CharacterConsole::write_off(std::size_t bytes, int error_number) noexcept {
    lost_.bytes += bytes;
    if (lost_.error_number == 0) {
        lost_.error_number = error_number;
    }
}

void CharacterConsole::flush(Patience patience) {
    using Clock = std::chrono::steady_clock;
    if (port_ == nullptr) {
        return;
    }
    const auto end = Clock::now() + patience.total;
    auto quiet_end = std::min(end, Clock::now() + patience.quiet);
    std::exception_ptr thrown;
    for (;;) {
        const std::size_t left_before = pending_end_ - pending_start_;
        const std::uint64_t taken_before = taken_bytes_;
        Drained drained = Drained::kMoreLeft;
        try {
            drained = drain_output();
        } catch (...) { // The sink threw. The descriptor still gets everything.
            thrown = std::current_exception();
        }
        if (drained == Drained::kAll) {
            break;
        }
        if (drained == Drained::kMoreLeft) {
            continue; // This comes to an end, because the ring is bounded and no guest adds to it now.
        }
        if (taken_bytes_ != taken_before || pending_end_ - pending_start_ != left_before) {
            quiet_end = std::min(end, Clock::now() + patience.quiet);
        }
        const auto left = std::chrono::ceil<std::chrono::milliseconds>(quiet_end - Clock::now()).count();
        pollfd ready{output_->fd(), POLLOUT, 0};
        if (left <= 0 || ::poll(&ready, 1, static_cast<int>(left)) == 0) {
            write_off(pending_end_ - pending_start_, 0);
            pending_start_ = pending_end_;
            output_given_up_ = true;
        }
    }
    if (config_.sink_lost && !sink_failed_) {
        lost_by_sink_ = config_.sink_lost();
    }
    if (thrown) {
        std::rethrow_exception(thrown);
    }
}

std::uint64_t CharacterConsole::output_bytes() const {
    return port_ == nullptr ? 0 : taken_bytes_ + port_->dropped_output_bytes();
}

LostOutput CharacterConsole::lost_output() const {
    if (port_ == nullptr || !is_connected()) {
        return {};
    }
    LostOutput lost;
    lost.bytes = port_->dropped_output_bytes() + lost_.bytes + lost_by_sink_.bytes;
    const auto add = [&lost](const std::string& why) { lost.why += (lost.why.empty() ? "" : "; ") + why; };
    if (port_->dropped_output_bytes() != 0 || (lost_.bytes != 0 && lost_.error_number == 0)) {
        add("nobody read them in time");
    }
    if (lost_.error_number != 0) {
        add(why_output_is_lost(lost_.error_number));
    }
    if (lost_by_sink_.bytes != 0) {
        add(lost_by_sink_.why.empty() ? "the function that was given them failed" : lost_by_sink_.why);
    }
    return lost;
}

std::vector<std::byte> CharacterConsole::pending_input() const {
    const std::lock_guard hold(input_lock_);
    return pending_input_;
}

void CharacterConsole::add_input(std::span<const std::byte> bytes) {
    const std::lock_guard hold(input_lock_);
    const auto taken =
        bytes.first(std::min(bytes.size(), kMostPending - std::min(kMostPending, pending_input_.size())));
    pending_input_.insert(pending_input_.end(), taken.begin(), taken.end());
}

/// Gives the port as much input as it takes. Returns whether that was all.
bool CharacterConsole::feed_pending() {
    const std::lock_guard hold(input_lock_);
    const std::size_t accepted = port_->feed_input(pending_input_);
    pending_input_.erase(pending_input_.begin(), pending_input_.begin() + static_cast<std::ptrdiff_t>(accepted));
    return pending_input_.empty();
}

void CharacterConsole::feed_input() {
    for (;;) {
        if (!feed_pending()) {
            // The guest is behind, so nothing more is read until it has made room. A terminal stays watched, because
            // its stop key must still be heard.
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
        if (pending_input().empty()) {
            return;
        }
    }
}

void CharacterConsole::read_input() {
    std::array<std::byte, 256> buffer{};
    const ssize_t count = uninterrupted([&] { return ::read(config_.input_fd, buffer.data(), buffer.size()); });
    if (count < 0 && (errno == EAGAIN || errno == EINTR)) {
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
    if (pending_input().size() + bytes.size() <= kMostPending) {
        add_input(bytes);
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
