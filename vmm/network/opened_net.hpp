// What a network interface of the guest stands on, opened by another process than the machine's: one that is confined
// opens nothing.
#pragma once

#include <cstddef>
#include <vector>

#include "kvm/host/unique_fd.hpp"
#include "vmm/config.hpp"
#include "vmm/limits.hpp"
#include "vmm/network/host_addresses.hpp"

namespace vmm {

/// A tap interface, or a passt that runs. It goes from one process to another as descriptors in a fixed order
/// (Machine::add_net()).
struct OpenedNet {
    static constexpr std::size_t kMostDescriptors = limits::kMaxNetQueues;

    std::vector<UniqueFd> taps{};       ///< one for each pair of queues; all are attached
    UniqueFd passt{};                   ///< our end of the connection
    UniqueFd passt_errors{};            ///< the socket that its standard error comes from
    HostAddresses::Sockets addresses{}; ///< not with NetConfig::host_loopback

    /// Attaches to the tap interface, or starts passt. That ends when its connection has been closed in every process.
    /// Throws Error: the host refuses it.
    [[nodiscard]] static OpenedNet open(const NetConfig& net);
    /// Takes over what descriptors() were of such a `net`. Throws Error: there are too few or too many of them. Whoever
    /// uses one looks at what it is.
    [[nodiscard]] static OpenedNet from(const NetConfig& net, std::vector<UniqueFd> descriptors);

    /// All of them, on loan, in the order that from() expects.
    [[nodiscard]] std::vector<int> descriptors() const;
    [[nodiscard]] bool is_there() const noexcept { return !taps.empty() || passt; }
};

} // namespace vmm
