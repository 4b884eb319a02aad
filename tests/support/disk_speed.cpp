// Measures the speed of a disk's I/O, by io_uring and by threads. For scripts/benchmark --disk.
//
// disk_speed FILE uring|threads cached|direct read|write BYTES DEPTH SECONDS: prints operations a second. Offsets are
// random, multiples of BYTES; DEPTH operations are always in flight with the host.

#include <poll.h>
#include <sys/uio.h>

#include <array>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <new>
#include <random>
#include <string>
#include <vector>

#include "devices/disk_image.hpp"
#include "devices/disk_io.hpp"

namespace {

using Clock = std::chrono::steady_clock;

double measure(const std::vector<std::string>& words) {
    const bool direct = words[2] == "direct";
    const bool write = words[3] == "write";
    const std::uint64_t bytes = std::stoull(words[4]);
    const auto depth = static_cast<unsigned>(std::stoul(words[5]));
    const std::chrono::duration<double> time{std::stod(words[6])};
    const vmm::devices::DiskImage image(words[0], {.direct = direct});
    const auto kind = words[1] == "uring" ? vmm::devices::DiskIoKind::kUring : vmm::devices::DiskIoKind::kThreads;
    const auto io = vmm::devices::make_disk_io(image, depth, kind).io;
    const std::uint64_t places = image.sectors() * vmm::devices::DiskImage::kSectorBytes / bytes;

    auto* const memory = static_cast<std::byte*>(std::aligned_alloc(4096, bytes * depth));
    if (memory == nullptr || places == 0) {
        throw std::bad_alloc();
    }
    std::vector<iovec> pieces(depth);
    std::mt19937_64 random(1); // NOLINT(cert-msc51-cpp): the same each time.
    const auto begin = [&](std::uint64_t token) {
        pieces[token] = {memory + token * bytes, bytes};
        const std::uint64_t offset = random() % places * bytes;
        if (write) {
            io->write(token, offset, {&pieces[token], 1});
        } else {
            io->read(token, offset, {&pieces[token], 1});
        }
    };
    for (unsigned token = 0; token < depth; ++token) {
        begin(token);
    }
    std::uint64_t done = 0;
    unsigned under_way = depth;
    const auto started = Clock::now();
    auto ended = started;
    while (under_way != 0) {
        while (!io->submit()) {
        }
        std::array<vmm::devices::DiskIo::Completion, 64> completions{};
        const std::size_t count = io->reap(completions);
        if (count == 0) {
            pollfd waited{io->fd(), POLLIN, 0};
            ::poll(&waited, 1, -1);
            continue;
        }
        ended = Clock::now();
        const bool go_on = ended - started < time;
        done += go_on ? count : 0;
        for (std::size_t i = 0; i < count; ++i) {
            if (completions[i].result != static_cast<int>(bytes)) {
                std::fprintf(stderr, "disk_speed: an operation gave %d\n", completions[i].result);
                std::exit(1);
            }
            if (go_on) {
                begin(completions[i].token);
            } else {
                --under_way;
            }
        }
    }
    std::free(memory);
    return static_cast<double>(done) / time.count();
}

} // namespace

int main(int argc, char** argv) {
    const std::vector<std::string> words(argv + 1, argv + argc);
    try {
        if (words.size() != 7) {
            std::fputs("usage: disk_speed FILE uring|threads cached|direct read|write BYTES DEPTH SECONDS\n", stderr);
            return 2;
        }
        std::printf("%.0f\n", measure(words));
        return 0;
    } catch (const std::exception& error) {
        std::fprintf(stderr, "disk_speed: %s\n", error.what());
        return 1;
    }
}
