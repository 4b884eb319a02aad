#include "vmm/bench/bare_read.hpp"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <chrono>
#include <cstddef>
#include <span>
#include <thread>
#include <vector>

#include "kvm/host/error.hpp"
#include "kvm/host/stopwatch.hpp"
#include "kvm/host/unique_fd.hpp"
#include "vmm/bench/bare_memory.hpp"

namespace vmm::bench {

namespace {

/// Reads `bytes` of the file from `offset` on. Returns 0 or an errno; if the file ends early, this is EIO.
int read_piece(int fd, std::uint64_t offset, std::span<std::byte> bytes) noexcept {
    while (!bytes.empty()) {
        const ssize_t count = ::pread(fd, bytes.data(), bytes.size(), static_cast<off_t>(offset));
        if (count < 0 && errno == EINTR) {
            continue;
        }
        if (count <= 0) {
            return count < 0 ? errno : EIO;
        }
        bytes = bytes.subspan(static_cast<std::size_t>(count));
        offset += static_cast<std::uint64_t>(count);
    }
    return 0;
}

} // namespace

std::optional<BareRead> read_bare(const std::string& path, PageSize page_size, unsigned workers,
                                  const StopRequest& stop) {
    const UniqueFd file(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
    struct stat facts {};
    if (!file || ::fstat(file.get(), &facts) != 0) {
        throw_errno(errno, "read " + path);
    }
    BareRead result;
    BareMemory memory(static_cast<std::uint64_t>(facts.st_size), page_size, workers);
    const auto populated = memory.populate(stop);
    if (!populated) {
        return std::nullopt;
    }
    result.populate_seconds = *populated;

    const std::vector<BareMemory::Piece> pieces = memory.pieces();
    std::atomic<std::size_t> next{0};
    std::atomic<int> failure{0};
    const auto read_all = [&] {
        for (std::size_t i = 0; (i = next.fetch_add(1)) < pieces.size() && !stop.is_requested();) {
            if (const int error = read_piece(file.get(), pieces[i].offset, pieces[i].bytes); error != 0) {
                failure = error;
            }
        }
    };
    const auto start = std::chrono::steady_clock::now();
    {
        std::vector<std::jthread> threads;
        for (unsigned i = 1; i < workers; ++i) {
            threads.emplace_back(read_all);
        }
        read_all();
    }
    result.read_seconds = seconds_since(start);
    if (failure != 0) {
        throw_errno(failure, "read " + path);
    }
    return stop.is_requested() ? std::nullopt : std::optional(result);
}

} // namespace vmm::bench
