// What a machine is to be.
#pragma once

#include <cstdint>
#include <functional>
#include <string>

#include "kvm/guest_memory.hpp"
#include "prefault/prefault.hpp"
#include "vmm/log.hpp"

namespace vmm {

/// Where the guest's serial port is connected. The descriptors are loans that outlive the machine; -1: not connected.
/// The output descriptor's flags are left as they are, and a reader that does not read never stalls the guest.
struct SerialConfig {
    int input_fd = -1;
    int output_fd = -1;
    /// Whether Ctrl-A is a prefix for commands to us (x: stop, h: help, Ctrl-A: itself). For a person at a terminal.
    bool escape_keys = false;
    /// What Ctrl-A h does. Called on the thread of Machine::run(). Empty: nothing.
    std::function<void()> show_help;
};

/// Everything a Machine is made from. A value; the defaults are those of the command line.
struct Config {
    /// An ELF vmlinux, a bzImage or any PVH kernel; empty: the guest built into this program.
    std::string kernel_path;
    std::string initrd_path; ///< empty: none
    /// Appended to kDefaultCommandLine.
    std::string command_line;

    std::uint64_t memory_bytes = 512 * kMiB; ///< a multiple of the page size, at least kMinMemoryBytes
    PageSize page_size = PageSize::kThp;
    unsigned vcpus = 1; ///< 1 to kMaxVcpus
    prefault::Options prefault{prefault::Scope::kNone, prefault::Pin::kNone, 1};
    SerialConfig serial;
    LogSink log;

    static constexpr std::uint64_t kMinMemoryBytes = 2 * kMiB;
    static constexpr unsigned kMaxVcpus = 254; ///< the ids that xAPIC mode can name
    static constexpr unsigned kMaxPrefaultWorkers = 512;
    static constexpr const char* kDefaultCommandLine = "console=ttyS0";
};

/// Throws Error where `config` asks for what cannot be, on any host or on this one: sizes, counts, memory, the pool of
/// huge pages, the limit on locked memory. Creates nothing.
void validate(const Config& config);

} // namespace vmm
