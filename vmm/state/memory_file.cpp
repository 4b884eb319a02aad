#include "vmm/state/memory_file.hpp"

#include <algorithm>
#include <cassert>
#include <cstring>
#include <memory>
#include <string_view>

#include "kvm/host/error.hpp"
#include "kvm/host/write_log.hpp"
#include "prefault/host/workforce.hpp"
#include "vmm/state/crc32c.hpp"
#include "vmm/state/transfers.hpp"

namespace vmm {

namespace {

constexpr std::uint64_t kPagesPerWord = 64;

bool is_zero(std::span<const std::byte> bytes) noexcept {
    std::uint64_t any = 0;
    for (std::size_t i = 0; i + sizeof(any) <= bytes.size(); i += 64) {
        for (std::size_t j = i; j < std::min<std::size_t>(i + 64, bytes.size()); j += sizeof(any)) {
            std::uint64_t word = 0;
            std::memcpy(&word, bytes.data() + j, sizeof(word));
            any |= word;
        }
        if (any != 0) {
            return false;
        }
    }
    return any == 0;
}

/// Calls `take(first byte, bytes)` for each run of pages of `bytes` bytes for which `is_wanted(page)` holds.
template <typename IsWanted, typename Take>
void for_each_run(std::uint64_t bytes, IsWanted is_wanted, Take take) {
    std::uint64_t run = 0;
    for (std::uint64_t offset = 0; offset < bytes; offset += WriteLog::kPageBytes) {
        const std::uint64_t size = std::min(WriteLog::kPageBytes, bytes - offset);
        if (is_wanted(offset / WriteLog::kPageBytes)) {
            run += size;
            continue;
        }
        if (run != 0) {
            take(offset - run, run);
        }
        run = 0;
    }
    if (run != 0) {
        take(bytes - run, run);
    }
}

bool is_set(const std::vector<std::uint64_t>& pages, std::uint64_t page) {
    return (pages[page / kPagesPerWord] >> (page % kPagesPerWord) & 1U) != 0;
}

prefault::Workforce workforce_of(const MemoryMovers& movers, const prefault::Placement& placement) {
    prefault::Workforce workforce;
    workforce.workers = movers.workers;
    workforce.node_cpus = placement.node_cpus;
    if (movers.progress) {
        workforce.progress = [&movers](const prefault::Progress& now) {
            movers.progress(now.done_bytes, now.total_bytes);
        };
    }
    return workforce;
}

constexpr std::string_view kThreadName = "memory";

/// Where the byte at `address`, which is memory, lies in the file.
std::uint64_t offset_of(const MemoryLayout& layout, GuestAddress address) {
    for (const MemoryPiece& region : layout.regions()) {
        if (region.range.contains({address, 1})) {
            return region.file_offset + (to_integer(address) - to_integer(region.range.base));
        }
    }
    assert(false);
    return 0;
}

/// The chunk that it is in.
std::size_t chunk_of(const MemoryLayout& layout, GuestAddress address) {
    return static_cast<std::size_t>(offset_of(layout, address) / kMemoryChunkBytes);
}

} // namespace

/// What a worker has of its own.
class MemoryWriter::Worker {
  public:
    explicit Worker(MemoryWriter& writer)
        : writer_(writer), transfers_(writer.file_.direct_fd >= 0 ? writer.file_.direct_fd : writer.file_.fd,
                                      writer.file_.name, writer.file_.direct_fd < 0) {}

    void write(GuestRange part, std::span<const std::byte> bytes) {
        transfers_.write(offset_of(writer_.layout_, part.base), bytes);
        writer_.written_bytes_ += bytes.size();
    }
    void finish(GuestRange chunk, std::span<const std::byte> bytes) {
        transfers_.finish();
        writer_.index_[chunk_of(writer_.layout_, chunk.base)] = {.is_hole = false, .crc32c = crc32c(bytes)};
    }

  private:
    MemoryWriter& writer_;
    Transfers transfers_;
};

MemoryWriter::MemoryWriter(const GuestMemory& memory, const prefault::Placement& placement, const MemoryLayout& layout,
                           const MemoryFile& file, const MemoryMovers& movers)
    : memory_(memory), placement_(placement), layout_(layout), file_(file), movers_(movers), index_(layout.chunks()) {}

bool MemoryWriter::for_each_chunk(const std::stop_token& stop,
                                  const std::function<void(Worker&, GuestRange chunk)>& work) {
    std::vector<std::unique_ptr<Worker>> workers(movers_.workers);
    return prefault::for_each_chunk(placement_.ranges, kMemoryChunkBytes, workforce_of(movers_, placement_),
                                    prefault::Stage::kHost, kThreadName, stop,
                                    [&](unsigned index, GuestRange chunk, const std::stop_token&) {
                                        if (!workers[index]) {
                                            workers[index] = std::make_unique<Worker>(*this);
                                        }
                                        work(*workers[index], chunk);
                                        return true;
                                    });
}

bool MemoryWriter::write_all(const std::stop_token& stop) {
    return for_each_chunk(stop, [this](Worker& worker, GuestRange chunk) {
        const std::span<std::byte> bytes = memory_.at(chunk).value();
        bool is_hole = true;
        for_each_run(
            chunk.size,
            [&](std::uint64_t page) {
                return !is_zero(bytes.subspan(page * WriteLog::kPageBytes, WriteLog::kPageBytes));
            },
            [&](std::uint64_t offset, std::uint64_t size) {
                is_hole = false;
                worker.write({GuestAddress{to_integer(chunk.base) + offset}, size}, bytes.subspan(offset, size));
            });
        if (!is_hole) {
            worker.finish(chunk, bytes);
        }
    });
}

bool MemoryWriter::write_pages(std::span<const std::vector<std::uint64_t>> pages, const std::stop_token& stop) {
    const std::span<const MemoryRegion> regions = memory_.regions();
    assert(pages.size() <= regions.size());
    return for_each_chunk(stop, [&](Worker& worker, GuestRange chunk) {
        for (std::size_t i = 0; i < pages.size(); ++i) {
            const MemoryRegion& region = regions[i];
            if (!region.range.contains(chunk)) {
                continue;
            }
            const std::uint64_t begin = to_integer(chunk.base) - to_integer(region.range.base);
            const std::span<std::byte> bytes = region.bytes().subspan(begin, chunk.size);
            bool is_clean = true;
            for_each_run(
                chunk.size, [&](std::uint64_t page) { return is_set(pages[i], begin / WriteLog::kPageBytes + page); },
                [&](std::uint64_t offset, std::uint64_t size) {
                    is_clean = false;
                    worker.write({GuestAddress{to_integer(chunk.base) + offset}, size}, bytes.subspan(offset, size));
                });
            if (!is_clean) {
                worker.finish(chunk, bytes);
            }
        }
    });
}

bool read_memory(const GuestMemory& memory, const prefault::Placement& placement, const MemorySource& source,
                 const MemoryMovers& movers, const std::stop_token& stop) {
    assert(source.index.size() == source.layout.chunks());
    std::vector<std::unique_ptr<ChunkReader>> workers(movers.workers);
    return prefault::for_each_chunk(
        placement.ranges, kMemoryChunkBytes, workforce_of(movers, placement), prefault::Stage::kHost, kThreadName, stop,
        [&](unsigned worker, GuestRange range, const std::stop_token&) {
            if (!workers[worker]) {
                workers[worker] = std::make_unique<ChunkReader>(source);
            }
            static_cast<void>(workers[worker]->read(chunk_of(source.layout, range.base), memory.at(range).value()));
            return true;
        });
}

} // namespace vmm
