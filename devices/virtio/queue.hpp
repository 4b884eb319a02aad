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

/// The place and the length of a virtqueue, as the driver has set them.
struct QueueGeometry {
    std::uint16_t size = 0;     ///< entries: a power of two, 1 to 32768
    GuestAddress descriptors{}; ///< 16 bytes for each entry, aligned to 16
    GuestAddress driver_area{}; ///< the available ring: 6 bytes and 2 for each entry, aligned to 2
    GuestAddress device_area{}; ///< the used ring: 6 bytes and 8 for each entry, aligned to 4

    friend bool operator==(const QueueGeometry&, const QueueGeometry&) = default;
};

/// One request of the driver: its buffers in the order of the descriptor chain, each checked to be RAM. A buffer that
/// lies in two regions of memory appears as two.
///
/// Reuse the same object, because its vectors keep their memory.
struct Chain {
    std::uint16_t head = 0;
    /// What the driver wrote for the device. Its content may change at any time.
    std::vector<std::span<std::byte>> readable;
    std::vector<std::span<std::byte>> writable; ///< what the device must fill
    std::uint64_t readable_bytes = 0;           ///< at most 4 GiB together with writable_bytes (2.7.5.2)
    std::uint64_t writable_bytes = 0;
};

/// Copies from a chain's readable bytes, starting at `offset`. Returns the number of bytes copied.
std::size_t copy_from(const Chain& chain, std::uint64_t offset, std::span<std::byte> out) noexcept;
/// Copies into a chain's writable bytes, starting at `offset`. Returns the number of bytes that fitted.
std::size_t copy_to(const Chain& chain, std::uint64_t offset, std::span<const std::byte> in) noexcept;

/// A virtqueue whose geometry is frozen. Every index, length and address that the driver wrote is copied once, and the
/// copy is checked. Every walk is bounded by the size of the queue. A broken queue stays broken: nothing more is
/// popped, but requests that were popped before may still be pushed.
///
/// A device serves a queue like this:
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
/// A descriptor chain has at most as many buffers as the queue has entries. The buffers of an indirect table count, but
/// the descriptor that names the table does not (2.7.5.3.1). A buffer of zero bytes is accepted and adds nothing.
/// Buffers may overlap one another and the queue itself; the driver alone is responsible for what is written there. An
/// indirect table may have any alignment, may be longer than its chain, and has at most 65,536 entries, because `next`
/// reaches no further.
///
/// Threads: one at a time. The driver may change the memory at any time.
class Queue {
  public:
    /// The state of a queue outside of the driver's memory.
    struct State {
        QueueGeometry geometry;
        bool event_idx = false;           ///< whether VIRTIO_F_EVENT_IDX was negotiated
        bool indirect = false;            ///< whether VIRTIO_F_INDIRECT_DESC was negotiated
        std::uint16_t next_available = 0; ///< the next entry of the available ring to read
        std::uint16_t next_used = 0;      ///< the next entry of the used ring to fill
        std::uint16_t signalled_used = 0; ///< next_used when wants_interrupt() was last called
        /// True if signalled_used is valid. It is not valid before the first notification, and after the used index has
        /// gone round without one. If it is not valid, the next notification is sent in any case, unless the queue is
        /// new.
        bool signalled_valid = false;

        friend bool operator==(const State&, const State&) = default;
    };

    /// Makes a queue at `state.geometry`. Returns nothing if its size is not a power of two or is too large, or if a
    /// part is not aligned or does not lie wholly in RAM of one region. `memory` must outlive the queue.
    [[nodiscard]] static std::optional<Queue> make(const GuestMemory& memory, const State& state);

    [[nodiscard]] State state() const noexcept;
    [[nodiscard]] std::uint16_t size() const noexcept { return state_.geometry.size; }

    enum class Pop {
        kEmpty,  ///< the driver has made nothing available
        kChain,  ///< `chain` is the next request
        kBroken, ///< the driver broke a rule; see why()
    };
    /// Takes the next request. `chain` is valid only if kChain is returned.
    [[nodiscard]] Pop pop(Chain& chain);

    /// Gives back the request that began at `head`, with `written` bytes written to the front of its writable buffers.
    /// Each popped request must be pushed exactly once, in any order.
    void push(std::uint16_t head, std::uint32_t written) noexcept;

    /// Puts back the last `count` requests that were popped, none of which may have been pushed. They are popped next.
    void put_back(std::uint16_t count) noexcept;

    /// The number of waiting requests according to the driver: 0 to size().
    [[nodiscard]] std::uint16_t waiting() const noexcept;

    /// True if the driver wants a notification for what was pushed since the last call. Call it once after the last
    /// push of a batch.
    [[nodiscard]] bool wants_interrupt() noexcept;

    /// Tells the driver, as a hint, to send no more doorbells while requests are being taken anyway.
    void suppress_doorbells() noexcept;
    /// Asks for a doorbell when `requests`, 1 to size(), more have come; without EVENT_IDX, with the next one. Returns
    /// true if requests are waiting that no doorbell will announce: the caller must pop again. If pop() then finds
    /// none, the driver has moved its index back and the queue is broken, so that no caller repeats this for ever.
    [[nodiscard]] bool ask_for_doorbell(std::uint16_t requests = 1) noexcept;

    [[nodiscard]] bool is_broken() const noexcept { return !why_.empty(); }
    /// The rule that the driver broke, as text for people; empty if none.
    [[nodiscard]] std::string_view why() const noexcept { return why_; }

  private:
    struct Descriptor;
    class Table;

    Queue(const GuestMemory& memory, const State& state, std::span<std::byte> descriptors,
          std::span<std::byte> driver_area, std::span<std::byte> device_area) noexcept;

    Pop broken(std::string_view why) noexcept;
    // These three return the rule that is broken; empty if none is.
    /// Collects the buffers of the chain that begins at `chain.head`.
    [[nodiscard]] std::string_view walk(Chain& chain);
    [[nodiscard]] std::string_view why_no_table(const Descriptor& descriptor) const noexcept;
    [[nodiscard]] std::string_view add_buffer(Chain& chain, const Descriptor& descriptor);

    /// Appends the host memory of `range` to `buffers`, one span for each region. Returns false if it is not wholly
    /// RAM.
    [[nodiscard]] bool add_memory(std::vector<std::span<std::byte>>& buffers, GuestRange range);

    const GuestMemory* memory_;
    State state_;
    // The three parts of the queue, each complete and checked by make().
    std::span<std::byte> descriptors_;
    std::span<std::byte> driver_area_;
    std::span<std::byte> device_area_;
    GuestMemory::Hint last_region_; ///< of the last buffer
    std::uint16_t known_available_; ///< the available ring is known to be filled up to here
    bool seen_more_ = false;        ///< ask_for_doorbell() has seen requests, and nothing was popped since
    bool pushed_ = false;           ///< something was pushed since wants_interrupt() was last asked
    bool signalled_known_ = false;  ///< signalled_used is exact
    std::string_view why_;
};

} // namespace vmm::devices::virtio
