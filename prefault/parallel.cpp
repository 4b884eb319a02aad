#include "prefault/parallel.hpp"

#include <pthread.h>
#include <sched.h>

#include <algorithm>
#include <exception>
#include <future>
#include <mutex>
#include <string>
#include <system_error>
#include <thread>
#include <vector>

#include "kvm/error.hpp"
#include "kvm/kick.hpp"

namespace vmm::prefault {

void run_in_parallel(unsigned workers, std::string_view name, const std::function<void(unsigned)>& work) {
    std::promise<bool> gate; // Fulfilled with true to begin, with false to go home.
    const std::shared_future<bool> begin = gate.get_future().share();
    std::mutex failure_lock;
    std::exception_ptr failure;
    const auto body = [&](unsigned index) {
        try {
            ::pthread_setname_np(::pthread_self(), (std::string(name) + std::to_string(index)).substr(0, 15).c_str());
            if (begin.get()) {
                work(index);
            }
        } catch (...) {
            const std::lock_guard hold(failure_lock);
            if (!failure) {
                failure = std::current_exception();
            }
        }
    };
    std::vector<std::jthread> threads; // After what they use: joined first.
    threads.reserve(workers);
    try {
        const kvm::AllSignalsBlocked inherited;
        for (unsigned index = 0; index < workers; ++index) {
            threads.emplace_back(body, index);
        }
    } catch (const std::system_error& error) {
        gate.set_value(false);
        throw Error("cannot start " + std::to_string(workers) + " prefault workers: " + error.code().message() +
                    " (fewer with --prefault-workers, or raise `ulimit -u` or `ulimit -v`)");
    } catch (...) {
        gate.set_value(false);
        throw;
    }
    gate.set_value(true);
    threads.clear();
    if (failure) {
        std::rethrow_exception(failure);
    }
}

unsigned usable_cpus() {
    // A mask larger than cpu_set_t's 1024 CPUs makes the call fail; the count of CPUs online is right there.
    cpu_set_t mask;
    CPU_ZERO(&mask);
    if (::sched_getaffinity(0, sizeof mask, &mask) == 0 && CPU_COUNT(&mask) > 0) {
        return static_cast<unsigned>(CPU_COUNT(&mask));
    }
    return std::max(1U, std::thread::hardware_concurrency());
}

} // namespace vmm::prefault
