#include "devices/thread_disk_io.hpp"

#include <fcntl.h>
#include <pthread.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cassert>
#include <cerrno>
#include <condition_variable>
#include <csignal>
#include <mutex>
#include <system_error>
#include <thread>
#include <utility>

#include "kvm/host/error.hpp"
#include "kvm/host/event_fd.hpp"
#include "kvm/host/thread_rights.hpp"

namespace vmm::devices {

struct ThreadDiskIo::Operation {
    enum class Kind { kRead, kWrite, kFlush, kAllocate };
    Kind kind = Kind::kFlush;
    int fd = -1;
    int mode = 0; ///< of an allocation
    std::uint64_t token = 0;
    std::uint64_t offset = 0;
    std::uint64_t bytes = 0; ///< of an allocation
    std::span<const iovec> pieces;
};

namespace {

/// Blocks signals, which are for other threads. Faults are not blocked, so that their handlers run.
class SignalsBlocked {
  public:
    SignalsBlocked() {
        sigset_t blocked;
        ::sigfillset(&blocked);
        for (const int fault : {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP, SIGABRT, SIGSYS}) {
            ::sigdelset(&blocked, fault);
        }
        ::pthread_sigmask(SIG_SETMASK, &blocked, &before_);
    }
    ~SignalsBlocked() { ::pthread_sigmask(SIG_SETMASK, &before_, nullptr); }
    SignalsBlocked(const SignalsBlocked&) = delete;
    SignalsBlocked& operator=(const SignalsBlocked&) = delete;

  private:
    sigset_t before_{};
};

} // namespace

/// The threads, and the data that they share with the caller's thread.
class ThreadDiskIo::Crew {
  public:
    Crew() {
        if (const int error = start_thread(); error != 0) {
            throw_errno(error, "start a thread for the I/O of a disk",
                        "raise `ulimit -u` or the pids.max of the control group, or `ulimit -v` if memory is short");
        }
    }
    ~Crew() {
        {
            const std::lock_guard hold(mutex_);
            ending_ = true;
            waiting_.clear();
        }
        work_.notify_all();
        for (std::thread& thread : threads_) {
            thread.join();
        }
    }
    Crew(const Crew&) = delete;
    Crew& operator=(const Crew&) = delete;

    [[nodiscard]] int fd() const noexcept { return came_back_.fd(); }
    [[nodiscard]] unsigned size() const noexcept { return static_cast<unsigned>(threads_.size()); }

    /// Hands over all of `operations`.
    void give(std::span<const Operation> operations) {
        std::size_t busy_for = 0;
        {
            const std::lock_guard hold(mutex_);
            waiting_.insert(waiting_.end(), operations.begin(), operations.end());
            busy_for = waiting_.size() > idle_ ? waiting_.size() - idle_ : 0;
        }
        for (; busy_for != 0 && threads_.size() < kMostThreads; --busy_for) {
            if (start_thread() != 0) {
                break; // The existing threads do all the work.
            }
        }
        if (operations.size() == 1) {
            work_.notify_one();
        } else {
            work_.notify_all();
        }
    }
    void give_back(std::span<const Completion> completions) {
        const std::lock_guard hold(mutex_);
        for (const Completion& completion : completions) {
            note(completion);
        }
    }
    void abandon() {
        const std::lock_guard hold(mutex_);
        for (const Operation& operation : waiting_) {
            note({operation.token, -ECANCELED});
        }
        waiting_.clear();
    }
    std::size_t take(std::span<Completion> completions) {
        if (finished_.load(std::memory_order_acquire) == 0) {
            return 0;
        }
        const std::lock_guard hold(mutex_);
        const std::size_t count = std::min(completions.size(), done_.size());
        std::copy_n(done_.begin(), count, completions.begin());
        done_.erase(done_.begin(), done_.begin() + static_cast<std::ptrdiff_t>(count));
        finished_.store(done_.size(), std::memory_order_release);
        if (done_.empty()) {
            came_back_.clear();
        }
        return count;
    }

  private:
    /// Returns 0 or a value of errno.
    int start_thread() {
        try {
            const SignalsBlocked inherited;
            threads_.emplace_back([this, name = "disk-io" + std::to_string(threads_.size()), opens = may_open_files()] {
                if (!opens) { // The thread has the filter of the thread that made it.
                    note_no_files_in_this_thread();
                } else {
                    begin_thread();
                }
                // Each thread sets its own name: another thread's name is a file, which a confined thread cannot open.
                ::pthread_setname_np(::pthread_self(), name.c_str());
                body();
            });
            return 0;
        } catch (const std::system_error& error) {
            return error.code().value();
        }
    }

    void body() {
        std::unique_lock hold(mutex_);
        while (true) {
            ++idle_;
            work_.wait(hold, [this] { return ending_ || !waiting_.empty(); });
            --idle_;
            if (waiting_.empty()) {
                return;
            }
            const Operation operation = waiting_.front();
            waiting_.pop_front();
            hold.unlock();
            const Completion completion{operation.token, perform(operation)};
            hold.lock();
            note(completion);
        }
    }

    static int perform(const Operation& operation) {
        ssize_t result = 0;
        const auto offset = static_cast<off_t>(operation.offset);
        const auto pieces = static_cast<int>(operation.pieces.size());
        switch (operation.kind) {
        case Operation::Kind::kRead:
            result = ::preadv(operation.fd, operation.pieces.data(), pieces, offset);
            break;
        case Operation::Kind::kWrite:
            result = ::pwritev(operation.fd, operation.pieces.data(), pieces, offset);
            break;
        case Operation::Kind::kFlush:
            result = ::fdatasync(operation.fd);
            break;
        case Operation::Kind::kAllocate:
            result = ::fallocate(operation.fd, operation.mode, offset, static_cast<off_t>(operation.bytes));
            break;
        }
        return result < 0 ? -errno : static_cast<int>(result);
    }

    /// Must be called with the lock held.
    void note(const Completion& completion) {
        done_.push_back(completion);
        finished_.store(done_.size(), std::memory_order_release);
        if (done_.size() == 1) {
            came_back_.signal();
        }
    }

    EventFd came_back_; ///< readable as long as done_ is not empty
    std::mutex mutex_;
    std::condition_variable work_;
    std::deque<Operation> waiting_;
    std::deque<Completion> done_;
    std::atomic<std::size_t> finished_{0}; ///< the size of done_, which is read without the lock
    std::size_t idle_ = 0;
    bool ending_ = false;
    std::vector<std::thread> threads_; // last, because they use all of the above
};

ThreadDiskIo::ThreadDiskIo(const DiskFiles& files, unsigned depth, bool cached)
    : files_(files), depth_(depth), cached_(cached), crew_(std::make_unique<Crew>()) {
    queued_.reserve(depth);
}

ThreadDiskIo::~ThreadDiskIo() = default;

int ThreadDiskIo::fd() const noexcept {
    return crew_->fd();
}

unsigned ThreadDiskIo::threads() const noexcept {
    return crew_->size();
}

int ThreadDiskIo::fd_of(std::uint64_t offset) const noexcept {
    return offset >= files_.tail_begins ? files_.tail_fd : files_.fd;
}

void ThreadDiskIo::queue(const Operation& operation) {
    assert(has_room());
    queued_.push_back(operation);
    ++in_flight_;
}

void ThreadDiskIo::read(std::uint64_t token, std::uint64_t offset, std::span<const iovec> pieces) {
    queue({Operation::Kind::kRead, fd_of(offset), 0, token, offset, 0, pieces});
}

void ThreadDiskIo::write(std::uint64_t token, std::uint64_t offset, std::span<const iovec> pieces) {
    queue({Operation::Kind::kWrite, fd_of(offset), 0, token, offset, 0, pieces});
}

void ThreadDiskIo::flush(std::uint64_t token) {
    queue({Operation::Kind::kFlush, files_.fd, 0, token, 0, 0, {}});
}

void ThreadDiskIo::allocate(std::uint64_t token, int mode, std::uint64_t offset, std::uint64_t bytes) {
    queue({Operation::Kind::kAllocate, fd_of(offset), mode, token, offset, bytes, {}});
}

/// Reads from the page cache, if the data is there. That needs neither a thread nor a switch to one.
bool ThreadDiskIo::read_at_once(const Operation& operation, Completion& completion) {
    if (!cached_ || operation.kind != Operation::Kind::kRead) {
        return false;
    }
    const ssize_t result = ::preadv2(operation.fd, operation.pieces.data(), static_cast<int>(operation.pieces.size()),
                                     static_cast<off_t>(operation.offset), RWF_NOWAIT);
    if (result <= 0) {
        // The data is not in the cache, or this file system cannot say. If there is an error, a thread will find it.
        cached_ = result == 0 || (errno != EOPNOTSUPP && errno != ENOSYS && errno != EINVAL);
        return false;
    }
    completion = {operation.token, static_cast<int>(result)};
    return true;
}

bool ThreadDiskIo::submit() {
    if (queued_.empty()) {
        return true;
    }
    std::vector<Completion> at_once;
    const auto is_done = [&](const Operation& operation) {
        Completion completion{};
        const bool done = read_at_once(operation, completion);
        if (done) {
            at_once.push_back(completion);
        }
        return done;
    };
    std::erase_if(queued_, is_done);
    if (!at_once.empty()) {
        crew_->give_back(at_once);
    }
    if (!queued_.empty()) {
        crew_->give(queued_);
        queued_.clear();
    }
    return true;
}

std::size_t ThreadDiskIo::reap(std::span<Completion> completions) {
    const std::size_t count = crew_->take(completions);
    in_flight_ -= static_cast<unsigned>(count);
    return count;
}

void ThreadDiskIo::abandon() {
    std::vector<Completion> cancelled;
    for (const Operation& operation : queued_) {
        cancelled.push_back({operation.token, -ECANCELED});
    }
    queued_.clear();
    crew_->give_back(cancelled);
    crew_->abandon();
}

} // namespace vmm::devices
