// Huge pages for a test, if this machine can give them.
#pragma once

#include <cstdint>
#include <fstream>
#include <string>

#include "kvm/host/guest_address.hpp"
#include "prefault/host/huge_page_pool.hpp"

namespace vmm::testing {

/// While this object exists, the pool of 2 MiB pages has `wanted` free pages, if it can be raised so far.
class HugePages {
  public:
    explicit HugePages(std::uint64_t wanted) {
        const auto pool = prefault::read_huge_page_pool(2 * kMiB);
        if (!pool) {
            reason_ = "this host has no pool of 2 MiB pages";
            return;
        }
        if (pool->available() >= wanted) {
            return;
        }
        total_before_ = pool->total;
        set_total(pool->total + wanted - pool->available());
        const auto raised = prefault::read_huge_page_pool(2 * kMiB);
        if (!raised || raised->available() < wanted) {
            reason_ = "the pool of 2 MiB pages cannot be raised to " + std::to_string(wanted) + " free ones here";
        }
    }
    ~HugePages() {
        if (total_before_) {
            set_total(*total_before_);
        }
    }
    HugePages(const HugePages&) = delete;
    HugePages& operator=(const HugePages&) = delete;

    /// Why there are not enough; empty if there are.
    [[nodiscard]] const std::string& why_not() const { return reason_; }

  private:
    static void set_total(std::uint64_t total) {
        std::ofstream("/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages") << total;
    }
    std::optional<std::uint64_t> total_before_;
    std::string reason_;
};

} // namespace vmm::testing
