// The cells of a benchmark, from lists of what is to vary.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "vmm/bench/cell.hpp"

namespace vmm::bench {

/// Every combination of these is measured. The number of workers counts only if it makes a difference to the cell.
struct Matrix {
    std::vector<std::uint64_t> memory_bytes;
    std::vector<unsigned> vcpus;
    std::vector<unsigned> workers;
    std::vector<PageSize> page_sizes;
    std::vector<Method> methods;
    std::vector<Order> orders = {Order::kSequential};
    bool has_thp_pool = true; ///< whether Method::kPool goes with PageSize::kThp
    bool qemu = false;        ///< QEMU, with prealloc and without, beside each shape
    bool command = false;     ///< a command of the user's beside each shape
};

/// The cells in the order in which they are shown: by page size, memory, vCPUs and order. No cell is there twice.
[[nodiscard]] std::vector<Cell> cells_of(const Matrix& matrix);

/// The order in which the `cells` cells are measured in round `round`, as their indices. Each round has another order,
/// so that no cell always follows the same one. The same arguments give the same order.
[[nodiscard]] std::vector<std::size_t> round_order(std::size_t cells, unsigned round);

/// The room that a host has for a benchmark.
struct HostRoom {
    std::uint64_t available_bytes = 0; ///< memory that can be had without swapping, beside the pools
    std::uint64_t free_2m_bytes = 0;   ///< of the pool of 2 MiB pages
    std::uint64_t free_1g_bytes = 0;   ///< of the pool of 1 GiB pages
    bool may_raise_pools = false;
    unsigned most_vcpus = 0; ///< that one VM can have
};

/// Asks this host. Throws Error: there is no KVM.
[[nodiscard]] HostRoom read_host_room();

/// The bytes that tables and the programs themselves take beside `memory_bytes` of guest memory, generously estimated.
[[nodiscard]] std::uint64_t bytes_beside_guest(std::uint64_t memory_bytes) noexcept;

/// By how much the pool of `page_size` (2M or 1G) must be raised for the largest of `cells`, in bytes.
[[nodiscard]] std::uint64_t missing_pool_bytes(const std::vector<Cell>& cells, PageSize page_size,
                                               const HostRoom& room);

/// Throws Error if one of `cells` does not fit. The error names the largest of those.
void check_fits(std::vector<Cell> cells, const HostRoom& room);

} // namespace vmm::bench
