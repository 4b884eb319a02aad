#include "prefault/host/populate.hpp"

#include <sys/mman.h>

#include <algorithm>
#include <cassert>
#include <cerrno>
#include <optional>
#include <string>
#include <vector>

#include "kvm/host/error.hpp"
#include "kvm/host/retry.hpp"
#include "prefault/plan.hpp"

#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23 // Linux 5.14
#endif
#ifndef MADV_DONTNEED_LOCKED
#define MADV_DONTNEED_LOCKED 24 // Linux 5.18
#endif

namespace vmm::prefault {

namespace {

[[noreturn]] void throw_populate_error(int error_number, GuestRange range, PageSize page_size) {
    const std::string tried =
        "populate guest memory " + to_string(range) + " (" + std::string(to_string(page_size)) + " pages)";
    // EFAULT means that another process took a huge page after our check.
    throw_errno(error_number == EFAULT ? ENOMEM : error_number, tried,
                {{EINVAL, "MADV_POPULATE_WRITE needs Linux 5.14"},
                 {ENOMEM, certain_page_bytes(page_size) > kSmallPageBytes
                              ? "the huge page pool ran dry: raise vm.nr_hugepages, or take Config::page_size=thp"
                              : "less memory with Config::memory_bytes, or a larger memory cgroup"}});
}

} // namespace

int populate_bytes(std::span<std::byte> bytes, const std::stop_token& stop) noexcept {
    Retries retries;
    int error_number = 0;
    do {
        error_number = ::madvise(bytes.data(), bytes.size(), MADV_POPULATE_WRITE) == 0 ? 0 : errno;
    } while ((error_number == EINTR || error_number == EAGAIN) && retries.again(stop));
    return error_number;
}

void populate_chunk(const GuestMemory& memory, GuestRange chunk, const std::stop_token& stop) {
    const auto bytes = memory.at(chunk);
    assert(bytes);
    const int error_number = populate_bytes(*bytes, stop);
    if (error_number != 0 && !stop.stop_requested()) {
        throw_populate_error(error_number, chunk, memory.page_size());
    }
}

std::uint64_t host_chunk_bytes(PageSize page_size, std::uint64_t total_bytes, unsigned workers) {
    constexpr std::uint64_t kLargestCall = 16 * kMiB;
    const std::uint64_t page_bytes = largest_page_bytes(page_size);
    return std::max(page_bytes, std::min(kLargestCall, Plan::chunk_bytes_for(total_bytes, workers, page_bytes)));
}

bool populate_host(const GuestMemory& memory, std::span<const PlacedRange> ranges, const Workforce& workforce,
                   const std::stop_token& stop) {
    const std::uint64_t chunk_bytes = host_chunk_bytes(memory.page_size(), total_bytes(ranges), workforce.workers);
    return for_each_chunk(ranges, chunk_bytes, workforce, Stage::kHost, "populate", stop,
                          [&](unsigned, GuestRange chunk, const std::stop_token& crew_stop) {
                              populate_chunk(memory, chunk, crew_stop);
                              return true;
                          });
}

void release_host(const GuestMemory& memory, unsigned workers) noexcept {
    try {
        std::vector<PlacedRange> ranges;
        for (const MemoryRegion& region : memory.regions()) {
            ranges.push_back({region.range, std::nullopt});
        }
        Workforce workforce;
        workforce.workers = workers;
        const std::uint64_t chunk_bytes = host_chunk_bytes(memory.page_size(), total_bytes(ranges), workers);
        for_each_chunk(ranges, chunk_bytes, workforce, Stage::kHost, "release", {},
                       [&](unsigned, GuestRange chunk, const std::stop_token&) {
                           const auto bytes = *memory.at(chunk);
                           return ::madvise(bytes.data(), bytes.size(), MADV_DONTNEED_LOCKED) == 0 ||
                                  ::madvise(bytes.data(), bytes.size(), MADV_DONTNEED) == 0;
                       });
    } catch (...) { // If no thread can be made, munmap() does all the work.
    }
}

} // namespace vmm::prefault
