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

/// One request of the driver's: its buffers in the order of the chain, each checked to be RAM. A buffer that lies in
/// two regions of memory shows as two.
///
/// Keep one and use it again, because its vectors keep their memory.
struct Chain {
    std::uint16_t head = 0;
    /// What the driver wrote for the device. The content may change at any time.
    std::vector<std::span<std::byte>> readable;
    std::vector<std::span<std::byte>> writable; ///< what the device is to fill
    std::uint64_t readable_bytes = 0;           ///< at most 4 GiB together with writable_bytes (2.7.5.2)
    std::uint64_t writable_bytes = 0;
};

/// Copies from the front of a chain's readable bytes, starting at `offset`. Returns how many there were.
std::size_t copy_from(const Chain& chain, std::uint64_t offset, std::span<std::byte> out) noexcept;
/// Copies into a chain's writable bytes, starting at `offset`. Returns how many fitted.
std::size_t copy_to(const Chain& chain, std::uint64_t offset, std::span<const std::byte> in) noexcept;

/// A virtqueue whose geometry is frozen. Every index, length and address that the driver wrote is copied once, and the
/// copy is checked. Every walk is bounded by the size of the queue. A broken queue stays broken: nothing more is
/// popped, but what was popped before may still be pushed.
///
/// How a device serves one:
///
///     queue.suppress_doorbells();
///     do {
///         while (queue.pop(chain) == Queue::Pop::kChain) {
///             const std::size_t length = copy_to(chain, 0, answer);
///             queue.push(chain.head, static_cast<std::uint32_t>(length));
///         }
///         if (queue.is_broken()) {
///             driver.fail(queue.why());
///         }
///     } while (queue.ask_for_doorbell()); // A request that came meanwhile has no doorbell.
///     if (queue.wants_interrupt()) {
///         driver.notify(QueueSet::of(index));
///     }
///
/// A chain has at most as many buffers as the queue has entries. The buffers of an indirect table count, and the
/// descriptor that names the table does not (2.7.5.3.1). A buffer of zero bytes is accepted and contributes nothing.
/// Buffers may overlap one another and the queue itself; what the device then writes where is the driver's affair. An
/// indirect table has any alignment, may be longer than its chain, and has at most 65,536 entries, as far as `next`
/// reaches.
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
        /// Whether signalled_used can be trusted. It cannot before the first notification, and once the used index has
        /// gone round since. The next notification is then sent in any case, unless the queue is new.
        bool signalled_valid = false;

        friend bool operator==(const State&, const State&) = default;
    };

    /// A queue at `state.geometry`. Returns nothing if its size is no power of two or too large, or if a part is not
    /// aligned or not wholly RAM of one region. `memory` outlives the queue.
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
    /// Push each popped request exactly once, in any order.
    void push(std::uint16_t head, std::uint32_t written) noexcept;

    /// Puts the `count` requests that were popped last back, none of which was pushed: they are the next to be popped.
    void put_back(std::uint16_t count) noexcept;

    /// How many requests wait, as the driver says: 0 to size().
    [[nodiscard]] std::uint16_t waiting() const noexcept;

    /// Whether the driver wants a notification for what was pushed since this was last called. Call it once after the
    /// last push of a batch.
    [[nodiscard]] bool wants_interrupt() noexcept;

    /// Asks the driver for no more doorbells, as a hint, while requests are being taken anyway.
    void suppress_doorbells() noexcept;
    /// Asks for a doorbell when `requests`, 1 to size(), more are there; without EVENT_IDX, with the next one. Returns
    /// true if requests are waiting that no doorbell will announce: look again then. If pop() finds none after all, the
    /// driver has taken its index back and the queue is broken, so that nobody looks again for ever.
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
    // These three return which rule is broken, or nothing if none is.
    /// Collects the buffers of the chain that begins at `chain.head`.
    [[nodiscard]] std::string_view walk(Chain& chain);
    [[nodiscard]] std::string_view why_no_table(const Descriptor& descriptor) const noexcept;
    [[nodiscard]] std::string_view add_buffer(Chain& chain, const Descriptor& descriptor);

    /// Appends the host memory of `range` to `buffers`, a span for each region. Returns false if it is not wholly RAM.
    [[nodiscard]] bool add_memory(std::vector<std::span<std::byte>>& buffers, GuestRange range);

    const GuestMemory* memory_;
    State state_;
    // The three parts, each of them all of it, checked by make().
    std::span<std::byte> descriptors_;
    std::span<std::byte> driver_area_;
    std::span<std::byte> device_area_;
    GuestMemory::Hint last_region_; ///< of the last buffer
    std::uint16_t known_available_; ///< up to here the available ring is known to be filled
    bool seen_more_ = false;        ///< ask_for_doorbell() has seen requests, and nothing was popped since
    bool pushed_ = false;           ///< something was pushed since wants_interrupt() was last asked
    bool signalled_known_ = false;  ///< signalled_used is exact
    std::string_view why_;
};

} // namespace vmm::devices::virtio
