#include "vmm/bench/x86/cycle_clock.hpp"

#include <x86intrin.h>

#include <thread>

#include "kvm/host/stopwatch.hpp"

namespace vmm::bench {

CycleClock::CycleClock() : started_(std::chrono::steady_clock::now()), cycles_(__rdtsc()) {}

double CycleClock::seconds_per_cycle() const {
    constexpr auto kLeast = std::chrono::milliseconds(20);
    std::this_thread::sleep_until(started_ + kLeast);
    return seconds_since(started_) / static_cast<double>(__rdtsc() - cycles_);
}

} // namespace vmm::bench
