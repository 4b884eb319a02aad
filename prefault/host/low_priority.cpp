#include "prefault/host/low_priority.hpp"

#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

namespace vmm::prefault {

LowPriority::LowPriority(const std::stop_token& stop) {
    constexpr int kNicest = 19;
    const auto thread = static_cast<unsigned>(::syscall(SYS_gettid));
    ::setpriority(PRIO_PROCESS, thread, kNicest); // On Linux this affects one thread. Raising the nice value is always
                                                  // allowed.
    hurry_.emplace(stop, Hurry{thread});
}

void LowPriority::Hurry::operator()() const noexcept {
    ::setpriority(PRIO_PROCESS, thread, ::getpriority(PRIO_PROCESS, static_cast<id_t>(::getpid())));
}

} // namespace vmm::prefault
