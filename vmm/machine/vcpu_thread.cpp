#include "vmm/machine/vcpu_thread.hpp"

#include <pthread.h>

#include <utility>

#include "kvm/host/thread.hpp"
#include "kvm/kick.hpp"
#include "kvm/x86/saved_vcpu.hpp"
#include "vmm/machine/dispatch.hpp"

namespace vmm {

VcpuThread::VcpuThread(kvm::Vcpu& vcpu, prefault::CpuList cpus, const VcpuEnvironment& environment)
    : vcpu_(vcpu), cpus_(std::move(cpus)), environment_(environment),
      thread_(start_thread("vCPU " + std::to_string(vcpu.id()), [this] { body(); })) {}

VcpuThread::~VcpuThread() {
    if (thread_.joinable()) {
        kick();
        thread_.join();
    }
}

void VcpuThread::kick() noexcept {
    kvm::kick(thread_.native_handle());
}

void VcpuThread::join() {
    thread_.join();
}

void VcpuThread::body() noexcept {
    try {
        const std::string name = "vcpu" + std::to_string(vcpu_.id());
        ::pthread_setname_np(::pthread_self(), name.c_str());
        prefault::bind_this_thread(cpus_);
        environment_.sandbox.confine(ThreadKind::kVcpu, name);
        run_until_stopped();
    } catch (...) {
        failure_ = std::current_exception();
        environment_.stop.request_for_failure();
    }
}

void VcpuThread::run_until_stopped() {
    environment_.start.wait();
    environment_.gate.note_vcpu_thread();
    for (;;) {
        if (environment_.gate.is_shut() && !wait_at_gate()) {
            return;
        }
        if (environment_.stop.is_requested()) {
            return;
        }
        if (!first_entry_) {
            first_entry_ = std::chrono::steady_clock::now();
        }
        if (!go_on_after(vcpu_.run())) {
            return;
        }
    }
}

/// Finishes the access that is under way, so that the vCPU's registers are complete while it waits. Returns false if
/// the vCPU crashed.
bool VcpuThread::wait_at_gate() {
    // An access may have further parts, each of which is an exit. They are few: KVM emulates at most 1024 steps of a
    // repeated instruction at once.
    while (first_entry_ && !environment_.stop.is_requested()) {
        const std::optional<kvm::Exit> part = vcpu_.finish_exit();
        if (!part) {
            break;
        }
        if (!go_on_after(*part)) {
            return false;
        }
    }
    environment_.gate.pass();
    kvm::note_paused(vcpu_);
    return true;
}

/// Returns false if the guest cannot go on.
bool VcpuThread::go_on_after(const kvm::Exit& exit) {
    const AfterExit after = dispatch(exit, environment_.ports, environment_.mmio);
    if (after.next == AfterExit::Next::kCrash) {
        crash_ = after.why;
        environment_.stop.request(ExitReason::kCrash);
        return false;
    }
    return true;
}

} // namespace vmm
