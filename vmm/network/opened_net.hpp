// The open descriptors behind a network interface of the guest. Another process than the machine's may open them,
// because a confined process opens nothing.
#pragma once

#include <cstddef>
#include <vector>

#include "kvm/host/unique_fd.hpp"
#include "vmm/config.hpp"
#include "vmm/limits.hpp"
#include "vmm/network/host_addresses.hpp"

namespace vmm {

/// A tap interface, or a passt that runs. One process hands it to another as descriptors in a fixed order
/// (Machine::add_net()).
struct OpenedNet {
    static constexpr std::size_t kMostDescriptors = limits::kMaxNetQueues;

    std::vector<UniqueFd> taps{};       ///< one for each pair of queues; all are attached
    UniqueFd passt{};                   ///< our end of the connection
    UniqueFd passt_errors{};            ///< the socket from which its standard error is read
    HostAddresses::Sockets addresses{}; ///< not with NetConfig::host_loopback

    /// Attaches to the tap interface, or starts passt. passt ends when its connection has been closed in every process.
    /// Throws Error if the host refuses it.
    [[nodiscard]] static OpenedNet open(const NetConfig& net);
    /// Takes over `descriptors`, which descriptors() has returned for such a `net`. It does not check their kinds; the
    /// code that uses them must. Throws Error if there are too few or too many.
    [[nodiscard]] static OpenedNet from(const NetConfig& net, std::vector<UniqueFd> descriptors);

    /// All of them, on loan, in the order that from() expects.
    [[nodiscard]] std::vector<int> descriptors() const;
    [[nodiscard]] bool is_there() const noexcept { return !taps.empty() || passt; }
};

} // namespace vmm
