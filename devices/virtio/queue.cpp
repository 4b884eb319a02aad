#include "devices/virtio/queue.hpp"

#include <algorithm>
#include <array>
#include <atomic>
#include <bit>
#include <cassert>
#include <cstring>

namespace vmm::devices::virtio {
namespace {

static_assert(std::endian::native == std::endian::little, "the fields of a virtqueue are little endian");

constexpr std::uint16_t kMaxSize = 32768;
// The largest chain, in bytes (2.7.5.2).
constexpr std::uint64_t kMaxChainBytes = 4 * kGiB;
// The longest indirect table, because `next` has 16 bits.
constexpr std::uint64_t kMaxTableEntries = 65536;

// Flags of a descriptor (2.7.5).
constexpr std::uint16_t kNext = 1;
constexpr std::uint16_t kWrite = 2;
constexpr std::uint16_t kIndirect = 4;

// The available ring in the driver area (2.7.6), and the used ring in the device area (2.7.8).
constexpr std::size_t kFlagsOffset = 0;
constexpr std::size_t kIndexOffset = 2;
constexpr std::size_t kRingOffset = 4;
constexpr std::size_t kEventBytes = 2;
constexpr std::uint16_t kNoInterrupt = 1;
constexpr std::uint16_t kNoNotify = 1;

struct UsedElement {
    std::uint32_t id;
    std::uint32_t length;
};
static_assert(sizeof(UsedElement) == 8);

constexpr std::size_t driver_area_bytes(std::size_t size) noexcept {
    return kRingOffset + (sizeof(std::uint16_t) * size) + kEventBytes;
}
constexpr std::size_t device_area_bytes(std::size_t size) noexcept {
    return kRingOffset + (sizeof(UsedElement) * size) + kEventBytes;
}

// A 16-bit field at `offset` of `part`, shared with the driver. It is in bounds because every offset is computed from
// the size of the queue for which make() has checked the part. It is aligned because the part is aligned and every
// offset is even.
std::atomic_ref<std::uint16_t> field(std::span<std::byte> part, std::size_t offset) noexcept {
    assert(offset % sizeof(std::uint16_t) == 0 && offset + sizeof(std::uint16_t) <= part.size());
    return std::atomic_ref(*reinterpret_cast<std::uint16_t*>(part.data() + offset));
}

// True if an index that went from `from` to `to`, modulo 65,536, passed the entry `event`.
constexpr bool is_passed(std::uint16_t event, std::uint16_t from, std::uint16_t to) noexcept {
    return static_cast<std::uint16_t>(to - event - 1) < static_cast<std::uint16_t>(to - from);
}

} // namespace

struct Queue::Descriptor {
    std::uint64_t address;
    std::uint32_t length;
    std::uint16_t flags;
    std::uint16_t next;

    [[nodiscard]] bool has(std::uint16_t flag) const noexcept { return (flags & flag) != 0; }
};

// A table of descriptors: the queue's own, or an indirect one.
class Queue::Table {
  public:
    // The table at `range`. `host` is all of its memory, or empty if it is not RAM of one region.
    Table(const GuestMemory& memory, GuestRange range, std::span<std::byte> host) noexcept
        : memory_(&memory), range_(range), host_(host) {}
    Table(const GuestMemory& memory, GuestRange range) noexcept
        : Table(memory, range, memory.at(range).value_or(std::span<std::byte>{})) {}

    [[nodiscard]] std::uint64_t size() const noexcept { return range_.size / sizeof(Descriptor); }

    // A copy of one entry; nothing if it is not RAM. `index` must be below size().
    [[nodiscard]] std::optional<Descriptor> load(std::uint64_t index) const noexcept {
        assert(index < size());
        std::array<std::byte, sizeof(Descriptor)> raw;
        const std::uint64_t offset = index * sizeof(Descriptor);
        if (!host_.empty()) {
            std::memcpy(raw.data(), host_.data() + offset, raw.size());
        } else {
            // A table that lies in two regions is rare, and slower to read.
            const auto address = checked_add(range_.base, offset);
            std::span<std::byte> rest = raw;
            if (!address || !memory_->for_each_part({*address, raw.size()}, [&](std::span<std::byte> part) {
                    std::memcpy(rest.data(), part.data(), part.size());
                    rest = rest.subspan(part.size());
                })) {
                return std::nullopt;
            }
        }
        // The fence keeps the compiler from reading the driver's memory a second time instead of the copy.
        std::atomic_signal_fence(std::memory_order_acq_rel);
        return std::bit_cast<Descriptor>(raw);
    }

  private:
    const GuestMemory* memory_;
    GuestRange range_;
    std::span<std::byte> host_;
};

std::size_t copy_from(const Chain& chain, std::uint64_t offset, std::span<std::byte> out) noexcept {
    std::size_t copied = 0;
    for (const std::span<std::byte> buffer : chain.readable) {
        if (copied == out.size()) {
            break;
        }
        if (offset >= buffer.size()) {
            offset -= buffer.size();
            continue;
        }
        const std::size_t length = std::min<std::size_t>(buffer.size() - offset, out.size() - copied);
        std::memcpy(out.data() + copied, buffer.data() + offset, length);
        copied += length;
        offset = 0;
    }
    return copied;
}

std::size_t copy_to(const Chain& chain, std::uint64_t offset, std::span<const std::byte> in) noexcept {
    std::size_t copied = 0;
    for (const std::span<std::byte> buffer : chain.writable) {
        if (copied == in.size()) {
            break;
        }
        if (offset >= buffer.size()) {
            offset -= buffer.size();
            continue;
        }
        const std::size_t length = std::min<std::size_t>(buffer.size() - offset, in.size() - copied);
        std::memcpy(buffer.data() + offset, in.data() + copied, length);
        copied += length;
        offset = 0;
    }
    return copied;
}

std::optional<Queue> Queue::make(const GuestMemory& memory, const State& state) {
    static_assert(sizeof(Descriptor) == 16 && alignof(Descriptor) == 8);
    const QueueGeometry& geometry = state.geometry;
    const std::size_t size = geometry.size;
    if (!std::has_single_bit(size) || size > kMaxSize || !is_aligned(to_integer(geometry.descriptors), 16) ||
        !is_aligned(to_integer(geometry.driver_area), 2) || !is_aligned(to_integer(geometry.device_area), 4)) {
        return std::nullopt;
    }
    const auto descriptors = memory.at({geometry.descriptors, sizeof(Descriptor) * size});
    const auto driver_area = memory.at({geometry.driver_area, driver_area_bytes(size)});
    const auto device_area = memory.at({geometry.device_area, device_area_bytes(size)});
    if (!descriptors || !driver_area || !device_area) {
        return std::nullopt;
    }
    return Queue(memory, state, *descriptors, *driver_area, *device_area);
}

Queue::Queue(const GuestMemory& memory, const State& state, std::span<std::byte> descriptors,
             std::span<std::byte> driver_area, std::span<std::byte> device_area) noexcept
    : memory_(&memory), state_(state), descriptors_(descriptors), driver_area_(driver_area), device_area_(device_area),
      known_available_(state.next_available) {
    const bool is_new = state.next_used == 0 && state.signalled_used == 0;
    signalled_known_ = state.signalled_valid || is_new;
    pushed_ = state.next_used != state.signalled_used || !signalled_known_;
}

Queue::State Queue::state() const noexcept {
    return state_;
}

Queue::Pop Queue::broken(std::string_view why) noexcept {
    assert(!why.empty());
    why_ = why;
    return Pop::kBroken;
}

Queue::Pop Queue::pop(Chain& chain) {
    if (is_broken()) {
        return Pop::kBroken;
    }
    if (known_available_ == state_.next_available) {
        // Acquire: what the driver wrote before the index must be visible (2.7.13).
        const std::uint16_t available = field(driver_area_, kIndexOffset).load(std::memory_order_acquire);
        if (available == state_.next_available) {
            return seen_more_ ? broken("the available index went back (virtio 1.2, 2.7.6.1)") : Pop::kEmpty;
        }
        if (static_cast<std::uint16_t>(available - state_.next_available) > size()) {
            return broken("the available index is further ahead than the queue is long");
        }
        known_available_ = available;
    }
    const std::size_t slot = state_.next_available % size();
    chain.head = field(driver_area_, kRingOffset + (slot * sizeof(std::uint16_t))).load(std::memory_order_relaxed);
    if (const std::string_view why = walk(chain); !why.empty()) {
        return broken(why);
    }
    // The device writes to these buffers later, and push() writes to the used ring. No page is saved before that
    // (Device::pause()).
    memory_->note_write(device_area_);
    for (const std::span<std::byte> buffer : chain.writable) {
        memory_->note_write(buffer);
    }
    ++state_.next_available;
    seen_more_ = false;
    return Pop::kChain;
}

std::string_view Queue::walk(Chain& chain) {
    chain.readable.clear();
    chain.writable.clear();
    chain.readable_bytes = 0;
    chain.writable_bytes = 0;
    Table table{*memory_, {state_.geometry.descriptors, descriptors_.size()}, descriptors_};
    bool is_indirect = false;
    bool has_writable = false;
    std::uint64_t index = chain.head;
    if (index >= table.size()) {
        return "the head of a chain is beyond the end of the queue";
    }
    for (std::size_t buffers = 0;;) {
        const auto descriptor = table.load(index);
        if (!descriptor) {
            return "an indirect table is not in memory";
        }
        if (descriptor->has(kIndirect)) {
            if (is_indirect) {
                return "an indirect table is named in an indirect table";
            }
            if (const std::string_view why = why_no_table(*descriptor); !why.empty()) {
                return why;
            }
            table = Table{*memory_, {GuestAddress{descriptor->address}, descriptor->length}};
            is_indirect = true;
            index = 0;
            continue; // This can happen only once: the next one is an error.
        }
        if (++buffers > size()) {
            return "a chain is longer than the queue, or a loop";
        }
        if (has_writable && !descriptor->has(kWrite)) {
            return "a buffer to read comes after a buffer to write"; // 2.7.4.2
        }
        has_writable = descriptor->has(kWrite);
        if (const std::string_view why = add_buffer(chain, *descriptor); !why.empty()) {
            return why;
        }
        if (!descriptor->has(kNext)) {
            return {};
        }
        index = descriptor->next;
        if (index >= table.size()) {
            return "a chain goes on beyond the end of its table";
        }
    }
}

// The write-only flag of such a descriptor must be ignored (2.7.5.3.2).
std::string_view Queue::why_no_table(const Descriptor& descriptor) const noexcept {
    if (!state_.indirect) {
        return "there is an indirect table, but the feature was not negotiated";
    }
    if (descriptor.has(kNext)) {
        return "a chain continues after an indirect table";
    }
    if (descriptor.length == 0 || descriptor.length % sizeof(Descriptor) != 0 ||
        descriptor.length / sizeof(Descriptor) > kMaxTableEntries) {
        return "the length of an indirect table is that of no table";
    }
    return {};
}

std::string_view Queue::add_buffer(Chain& chain, const Descriptor& descriptor) {
    const bool is_writable = descriptor.has(kWrite);
    (is_writable ? chain.writable_bytes : chain.readable_bytes) += descriptor.length;
    if (chain.readable_bytes + chain.writable_bytes > kMaxChainBytes) {
        return "a chain is longer than 4 GiB";
    }
    if (!add_memory(is_writable ? chain.writable : chain.readable,
                    {GuestAddress{descriptor.address}, descriptor.length})) {
        return "a buffer is not in memory";
    }
    return {};
}

bool Queue::add_memory(std::vector<std::span<std::byte>>& buffers, GuestRange range) {
    if (range.size == 0) {
        return true;
    }
    if (const auto bytes = memory_->at(range, last_region_)) {
        buffers.push_back(*bytes);
        return true;
    }
    return memory_->for_each_part(range, [&](std::span<std::byte> part) { buffers.push_back(part); });
}

void Queue::push(std::uint16_t head, std::uint32_t written) noexcept {
    assert(head < size());
    const UsedElement element{head, written};
    const std::size_t slot = state_.next_used % size();
    std::memcpy(device_area_.data() + kRingOffset + (slot * sizeof(element)), &element, sizeof(element));
    ++state_.next_used;
    // Release: the buffers and the entry must be visible before the index (2.7.8.2).
    field(device_area_, kIndexOffset).store(state_.next_used, std::memory_order_release);
    pushed_ = true;
    if (state_.next_used == state_.signalled_used) {
        // The index went round once without a notification, so the position of the last one has no meaning any more.
        state_.signalled_valid = false;
        signalled_known_ = false;
    }
}

void Queue::put_back(std::uint16_t count) noexcept {
    assert(count <= size());
    state_.next_available = static_cast<std::uint16_t>(state_.next_available - count);
}

std::uint16_t Queue::waiting() const noexcept {
    const std::uint16_t available = field(driver_area_, kIndexOffset).load(std::memory_order_seq_cst);
    return std::min(static_cast<std::uint16_t>(available - state_.next_available), size());
}

bool Queue::wants_interrupt() noexcept {
    if (!pushed_) {
        return false;
    }
    pushed_ = false;
    // The index is stored again only for the order: this thread reads the driver's wish after the index is visible, and
    // the driver reads the index after it has stored its wish. So one of the two sees the other.
    field(device_area_, kIndexOffset).store(state_.next_used, std::memory_order_seq_cst);
    bool wanted = false;
    if (state_.event_idx) {
        const std::size_t event_offset = kRingOffset + (sizeof(std::uint16_t) * size());
        const std::uint16_t event = field(driver_area_, event_offset).load(std::memory_order_seq_cst);
        wanted = !signalled_known_ || is_passed(event, state_.signalled_used, state_.next_used);
    } else {
        wanted = (field(driver_area_, kFlagsOffset).load(std::memory_order_seq_cst) & kNoInterrupt) == 0;
    }
    state_.signalled_used = state_.next_used;
    state_.signalled_valid = true;
    signalled_known_ = true;
    return wanted;
}

void Queue::suppress_doorbells() noexcept {
    // With EVENT_IDX nothing is needed: the driver rings when its index passes avail_event, which stays behind. The
    // flags must be 0 then (2.7.10.2).
    if (!state_.event_idx) {
        memory_->note_write(device_area_);
        field(device_area_, kFlagsOffset).store(kNoNotify, std::memory_order_relaxed);
    }
}

bool Queue::ask_for_doorbell(std::uint16_t requests) noexcept {
    assert(requests >= 1 && requests <= size());
    memory_->note_write(device_area_);
    // Sequentially consistent: the driver reads this after it has stored its index, and we read the index after this.
    if (state_.event_idx) {
        const std::size_t event_offset = kRingOffset + (sizeof(UsedElement) * size());
        const auto event = static_cast<std::uint16_t>(state_.next_available + requests - 1);
        field(device_area_, event_offset).store(event, std::memory_order_seq_cst);
    } else {
        field(device_area_, kFlagsOffset).store(0, std::memory_order_seq_cst);
    }
    seen_more_ =
        !is_broken() && field(driver_area_, kIndexOffset).load(std::memory_order_seq_cst) != state_.next_available;
    return seen_more_;
}

} // namespace vmm::devices::virtio
