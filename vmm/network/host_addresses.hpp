// The IPv4 addresses at which this host is reached.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "kvm/host/unique_fd.hpp"

namespace vmm {

/// What the kernel delivers to the host itself: its own addresses, the broadcast addresses of its networks, and
/// whatever else its routes call local. It is the kernel's own answer (rtnetlink), of the network namespace this was
/// made in, and follows what changes later.
///
/// Threads: one at a time.
class HostAddresses {
  public:
    /// How the kernel is asked. Another process may have opened them, in its network namespace.
    struct Sockets {
        UniqueFd queries;
        UniqueFd changes; ///< none: the addresses are read again once a second
    };

    /// Throws Error: the kernel gives none.
    [[nodiscard]] static Sockets open();

    /// Throws Error: the kernel does not say.
    HostAddresses() : HostAddresses(open()) {}
    /// Throws Error, too, if they are something else.
    explicit HostAddresses(Sockets sockets);

    /// `address` is a number whose highest byte is the first. Makes no system call but one that looks for changes.
    [[nodiscard]] bool contains(std::uint32_t address);

    /// How often they were read. For tests.
    [[nodiscard]] std::size_t readings() const noexcept { return readings_; }

  private:
    struct Prefix {
        std::uint32_t address = 0;
        std::uint32_t mask = 0;
    };

    [[nodiscard]] bool has_changed();
    /// Returns 0, or an errno: prefixes_ are then what they were.
    [[nodiscard]] int read_all();
    [[nodiscard]] int dump(std::uint16_t request, std::uint8_t route_type, std::vector<Prefix>& prefixes);
    [[nodiscard]] int dump_once(std::uint16_t request, std::uint8_t route_type, std::vector<Prefix>& prefixes,
                                std::span<std::byte> buffer);
    static void add(std::uint16_t type, std::span<const std::byte> body, std::vector<Prefix>& prefixes);

    Sockets sockets_;
    std::vector<Prefix> prefixes_;
    bool stale_ = false;
    std::chrono::steady_clock::time_point read_at_;
    std::uint32_t sequence_ = 0;
    std::size_t readings_ = 0;
};

} // namespace vmm
