// The cells of a benchmark, from lists of what is to vary.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "vmm/bench/cell.hpp"

namespace vmm::bench {

/// Every combination of these is measured, but the number of workers only where it makes a difference.
struct Matrix {
    std::vector<std::uint64_t> memory_bytes;
    std::vector<unsigned> vcpus;
    std::vector<unsigned> workers;
    std::vector<PageSize> page_sizes;
    std::vector<Method> methods;
    std::vector<Order> orders = {Order::kSequential};
    bool qemu = false;    ///< QEMU, with prealloc and without, beside each shape
    bool command = false; ///< a command of the user's beside each shape
};

/// The cells in the order in which they are shown: by page size, memory, vCPUs and order; none twice.
[[nodiscard]] std::vector<Cell> cells_of(const Matrix& matrix);

/// In which order the `cells` cells (their indices) are measured in round `round`: another in each, so that none always
/// comes after the same one, and the same whenever it is asked for.
[[nodiscard]] std::vector<std::size_t> round_order(std::size_t cells, unsigned round);

/// What of a host a benchmark needs.
struct HostRoom {
    std::uint64_t available_bytes = 0; ///< memory that can be had without swapping, beside the pools
    std::uint64_t free_2m_bytes = 0;   ///< of the pool of 2 MiB pages
    std::uint64_t free_1g_bytes = 0;   ///< of the pool of 1 GiB pages
    bool may_raise_pools = false;
    unsigned most_vcpus = 0; ///< that one VM can have
};

/// What this host has now. Throws Error where there is no KVM.
[[nodiscard]] HostRoom read_host_room();

/// What tables and the programs themselves take beside `memory_bytes` of guest memory, in bytes; generous.
[[nodiscard]] std::uint64_t bytes_beside_guest(std::uint64_t memory_bytes) noexcept;

/// By how much the pool of `page_size` (2M or 1G) must be raised for the largest of `cells`, in bytes.
[[nodiscard]] std::uint64_t missing_pool_bytes(const std::vector<Cell>& cells, PageSize page_size,
                                               const HostRoom& room);

/// Throws Error where one of `cells`, largest first, does not fit, and names it.
void check_fits(std::vector<Cell> cells, const HostRoom& room);

} // namespace vmm::bench
