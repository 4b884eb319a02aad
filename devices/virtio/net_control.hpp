// The control queue of a network interface, its status, and its announcements (virtio 1.2, 5.1.4 and 5.1.6.5).
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "devices/frame_link.hpp"
#include "devices/tap.hpp"
#include "devices/virtio/alarm.hpp"
#include "devices/virtio/synchronous_device.hpp"

namespace vmm::devices::virtio {

/// Executes the driver's commands, and tells the driver the state of its link. If the guest continues from a state, it
/// also tells the host's network where the guest is now. A driver need not have a control queue.
///
/// Threads: the device's thread, except for look_again().
class NetControl final : public SynchronousDevice {
  public:
    static constexpr std::uint16_t kQueueSize = 64;
    /// There are several because a port of a switch may not forward yet when the first one comes.
    static constexpr int kAnnouncements = 5;
    static constexpr std::chrono::milliseconds kBetweenAnnouncements{100};
    static constexpr std::size_t kStatusOffset = sizeof(MacAddress); ///< in the configuration space (5.1.4)
    static constexpr std::uint16_t kLinkUp = 1;                      ///< of the status

    /// The control's access to the rest of the device. All of it must outlive the control.
    struct Whole {
        FrameLink& link; ///< for the announcements
        std::function<bool()> is_up;
        /// Makes frames for the guest come by `pairs` pairs, which may be any number. Returns false if that is not
        /// possible.
        std::function<bool(std::uint16_t pairs)> use_pairs;
        std::function<void()> link_lost; ///< called once; may be empty
    };

    /// `told_up` is the state of the link that the guest knows. Throws Error if this process has no descriptor left.
    NetControl(const std::string& name, Whole whole, bool told_up, const std::optional<MacAddress>& announced);

    [[nodiscard]] std::vector<Source> sources() const override;
    /// True if `fd` is one of sources().
    [[nodiscard]] bool waits_for(int fd) const;
    [[nodiscard]] bool told_up() const noexcept { return told_up_; }
    /// Makes the device's thread check the control queue and the link. Threads: any.
    void look_again() const noexcept { ask_for_another_turn(); }

  private:
    void begin(std::uint64_t features) override;
    void end() noexcept override;
    void serve() override;
    void look_at_source(int fd) override;
    void obey_some();
    [[nodiscard]] bool obey(const Chain& chain);
    [[nodiscard]] bool obey_acknowledgement();
    [[nodiscard]] bool obey_pairs(const Chain& chain) const;
    void announce();
    void look_at_link();
    void tell_status();

    Whole whole_;
    Chain command_;
    bool told_up_;
    bool asks_to_announce_ = false;      ///< the driver should announce the guest, and has not done so yet
    bool can_announce_ = false;          ///< the driver can announce the guest itself
    bool has_asked_to_announce_ = false; ///< by the status
    bool has_pairs_ = false;             ///< the driver knows of several pairs

    std::vector<std::byte> announcement_; ///< with its header; empty if there is nothing to announce
    std::optional<Alarm> next_announcement_;
    int announcements_left_ = 0;
    bool is_announcement_due_ = false;
};

} // namespace vmm::devices::virtio
