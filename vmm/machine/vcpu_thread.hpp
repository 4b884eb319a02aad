// The thread of a real vCPU.
#pragma once

#include <chrono>
#include <exception>
#include <latch>
#include <optional>
#include <string>
#include <thread>

#include "devices/bus.hpp"
#include "kvm/vcpu.hpp"
#include "prefault/host/cpu_list.hpp"
#include "vmm/machine/pause_gate.hpp"
#include "vmm/sandbox/sandbox.hpp"
#include "vmm/stop_request.hpp"

namespace vmm {

/// What all vCPU threads of a machine share. The buses are frozen.
struct VcpuEnvironment {
    devices::Bus& ports;
    devices::Bus& mmio;
    StopRequest& stop;
    PauseGate& gate;
    const Sandbox& sandbox;
    std::latch& start; ///< no vCPU enters the guest before it is open
};

/// Runs a vCPU from construction until a stop is requested: by the guest, by somebody else, or by this thread because
/// its vCPU failed. How it ended can be read after join(). Destruction kicks and joins, so a stop must have been
/// requested before.
///
/// Threads: kick() any; the rest the one that made it.
class VcpuThread {
  public:
    /// `cpus` are the CPUs on which it may run; empty: all of the process's.
    VcpuThread(kvm::Vcpu& vcpu, prefault::CpuList cpus, const VcpuEnvironment& environment);
    ~VcpuThread();
    VcpuThread(const VcpuThread&) = delete;
    VcpuThread& operator=(const VcpuThread&) = delete;

    /// Takes the vCPU out of the guest. It must not be called after join().
    void kick() noexcept;
    void join();

    /// The time at which the vCPU entered the guest first; nothing if it never did. It may be called after join().
    [[nodiscard]] std::optional<std::chrono::steady_clock::time_point> first_entry() const noexcept {
        return first_entry_;
    }
    /// Why the vCPU crashed; empty if it did not. It may be called after join().
    [[nodiscard]] const std::string& crash() const noexcept { return crash_; }
    /// The failure of the host that ended the thread; null if there was none. It may be called after join().
    [[nodiscard]] std::exception_ptr failure() const noexcept { return failure_; }

  private:
    void body() noexcept;
    void run_until_stopped();
    [[nodiscard]] bool wait_at_gate();
    [[nodiscard]] bool go_on_after(const kvm::Exit& exit);

    kvm::Vcpu& vcpu_;
    prefault::CpuList cpus_;
    VcpuEnvironment environment_;
    std::optional<std::chrono::steady_clock::time_point> first_entry_;
    std::string crash_;
    std::exception_ptr failure_;
    std::thread thread_; // last: it uses all of the above
};

} // namespace vmm
