// The IPv4 addresses at which this host is reached.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "kvm/host/unique_fd.hpp"

namespace vmm {

/// The addresses that the kernel delivers to the host itself: its own addresses, the broadcast addresses of its
/// networks, and everything else that its routes call local. The kernel itself is asked (rtnetlink), in the network
/// namespace in which this object was made, and later changes are followed.
///
/// Threads: one at a time.
class HostAddresses {
  public:
    /// The sockets with which the kernel is asked. Another process may have opened them, in its network namespace.
    struct Sockets {
        UniqueFd queries;
        UniqueFd changes; ///< none: the addresses are read again once a second
    };

    /// Throws Error if the kernel gives no sockets.
    [[nodiscard]] static Sockets open();

    /// Throws Error if the kernel does not tell the addresses.
    HostAddresses() : HostAddresses(open()) {}
    /// Uses `sockets`. Throws Error as the other constructor, and if they are of another kind.
    explicit HostAddresses(Sockets sockets);

    /// Whether `address` is one of them. Its first byte is the highest byte of the number. It makes one system call, to
    /// look for changes.
    [[nodiscard]] bool contains(std::uint32_t address);

    /// How often the addresses were read. For tests.
    [[nodiscard]] std::size_t readings() const noexcept { return readings_; }

  private:
    struct Prefix {
        std::uint32_t address = 0;
        std::uint32_t mask = 0;
    };

    [[nodiscard]] bool has_changed();
    /// Returns 0, or an errno; then prefixes_ has not changed.
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
