// The control of one machine: its socket, its server and the actions of the verbs.
#pragma once

#include "prefault/kept.hpp"
#include "vmm/control/machine_control.hpp"
#include "vmm/control/server.hpp"
#include "vmm/control/socket.hpp"
#include "vmm/machine.hpp"

namespace vmm::control {

/// Serves while it lives. When it is destroyed, it sends clients the answers that are on their way, and cancels jobs
/// and waits for them. The socket stays until its owner destroys it.
///
/// Threads: control() any, the rest the one that made it.
class Service {
  public:
    /// All arguments must outlive it; `socket` and `machine` most of all. Throws Error.
    Service(const ListeningSocket& socket, Machine& machine, const Config& config, Surroundings surroundings,
            ServerLimits limits = {})
        : control_(machine, config, std::move(surroundings)),
          server_(
              socket.fd(), control_.events(),
              [this](const HttpRequest& request, const Reply& reply) { control_.handle(request, reply); }, limits) {}

    [[nodiscard]] MachineControl& control() noexcept { return control_; }

  private:
    MachineControl control_;
    Server server_; // last: it calls the control
};

} // namespace vmm::control
