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
#include "vmm/state/page_bits.hpp"
#include "vmm/state/transfers.hpp"

namespace vmm {

namespace {

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

/// The offset in the file of the byte at `address`, which must be guest memory.
std::uint64_t offset_of(const MemoryLayout& layout, GuestAddress address) {
    for (const MemoryPiece& region : layout.regions()) {
        if (region.range.contains({address, 1})) {
            return region.file_offset + (to_integer(address) - to_integer(region.range.base));
        }
    }
    assert(false);
    return 0;
}

/// The chunk that contains `address`.
std::size_t chunk_of(const MemoryLayout& layout, GuestAddress address) {
    return static_cast<std::size_t>(offset_of(layout, address) / kMemoryChunkBytes);
}

} // namespace

/// The data of one worker.
class MemoryWriter::Worker {
  public:
    explicit Worker(MemoryWriter& writer)
        : writer_(writer), transfers_(writer.file_.direct_fd >= 0 ? writer.file_.direct_fd : writer.file_.fd,
                                      writer.file_.name, writer.file_.direct_fd < 0) {
        if (writer.base_ != nullptr) {
            base_.emplace(*writer.base_);
            content_.resize(kMemoryChunkBytes);
        }
    }

    /// Writes the pages of `chunk` that are not zero, unless the chunk is the same in the base.
    void write_chunk(GuestRange chunk, std::span<const std::byte> bytes) {
        if (leave_to_base(chunk, bytes)) {
            return;
        }
        bool is_hole = true;
        for_each_run(
            chunk.size,
            [&](std::uint64_t page) {
                return !is_zero(bytes.subspan(page * WriteLog::kPageBytes, WriteLog::kPageBytes));
            },
            [&](std::uint64_t offset, std::uint64_t size) {
                is_hole = false;
                write({GuestAddress{to_integer(chunk.base) + offset}, size}, bytes.subspan(offset, size));
            });
        if (!is_hole) {
            finish(chunk, bytes);
        } else {
            writer_.index_[chunk_of(writer_.layout_, chunk.base)] = {};
        }
    }

    void write(GuestRange part, std::span<const std::byte> bytes) {
        transfers_.write(offset_of(writer_.layout_, part.base), bytes);
        writer_.written_bytes_ += bytes.size();
    }
    void finish(GuestRange chunk, std::span<const std::byte> bytes) {
        transfers_.finish();
        writer_.index_[chunk_of(writer_.layout_, chunk.base)] = {.is_hole = false, .crc32c = crc32c(bytes)};
    }

  private:
    /// Leaves the chunk to the base if its content is the same there. Equal checksums do not prove this, so the content
    /// is compared.
    bool leave_to_base(GuestRange chunk, std::span<const std::byte> bytes) {
        const std::size_t index = chunk_of(writer_.layout_, chunk.base);
        if (!base_ || !writer_.is_in_base(index)) {
            return false;
        }
        const MemoryChunk& known = writer_.base_->index[index];
        const std::span<std::byte> there = std::span(content_).first(bytes.size());
        if (known.is_hole || crc32c(bytes) != known.crc32c || !base_->read(index, there) ||
            std::memcmp(there.data(), bytes.data(), bytes.size()) != 0) {
            return false;
        }
        writer_.index_[index] = {.is_hole = false, .crc32c = known.crc32c, .file = 1};
        return true;
    }

    MemoryWriter& writer_;
    Transfers transfers_;
    std::optional<ChunkReader> base_;
    std::vector<std::byte> content_; ///< of a chunk of the base
};

MemoryWriter::MemoryWriter(const GuestMemory& memory, const prefault::Placement& placement, const MemoryLayout& layout,
                           const MemoryFile& file, const MemoryMovers& movers, const MemorySource* base)
    : memory_(memory), placement_(placement), layout_(layout), file_(file), movers_(movers), base_(base),
      index_(layout.chunks()) {}

bool MemoryWriter::is_in_base(std::size_t chunk) const {
    return chunk < base_->layout.chunks() && base_->layout.chunk(chunk) == layout_.chunk(chunk);
}

std::uint64_t MemoryWriter::based_bytes() const noexcept {
    std::uint64_t bytes = 0;
    for (std::size_t chunk = 0; chunk < index_.size(); ++chunk) {
        bytes += index_[chunk].file != 0 ? layout_.chunk(chunk).range.size : 0;
    }
    return bytes;
}

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
        if (movers_.before) {
            movers_.before(chunk);
        }
        worker.write_chunk(chunk, memory_.at(chunk).value());
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
            // A chunk that is in the base is not in this file. If it has changed, all of it is written, unless it is
            // again the same as in the base.
            const bool is_based = index_[chunk_of(layout_, chunk.base)].file != 0;
            bool is_clean = true;
            for_each_run(
                chunk.size, [&](std::uint64_t page) { return is_set(pages[i], begin / WriteLog::kPageBytes + page); },
                [&](std::uint64_t offset, std::uint64_t size) {
                    is_clean = false;
                    if (is_based) {
                        return;
                    }
                    worker.write({GuestAddress{to_integer(chunk.base) + offset}, size}, bytes.subspan(offset, size));
                });
            if (!is_clean && is_based) {
                worker.write_chunk(chunk, bytes);
            } else if (!is_clean) {
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
