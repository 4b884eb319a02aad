// A split virtqueue, from the device's side (virtio 1.2, 2.7).
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string_view>
#include <vector>

#include "kvm/host/guest_memory.hpp"

namespace vmm::devices::virtio {

/// Where the driver put a virtqueue, and how long it is.
struct QueueGeometry {
    std::uint16_t size = 0;     ///< entries: a power of two, 1 to 32768
    GuestAddress descriptors{}; ///< 16 bytes an entry, aligned to 16
    GuestAddress driver_area{}; ///< the available ring: 6 bytes and 2 an entry, aligned to 2
    GuestAddress device_area{}; ///< the used ring: 6 bytes and 8 an entry, aligned to 4

    friend bool operator==(const QueueGeometry&, const QueueGeometry&) = default;
};

/// One request of the driver's: its buffers, each checked to be RAM, in the order of the chain. A buffer that goes over
/// from one region of memory to the next one shows as two.
///
/// Keep one and use it again: its vectors keep their memory.
struct Chain {
    std::uint16_t head = 0;
    std::vector<std::span<std::byte>>
        readable; ///< what the driver wrote for the device: content may change at any time
    std::vector<std::span<std::byte>> writable; ///< what the device is to fill
    std::uint64_t readable_bytes = 0;           ///< at most 4 GiB together with writable_bytes (2.7.5.2)
    std::uint64_t writable_bytes = 0;
};

/// Copies from the front of a chain's readable bytes, starting at `offset`. Returns how many there were.
std::size_t copy_from(const Chain& chain, std::uint64_t offset, std::span<std::byte> out) noexcept;
/// Copies into a chain's writable bytes, starting at `offset`. Returns how many fitted.
std::size_t copy_to(const Chain& chain, std::uint64_t offset, std::span<const std::byte> in) noexcept;

/// A virtqueue whose geometry is frozen. Every index, length and address the driver wrote is copied once, and the copy
/// is checked; every walk is bounded by the size of the queue. Once it is broken it stays so: nothing more is popped,
/// but what was popped before may still be pushed.
///
/// A chain has at most as many buffers as the queue has entries, those of an indirect table included, and the
/// descriptor that names the table not (2.7.5.3.1). A buffer of zero bytes is accepted and contributes nothing. Buffers
/// may overlap one another and the queue itself; what the device then writes where is the driver's affair. An
/// indirect table has any alignment, may be longer than its chain, and has at most 65,536 entries: what `next` reaches.
///
/// Threads: one at a time. The driver changes the memory under it at any time.
class Queue {
  public:
    /// What a queue is made of beyond the driver's memory.
    struct State {
        QueueGeometry geometry;
        bool event_idx = false;           ///< whether VIRTIO_F_EVENT_IDX was negotiated
        bool indirect = false;            ///< whether VIRTIO_F_INDIRECT_DESC was negotiated
        std::uint16_t next_available = 0; ///< the next entry of the available ring to look at
        std::uint16_t next_used = 0;      ///< the next entry of the used ring to fill
        std::uint16_t signalled_used = 0; ///< next_used when wants_interrupt() was last asked
        /// Whether signalled_used says anything. Not before the first notification, nor once the used index has gone
        /// round since: unless the queue is new, the next notification is then sent in any case.
        bool signalled_valid = false;

        friend bool operator==(const State&, const State&) = default;
    };

    /// A queue at `state.geometry`, or nothing where the geometry is none: a size that is no power of two or too large,
    /// a part not aligned or not wholly RAM of one region. `memory` outlives the queue.
    [[nodiscard]] static std::optional<Queue> make(const GuestMemory& memory, const State& state);

    [[nodiscard]] State state() const noexcept;
    [[nodiscard]] std::uint16_t size() const noexcept { return state_.geometry.size; }

    enum class Pop {
        kEmpty,  ///< the driver has made nothing available
        kChain,  ///< `chain` is the next request
        kBroken, ///< the driver broke a rule; see why()
    };
    /// Takes the next request. `chain` means nothing unless kChain is returned.
    [[nodiscard]] Pop pop(Chain& chain);

    /// Gives the request that began at `head` back, with `written` bytes written to the front of its writable buffers.
    /// Each popped request exactly once, in any order.
    void push(std::uint16_t head, std::uint32_t written) noexcept;

    /// Whether the driver wants a notification for what was pushed since the last time this was asked. After the last
    /// push of a batch, once.
    [[nodiscard]] bool wants_interrupt() noexcept;

    /// Asks the driver for no more doorbells, as a hint. While requests are being taken anyway.
    void suppress_doorbells() noexcept;
    /// Asks for one when `requests`, 1 to size(), more are there; without EVENT_IDX, with the next one. Returns whether
    /// there are requests already, for which no doorbell may come: look again then. If pop() finds none after all, the
    /// driver has taken its index back: the queue is broken, and who looks again is done after two looks.
    [[nodiscard]] bool ask_for_doorbell(std::uint16_t requests = 1) noexcept;

    [[nodiscard]] bool is_broken() const noexcept { return !why_.empty(); }
    /// Which rule the driver broke, for people; empty if none.
    [[nodiscard]] std::string_view why() const noexcept { return why_; }

  private:
    struct Descriptor;
    class Table;

    Queue(const GuestMemory& memory, const State& state, std::span<std::byte> descriptors,
          std::span<std::byte> driver_area, std::span<std::byte> device_area) noexcept;

    Pop broken(std::string_view why) noexcept;
    // These three say which rule is broken; nothing if none is.
    /// Collects the buffers of the chain that begins at `chain.head`.
    [[nodiscard]] std::string_view walk(Chain& chain);
    [[nodiscard]] std::string_view why_no_table(const Descriptor& descriptor) const noexcept;
    [[nodiscard]] std::string_view add_buffer(Chain& chain, const Descriptor& descriptor);

    /// Appends the host memory of `range` to `buffers`, a span for each region. False where it is not wholly RAM.
    [[nodiscard]] bool add_memory(std::vector<std::span<std::byte>>& buffers, GuestRange range);

    const GuestMemory* memory_;
    State state_;
    // The three parts, each of them all of it, checked by make().
    std::span<std::byte> descriptors_;
    std::span<std::byte> driver_area_;
    std::span<std::byte> device_area_;
    MemoryRegion last_region_;      ///< where the last buffer was; the next one is likely to be there, too
    std::uint16_t known_available_; ///< up to here the available ring is known to be filled
    bool seen_more_ = false;        ///< ask_for_doorbell() has, and nothing was popped since
    bool pushed_ = false;           ///< something was pushed since wants_interrupt() was last asked
    bool signalled_known_ = false;  ///< signalled_used is exact
    std::string_view why_;
};

} // namespace vmm::devices::virtio
