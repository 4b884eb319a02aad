#include "vmm/device_configs.hpp"

#include <arpa/inet.h>

#include <algorithm>

#include "devices/tap.hpp"
#include "devices/virtio/balloon.hpp"
#include "devices/virtio/net.hpp"
#include "devices/virtio/vsock.hpp"
#include "kvm/host/error.hpp"
#include "kvm/host/guest_address.hpp"
#include "vmm/network/user_network.hpp"
#include "vmm/refuse_nul.hpp"

namespace vmm {

static_assert(NetConfig::kMaxQueues <= devices::virtio::Net::kMostPairs);

namespace {

/// "512 and 4096"
std::string all_sector_bytes() {
    std::string text;
    for (const unsigned bytes : limits::kSectorBytes) {
        text += (text.empty() ? "" : " and ") + std::to_string(bytes);
    }
    return text;
}

} // namespace

void DiskConfig::check() const {
    refuse_nul(path, "the path of a disk");
    refuse_nul(id, "the id of a disk");
    const std::string tried = "cannot give the guest the disk " + path;
    if (queues < 1 || queues > kMaxQueues) {
        throw Error(tried + " with " + std::to_string(queues) + " queues: 1 to " + std::to_string(kMaxQueues) +
                    " are possible");
    }
    if (std::ranges::find(limits::kSectorBytes, sector_bytes) == limits::kSectorBytes.end()) {
        throw Error(tried + " with sectors of " + std::to_string(sector_bytes) + " bytes: " + all_sector_bytes() +
                    " are possible");
    }
    const bool printable = std::ranges::all_of(id, [](char c) { return c > ' ' && c < '\x7f'; });
    if (id.size() > kMaxIdBytes || !printable) {
        throw Error(tried + " with the id '" + id + "': it has at most " + std::to_string(kMaxIdBytes) +
                    " characters, printable ASCII without spaces");
    }
}

void NetConfig::check() const {
    refuse_nul(tap, "the name of a tap interface");
    refuse_nul(mac, "a MAC address");
    for (const PortForward& forward : forwards) {
        refuse_nul(forward.host_address, "the address of a forwarded port");
        if (user) {
            static_cast<void>(host_address_of(forward));
        }
    }
    if (user && !tap.empty()) {
        throw Error("cannot connect the guest to the tap " + tap + " and to a network in user mode by one interface");
    }
    if (!user && tap.empty()) {
        throw Error("cannot connect the guest to a network: neither a tap interface nor user mode is asked for");
    }
    if (!user) {
        if (!forwards.empty() || host_loopback) {
            throw Error("cannot connect the guest to the tap " + tap +
                        " with forwarded ports or host_loopback: those go with user mode");
        }
        devices::check_interface_name(tap);
    }
    const std::string tried = "cannot connect the guest to " + (user ? "a network in user mode" : "the tap " + tap) +
                              " by " + std::to_string(queues) + " queues: ";
    if (queues < 1 || queues > kMaxQueues) {
        throw Error(tried + "1 to " + std::to_string(kMaxQueues) + " are possible");
    }
    if (user && queues > 1) {
        throw Error(tried + "passt has one stream of frames (take 1 queue, or a tap)");
    }
    if (!mac.empty()) {
        static_cast<void>(devices::parse_mac_address(mac));
    }
}

void VsockConfig::check() const {
    refuse_nul(path, "the path of the vsock");
    devices::virtio::check_vsock_path(path);
}

void BalloonConfig::check(std::uint64_t memory_bytes) const {
    const std::string tried = "cannot give the guest a balloon of " + format_bytes(target_bytes);
    if (!is_aligned(target_bytes, devices::virtio::Balloon::kPageBytes)) {
        throw Error(tried + ": it must be a multiple of 4 KiB");
    }
    if (target_bytes >= memory_bytes) {
        throw Error(tried + ": the guest has " + format_bytes(memory_bytes) + " of memory, and needs some of it");
    }
}

} // namespace vmm
