// A tap interface of the host's: Ethernet frames by read and write.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <utility>

#include "devices/frame_link.hpp"
#include "kvm/host/unique_fd.hpp"

namespace vmm::devices {

using MacAddress = std::array<std::uint8_t, 6>;

/// "52:54:00:12:34:56". Throws Error: it is none, or one for groups or of nobody.
[[nodiscard]] MacAddress parse_mac_address(const std::string& text);
/// An address of local administration that is always the same for the same text.
[[nodiscard]] MacAddress make_mac_address(std::string_view text) noexcept;

/// Throws Error: no network interface can have that name (linux: dev_valid_name).
void check_interface_name(const std::string& name);

/// The kernel reads and writes headers as they are. An interface that is deleted is a link that is down.
///
/// Threads: one at a time.
class Tap final : public FrameLink {
  public:
    /// The interface `name`, which is made if it is not there. Throws Error: it is no valid name, is in use, or this
    /// process may not.
    explicit Tap(const std::string& name);
    /// Something else that moves one frame with its header a call, a datagram socket; without offloads. Non-blocking.
    explicit Tap(UniqueFd fd) noexcept : fd_(std::move(fd)) {}

    [[nodiscard]] int fd() const noexcept override { return fd_.get(); }
    [[nodiscard]] bool has_offloads() const noexcept override { return true; }
    void set_offloads(const FrameOffloads& offloads) noexcept override;
    [[nodiscard]] std::ptrdiff_t receive(std::span<const iovec> buffers) noexcept override;
    [[nodiscard]] int send(std::span<const iovec> frame) noexcept override;
    [[nodiscard]] bool is_up() const noexcept override { return up_; }

  private:
    UniqueFd fd_;
    bool is_tap_ = false;
    bool up_ = true;
};

} // namespace vmm::devices
