// A tap interface of the host, which carries Ethernet frames by read and write.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "devices/frame_link.hpp"
#include "kvm/host/unique_fd.hpp"

namespace vmm::devices {

using MacAddress = std::array<std::uint8_t, 6>;

/// Parses text like "52:54:00:12:34:56".
/// Throws Error if it is not an address, is a group address, or is an address that no device can have.
[[nodiscard]] MacAddress parse_mac_address(const std::string& text);
/// Makes a locally administered address that is always the same for the same text.
[[nodiscard]] MacAddress make_mac_address(std::string_view text) noexcept;

/// Throws Error if no network interface can have that name (linux: dev_valid_name).
void check_interface_name(const std::string& name);

/// The kernel reads and writes the headers unchanged. If the interface is deleted, the link is down.
///
/// Threads: one at a time.
class Tap final : public FrameLink {
  public:
    /// Attaches to the interface `name`, and creates it if it does not exist.
    /// Throws Error if the name is not valid, if the interface is in use, or if this process may not attach to it.
    explicit Tap(const std::string& name);
    /// Takes over what open_queues() has opened, possibly in another process. Throws Error if it is something else.
    Tap(UniqueFd fd, const std::string& name);

    /// Attaches to the interface `queues` times, at least once. Throws Error as the constructor does, and if `queues`
    /// is more than 1 but the interface was made for a single queue.
    [[nodiscard]] static std::vector<UniqueFd> open_queues(const std::string& name, unsigned queues);
    /// Like open_queues(), but makes a link of each queue. The first link has all frames (see set_attached()).
    [[nodiscard]] static std::vector<std::unique_ptr<FrameLink>> make_queues(const std::string& name, unsigned queues);
    /// Takes over what open_queues() has opened in another process. Throws Error if it is something else.
    [[nodiscard]] static std::vector<std::unique_ptr<FrameLink>> take_queues(std::vector<UniqueFd> queues,
                                                                             const std::string& name);
    /// Takes another descriptor that moves one frame with its header for each call, such as a non-blocking datagram
    /// socket. It has no offloads to set.
    explicit Tap(UniqueFd fd) noexcept : fd_(std::move(fd)) {}

    [[nodiscard]] int fd() const noexcept override { return fd_.get(); }
    [[nodiscard]] bool has_offloads() const noexcept override { return true; }
    void set_offloads(const FrameOffloads& offloads) noexcept override;
    [[nodiscard]] bool set_attached(bool attached) noexcept override;
    [[nodiscard]] std::ptrdiff_t receive(std::span<const iovec> buffers) noexcept override;
    [[nodiscard]] int send(std::span<const iovec> frame) noexcept override;
    [[nodiscard]] bool is_up() const noexcept override { return up_; }

  private:
    Tap(UniqueFd fd, bool has_queues);
    [[nodiscard]] bool is_attached() const noexcept;
    static std::vector<std::unique_ptr<FrameLink>> with_all_frames_in_first(std::vector<std::unique_ptr<Tap>> taps,
                                                                            const std::string& name);

    UniqueFd fd_;
    bool is_tap_ = false;
    bool has_queues_ = false; ///< its interface has several links, and it is one of them
    bool up_ = true;
};

} // namespace vmm::devices
