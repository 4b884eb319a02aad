// The cells of a benchmark, made from lists of values.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "vmm/bench/cell.hpp"

namespace vmm::bench {

/// Every combination of these values is measured. The number of workers is varied only if it matters for the cell.
struct Matrix {
    std::vector<std::uint64_t> memory_bytes;
    std::vector<unsigned> vcpus;
    std::vector<unsigned> workers;
    std::vector<PageSize> page_sizes;
    std::vector<Method> methods;
    std::vector<Order> orders = {Order::kSequential};
    bool has_thp_pool = true; ///< whether Method::kPool can be used with PageSize::kThp
    bool qemu = false;        ///< also measure QEMU for each shape, with prealloc and without
    bool command = false;     ///< also measure the user's command for each shape
};

/// The cells in the order in which they are shown: by page size, memory, vCPUs and order. Each cell occurs once.
[[nodiscard]] std::vector<Cell> cells_of(const Matrix& matrix);

/// The order in which `cells` cells are measured in round `round`, as their indices. Each round has another order, so
/// that no cell always follows the same one. The same arguments give the same order.
[[nodiscard]] std::vector<std::size_t> round_order(std::size_t cells, unsigned round);

/// The room that a host has for a benchmark.
struct HostRoom {
    std::uint64_t available_bytes = 0; ///< memory that can be used without swapping, without the pools
    std::uint64_t free_2m_bytes = 0;   ///< of the pool of 2 MiB pages
    std::uint64_t free_1g_bytes = 0;   ///< of the pool of 1 GiB pages
    bool may_raise_pools = false;
    unsigned most_vcpus = 0; ///< the most vCPUs of one VM
};

/// Reads it from this host. Throws Error if there is no KVM.
[[nodiscard]] HostRoom read_host_room();

/// A generous estimate of the bytes that tables and the programs themselves need beside `memory_bytes` of guest memory.
[[nodiscard]] std::uint64_t bytes_beside_guest(std::uint64_t memory_bytes) noexcept;

/// The bytes by which the pool of `page_size` (2M or 1G) must be raised for the largest of `cells`.
[[nodiscard]] std::uint64_t missing_pool_bytes(const std::vector<Cell>& cells, PageSize page_size,
                                               const HostRoom& room);

/// Throws Error if one of `cells` does not fit. The error names the largest such cell.
void check_fits(std::vector<Cell> cells, const HostRoom& room);

} // namespace vmm::bench
