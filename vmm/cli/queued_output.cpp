#include "vmm/cli/queued_output.hpp"

#include <poll.h>
#include <pthread.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <condition_variable>
#include <deque>
#include <exception>
#include <mutex>
#include <thread>
#include <utility>

#include "kvm/host/blocked_signals.hpp"
#include "kvm/host/error.hpp"
#include "kvm/host/event_fd.hpp"
#include "kvm/host/thread_rights.hpp"

namespace vmm {

struct QueuedOutput::State {
    State(std::shared_ptr<OutputTarget> to, Options wanted) : target(std::move(to)), options(std::move(wanted)) {}

    enum class Step { kDone, kBlocked };

    /// Writes as much of `text` as the target takes at once, and removes that from its front.
    Step write_some(std::string& text);
    void note_refusal(std::size_t bytes, int error_number);
    void push(std::string_view text);
    struct Next {
        std::string text;
        bool was_said; ///< whether it is a caller's text; otherwise it is a text about a gap
    };
    [[nodiscard]] Next take_next();
    void write_directly(std::string_view text);
    void run();
    void wait_for_target(const std::string& current);

    std::shared_ptr<OutputTarget> target;
    const Options options;
    EventFd wake;     ///< tells the thread that waits for the target to give up
    EventFd progress; ///< tells finish() that something was written

    mutable std::mutex lock; ///< guards all below
    std::condition_variable changed;
    std::deque<std::string> queue;
    std::size_t queued_bytes = 0;
    bool writing = false; ///< the thread has taken a text and has not finished it
    bool has_thread = false;
    bool thread_ended = false;
    bool ending = false;   ///< the thread ends when the queue is empty
    bool given_up = false; ///< the thread ends at once
    std::uint64_t dropped_since_gap = 0;
    bool refusal_told = false;
    Lost lost;
    std::thread thread;
};

void QueuedOutput::State::note_refusal(std::size_t bytes, int error_number) {
    bool tell = false;
    {
        const std::lock_guard hold(lock);
        lost.bytes += bytes;
        if (lost.error_number == 0) {
            lost.error_number = error_number;
        }
        tell = !given_up && !std::exchange(refusal_told, true); // after giving up, the receiver may not exist any more
    }
    if (tell && options.refused) {
        options.refused(error_number);
    }
}

QueuedOutput::State::Step QueuedOutput::State::write_some(std::string& text) {
    std::size_t done = 0;
    Step step = Step::kDone;
    while (done < text.size()) {
        const auto result = target->write(std::as_bytes(std::span(text).subspan(done)));
        if (result.status == NonblockingOutput::Status::kWritten) {
            done += result.written;
        } else if (result.status == NonblockingOutput::Status::kWouldBlock) {
            step = Step::kBlocked;
            break;
        } else {
            note_refusal(text.size() - done, result.error_number);
            done = text.size();
        }
    }
    text.erase(0, done);
    if (done != 0) {
        progress.signal();
    }
    return step;
}

/// Called with the lock held.
void QueuedOutput::State::push(std::string_view text) {
    constexpr std::size_t kPiece = 64 * 1024; // small texts of a stream share a piece
    if (options.overrun == Overrun::kDropNewest) {
        const std::size_t room = options.capacity_bytes - std::min(options.capacity_bytes, queued_bytes);
        lost.bytes += text.size() - std::min(room, text.size());
        text = text.substr(0, room);
        if (!queue.empty() && queue.back().size() + text.size() <= kPiece) {
            queue.back() += text;
        } else if (!text.empty()) {
            queue.emplace_back(text);
        }
        queued_bytes += text.size();
        return;
    }
    queue.emplace_back(text);
    queued_bytes += text.size();
    while (queued_bytes > options.capacity_bytes && queue.size() > 1) {
        queued_bytes -= queue.front().size();
        lost.bytes += queue.front().size();
        ++lost.texts;
        ++dropped_since_gap;
        queue.pop_front();
    }
}

/// Called with the lock held, and something in the queue.
QueuedOutput::State::Next QueuedOutput::State::take_next() {
    if (dropped_since_gap != 0 && options.gap) {
        return {options.gap(std::exchange(dropped_since_gap, 0)), false};
    }
    std::string text = std::move(queue.front());
    queue.pop_front();
    queued_bytes -= text.size();
    return {std::move(text), true};
}

void QueuedOutput::State::wait_for_target(const std::string& current) {
    if (current.empty()) {
        return;
    }
    std::array<pollfd, 2> watched{{{target->fd(), POLLOUT, 0}, {wake.fd(), POLLIN, 0}}};
    if (::poll(watched.data(), watched.size(), -1) > 0 && watched[0].revents != 0) {
        ::poll(nullptr, 0, 1); // The target may have too little room for the next text. This avoids a busy loop.
    }
}

void QueuedOutput::State::run() {
    std::unique_lock hold(lock);
    for (;;) {
        changed.wait(hold, [this] { return given_up || ending || !queue.empty(); });
        if (given_up || queue.empty()) {
            break;
        }
        auto [current, was_said] = take_next();
        writing = true;
        while (!current.empty() && !given_up) {
            hold.unlock();
            if (write_some(current) == Step::kBlocked) {
                wait_for_target(current);
            }
            hold.lock();
        }
        writing = false;
        lost.bytes += was_said ? current.size() : 0;
        progress.signal();
    }
    thread_ended = true;
    changed.notify_all();
}

QueuedOutput::QueuedOutput(std::shared_ptr<OutputTarget> target, Options options)
    : state_(std::make_shared<State>(std::move(target), std::move(options))) {}

QueuedOutput::~QueuedOutput() {
    finish({std::chrono::milliseconds(0), -1, {}});
}

/// Called with the lock held.
void QueuedOutput::start_thread() {
    State& state = *state_;
    if (state.has_thread) {
        state.changed.notify_all();
        return;
    }
    try {
        const AllSignalsBlocked signals_are_for_others;
        state.thread = std::thread([shared = state_] {
            begin_thread();
            ::pthread_setname_np(::pthread_self(), "output");
            shared->run();
        });
        state.has_thread = true;
    } catch (const std::exception&) { // the host gives no thread, so the queue waits
    }
}

void QueuedOutput::start() {
    const std::lock_guard hold(state_->lock);
    start_thread();
    if (!state_->has_thread) {
        throw Error(
            "cannot start the thread that writes messages (raise `ulimit -u`, or `ulimit -v` if memory is short)");
    }
}

void QueuedOutput::write(std::string_view text) {
    State& state = *state_;
    if (text.empty()) {
        return;
    }
    std::unique_lock hold(state.lock);
    const bool threadless = !state.has_thread || state.thread_ended;
    if (threadless && (state.given_up || !state.target->may_wait() || state.ending)) {
        // Other callers see `writing` meanwhile, and queue their texts behind this one.
        if (!state.writing && state.queue.empty()) {
            state.writing = true;
            std::string rest(text);
            hold.unlock();
            static_cast<void>(state.write_some(rest));
            hold.lock();
            state.writing = false;
            if (!rest.empty()) {
                state.queue.push_front(std::move(rest));
                state.queued_bytes += state.queue.front().size();
            }
        } else {
            state.push(text);
        }
        if (!state.queue.empty() && !state.ending && !state.given_up) {
            start_thread();
        }
        return;
    }
    state.push(text);
    start_thread();
}

void QueuedOutput::write_if_idle(std::string_view text) {
    {
        const std::lock_guard hold(state_->lock);
        if (state_->writing || !state_->queue.empty()) {
            return;
        }
    }
    write(text);
}

bool QueuedOutput::finish(const WritePatience& patience) {
    State& state = *state_;
    WriteDeadline deadline(patience);
    std::unique_lock hold(state.lock);
    if (!state.has_thread && !state.queue.empty()) {
        start_thread(); // the host may have a thread now
    }
    state.ending = true;
    state.changed.notify_all();
    const auto is_done = [&state] { return state.queue.empty() && !state.writing; };
    bool in_time = true;
    while (in_time && state.has_thread && !state.thread_ended && !is_done()) {
        hold.unlock();
        in_time = deadline.wait_for(state.progress.fd(), POLLIN);
        if (in_time) {
            state.progress.clear();
            deadline.note_progress();
        }
        hold.lock();
    }
    while (in_time && !state.has_thread && !state.queue.empty()) { // there is no thread, so this one writes
        auto [current, was_said] = state.take_next();
        hold.unlock();
        for (std::size_t left = current.size(); in_time && state.write_some(current) == State::Step::kBlocked;
             left = current.size()) {
            if (current.size() != left) {
                deadline.note_progress();
            }
            in_time = deadline.wait_for(state.target->fd(), POLLOUT);
        }
        hold.lock();
        state.lost.bytes += was_said ? current.size() : 0;
    }
    const bool complete = in_time && is_done();
    for (const std::string& text : state.queue) {
        state.lost.bytes += text.size();
        ++state.lost.texts;
    }
    state.queue.clear();
    state.queued_bytes = 0;
    if (!complete) {
        state.given_up = true;
        state.wake.signal();
        state.changed.notify_all();
    }
    if (!state.thread.joinable()) {
        return complete;
    }
    // A thread that is stuck in the kernel (because the disk does not answer) is left behind. It owns everything that
    // it needs.
    constexpr std::chrono::milliseconds kToNotice{100};
    const bool ended = state.changed.wait_for(hold, complete ? std::chrono::milliseconds(60'000) : kToNotice,
                                              [&state] { return state.thread_ended; });
    std::thread thread = std::move(state.thread);
    hold.unlock();
    if (ended) {
        thread.join();
    } else {
        thread.detach();
    }
    return complete;
}

QueuedOutput::Lost QueuedOutput::lost() const {
    const std::lock_guard hold(state_->lock);
    return state_->lost;
}

} // namespace vmm
