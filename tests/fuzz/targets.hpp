// The fuzz targets. Each takes any bytes as a program of actions of a guest (and the host around it), and aborts if the
// device does something that no device may do. The fuzzer and the replay of the corpus use the same targets; the
// folders of the corpus have their names.
#pragma once

#include <array>
#include <cstddef>
#include <span>
#include <string_view>

namespace vmm::fuzz {

using Bytes = std::span<const std::byte>;

void block(Bytes program);
void net(Bytes program);
void net_pairs(Bytes program); ///< a network with two pairs of queues, which are used and left as the driver asks
void rng(Bytes program);
void console(Bytes program);
void vsock(Bytes program);
void balloon(Bytes program);
void registers(Bytes program); ///< MmioTransport and Queue, behind a device that echoes
void pci(Bytes program);       ///< RootBus, ConfigPorts, PciTransport and Msix, with two devices that echo
void serial(Bytes program);
void rtc(Bytes program);
void kernel(Bytes file);       ///< a kernel file of any format
void state(Bytes file);        ///< the state of a machine, whose checksums are made right
void migration(Bytes program); ///< what the source of a migration sends
void control(Bytes program);   ///< requests of the control socket, and answers to a client
void options(Bytes program);   ///< command lines and configuration files
void machine(Bytes program);   ///< a guest with all of its CPUs (support/fuzz_guest.hpp); it needs can_run_machines()

/// True if this process may use /dev/kvm.
[[nodiscard]] bool can_run_machines();

struct Target {
    std::string_view name;
    void (*run)(Bytes);
};
inline constexpr std::array kTargets{
    Target{"block", block},
    Target{"net", net},
    Target{"net_pairs", net_pairs},
    Target{"rng", rng},
    Target{"vsock", vsock},
    Target{"console", console},
    Target{"balloon", balloon},
    Target{"registers", registers},
    Target{"rtc", rtc},
    Target{"serial", serial},
    Target{"kernel", kernel},
    Target{"state", state},
    Target{"migration", migration},
    Target{"control", control},
    Target{"options", options},
    Target{"machine", machine},
    Target{"pci", pci},
};

} // namespace vmm::fuzz
