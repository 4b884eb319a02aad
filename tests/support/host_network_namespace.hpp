// A network for one test, with only a loopback interface.
#pragma once

#include <arpa/inet.h>
#include <fcntl.h>
#include <net/if.h>
#include <netinet/in.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

#include <cstring>
#include <string>

#include "kvm/host/unique_fd.hpp"

namespace vmm::testing {

/// Until the end, this thread and the processes that it starts are in a network namespace of their own. Check why()
/// first, because it needs root.
class NetworkNamespace {
  public:
    NetworkNamespace() : before_(::open("/proc/thread-self/ns/net", O_RDONLY | O_CLOEXEC)) {
        if (!before_ || ::unshare(CLONE_NEWNET) != 0) {
            why_ = std::string("cannot make a network namespace: ") + std::strerror(errno);
            before_.reset();
            return;
        }
        ifreq request{};
        std::strcpy(request.ifr_name, "lo");
        request.ifr_flags = IFF_UP | IFF_RUNNING;
        if (!ask(SIOCSIFFLAGS, request)) {
            why_ = "cannot bring the loopback interface up";
        }
    }
    ~NetworkNamespace() {
        if (before_) {
            static_cast<void>(::setns(before_.get(), CLONE_NEWNET));
        }
    }
    NetworkNamespace(const NetworkNamespace&) = delete;
    NetworkNamespace& operator=(const NetworkNamespace&) = delete;

    /// Why there is no namespace; empty if there is one.
    [[nodiscard]] const std::string& why() const noexcept { return why_; }

    /// Gives the host another address. Addresses differ by `number`.
    bool add_address(int number, const char* address) { return set(number, address, SIOCSIFADDR); }
    /// Removes the address again.
    bool remove_address(int number) {
        ifreq request{};
        std::strcpy(request.ifr_name, ("lo:" + std::to_string(number)).c_str());
        request.ifr_flags = 0;
        return ask(SIOCSIFFLAGS, request);
    }

  private:
    static bool ask(unsigned long what, ifreq& request) {
        const UniqueFd socket(::socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0));
        return socket && ::ioctl(socket.get(), what, &request) == 0;
    }
    static bool set(int number, const char* address, unsigned long what) {
        ifreq request{};
        std::strcpy(request.ifr_name, ("lo:" + std::to_string(number)).c_str());
        sockaddr_in in{};
        in.sin_family = AF_INET;
        if (::inet_pton(AF_INET, address, &in.sin_addr) != 1) {
            return false;
        }
        std::memcpy(&request.ifr_addr, &in, sizeof(in));
        return ask(what, request);
    }

    UniqueFd before_;
    std::string why_;
};

} // namespace vmm::testing
