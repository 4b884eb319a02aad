#include "vmm/network/opened_net.hpp"

#include <string>
#include <utility>

#include "devices/tap.hpp"
#include "kvm/host/error.hpp"
#include "vmm/network/user_network.hpp"

namespace vmm {

namespace {

/// Returns the least and the most descriptors that such a network has.
std::pair<std::size_t, std::size_t> count_descriptors(const NetConfig& net) noexcept {
    if (!net.user) {
        return {net.queues, net.queues};
    }
    return net.host_loopback ? std::pair<std::size_t, std::size_t>{2, 2} : std::pair<std::size_t, std::size_t>{3, 4};
}

} // namespace

OpenedNet OpenedNet::open(const NetConfig& net) {
    net.check();
    OpenedNet opened;
    if (net.user) {
        check_user_network(net);
        if (!net.host_loopback) {
            opened.addresses = HostAddresses::open();
        }
        UserNetwork network(net);
        opened.passt = network.take_socket();
        opened.passt_errors = network.let_go();
    } else {
        opened.taps = devices::Tap::open_queues(net.tap, net.queues);
    }
    return opened;
}

OpenedNet OpenedNet::from(const NetConfig& net, std::vector<UniqueFd> descriptors) {
    const auto [least, most] = count_descriptors(net);
    if (descriptors.size() < least || descriptors.size() > most) {
        throw Error("cannot connect the guest to a network: " + std::to_string(descriptors.size()) +
                    " descriptors came for it, and it needs " + std::to_string(least) +
                    (least == most ? "" : " or " + std::to_string(most)) + " (open them as `vmm ctl` does)");
    }
    OpenedNet opened;
    if (!net.user) {
        opened.taps = std::move(descriptors);
        return opened;
    }
    opened.passt = std::move(descriptors[0]);
    opened.passt_errors = std::move(descriptors[1]);
    if (!net.host_loopback) {
        opened.addresses.queries = std::move(descriptors[2]);
        opened.addresses.changes = descriptors.size() > 3 ? std::move(descriptors[3]) : UniqueFd();
    }
    return opened;
}

std::vector<int> OpenedNet::descriptors() const {
    std::vector<int> all;
    for (const UniqueFd& tap : taps) {
        all.push_back(tap.get());
    }
    for (const UniqueFd* const fd : {&passt, &passt_errors, &addresses.queries, &addresses.changes}) {
        if (*fd) {
            all.push_back(fd->get());
        }
    }
    return all;
}

} // namespace vmm
