#include "vmm/machine/device_thread.hpp"

#include <pthread.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <utility>

#include "kvm/host/thread.hpp"

namespace vmm {

ThreadKind thread_kind_of(devices::virtio::DeviceId device) noexcept {
    switch (device) {
    case devices::virtio::DeviceId::kNet:
        return ThreadKind::kNet;
    case devices::virtio::DeviceId::kBlock:
        return ThreadKind::kBlock;
    case devices::virtio::DeviceId::kConsole:
        return ThreadKind::kConsole;
    case devices::virtio::DeviceId::kEntropy:
        return ThreadKind::kEntropy;
    case devices::virtio::DeviceId::kBalloon:
        return ThreadKind::kBalloon;
    case devices::virtio::DeviceId::kVsock:
        return ThreadKind::kVsock;
    case devices::virtio::DeviceId::kMemory:
        return ThreadKind::kConsole; // It needs no more: another thread changes the memory.
    }
    return ThreadKind::kConsole; // This kind may do the least.
}

DeviceThread::DeviceThread(const std::string& name, std::function<void()> body)
    : thread_(start_thread(name, [this, name, body = std::move(body)] {
          id_ = static_cast<pid_t>(::syscall(SYS_gettid));
          ::pthread_setname_np(::pthread_self(), name.c_str());
          body();
          ended_.release();
      })) {}

void DeviceThread::join() noexcept {
    if (thread_.joinable()) {
        thread_.join();
    }
}

/// Whether the thread has ended although its body has not returned. The sandbox's alarm ends threads in this way.
bool DeviceThread::has_vanished() const noexcept {
    const pid_t id = id_.load();
    return id != 0 && ::syscall(SYS_tgkill, ::getpid(), id, 0) != 0 && errno == ESRCH;
}

bool DeviceThread::join_until(std::chrono::steady_clock::time_point deadline) noexcept {
    if (!thread_.joinable()) {
        return true;
    }
    if (!ended_.try_acquire_until(deadline) && !has_vanished()) {
        return false;
    }
    thread_.join();
    return true;
}

} // namespace vmm
