#include "vmm/bench/matrix.hpp"

#include <algorithm>
#include <numeric>
#include <random>

#include "kvm/host/error.hpp"
#include "kvm/host/format.hpp"
#include "kvm/system.hpp"
#include "prefault/host/huge_page_pool.hpp"
#include "vmm/config.hpp"
#include "vmm/host/memory_facts.hpp"

namespace vmm::bench {

namespace {

void add_once(std::vector<Cell>& cells, const Cell& cell) {
    if (std::ranges::find(cells, cell) == cells.end()) {
        cells.push_back(cell);
    }
}

void add_methods(std::vector<Cell>& cells, Cell cell, const Matrix& matrix) {
    const auto add = [&](Contender contender, Method method) {
        cell.contender = contender;
        cell.method = method;
        for (const unsigned workers : matrix.workers) {
            cell.workers = uses_workers(method) ? workers : matrix.workers.front();
            add_once(cells, cell);
        }
    };
    for (const Method method : matrix.methods) {
        if (method != Method::kPool || cell.page_size != PageSize::kThp || matrix.has_thp_pool) {
            add(Contender::kVmm, method);
        }
    }
    if (matrix.qemu) {
        add(Contender::kQemu, Method::kNone);
        add(Contender::kQemu, Method::kHost);
    }
    if (matrix.command) {
        add(Contender::kCommand, Method::kNone);
    }
}

} // namespace

std::vector<Cell> cells_of(const Matrix& matrix) {
    std::vector<Cell> cells;
    for (const PageSize page_size : matrix.page_sizes) {
        for (const std::uint64_t memory_bytes : matrix.memory_bytes) {
            for (const unsigned vcpus : matrix.vcpus) {
                for (const Order order : matrix.orders) {
                    Cell cell;
                    cell.memory_bytes = memory_bytes;
                    cell.vcpus = vcpus;
                    cell.page_size = page_size;
                    cell.order = order;
                    add_methods(cells, cell, matrix);
                }
            }
        }
    }
    return cells;
}

HostRoom read_host_room() {
    const kvm::System system;
    HostRoom room;
    // If the amount is not known, the kernel decides whether it is enough.
    room.available_bytes = available_bytes(read_memory_facts()).value_or(UINT64_MAX);
    const auto free_bytes = [](std::uint64_t page_bytes) -> std::uint64_t {
        const auto pool = prefault::read_huge_page_pool(page_bytes);
        return pool ? pool->available() * page_bytes : 0;
    };
    room.free_2m_bytes = free_bytes(2 * kMiB);
    room.free_1g_bytes = free_bytes(kGiB);
    // Only an attempt shows this: root of a user namespace may not do it, and sysfs may be mounted read-only.
    room.may_raise_pools = prefault::may_raise_huge_page_pool(2 * kMiB) || prefault::may_raise_huge_page_pool(kGiB);
    room.most_vcpus = std::min({system.max_vcpus(), system.max_vcpu_ids(), Config::kMaxVcpus});
    return room;
}

std::uint64_t bytes_beside_guest(std::uint64_t memory_bytes) noexcept {
    return memory_bytes / 64 + 64 * kMiB; // two tables of 8 bytes for each 4 KiB are 1/256 of the memory
}

std::uint64_t missing_pool_bytes(const std::vector<Cell>& cells, PageSize page_size, const HostRoom& room) {
    std::uint64_t largest = 0;
    for (const Cell& cell : cells) {
        largest = cell.page_size == page_size ? std::max(largest, cell.memory_bytes) : largest;
    }
    const std::uint64_t free_bytes = page_size == PageSize::k2M ? room.free_2m_bytes : room.free_1g_bytes;
    return largest > free_bytes ? largest - free_bytes : 0;
}

void check_fits(std::vector<Cell> cells, const HostRoom& room) {
    std::ranges::sort(cells, [](const Cell& one, const Cell& other) {
        return one.memory_bytes != other.memory_bytes ? one.memory_bytes > other.memory_bytes : one.vcpus > other.vcpus;
    });
    const std::uint64_t missing_2m = missing_pool_bytes(cells, PageSize::k2M, room);
    const std::uint64_t missing_1g = missing_pool_bytes(cells, PageSize::k1G, room);
    for (const Cell& cell : cells) {
        const std::string tried = "cannot measure " + to_string(cell) + ": ";
        if (cell.vcpus > room.most_vcpus) {
            throw Error(tried + vmm::format("this host's KVM takes at most {} vCPUs (--vcpus)", room.most_vcpus));
        }
        // Pools are raised once for all runs, so the memory that they take is missing elsewhere.
        const std::uint64_t beside = bytes_beside_guest(cell.memory_bytes);
        if (!is_from_pool(cell.page_size)) {
            if (missing_2m + missing_1g + beside > room.available_bytes ||
                cell.memory_bytes > room.available_bytes - missing_2m - missing_1g - beside) {
                throw Error(tried + vmm::format("with tables and huge pages of other cells it needs {} of memory, and "
                                                "this host has {} available (--memory)",
                                                format_bytes(cell.memory_bytes + missing_2m + missing_1g + beside),
                                                format_bytes(room.available_bytes)));
            }
            continue;
        }
        const std::uint64_t missing = cell.page_size == PageSize::k2M ? missing_2m : missing_1g;
        if (missing == 0) {
            continue;
        }
        if (!room.may_raise_pools) {
            throw Error(tried + vmm::format("the pool of {} pages has {} too little, and only root may raise it "
                                            "(vm.nr_hugepages, or --page-size)",
                                            vmm::to_string(cell.page_size), format_bytes(missing)));
        }
        if (missing_2m + missing_1g + beside > room.available_bytes) {
            throw Error(tried + vmm::format("the pool of {} pages has {} too little, and this host has {} available to "
                                            "raise it (--memory)",
                                            vmm::to_string(cell.page_size), format_bytes(missing),
                                            format_bytes(room.available_bytes)));
        }
    }
}

std::vector<std::size_t> round_order(std::size_t cells, unsigned round) {
    std::vector<std::size_t> order(cells);
    std::iota(order.begin(), order.end(), 0);
    std::mt19937 random(round);
    std::shuffle(order.begin(), order.end(), random);
    return order;
}

} // namespace vmm::bench
