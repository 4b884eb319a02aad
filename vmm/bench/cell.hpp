// One cell of a benchmark: a guest of a certain shape, and what is done to its memory before it runs.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "kvm/host/guest_memory.hpp"

namespace vmm::bench {

/// What is done to guest memory before the guest's CPUs write to it.
enum class Method {
    kNone,           ///< nothing
    kHost,           ///< the host side; for other VMMs: what they call prealloc
    kTouch,          ///< both sides, the second level by prefault vCPUs that touch it
    kIoctl,          ///< both sides, the second level by KVM_PRE_FAULT_MEMORY
    kIoctlThenTouch, ///< the same, and then prefault vCPUs touch every 4 KiB: for a host that is itself a guest
    kPool,   ///< both sides: memory comes from a pool that has it ready, and the second level is filled as by `auto`
    kReader, ///< nothing from outside: one of the guest's CPUs reads every page, then all of them dirty it
};

/// Who runs the guest.
enum class Contender { kVmm, kQemu, kCommand };

/// The order in which each of the guest's CPUs visits its pages.
enum class Order { kSequential, kRandom };

// All values of each kind, in the order in which help lists them.
inline constexpr std::array kMethods{Method::kNone,           Method::kHost, Method::kTouch, Method::kIoctl,
                                     Method::kIoctlThenTouch, Method::kPool, Method::kReader};
inline constexpr std::array kContenders{Contender::kVmm, Contender::kQemu, Contender::kCommand};
inline constexpr std::array kOrders{Order::kSequential, Order::kRandom};

/// The memory of a guest, if the options do not say and the host has enough.
inline constexpr std::uint64_t kStandardMemoryBytes = 512 * kMiB;
/// The pages that any host has, and those that are measured beside them if a pool has enough.
inline constexpr std::array kPageSizesOfAnyHost{PageSize::k4K, PageSize::kThp};
inline constexpr PageSize kPageSizeOfPool = PageSize::k2M;

/// "none", "host", "touch", "ioctl", "ioctl+touch", "pool", "reader".
[[nodiscard]] std::string_view to_string(Method method) noexcept;
/// "vmm", "qemu", "command".
[[nodiscard]] std::string_view to_string(Contender contender) noexcept;
/// "seq", "random".
[[nodiscard]] std::string_view to_string(Order order) noexcept;
[[nodiscard]] std::optional<Method> parse_method(std::string_view text);
[[nodiscard]] std::optional<Contender> parse_contender(std::string_view text);
[[nodiscard]] std::optional<Order> parse_order(std::string_view text);
/// The reverse of vmm::to_string(PageSize).
[[nodiscard]] std::optional<PageSize> parse_page_size(std::string_view text);

struct Cell {
    Contender contender = Contender::kVmm;
    std::uint64_t memory_bytes = 0;
    unsigned vcpus = 1;
    unsigned workers = 1; ///< prefault workers, or QEMU's prealloc-threads
    PageSize page_size = PageSize::kThp;
    Method method = Method::kNone;
    Order order = Order::kSequential;

    friend bool operator==(const Cell&, const Cell&) = default;
};

/// Whether the number of workers matters for this method.
[[nodiscard]] bool uses_workers(Method method) noexcept;

/// Whether both sides are filled from outside.
[[nodiscard]] bool fills_second_level(Method method) noexcept;

/// The name that distinguishes cells of one shape: "touch", "qemu", "qemu prealloc", "touch, 1 worker" with
/// `show_workers`.
[[nodiscard]] std::string method_name(const Cell& cell, bool show_workers = false);
/// The shape: "4K pages, 512M, 2 vCPUs", with ", random" after it if the order is random.
[[nodiscard]] std::string shape_name(const Cell& cell);
/// Both: "4K pages, 512M, 2 vCPUs, touch, 2 workers".
[[nodiscard]] std::string to_string(const Cell& cell);

/// Whether two cells differ only in method, contender and workers.
[[nodiscard]] bool same_shape(const Cell& one, const Cell& other) noexcept;

} // namespace vmm::bench
