// The program that scripts/benchmark compares with: MADV_POPULATE_WRITE from several threads and one munmap().
//
// bare_populate BYTES 4K|thp|2M THREADS [mlock]: prints how many seconds each of the two took. With "mlock" memory is
// locked between them.

#include <sys/mman.h>

#include <cerrno>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string_view>
#include <thread>
#include <vector>

#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23 // Linux 5.14
#endif
#ifndef MAP_HUGE_2MB
#define MAP_HUGE_2MB (21 << 26)
#endif

namespace {

constexpr std::uint64_t kHugePage = std::uint64_t{2} << 20;

[[noreturn]] void fail(const char* tried) {
    std::fprintf(stderr, "bare_populate: cannot %s: %s\n", tried, std::strerror(errno));
    std::exit(1);
}

double seconds_since(std::chrono::steady_clock::time_point start) {
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

/// A mapping of `bytes`, with a huge page more before it, so that it begins at a boundary of huge pages.
std::byte* map(std::uint64_t bytes, std::string_view page_size) {
    const bool from_pool = page_size == "2M";
    const int flags = MAP_PRIVATE | MAP_ANONYMOUS | (from_pool ? MAP_HUGETLB | MAP_HUGE_2MB : MAP_NORESERVE);
    const std::uint64_t spare_bytes = from_pool ? 0 : kHugePage;
    void* const address = ::mmap(nullptr, bytes + spare_bytes, PROT_READ | PROT_WRITE, flags, -1, 0);
    if (address == MAP_FAILED) {
        fail("map memory");
    }
    auto* const begin = static_cast<std::byte*>(address);
    if (from_pool) {
        return begin;
    }
    const std::uint64_t gap = (kHugePage - reinterpret_cast<std::uintptr_t>(begin) % kHugePage) % kHugePage;
    if (::madvise(begin + gap, bytes, page_size == "thp" ? MADV_HUGEPAGE : MADV_NOHUGEPAGE) != 0) {
        fail("choose the size of pages");
    }
    return begin + gap;
}

void populate(std::byte* begin, std::uint64_t bytes) {
    while (::madvise(begin, bytes, MADV_POPULATE_WRITE) != 0) {
        if (errno != EINTR && errno != EAGAIN) {
            fail("populate memory");
        }
    }
}

} // namespace

int main(int argc, char** argv) {
    const bool locked = argc == 5 && std::string_view(argv[4]) == "mlock";
    if (argc != 4 && !locked) {
        std::fputs("usage: bare_populate BYTES 4K|thp|2M THREADS [mlock]\n", stderr);
        return 2;
    }
    const std::uint64_t bytes = std::strtoull(argv[1], nullptr, 10) / kHugePage * kHugePage;
    const std::uint64_t threads = std::strtoull(argv[3], nullptr, 10);
    if (bytes == 0 || threads == 0) {
        std::fputs("bare_populate: at least 2 MiB, and one thread\n", stderr);
        return 2;
    }
    std::byte* const memory = map(bytes, argv[2]);

    const auto populate_start = std::chrono::steady_clock::now();
    std::vector<std::thread> crew;
    for (std::uint64_t i = 0; i < threads; ++i) {
        const std::uint64_t begin = bytes / kHugePage * i / threads * kHugePage;
        const std::uint64_t end = bytes / kHugePage * (i + 1) / threads * kHugePage;
        if (begin < end) {
            crew.emplace_back(populate, memory + begin, end - begin);
        }
    }
    for (std::thread& thread : crew) {
        thread.join();
    }
    std::printf("populate=%.6f", seconds_since(populate_start));

    if (locked && ::mlock2(memory, bytes, MLOCK_ONFAULT) != 0) {
        fail("lock memory");
    }
    const auto munmap_start = std::chrono::steady_clock::now();
    if (::munmap(memory, bytes) != 0) {
        fail("unmap memory");
    }
    std::printf(" munmap=%.6f\n", seconds_since(munmap_start));
    return 0;
}
