#include "vmm/vcpu_thread.hpp"

#include <pthread.h>

#include <system_error>

#include "kvm/error.hpp"
#include "kvm/kick.hpp"
#include "vmm/dispatch.hpp"

namespace vmm {

namespace {

std::thread start(const std::function<void()>& body, unsigned id) {
    try {
        const kvm::AllSignalsBlocked inherited;
        return std::thread(body);
    } catch (const std::system_error& error) {
        throw Error("cannot start a thread for vCPU " + std::to_string(id) + ": " + error.code().message() +
                    " (raise `ulimit -u`)");
    }
}

} // namespace

VcpuThread::VcpuThread(kvm::Vcpu& vcpu, const VcpuEnvironment& environment)
    : vcpu_(vcpu), environment_(environment), thread_(start([this] { body(); }, vcpu.id())) {}

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
        run_until_stopped();
    } catch (...) {
        failure_ = std::current_exception();
        environment_.stop.request_for_failure();
    }
}

void VcpuThread::run_until_stopped() {
    first_entry_ = std::chrono::steady_clock::now();
    while (!environment_.stop.is_requested()) {
        const Outcome outcome = dispatch(vcpu_.run(), environment_.ports, environment_.mmio);
        if (outcome.next == Outcome::Next::kCrashed) {
            crash_ = outcome.why;
            environment_.stop.request(ExitReason::kCrash);
            return;
        }
    }
}

} // namespace vmm
