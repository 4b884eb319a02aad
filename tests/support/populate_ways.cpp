// Measures how long the kernel takes to populate memory with 4 KiB pages, by each way in which user space can ask for
// it. For scripts/benchmark --populate.
//
// populate_ways BYTES THREADS WAY [small|mixed]
//
// It prints the time in seconds. WAY is one of those in measure(). With "small", the default, the kernel is advised not
// to give huge pages (MADV_NOHUGEPAGE). With "mixed" it is advised to give them, and gives the sizes that
// /sys/kernel/mm/transparent_hugepage/hugepages-* allow.

#include <sys/mman.h>
#include <sys/prctl.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <string>
#include <thread>
#include <vector>

namespace {

constexpr std::size_t kPage = 4096;
constexpr std::size_t kPiece = 2UL << 20U;
constexpr std::size_t kGap = 2UL << 20U; ///< between two mappings, so that they stay two

struct Part {
    std::byte* begin;
    std::size_t bytes;
};

[[noreturn]] void fail(const char* what) {
    std::fprintf(stderr, "populate_ways: %s: %s\n", what, std::strerror(errno));
    std::exit(1);
}

std::byte* map(std::size_t bytes, int flags) {
    void* const address = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | flags, -1, 0);
    if (address == MAP_FAILED) {
        fail("mmap");
    }
    return static_cast<std::byte*>(address);
}

void advise(Part part, bool mixed) {
    // A kernel without transparent huge pages does not know the advice.
    if (::madvise(part.begin, part.bytes, mixed ? MADV_HUGEPAGE : MADV_NOHUGEPAGE) != 0 && errno != EINVAL) {
        fail("madvise");
    }
}

void populate(std::byte* begin, std::size_t bytes) {
    if (::madvise(begin, bytes, MADV_POPULATE_WRITE) != 0) {
        fail("MADV_POPULATE_WRITE");
    }
}

/// Each thread takes the next piece of `piece_bytes` of all parts until none is left.
void from_one_queue(const std::vector<Part>& parts, unsigned threads, std::size_t piece_bytes) {
    std::vector<Part> pieces;
    for (const Part& part : parts) {
        for (std::size_t at = 0; at < part.bytes; at += piece_bytes) {
            pieces.push_back({part.begin + at, std::min(piece_bytes, part.bytes - at)});
        }
    }
    std::atomic<std::size_t> next{0};
    std::vector<std::jthread> crew;
    for (unsigned thread = 0; thread < threads; ++thread) {
        crew.emplace_back([&] {
            for (std::size_t at = next++; at < pieces.size(); at = next++) {
                populate(pieces[at].begin, pieces[at].bytes);
            }
        });
    }
}

/// Each thread does `work` on a part of its own.
void one_part_each(const std::vector<Part>& parts, const std::function<void(Part)>& work) {
    std::vector<std::jthread> crew;
    for (const Part& part : parts) {
        crew.emplace_back([&work, part] { work(part); });
    }
}

void touch(Part part) {
    for (std::size_t at = 0; at < part.bytes; at += kPage) {
        *reinterpret_cast<volatile std::byte*>(part.begin + at) = std::byte{0};
    }
}

double seconds(const std::function<void()>& work) {
    const auto begin = std::chrono::steady_clock::now();
    work();
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
}

std::vector<Part> parts_of(std::byte* memory, std::size_t bytes, unsigned threads, std::size_t gap) {
    std::vector<Part> parts;
    const std::size_t each = bytes / threads / kPiece * kPiece;
    for (unsigned thread = 0; thread < threads; ++thread) {
        const bool last = thread + 1 == threads;
        parts.push_back({memory + thread * (each + gap), last ? bytes - thread * each : each});
    }
    return parts;
}

double measure(std::size_t bytes, unsigned threads, const std::string& way, bool mixed) {
    if (way == "map-populate") { // the advice comes too late for it
        ::prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0);
        return seconds([&] {
            one_part_each(parts_of(nullptr, bytes, threads, 0),
                          [](Part part) { static_cast<void>(map(part.bytes, MAP_POPULATE)); });
        });
    }
    const bool apart = way == "own-vma" || way == "touch-own-vma";
    std::byte* const memory = map(bytes + threads * kGap, MAP_NORESERVE);
    const std::vector<Part> parts = parts_of(memory, bytes, threads, apart ? kGap : 0);
    advise({memory, bytes + threads * kGap}, mixed);
    for (const Part& part : parts) {
        if (apart && ::mprotect(part.begin + part.bytes, kGap, PROT_NONE) != 0) {
            fail("mprotect");
        }
    }
    const std::vector<Part> all{{memory, bytes}};
    if (way == "pieces-16M") {
        return seconds([&] { from_one_queue(all, threads, 16UL << 20U); });
    }
    if (way == "pieces-2M") {
        return seconds([&] { from_one_queue(all, threads, kPiece); });
    }
    if (way == "pieces-256M") {
        return seconds([&] { from_one_queue(all, threads, 256UL << 20U); });
    }
    if (way == "locked") {
        if (::mlock2(memory, bytes, MLOCK_ONFAULT) != 0) {
            fail("mlock2");
        }
        return seconds([&] { from_one_queue(all, threads, 16UL << 20U); });
    }
    if (way == "own-vma") {
        return seconds([&] { from_one_queue(parts, threads, 16UL << 20U); });
    }
    if (way == "touch" || way == "touch-own-vma") {
        return seconds([&] { one_part_each(parts, touch); });
    }
    if (way == "clear") { // the lower bound: existing memory is cleared once more
        from_one_queue(all, threads, 16UL << 20U);
        return seconds([&] { one_part_each(parts, [](Part part) { std::memset(part.begin, 0, part.bytes); }); });
    }
    std::fprintf(stderr, "populate_ways: there is no way called %s\n", way.c_str());
    std::exit(2);
}

} // namespace

int main(int count, char** words) {
    if (count < 4) {
        std::fprintf(stderr, "usage: populate_ways BYTES THREADS WAY [small|mixed]\n");
        return 2;
    }
    const std::size_t bytes = std::strtoull(words[1], nullptr, 10);
    const auto threads = static_cast<unsigned>(std::strtoul(words[2], nullptr, 10));
    std::printf("%.6f\n", measure(bytes, threads, words[3], count > 4 && std::string(words[4]) == "mixed"));
    return 0;
}
