#include "prefault/host_populate.hpp"

#include <sys/mman.h>

#include <algorithm>
#include <cassert>
#include <cerrno>
#include <string>

#include "kvm/error.hpp"
#include "kvm/process_memory.hpp"
#include "prefault/parallel.hpp"
#include "prefault/plan.hpp"

#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23 // Linux 5.14
#endif

namespace vmm::prefault {

namespace {

[[noreturn]] void throw_populate_error(int error_number, GuestRange range, PageSize page_size) {
    const std::string tried =
        "populate guest memory " + to_string(range) + " (" + std::string(to_string(page_size)) + " pages)";
    switch (error_number) {
    case EINVAL:
        throw_errno(error_number, tried, "MADV_POPULATE_WRITE needs Linux 5.14");
    case EFAULT: // A huge page that another process took between our check and now.
    case ENOMEM:
        throw_errno(ENOMEM, tried,
                    certain_page_bytes(page_size) > 4 * kKiB
                        ? "the huge page pool ran dry: raise vm.nr_hugepages, or take --page-size=thp"
                        : "less memory with -m, or a larger memory cgroup");
    case EHWPOISON:
        throw_errno(error_number, tried, "a page of this host's memory is broken");
    default:
        throw_errno(error_number, tried);
    }
}

void populate_chunk(const GuestMemory& memory, GuestRange chunk) {
    const auto bytes = memory.at(chunk);
    assert(bytes);
    int result = 0;
    do {
        result = ::madvise(bytes->data(), bytes->size(), MADV_POPULATE_WRITE);
    } while (result != 0 && (errno == EINTR || errno == EAGAIN));
    if (result != 0) {
        throw_populate_error(errno, chunk, memory.page_size());
    }
}

} // namespace

bool populate_host(const GuestMemory& memory, std::span<const GuestRange> ranges, unsigned workers,
                   const std::stop_token& stop) {
    // A chunk is what one system call populates, so it is also how long a stop may wait: 16 MiB of 4 KiB pages are
    // some 5 ms.
    constexpr std::uint64_t kLargestCall = 16 * kMiB;
    const std::uint64_t page_bytes = largest_page_bytes(memory.page_size());
    std::uint64_t total = 0;
    for (const GuestRange& range : ranges) {
        total += range.size;
    }
    const std::uint64_t chunk_bytes =
        std::max(page_bytes, std::min(kLargestCall, Plan::chunk_bytes_for(total, workers, page_bytes)));
    const Plan plan(ranges, chunk_bytes);
    ChunkQueue queue(plan);
    const auto useful = static_cast<unsigned>(std::clamp<std::size_t>(plan.chunk_count(), 1, workers));
    run_in_parallel(useful, "populate", [&](unsigned) {
        while (!stop.stop_requested()) {
            const auto chunk = queue.take();
            if (!chunk) {
                return;
            }
            populate_chunk(memory, *chunk);
        }
    });
    return !stop.stop_requested();
}

std::vector<std::uint64_t> proven_mapping_bytes(const GuestMemory& memory) {
    std::vector<std::uint64_t> result(memory.regions().size(), certain_page_bytes(memory.page_size()));
    if (memory.page_size() == PageSize::kThp) {
        for (std::size_t i = 0; i < result.size(); ++i) {
            if (resident_memory_of(memory.regions()[i].bytes()).all_transparent_huge) {
                result[i] = 2 * kMiB;
            }
        }
    }
    return result;
}

} // namespace vmm::prefault
