#include "prefault/host/crew.hpp"

#include <pthread.h>

#include <chrono>
#include <condition_variable>
#include <exception>
#include <mutex>
#include <optional>
#include <string>
#include <system_error>
#include <thread>

#include "kvm/host/blocked_signals.hpp"
#include "kvm/host/error.hpp"
#include "prefault/host/low_priority.hpp"

namespace vmm::prefault {

namespace {

constexpr auto kTickInterval = std::chrono::milliseconds(100);

/// The place where the workers and the caller wait for each other.
class Muster {
  public:
    explicit Muster(unsigned workers) : missing_(workers), running_(workers) {}

    /// Reports that a worker is ready, and waits for the beginning. Returns false if the work is called off.
    bool report_and_wait() {
        std::unique_lock hold(lock_);
        --missing_;
        changed_.notify_all();
        changed_.wait(hold, [this] { return begun_ || called_off_; });
        return !called_off_;
    }

    /// Reports that a worker has ended, with its failure if it had one.
    void leave(std::exception_ptr failure) {
        const std::lock_guard hold(lock_);
        if (!failure_) {
            failure_ = std::move(failure);
        }
        --running_;
        changed_.notify_all();
    }

    /// Waits until every worker is ready, or one has failed to start; then begins or calls off the work.
    void begin() {
        std::unique_lock hold(lock_);
        changed_.wait(hold, [this] { return missing_ == 0 || failure_; });
        begun_ = !failure_;
        called_off_ = !begun_;
        changed_.notify_all();
    }

    void call_off() {
        const std::lock_guard hold(lock_);
        called_off_ = true;
        changed_.notify_all();
    }

    /// Waits for one tick at most. Returns false if workers are still running.
    bool all_gone_soon() {
        std::unique_lock hold(lock_);
        return changed_.wait_for(hold, kTickInterval, [this] { return running_ == 0; });
    }

    [[nodiscard]] std::exception_ptr failure() {
        const std::lock_guard hold(lock_);
        return failure_;
    }

  private:
    std::mutex lock_;
    std::condition_variable changed_;
    unsigned missing_;
    unsigned running_;
    bool begun_ = false;
    bool called_off_ = false;
    std::exception_ptr failure_;
};

void take_place(const Crew& crew, unsigned index) {
    ::pthread_setname_np(::pthread_self(), (std::string(crew.name) + std::to_string(index)).substr(0, 15).c_str());
    if (index < crew.cpus.size()) {
        bind_this_thread(crew.cpus[index]);
    }
}

} // namespace

void run_in_parallel(const Crew& crew, const std::stop_token& stop, const CrewWork& work) {
    Muster muster(crew.workers);
    std::stop_source source;
    const std::stop_callback forward(stop, [&source] { source.request_stop(); });
    const auto body = [&](unsigned index) {
        std::exception_ptr failure;
        try {
            take_place(crew, index);
            std::optional<LowPriority> low_priority;
            if (crew.low_priority) {
                low_priority.emplace(source.get_token());
            }
            if (muster.report_and_wait()) {
                work(index, source.get_token());
            }
        } catch (...) {
            failure = std::current_exception();
            source.request_stop();
        }
        muster.leave(std::move(failure));
    };
    std::vector<std::jthread> threads; // Declared last, so that they are joined before what they use goes away.
    threads.reserve(crew.workers);
    try {
        const AllSignalsBlocked inherited;
        for (unsigned index = 0; index < crew.workers; ++index) {
            threads.emplace_back(body, index);
        }
    } catch (const std::system_error& error) {
        muster.call_off();
        throw Error("cannot start " + std::to_string(crew.workers) + " prefault workers: " + error.code().message() +
                    " (fewer with Config::prefault.workers, or raise `ulimit -u`, `ulimit -v` or the "
                    "cgroup's pids.max)");
    } catch (...) {
        muster.call_off();
        throw;
    }
    muster.begin();
    try {
        while (!muster.all_gone_soon()) {
            if (crew.tick) {
                crew.tick();
            }
        }
    } catch (...) {
        source.request_stop();
        throw;
    }
    threads.clear();
    if (const std::exception_ptr failure = muster.failure()) {
        std::rethrow_exception(failure);
    }
}

} // namespace vmm::prefault
