#include "kvm/host/thread.hpp"

#include <string>
#include <system_error>
#include <utility>

#include "kvm/host/blocked_signals.hpp"
#include "kvm/host/error.hpp"
#include "kvm/host/thread_rights.hpp"

namespace vmm {

std::thread start_thread(std::string_view whose, std::function<void()> body) {
    try {
        const AllSignalsBlocked inherited;
        return std::thread([body = std::move(body)] {
            begin_thread();
            body();
        });
    } catch (const std::system_error& error) {
        throw Error("cannot start a thread for " + std::string(whose) + ": " + error.code().message() +
                    " (raise `ulimit -u`, or `ulimit -v` if memory is short)");
    }
}

} // namespace vmm
