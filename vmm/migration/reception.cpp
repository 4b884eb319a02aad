#include "vmm/migration/reception.hpp"

#include <poll.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <exception>
#include <utility>

#include "kvm/host/error.hpp"
#include "kvm/host/thread.hpp"
#include "vmm/migration/endpoints.hpp"

namespace vmm {

Reception::Reception(const MigrationAddress& address, const MigrationSecurity& security,
                     std::function<void(const std::string&)> warn, std::chrono::milliseconds patience)
    : listener_(address, security, warn), warn_(std::move(warn)), patience_(patience),
      thread_(start_thread("who connects for a migration", [this] { receive_all(); })) {}

Reception::~Reception() {
    closing_.signal();
    thread_.join();
    join_finished(true);
}

std::optional<Reception::Visitor> Reception::take() {
    const std::lock_guard hold(lock_);
    if (visitors_.empty()) {
        return std::nullopt;
    }
    Visitor visitor = std::move(visitors_.front());
    visitors_.pop_front();
    if (visitors_.empty()) {
        arrived_.clear();
    }
    return visitor;
}

void Reception::receive_all() noexcept {
    constexpr int kWhileFullMs = 20;
    for (;;) {
        join_finished(false);
        std::size_t busy = 0;
        {
            const std::lock_guard hold(lock_);
            busy = served_.size() + visitors_.size();
        }
        // Those who are too many wait in the kernel's queue.
        const bool is_full = busy >= kMostVisitors;
        std::array<pollfd, 2> fds{{{closing_.fd(), POLLIN, 0}, {is_full ? -1 : listener_.fd(), POLLIN, 0}}};
        if (::poll(fds.data(), fds.size(), busy != 0 ? kWhileFullMs : -1) < 0 && errno != EINTR) {
            return;
        }
        if (fds[0].revents != 0) {
            return;
        }
        if (fds[1].revents == 0) {
            continue;
        }
        try {
            if (auto caller = listener_.take()) {
                const auto shared = std::make_shared<MigrationListener::Caller>(std::move(*caller));
                const std::lock_guard hold(lock_);
                served_.push_back(
                    start_thread("who connects for a migration", [this, shared] { receive(std::move(*shared)); }));
            }
        } catch (const std::exception& error) { // The host is short of something: they try again.
            warn_(error.what());
            ::poll(fds.data(), 1, kWhileFullMs);
        }
    }
}

void Reception::receive(MigrationListener::Caller caller) noexcept {
    try {
        const std::string name = caller.name;
        try {
            Visitor visitor;
            visitor.channel = listener_.establish(std::move(caller), closing_.fd(), patience_);
            visitor.channel->set_patience(kPatience); // And so for whoever takes them.
            visitor.channel->set_deadline(give_up_after(patience_));
            visitor.first = receive_first_message(*visitor.channel);
            visitor.channel->set_deadline(Channel::kNoDeadline);
            const std::lock_guard hold(lock_);
            visitors_.push_back(std::move(visitor));
            arrived_.signal();
        } catch (const std::exception& error) {
            warn_("somebody who connected (" + name + ") was sent away: " + error.what());
        }
    } catch (...) { // There is no memory even to say so.
    }
    const std::lock_guard hold(lock_);
    finished_.push_back(std::this_thread::get_id());
}

void Reception::join_finished(bool all) {
    std::vector<std::thread> over;
    {
        const std::lock_guard hold(lock_);
        const auto is_over = [&](const std::thread& thread) {
            return all || std::ranges::find(finished_, thread.get_id()) != finished_.end();
        };
        for (auto thread = served_.begin(); thread != served_.end();) {
            if (is_over(*thread)) {
                over.push_back(std::move(*thread));
                thread = served_.erase(thread);
            } else {
                ++thread;
            }
        }
        finished_.clear();
    }
    for (std::thread& thread : over) {
        thread.join();
    }
}

} // namespace vmm
