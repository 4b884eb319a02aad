#include "vmm/migration/page_sender.hpp"

#include <poll.h>
#include <zstd.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <exception>
#include <mutex>
#include <string>
#include <thread>
#include <utility>

#include "kvm/host/error.hpp"
#include "kvm/host/format.hpp"
#include "kvm/host/thread.hpp"
#include "vmm/state/crc32c.hpp"
#include "vmm/state/memory_layout.hpp"

namespace vmm {

namespace {

using Clock = std::chrono::steady_clock;

constexpr std::uint64_t kPagesPerChunk = kMemoryChunkBytes / WriteLog::kPageBytes;
/// So little is sent by the calling thread: to start threads would take longer.
constexpr std::uint64_t kLittle = 512 * kKiB;

/// Threads that are joined at its end, also if not all of them can be made.
struct Crowd {
    Crowd() = default;
    ~Crowd() {
        for (std::thread& thread : threads) {
            thread.join();
        }
    }
    Crowd(const Crowd&) = delete;
    Crowd& operator=(const Crowd&) = delete;

    std::vector<std::thread> threads;
};

} // namespace

/// What belongs to one stream, and to its thread as long as there is one.
class PageSender::Worker {
    struct FreeContext {
        void operator()(ZSTD_CCtx* context) const noexcept { ZSTD_freeCCtx(context); }
    };

    /// Decides whether frames are compressed.
    class CompressionChoice {
      public:
        explicit CompressionChoice(Compression wanted) : wanted_(wanted) {}

        [[nodiscard]] bool compresses() noexcept {
            if (wanted_ != Compression::kAuto) {
                return wanted_ == Compression::kZstd;
            }
            if (left_out_ != 0) {
                --left_out_;
                return false;
            }
            return true;
        }
        void note(std::size_t before, std::size_t after) noexcept {
            // It costs more than it saves unless a quarter is saved.
            if (wanted_ == Compression::kAuto && after > before / 4 * 3) {
                left_out_ = kFramesUntilNextTry;
            }
        }

      private:
        static constexpr unsigned kFramesUntilNextTry = 32;
        Compression wanted_;
        unsigned left_out_ = 0;
    };

  public:
    Worker(PageSender& sender, Stream& stream) : Worker(sender, stream, *stream.channel) {}
    Worker(PageSender& sender, Stream& stream, Channel& channel)
        : sender_(sender), stream_(stream), channel_(channel), choice_(sender.settings_.compression),
          content_(kMostFrameBytes) {
        if (sender.settings_.compression != Compression::kNone) {
            context_.reset(ZSTD_createCCtx());
            if (!context_) {
                throw std::bad_alloc();
            }
            packed_.resize(kMostFrameBytes);
        }
    }

    void send_chunk(const Chunk& chunk, const PageBits& pages, const std::stop_token& stop) {
        const MemoryRegion& region = sender_.memory_.regions()[chunk.region];
        const std::span<std::byte> bytes =
            region.bytes().subspan(chunk.first_page * WriteLog::kPageBytes, chunk.pages * WriteLog::kPageBytes);
        if (sender_.settings_.before) {
            sender_.settings_.before(
                {GuestAddress{to_integer(region.range.base) + chunk.first_page * WriteLog::kPageBytes}, bytes.size()});
        }
        const auto is_wanted = [&](std::uint64_t page) { return is_set(pages[chunk.region], chunk.first_page + page); };
        for_each_run(bytes.size(), is_wanted, [&](std::uint64_t begin, std::uint64_t size) {
            // A run of wanted pages is a sequence of runs that are zero or are not.
            std::uint64_t done = 0;
            while (done < size && !stop.stop_requested()) {
                const auto page_at = [&](std::uint64_t offset) {
                    return bytes.subspan(begin + offset, WriteLog::kPageBytes);
                };
                const bool zero = is_zero(page_at(done));
                std::uint64_t end = done + WriteLog::kPageBytes;
                while (end < size && end - done < kMostFrameBytes && is_zero(page_at(end)) == zero) {
                    end += WriteLog::kPageBytes;
                }
                const std::uint64_t first = chunk.first_page + (begin + done) / WriteLog::kPageBytes;
                const GuestRange range{GuestAddress{to_integer(region.range.base) + first * WriteLog::kPageBytes},
                                       end - done};
                if (!zero) {
                    send_content(chunk.region, first, range, bytes.subspan(begin + done, end - done), stop);
                } else if (may_have_content(chunk.region, first, range.size)) {
                    send_frame(FrameKind::kZero, range, {}, stop);
                }
                sender_.note_progress(end - done);
                done = end;
            }
        });
    }

    void send_sync(std::uint64_t number) {
        FrameHeader header{.kind = FrameKind::kSync, .address = number};
        header.seal();
        channel_.send(header.as_bytes());
        sender_.sent_bytes_ += sizeof header;
    }

  private:
    void send_content(std::size_t region, std::uint64_t first_page, GuestRange range, std::span<const std::byte> live,
                      const std::stop_token& stop) {
        for (std::uint64_t page = first_page; page < first_page + range.size / WriteLog::kPageBytes; ++page) {
            sender_.has_content_[region][static_cast<std::size_t>(page / 64)].fetch_or(std::uint64_t{1} << (page % 64),
                                                                                       std::memory_order_relaxed);
        }
        // The guest may write meanwhile: the checksum has to be that of what is sent.
        const std::span<std::byte> copy = std::span(content_).first(live.size());
        copy_live(copy, live);
        if (context_ && choice_.compresses()) {
            const std::size_t size = ZSTD_compressCCtx(context_.get(), packed_.data(), copy.size() - 1, copy.data(),
                                                       copy.size(), kFastestLevel);
            const bool fits = ZSTD_isError(size) == 0;
            choice_.note(copy.size(), fits ? size : copy.size());
            if (fits) {
                send_frame(FrameKind::kZstd, range, std::span(packed_).first(size), stop);
                return;
            }
        }
        send_frame(FrameKind::kRaw, range, copy, stop);
    }

    void send_frame(FrameKind kind, GuestRange range, std::span<const std::byte> payload, const std::stop_token& stop) {
        FrameHeader header{.kind = kind,
                           .address = to_integer(range.base),
                           .bytes = static_cast<std::uint32_t>(range.size),
                           .payload_bytes = static_cast<std::uint32_t>(payload.size()),
                           .payload_crc32c = crc32c(payload)};
        header.seal();
        const std::array pieces{header.as_bytes(), payload};
        stream_.frames.push_back(range); // Before it is sent, because a part of it may arrive.
        channel_.send(std::span(pieces).first(payload.empty() ? 1 : 2));
        sender_.sent_bytes_ += sizeof header + payload.size();
        sender_.content_bytes_ += kind == FrameKind::kZero ? 0 : range.size;
        sender_.pace_.wait_after(sizeof header + payload.size(), stop);
    }

    [[nodiscard]] bool may_have_content(std::size_t region, std::uint64_t first_page, std::uint64_t bytes) const {
        for (std::uint64_t page = first_page; page < first_page + bytes / WriteLog::kPageBytes; ++page) {
            const std::uint64_t word =
                sender_.has_content_[region][static_cast<std::size_t>(page / 64)].load(std::memory_order_relaxed);
            if ((word >> (page % 64) & 1U) != 0) {
                return true;
            }
        }
        return false;
    }

    static constexpr int kFastestLevel = 1;

    PageSender& sender_;
    Stream& stream_;
    Channel& channel_;
    CompressionChoice choice_;
    std::vector<std::byte> content_;
    std::vector<std::byte> packed_;
    std::unique_ptr<ZSTD_CCtx, FreeContext> context_; ///< null: nothing is compressed
};

PageSender::PageSender(const GuestMemory& memory, Settings settings)
    : memory_(memory), settings_(std::move(settings)), pace_(settings_.bytes_per_second) {
    for (const std::vector<std::uint64_t>& region : no_pages(memory.regions())) {
        has_content_.emplace_back(region.size());
    }
}

PageSender::~PageSender() = default;

void PageSender::use(std::vector<std::unique_ptr<Channel>> streams) {
    workers_.clear();
    streams_.resize(streams.size());
    for (std::size_t i = 0; i < streams.size(); ++i) {
        streams_[i].channel = std::move(streams[i]);
    }
    for (Stream& stream : streams_) {
        workers_.push_back(std::make_unique<Worker>(*this, stream));
    }
}

void PageSender::set_patience(std::chrono::milliseconds patience) noexcept {
    for (const Stream& stream : streams_) {
        stream.channel->set_patience(patience);
    }
}

bool PageSender::is_cut() const noexcept {
    return std::ranges::any_of(streams_, [](const Stream& stream) {
        pollfd watched{stream.channel->fd(), POLLIN | POLLRDHUP, 0};
        return ::poll(&watched, 1, 0) > 0;
    });
}

void PageSender::shut_down() noexcept {
    for (const Stream& stream : streams_) {
        stream.channel->shut_down();
    }
}

std::vector<PageSender::Chunk> PageSender::chunks_of(const PageBits& pages) const {
    std::vector<Chunk> chunks;
    const std::span<const MemoryRegion> regions = memory_.regions();
    for (std::size_t region = 0; region < pages.size(); ++region) {
        const std::uint64_t all = regions[region].range.size / WriteLog::kPageBytes;
        for (std::uint64_t first = 0; first < all; first += kPagesPerChunk) {
            const std::uint64_t count = std::min(kPagesPerChunk, all - first);
            const auto begin = pages[region].begin() + static_cast<std::ptrdiff_t>(first / 64);
            const auto words = static_cast<std::ptrdiff_t>((count + 63) / 64);
            if (std::any_of(begin, begin + words, [](std::uint64_t word) { return word != 0; })) {
                chunks.push_back({region, first, count});
            }
        }
    }
    return chunks;
}

bool PageSender::send(const PageBits& pages, std::uint64_t number, const std::stop_token& stop) {
    const std::vector<Chunk> chunks = chunks_of(pages);
    next_chunk_ = 0;
    done_bytes_ = 0;
    total_bytes_ = bytes_of(pages);
    if (total_bytes_ <= kLittle) {
        for (const Chunk& chunk : chunks) {
            workers_.front()->send_chunk(chunk, pages, stop);
        }
    } else {
        run(workers_, pages, chunks, stop);
    }
    if (stop.stop_requested()) {
        return false;
    }
    for (const std::unique_ptr<Worker>& worker : workers_) {
        worker->send_sync(number);
    }
    return true;
}

void PageSender::run(std::vector<std::unique_ptr<Worker>>& workers, const PageBits& pages,
                     const std::vector<Chunk>& chunks, const std::stop_token& stop) {
    std::mutex failing;
    std::exception_ptr first_failure;
    const auto note_failure = [&] {
        const std::lock_guard hold(failing);
        if (!first_failure) {
            first_failure = std::current_exception();
            next_chunk_ = chunks.size();
        }
    };
    const auto work = [&](std::size_t index) noexcept {
        try {
            for (std::size_t next = next_chunk_++; next < chunks.size() && !stop.stop_requested();
                 next = next_chunk_++) {
                workers[index]->send_chunk(chunks[next], pages, stop);
            }
        } catch (const LinkError&) {
            note_failure();
            shut_down(); // The others may wait for a peer that takes nothing any more.
        } catch (...) {  // The other end must hear of it before it sees that streams end.
            note_failure();
        }
    };
    {
        Crowd others;
        for (std::size_t index = 1; index < workers.size(); ++index) {
            others.threads.push_back(start_thread("a stream of a migration", [&work, index] { work(index); }));
        }
        work(0);
    }
    if (first_failure) {
        std::rethrow_exception(first_failure);
    }
}

void PageSender::note_progress(std::uint64_t bytes) {
    if (!settings_.progress) {
        return;
    }
    const std::lock_guard hold(progress_lock_);
    done_bytes_ += bytes;
    const Clock::time_point now = Clock::now();
    if (now - told_ >= std::chrono::milliseconds(100)) {
        told_ = now;
        settings_.progress(std::min(done_bytes_, total_bytes_), total_bytes_);
    }
}

void PageSender::serve(Channel& channel, const std::stop_token& stop) {
    Stream stream;
    Worker worker(*this, stream, channel);
    const std::span<const MemoryRegion> regions = memory_.regions();
    PageBits wanted = no_pages(regions);
    while (!stop.stop_requested()) {
        FrameHeader ask;
        channel.receive(std::as_writable_bytes(std::span(&ask, 1)));
        ask.check(channel.name());
        std::size_t region = 0;
        while (region < regions.size() && !regions[region].range.contains(ask.range())) {
            ++region;
        }
        if (ask.kind != FrameKind::kAsk || region == regions.size()) {
            throw Error(channel.name() + " asks for memory that there is not");
        }
        const std::uint64_t first =
            (to_integer(ask.range().base) - to_integer(regions[region].range.base)) / WriteLog::kPageBytes;
        const std::uint64_t count = ask.range().size / WriteLog::kPageBytes;
        set_pages(wanted[region], first, count, true);
        worker.send_chunk({region, first, count}, wanted, stop);
        worker.send_sync(ask.address);
        set_pages(wanted[region], first, count, false);
        stream.frames.clear();
    }
}

void PageSender::note_synced() noexcept {
    for (Stream& stream : streams_) {
        stream.synced_frames += stream.frames.size();
        stream.frames.clear();
    }
}

PageBits PageSender::missing(const PageBits& pages, std::span<const std::uint64_t> applied_frames) {
    PageBits left = pages;
    if (applied_frames.size() != streams_.size()) {
        throw Error(vmm::format("the destination speaks of {} streams of pages, and there are {}",
                                applied_frames.size(), streams_.size()));
    }
    const std::span<const MemoryRegion> regions = memory_.regions();
    for (std::size_t i = 0; i < streams_.size(); ++i) {
        Stream& stream = streams_[i];
        if (applied_frames[i] < stream.synced_frames ||
            applied_frames[i] - stream.synced_frames > stream.frames.size()) {
            throw Error("the destination speaks of pages that it was never sent");
        }
        const auto applied = static_cast<std::size_t>(applied_frames[i] - stream.synced_frames);
        for (const GuestRange& frame : std::span(stream.frames).first(applied)) {
            for (std::size_t region = 0; region < regions.size(); ++region) {
                if (regions[region].range.contains(frame)) {
                    const std::uint64_t offset = to_integer(frame.base) - to_integer(regions[region].range.base);
                    set_pages(left[region], offset / WriteLog::kPageBytes, frame.size / WriteLog::kPageBytes, false);
                }
            }
        }
        stream.synced_frames = applied_frames[i];
        stream.frames.clear();
    }
    return left;
}

} // namespace vmm
