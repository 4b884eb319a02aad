#include "prefault/huge_page_pool.hpp"

#include <algorithm>
#include <fstream>
#include <string>

#include "kvm/error.hpp"

namespace vmm::prefault {

namespace {

std::optional<std::uint64_t> read_number(const std::string& path) {
    std::ifstream file(path);
    std::uint64_t value = 0;
    return file >> value ? std::optional(value) : std::nullopt;
}

std::string pool_directory(std::uint64_t page_bytes, std::string_view sysfs_mm) {
    return std::string(sysfs_mm) + "/hugepages/hugepages-" + std::to_string(page_bytes / kKiB) + "kB/";
}

} // namespace

std::optional<HugePagePool> read_huge_page_pool(std::uint64_t page_bytes, std::string_view sysfs_mm) {
    const std::string directory = pool_directory(page_bytes, sysfs_mm);
    const auto total = read_number(directory + "nr_hugepages");
    if (!total) {
        return std::nullopt;
    }
    HugePagePool pool;
    pool.page_bytes = page_bytes;
    pool.total = *total;
    pool.free = read_number(directory + "free_hugepages").value_or(0);
    pool.reserved = read_number(directory + "resv_hugepages").value_or(0);
    const std::uint64_t surplus = read_number(directory + "surplus_hugepages").value_or(0);
    const std::uint64_t limit = read_number(directory + "nr_overcommit_hugepages").value_or(0);
    pool.overcommit = limit > surplus ? limit - surplus : 0;
    return pool;
}

void check_huge_page_pool(PageSize page_size, std::uint64_t bytes, std::string_view sysfs_mm) {
    if (page_size != PageSize::k2M && page_size != PageSize::k1G) {
        return;
    }
    const std::uint64_t page_bytes = certain_page_bytes(page_size);
    const std::uint64_t needed = bytes / page_bytes;
    const std::string tried = "cannot reserve " + std::to_string(needed) + " huge pages of " + format_bytes(page_bytes);
    const auto pool = read_huge_page_pool(page_bytes, sysfs_mm);
    if (!pool) {
        throw Error(tried + ": this host has no pages of that size (take --page-size=2M or thp)");
    }
    if (needed <= pool->available() + pool->overcommit) {
        return;
    }
    const std::uint64_t missing = needed - pool->available() - pool->overcommit;
    throw Error(tried + ": the pool has " + std::to_string(pool->available()) + " free of " +
                std::to_string(pool->total) + " (raise it: `echo " + std::to_string(pool->total + missing) +
                " | sudo tee " + pool_directory(page_bytes, sysfs_mm) + "nr_hugepages`, or take --page-size=thp)");
}

} // namespace vmm::prefault
