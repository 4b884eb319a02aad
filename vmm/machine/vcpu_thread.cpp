#include "vmm/machine/vcpu_thread.hpp"

#include <pthread.h>

#include <system_error>
#include <utility>

#include "kvm/host/blocked_signals.hpp"
#include "kvm/host/error.hpp"
#include "kvm/kick.hpp"
#include "vmm/machine/dispatch.hpp"

namespace vmm {

std::thread start_thread(std::string_view whose, std::function<void()> body) {
    try {
        const AllSignalsBlocked inherited;
        return std::thread(std::move(body));
    } catch (const std::system_error& error) {
        throw Error("cannot start a thread for " + std::string(whose) + ": " + error.code().message() +
                    " (raise `ulimit -u`, or `ulimit -v` if memory is short)");
    }
}

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
        ::pthread_setname_np(::pthread_self(), ("vcpu" + std::to_string(vcpu_.id())).c_str());
        prefault::bind_this_thread(cpus_);
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
        environment_.gate.pass();
        if (environment_.stop.is_requested()) {
            return;
        }
        if (!first_entry_) {
            first_entry_ = std::chrono::steady_clock::now();
        }
        const AfterExit after = dispatch(vcpu_.run(), environment_.ports, environment_.mmio);
        if (after.next == AfterExit::Next::kCrash) {
            crash_ = after.why;
            environment_.stop.request(ExitReason::kCrash);
            return;
        }
    }
}

} // namespace vmm
