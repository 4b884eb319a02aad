#include "devices/virtio/block.hpp"

#include <fcntl.h>
#include <linux/falloc.h>
#include <sys/epoll.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cassert>
#include <cerrno>
#include <cstring>
#include <string_view>
#include <utility>

#include "devices/virtio/driver_link.hpp"
#include "kvm/host/error.hpp"

namespace vmm::devices::virtio {

namespace {

// Feature bits (5.2.3).
constexpr std::uint64_t kSegMax = 1ULL << 2;
constexpr std::uint64_t kReadOnly = 1ULL << 5;
constexpr std::uint64_t kBlkSize = 1ULL << 6;
constexpr std::uint64_t kFlush = 1ULL << 9;
constexpr std::uint64_t kTopology = 1ULL << 10;
constexpr std::uint64_t kMultiQueue = 1ULL << 12;
constexpr std::uint64_t kDiscard = 1ULL << 13;
constexpr std::uint64_t kWriteZeroes = 1ULL << 14;

// Types of requests (5.2.6).
constexpr std::uint32_t kTypeIn = 0;
constexpr std::uint32_t kTypeOut = 1;
constexpr std::uint32_t kTypeFlush = 4;
constexpr std::uint32_t kTypeGetId = 8;
constexpr std::uint32_t kTypeDiscard = 11;
constexpr std::uint32_t kTypeWriteZeroes = 13;

constexpr std::size_t kIdBytes = 20;
constexpr std::uint32_t kUnmap = 1;

/// The beginning of every request.
struct Header {
    std::uint32_t type;
    std::uint32_t reserved;
    std::uint64_t sector;
};
static_assert(sizeof(Header) == 16);

/// The range of a discard or write-zeroes request.
struct Segment {
    std::uint64_t sector;
    std::uint32_t sectors;
    std::uint32_t flags;
};
static_assert(sizeof(Segment) == 16);

/// The configuration space (5.2.4). All its fields are naturally aligned.
struct Config {
    std::uint64_t capacity = 0; ///< in sectors
    std::uint32_t size_max = 0;
    std::uint32_t seg_max = 0;
    std::uint16_t cylinders = 0;
    std::uint8_t heads = 0;
    std::uint8_t sectors = 0;
    std::uint32_t blk_size = 0;
    std::uint8_t physical_block_exp = 0;
    std::uint8_t alignment_offset = 0;
    std::uint16_t min_io_size = 0; ///< in blocks
    std::uint32_t opt_io_size = 0; ///< in blocks
    std::uint8_t writeback = 0;
    std::uint8_t unused0 = 0;
    std::uint16_t num_queues = 0;
    std::uint32_t max_discard_sectors = 0;
    std::uint32_t max_discard_seg = 0;
    std::uint32_t discard_sector_alignment = 0;
    std::uint32_t max_write_zeroes_sectors = 0;
    std::uint32_t max_write_zeroes_seg = 0;
    std::uint8_t write_zeroes_may_unmap = 0;
    std::array<std::uint8_t, 3> unused1{};
};
static_assert(sizeof(Config) == 64);
constexpr std::size_t kConfigBytes = 60; // Without the padding at the end.

constexpr std::uint64_t kSector = DiskImage::kSectorBytes;
using Clock = std::chrono::steady_clock;
/// How long the thread looks for more requests before it sleeps.
constexpr std::chrono::microseconds kLinger{50};
/// The longest turn before other descriptors have theirs.
constexpr std::chrono::milliseconds kLongestTurn{2};
/// The number of requests that each queue may always have, whatever the others have.
constexpr unsigned kCertainRequests = 8;
static_assert(16 * kCertainRequests <= Block::kMostOperations);
/// How often an operation that the host did not begin (EINTR, EAGAIN) is submitted again.
constexpr unsigned kMostRetries = 1000;

/// Zeroes to write if the file system cannot make a range zero itself.
constexpr std::size_t kZeroBytes = 64 * 1024;
constexpr std::size_t kZeroPieces = 16;
alignas(4096) std::array<std::byte, kZeroBytes> g_zeroes{}; // Never written; not const because an iovec is not.

} // namespace

/// One request of the driver, while the device has it.
struct Block::Request {
    enum class Kind { kRead, kWrite, kFlush, kDiscard, kWriteZeroes };
    Kind kind = Kind::kFlush;
    std::uint64_t token = 0; ///< its place in requests_
    std::uint16_t queue = 0;
    std::uint32_t life = 0; ///< of its queue
    Chain chain;
    std::byte* status = nullptr;       ///< the last writable byte
    std::vector<iovec> pieces;         ///< the rest of the transfer; no piece is longer than an operation may be
    std::size_t next_piece = 0;        ///< the first of them that is not done
    std::uint64_t offset = 0;          ///< in the file, of the next byte
    std::uint64_t left = 0;            ///< bytes still to be done
    std::uint64_t total = 0;           ///< bytes of the request
    std::uint64_t operation_bytes = 0; ///< of the operation that is with the host
    unsigned retries = 0;              ///< how often the host was interrupted without progress
    bool by_hand = false;              ///< zeroes are written, because the host cannot make them
    bool writes_zeroes = false;        ///< the operation that is with the host writes zeroes
    int allocate_mode = 0;
    std::array<iovec, kZeroPieces> zeroes{};

    /// The request's action as a word, e.g. "reading".
    [[nodiscard]] std::string_view action() const noexcept {
        switch (kind) {
        case Kind::kRead:
            return "reading";
        case Kind::kWrite:
            return "writing";
        case Kind::kFlush:
            return "flushing";
        case Kind::kDiscard:
            return "discarding";
        case Kind::kWriteZeroes:
            return "zeroing";
        }
        return "";
    }
};

namespace {

/// A size of a disk that differs from any other size as text: "64 MiB", "1.50 GiB (1610613248 bytes)". `sectors` may
/// have any value.
std::string size_of(std::uint64_t sectors) {
    if (sectors > UINT64_MAX / DiskImage::kSectorBytes) {
        return std::to_string(sectors) + " sectors";
    }
    const std::uint64_t bytes = sectors * DiskImage::kSectorBytes;
    const std::string text = format_bytes(bytes);
    return text.find('.') == std::string::npos ? text : text + " (" + std::to_string(bytes) + " bytes)";
}

} // namespace

Block::Block(std::string name, DiskImage image, BlockConfig config, const BlockState& state)
    : Block(std::move(name), std::move(image), nullptr, std::move(config), state) {}

Block::Block(std::string name, DiskImage image, std::unique_ptr<DiskIo> io, BlockConfig config, const BlockState& state)
    : image_(std::move(image)), config_(std::move(config)),
      io_(std::move(io)), changed_{state.unflushed_begin, state.unflushed_end}, data_lost_(state.data_lost) {
    if (state.sectors != 0 && state.sectors != image_.sectors()) {
        throw Error("cannot restore the disk " + image_.path() + ": it has " + size_of(image_.sectors()) +
                    ", and had " + size_of(state.sectors) + " when its state was saved (take the same disk)");
    }
    assert(config_.queues >= 1 && config_.queues <= 16 && config_.id.size() <= kIdBytes);
    if (!io_) {
        DiskIoChoice choice = make_disk_io(image_, kMostOperations, config_.io);
        io_ = std::move(choice.io);
        if (!choice.why_threads.empty() && config_.warn) {
            config_.warn("the disk " + image_.path() +
                         " goes without io_uring, through threads, which is slower: " + choice.why_threads);
        }
    }
    identity_.id = DeviceId::kBlock;
    identity_.name = std::move(name);
    identity_.queue_sizes.assign(config_.queues, kQueueSize);
    identity_.features = kSegMax | kBlkSize | kFlush | kTopology | (config_.queues > 1 ? kMultiQueue : 0) |
                         (image_.is_read_only() ? kReadOnly : kDiscard | kWriteZeroes);
    build_config(config_);
    for (unsigned i = 0; i < kMostOperations; ++i) {
        free_.push_back(requests_.emplace_back(std::make_unique<Request>()).get());
        free_.back()->token = i;
    }
}

Block::~Block() = default;

void Block::build_config(const BlockConfig& config) {
    Config space;
    const std::uint32_t block = image_.logical_block_bytes();
    space.capacity = image_.sectors();
    space.seg_max = kQueueSize - 2; // The header and the status need the other two.
    space.blk_size = block;
    space.physical_block_exp = static_cast<std::uint8_t>(std::bit_width(DiskImage::physical_block_bytes() / block) - 1);
    space.min_io_size = 1;
    space.num_queues = static_cast<std::uint16_t>(config.queues);
    if (!image_.is_read_only()) {
        space.max_discard_sectors = kMostSectors;
        space.max_discard_seg = 1;
        space.discard_sector_alignment = DiskImage::physical_block_bytes() / static_cast<std::uint32_t>(kSector);
        space.max_write_zeroes_sectors = kMostSectors;
        space.max_write_zeroes_seg = 1;
        space.write_zeroes_may_unmap = 1;
    }
    identity_.config.resize(kConfigBytes);
    std::memcpy(identity_.config.data(), &space, kConfigBytes);
}

// ---- The device's life

void Block::activate(Activation activation, DriverLink& driver) {
    assert(is_idle());
    queues_.clear();
    for (std::optional<Queue>& queue : activation.queues) {
        queues_.push_back({std::move(queue)});
    }
    write_through_ = (activation.features & kFlush) == 0;
    driver_ = &driver;
    moderation_.reset();
    pushed_ = 0;
    pushed_small_ = false;
    begun_bytes_ = 0;
    stopping_ = false;
    failed_ = false;
    if (!std::exchange(buffers_offered_, true) && config_.pinned_memory) {
        const std::vector<std::span<std::byte>> pinned = config_.pinned_memory();
        if (!pinned.empty() && !io_->register_buffers(pinned) && config_.warn) {
            config_.warn("the disk " + image_.path() + " does without fixed buffers: " +
                         (io_->kind() == DiskIoKind::kThreads
                              ? "its I/O goes through threads, which know none"
                              : "the kernel does not register guest memory with its io_uring (raise `ulimit -l`)"));
        }
    }
    interrupt_if_wanted(); // For requests that an earlier device has given back.
    serve();
}

std::vector<Source> Block::sources() const {
    return {another_turn_.source(), alarm_.source(), {io_->fd(), EPOLLIN}};
}

void Block::doorbell(std::uint16_t index) {
    if (driver_ != nullptr && !stopping_ && index < queues_.size()) {
        serve();
    }
}

void Block::ready(int fd, std::uint32_t /*events*/) {
    another_turn_.take(fd);
    alarm_.take(fd);
    if (driver_ != nullptr) {
        serve();
    }
}

void Block::stop() {
    if (std::exchange(stopping_, true) || driver_ == nullptr) {
        return;
    }
    paused_ = false;
    drop_unwanted();
    io_->abandon();
    reap();
}

bool Block::is_idle() const noexcept {
    return free_.size() == requests_.size();
}

void Block::stop_queue(std::uint16_t index) {
    if (index < queues_.size()) {
        queues_[index].queue.reset();
        ++queues_[index].life;
        drop_unwanted();
    }
}

bool Block::is_queue_idle(std::uint16_t index) const noexcept {
    return index >= queues_.size() || queues_[index].work == 0;
}

void Block::restart_queue(std::uint16_t index, Queue queue) {
    if (index < queues_.size()) {
        queues_[index].queue = std::move(queue);
        serve();
    }
}

void Block::pause() {
    paused_ = true;
    if (driver_ != nullptr) {
        serve();
    }
}

void Block::resume() {
    paused_ = false;
    if (driver_ != nullptr) {
        serve();
    }
}

std::vector<std::optional<Queue::State>> Block::queue_states() const {
    std::vector<std::optional<Queue::State>> states;
    for (const ServedQueue& served : queues_) {
        states.push_back(served.queue ? std::optional(served.queue->state()) : std::nullopt);
    }
    return states;
}

DeviceState Block::state() const {
    ByteRange unflushed = being_flushed_;
    unflushed.add(changed_);
    return BlockState{image_.sectors(), data_lost_, unflushed.begin, unflushed.end};
}

Block::Statistics Block::statistics() const noexcept {
    return {reads_.load(std::memory_order_relaxed), writes_.load(std::memory_order_relaxed),
            flushes_.load(std::memory_order_relaxed), errors_.load(std::memory_order_relaxed),
            operations_.load(std::memory_order_relaxed)};
}

// ---- Turns

/// Serves all queues until nothing has come for a while, then asks the driver for its next doorbell. If much comes, it
/// costs less to look a few times than to sleep and be woken. The device sleeps while large requests are copied,
/// because the kernel's threads that copy them need the processor.
void Block::serve() {
    const auto begin = Clock::now();
    auto last = begin;
    for (auto now = begin; now - begin < kLongestTurn; now = Clock::now()) {
        const unsigned taken = take_all();
        if (taken != 0) {
            moderation_.took(now, taken, std::exchange(begun_bytes_, 0));
        }
        submit();
        const bool completed = reap(); // Reads from the page cache have come back already.
        if (pushed_ != 0) {
            moderation_.finished(now, std::exchange(pushed_, 0), std::exchange(pushed_small_, false));
        }
        if (moderation_.is_due(now, under_way()) || (paused_ && moderation_.holds_any())) {
            notify(now);
        }
        if (taken != 0 || completed) {
            last = now;
        } else if (now - last >= linger()) {
            // With several queues it is unknown to which of them the next requests will go.
            const unsigned requests = queues_.size() == 1 ? moderation_.doorbell_after(now) : 1;
            if (!ask_for_doorbells(requests)) {
                if (moderation_.holds_any() || requests > 1) {
                    alarm_.set(moderation_.deadline());
                }
                return;
            }
        }
    }
    another_turn_.ask();
}

/// The number of requests that are taken and not done.
unsigned Block::under_way() const noexcept {
    return static_cast<unsigned>(requests_.size() - free_.size());
}

/// How long to look for more requests before sleeping. For small requests that is as long as an interrupt may be held.
Clock::duration Block::linger() const noexcept {
    return moderation_.is_for_sleeping() ? Clock::duration::zero()
                                         : std::max<Clock::duration>(kLinger, moderation_.patience());
}

/// Asks each queue for a doorbell with its `requests`-th request. Returns true if requests wait already that no
/// doorbell will announce. A queue that may not have more requests under way is not asked; it is checked when an
/// operation comes back.
bool Block::ask_for_doorbells(unsigned requests) {
    bool more = false;
    for (std::uint16_t index = 0; index < queue_count(); ++index) {
        std::optional<Queue>& queue = queues_[index].queue;
        if (!stopping_ && !failed_ && !paused_ && queue && may_take(index)) {
            const auto within = static_cast<std::uint16_t>(std::min<unsigned>(requests, queue->size()));
            more = queue->ask_for_doorbell(within) || more;
        }
    }
    return more;
}

/// True if there is room for one more request of that queue. The certain requests of the other queues keep their room.
bool Block::may_take(std::uint16_t index) const noexcept {
    std::size_t kept = 0;
    for (std::uint16_t other = 0; other < queue_count(); ++other) {
        const ServedQueue& served = queues_[other];
        if (other != index && served.queue && served.work < kCertainRequests) {
            kept += kCertainRequests - served.work;
        }
    }
    return free_.size() > kept;
}

/// Begins requests from the queues, as far as there is room. Returns their number.
unsigned Block::take_all() {
    unsigned taken = 0;
    for (std::uint16_t index = 0; index < queue_count() && !stopping_ && !failed_ && !paused_; ++index) {
        if (queues_[index].queue) {
            taken += take_all_of(index);
        }
    }
    return taken;
}

unsigned Block::take_all_of(std::uint16_t index) {
    Queue& queue = *queues_[index].queue;
    queue.suppress_doorbells();
    unsigned taken = 0;
    while (taken < kMostOperations && may_take(index) && !failed_) {
        Request& request = *free_.back();
        switch (queue.pop(request.chain)) {
        case Queue::Pop::kBroken:
            driver_->fail(queue.why());
            failed_ = true;
            return taken;
        case Queue::Pop::kEmpty:
            return taken;
        case Queue::Pop::kChain:
            free_.pop_back();
            request.queue = index;
            request.life = queues_[index].life;
            ++queues_[index].work;
            ++taken;
            begin(request);
            break;
        }
    }
    return taken;
}

void Block::submit() {
    if (!io_->submit()) {
        another_turn_.ask();
    }
}

void Block::notify(Clock::time_point now) {
    moderation_.told(now, under_way());
    if (!stopping_) {
        interrupt_if_wanted();
    }
}

void Block::interrupt_if_wanted() {
    QueueSet wanted;
    for (std::uint16_t index = 0; index < queue_count(); ++index) {
        if (queues_[index].queue && queues_[index].queue->wants_interrupt()) {
            wanted.add(index);
        }
    }
    driver_->notify(wanted);
}

bool Block::reap() {
    std::array<DiskIo::Completion, 64> completions;
    bool any = false;
    for (std::size_t count = completions.size(); count == completions.size();) {
        count = io_->reap(completions);
        any = any || count != 0;
        for (std::size_t i = 0; i < count; ++i) {
            complete(*requests_[completions[i].token], completions[i].result);
        }
    }
    submit(); // The next parts of requests that are not finished.
    return any;
}

// ---- One request

void Block::begin(Request& request) {
    request.pieces.clear();
    request.next_piece = 0;
    request.by_hand = false;
    request.writes_zeroes = false;
    request.retries = 0;
    request.total = 0;
    const Chain& chain = request.chain;
    // NOLINTNEXTLINE(modernize-use-ranges): what is found is compared with rend().
    const auto last = std::find_if(chain.writable.rbegin(), chain.writable.rend(),
                                   [](std::span<std::byte> buffer) { return !buffer.empty(); });
    if (last == chain.writable.rend()) { // There is no byte for a status.
        request.status = nullptr;
        driver_->fail("a request without a writable byte for its status (virtio 1.2, 5.2.6)");
        failed_ = true;
        finish(request, Status::kIoError);
        return;
    }
    request.status = &last->back();
    Header header{};
    if (copy_from(chain, 0, std::as_writable_bytes(std::span(&header, 1))) != sizeof(header)) {
        finish(request, Status::kIoError);
        return;
    }
    switch (header.type) {
    case kTypeIn:
        begin_transfer(request, false, header.sector);
        return;
    case kTypeOut:
        begin_transfer(request, true, header.sector);
        return;
    case kTypeFlush:
        flushes_.fetch_add(1, std::memory_order_relaxed);
        request.kind = Request::Kind::kFlush;
        flush(request);
        return;
    case kTypeGetId:
        give_id(request);
        return;
    case kTypeDiscard:
    case kTypeWriteZeroes:
        begin_range(request, header.type);
        return;
    default:
        finish(request, Status::kUnsupported);
        return;
    }
}

void Block::begin_transfer(Request& request, bool write, std::uint64_t sector) {
    request.kind = write ? Request::Kind::kWrite : Request::Kind::kRead;
    const Chain& chain = request.chain;
    // The header comes before the data of a write, and the status after the data of a read.
    const std::uint64_t bytes = write ? chain.readable_bytes - sizeof(Header) : chain.writable_bytes - 1;
    const std::uint64_t sectors = bytes / kSector;
    if (bytes % kSector != 0 || (write && image_.is_read_only()) || sector > image_.sectors() ||
        sectors > image_.sectors() - sector) {
        finish(request, Status::kIoError);
        return;
    }
    (write ? writes_ : reads_).fetch_add(1, std::memory_order_relaxed);
    request.offset = sector * kSector;
    request.left = request.total = bytes;
    begun_bytes_ += bytes;
    std::uint64_t skip = write ? sizeof(Header) : 0;
    std::uint64_t left = bytes;
    for (const std::span<std::byte> buffer : write ? chain.readable : chain.writable) {
        const std::uint64_t skipped = std::min<std::uint64_t>(skip, buffer.size());
        skip -= skipped;
        const std::uint64_t count = std::min<std::uint64_t>(left, buffer.size() - skipped);
        if (count == 0) {
            continue;
        }
        add_memory(request, bytes - left, {buffer.data() + skipped, count});
        left -= count;
    }
    if (bytes == 0) {
        finish(request, Status::kOk);
        return;
    }
    proceed(request);
}

/// Adds memory to a transfer. The first `before` bytes of the transfer already have memory.
void Block::add_memory(Request& request, std::uint64_t before, std::span<std::byte> memory) {
    while (!memory.empty()) {
        const std::uint64_t within = before % kMostOperationBytes;
        const std::size_t count = std::min<std::uint64_t>(memory.size(), kMostOperationBytes - within);
        iovec* const previous = within != 0 && !request.pieces.empty() ? &request.pieces.back() : nullptr;
        if (previous != nullptr && static_cast<std::byte*>(previous->iov_base) + previous->iov_len == memory.data()) {
            previous->iov_len += count; // The two are adjacent in the guest and here.
        } else {
            request.pieces.push_back({memory.data(), count});
        }
        before += count;
        memory = memory.subspan(count);
    }
}

void Block::begin_range(Request& request, std::uint32_t type) {
    Segment segment{};
    if (image_.is_read_only()) { // 5.2.6.2
        finish(request, type == kTypeDiscard ? Status::kUnsupported : Status::kIoError);
        return;
    }
    // There is one segment, as max_discard_seg and max_write_zeroes_seg say.
    if (request.chain.readable_bytes != sizeof(Header) + sizeof(Segment) ||
        copy_from(request.chain, sizeof(Header), std::as_writable_bytes(std::span(&segment, 1))) != sizeof(segment)) {
        finish(request, Status::kIoError);
        return;
    }
    const std::uint32_t known_flags = type == kTypeWriteZeroes ? kUnmap : 0;
    if ((segment.flags & ~known_flags) != 0) {
        finish(request, Status::kUnsupported);
        return;
    }
    if (segment.sectors > kMostSectors || segment.sector > image_.sectors() ||
        segment.sectors > image_.sectors() - segment.sector) {
        finish(request, Status::kIoError);
        return;
    }
    if (segment.sectors == 0) {
        finish(request, Status::kOk);
        return;
    }
    const bool punch = type == kTypeDiscard || (segment.flags & kUnmap) != 0;
    request.kind = type == kTypeDiscard ? Request::Kind::kDiscard : Request::Kind::kWriteZeroes;
    request.allocate_mode = FALLOC_FL_KEEP_SIZE | (punch ? FALLOC_FL_PUNCH_HOLE : FALLOC_FL_ZERO_RANGE);
    request.offset = segment.sector * kSector;
    request.left = request.total = segment.sectors * kSector;
    if (request.kind == Request::Kind::kDiscard) { // A block that is only partly in the range is not discarded.
        const std::uint64_t block = image_.allocate_alignment();
        const std::uint64_t end = (request.offset + request.left) / block * block;
        request.offset = (request.offset + block - 1) / block * block;
        if (request.offset >= end) {
            finish(request, Status::kOk);
            return;
        }
        request.left = end - request.offset;
    }
    proceed(request);
}

void Block::give_id(Request& request) {
    std::array<char, kIdBytes> id{};
    config_.id.copy(id.data(), id.size());
    const std::uint64_t room = std::min<std::uint64_t>(request.chain.writable_bytes - 1, id.size());
    const std::size_t count = copy_to(request.chain, 0, std::as_bytes(std::span(id)).first(room));
    finish(request, Status::kOk, count);
}

/// True if the driver still waits for the request.
bool Block::is_wanted(const Request& request) const noexcept {
    return !stopping_ && request.life == queues_[request.queue].life;
}

bool Block::has_room(const ServedQueue& queue, std::uint64_t bytes) const noexcept {
    const std::uint64_t part = std::max(kMostBytesAtOnce / queues_.size(), kMostOperationBytes);
    return queue.bytes == 0 || (queue.bytes < part && bytes <= part - queue.bytes);
}

/// Gives the next part of a request to the host, when it is its turn.
void Block::proceed(Request& request) {
    ServedQueue& queue = queues_[request.queue];
    if (!queue.waiting.empty() || !has_room(queue, std::min(request.left, kMostOperationBytes))) {
        queue.waiting.push_back(&request);
        return;
    }
    start_operation(request);
}

void Block::start_waiting(ServedQueue& queue) {
    while (!queue.waiting.empty() && has_room(queue, std::min(queue.waiting.front()->left, kMostOperationBytes))) {
        Request& next = *queue.waiting.front();
        queue.waiting.pop_front();
        start_operation(next);
    }
}

void Block::start_operation(Request& request) {
    operations_.fetch_add(1, std::memory_order_relaxed);
    std::uint64_t bytes = 0;
    request.writes_zeroes = false;
    if (request.kind == Request::Kind::kRead || request.kind == Request::Kind::kWrite) {
        const std::span<const iovec> left = std::span(request.pieces).subspan(request.next_piece);
        std::size_t count = 0;
        while (count < std::min(left.size(), DiskIo::kMostPieces) &&
               left[count].iov_len <= kMostOperationBytes - bytes) {
            bytes += left[count++].iov_len;
        }
        if (request.kind == Request::Kind::kWrite) {
            io_->write(request.token, request.offset, left.first(count));
        } else {
            io_->read(request.token, request.offset, left.first(count));
        }
    } else {
        const std::uint64_t block = image_.allocate_alignment();
        const std::uint64_t within = request.offset % block;
        bytes = std::min(request.left, kMostOperationBytes);
        if (request.by_hand || within != 0 || bytes < block) {
            request.writes_zeroes = true;
            bytes = std::min(bytes, request.by_hand ? kZeroBytes * kZeroPieces : block - within);
            std::size_t count = 0;
            for (std::uint64_t left = bytes; left != 0; ++count) {
                request.zeroes[count] = {g_zeroes.data(), std::min<std::uint64_t>(left, g_zeroes.size())};
                left -= request.zeroes[count].iov_len;
            }
            io_->write(request.token, request.offset, std::span(request.zeroes).first(count));
        } else {
            bytes = bytes / block * block;
            io_->allocate(request.token, request.allocate_mode, request.offset, bytes);
        }
    }
    request.operation_bytes = bytes;
    queues_[request.queue].bytes += bytes;
    if (request.kind != Request::Kind::kRead) {
        changed_.add({request.offset, request.offset + bytes});
    }
}

/// Drops requests that are not with the host and that the driver no longer waits for.
void Block::drop_unwanted() {
    std::vector<Request*> dropped;
    const auto take_from = [&](auto& list) {
        const auto rest = std::stable_partition(list.begin(), list.end(),
                                                [this](const Request* request) { return is_wanted(*request); });
        dropped.insert(dropped.end(), rest, list.end());
        list.erase(rest, list.end());
    };
    for (ServedQueue& queue : queues_) {
        take_from(queue.waiting);
    }
    take_from(flush_waiters_);
    for (Request* const request : dropped) {
        finish(*request, Status::kOk);
    }
}

/// Advances a request by `bytes`.
void Block::advance(Request& request, std::uint64_t bytes) {
    request.offset += bytes;
    request.left -= bytes;
    while (!request.pieces.empty() && bytes != 0) {
        iovec& piece = request.pieces[request.next_piece];
        const std::size_t count = std::min<std::uint64_t>(bytes, piece.iov_len);
        piece.iov_base = static_cast<std::byte*>(piece.iov_base) + count;
        piece.iov_len -= count;
        bytes -= count;
        request.next_piece += piece.iov_len == 0 ? 1 : 0;
    }
}

/// Handles the host's answer to an operation.
void Block::complete(Request& request, int result) {
    if (!flushing_.empty() && flushing_.front() == &request) {
        complete_flush(result);
        return;
    }
    ServedQueue& queue = queues_[request.queue];
    queue.bytes -= request.operation_bytes;
    if (request.kind != Request::Kind::kRead) { // Added again, because a flush may have begun meanwhile.
        changed_.add({request.offset, request.offset + request.operation_bytes});
    }
    if (is_wanted(request)) {
        complete_operation(request, result);
    } else {
        finish(request, Status::kOk); // The driver is not told.
    }
    if (!stopping_) {
        start_waiting(queue);
    }
}

void Block::complete_operation(Request& request, int result) {
    if ((result == -EINTR || result == -EAGAIN) && request.retries < kMostRetries) {
        ++request.retries;
        proceed(request);
        return;
    }
    const bool ranges = request.kind == Request::Kind::kDiscard ||
                        (request.kind == Request::Kind::kWriteZeroes && !request.writes_zeroes);
    const bool unable = result == -EOPNOTSUPP || result == -ENOSYS || result == -ENODEV || result == -EINVAL;
    if (ranges && unable) {
        if (request.kind == Request::Kind::kDiscard) {
            done(request); // A discard is only a hint, so doing nothing is allowed.
        } else {
            request.by_hand = true;
            proceed(request);
        }
        return;
    }
    if (ranges && result == 0) {
        result = static_cast<int>(request.operation_bytes);
    } else if (result == 0) { // The file ends before the disk does: somebody made it shorter.
        result = -EIO;
    }
    if (result < 0) {
        warn(request, -result);
        finish(request, Status::kIoError);
        return;
    }
    request.retries = 0;
    advance(request, static_cast<std::uint64_t>(result));
    if (request.left != 0) {
        proceed(request);
        return;
    }
    done(request);
}

/// Handles a request all of whose bytes are done.
void Block::done(Request& request) {
    if (request.kind == Request::Kind::kRead) {
        finish(request, Status::kOk, request.total);
    } else if (write_through_ && request.kind != Request::Kind::kDiscard) { // It must be on stable storage, too.
        flush(request);
    } else {
        finish(request, Status::kOk);
    }
}

// ---- Flushes

/// Finishes a request after a flush that begins from now on.
void Block::flush(Request& request) {
    if (data_lost_) {
        finish(request, Status::kIoError);
        return;
    }
    flush_waiters_.push_back(&request);
    if (flushing_.empty()) {
        start_flush();
    }
}

void Block::start_flush() {
    flushing_.swap(flush_waiters_);
    flushing_.front()->retries = 0;
    being_flushed_.add(std::exchange(changed_, ByteRange{}));
    operations_.fetch_add(1, std::memory_order_relaxed);
    io_->flush(flushing_.front()->token);
}

/// An error of a flush counts even if no request waits for it any more, because the kernel reports it only once.
void Block::complete_flush(int result) {
    Request& first = *flushing_.front();
    if ((result == -EINTR || result == -EAGAIN) && first.retries < kMostRetries && !stopping_) {
        ++first.retries;
        io_->flush(first.token);
        return;
    }
    if (result == 0) {
        being_flushed_ = {};
    } else if (result != -ECANCELED && !std::exchange(data_lost_, true)) {
        being_flushed_.add(changed_);
        warn_of_lost_data(-result);
    }
    for (Request* const request : std::exchange(flushing_, {})) {
        finish(*request, result == 0 ? Status::kOk : Status::kIoError);
    }
    if (data_lost_) {
        for (Request* const request : std::exchange(flush_waiters_, {})) {
            finish(*request, Status::kIoError);
        }
    } else if (!flush_waiters_.empty()) {
        start_flush();
    }
}

void Block::finish(Request& request, Status status, std::uint64_t written) {
    if (status != Status::kOk) {
        errors_.fetch_add(1, std::memory_order_relaxed);
    }
    std::optional<Queue>& queue = queues_[request.queue].queue;
    --queues_[request.queue].work;
    free_.push_back(&request);
    if (!is_wanted(request) || !queue) {
        return;
    }
    if (request.status != nullptr) {
        *request.status = static_cast<std::byte>(status);
    }
    // The length covers what was written from the front (2.7.8.2). It includes the status only if all bytes before it
    // were written.
    const bool all = written + 1 == request.chain.writable_bytes;
    queue->push(request.chain.head, static_cast<std::uint32_t>(all ? written + 1 : written));
    ++pushed_;
    pushed_small_ = pushed_small_ || request.total < InterruptModeration::kLargeBytes;
}

void Block::warn(const Request& request, int error) {
    constexpr std::chrono::seconds kPause{1};
    const auto now = std::chrono::steady_clock::now();
    if (!config_.warn || (last_warning_ != std::chrono::steady_clock::time_point{} && now - last_warning_ < kPause)) {
        ++warnings_left_out_;
        return;
    }
    std::string line = "the disk " + image_.path() + " failed " + std::string(request.action()) + " at byte " +
                       std::to_string(request.offset) + ": " + errno_reason(error) + "; the guest sees an I/O error";
    if (error == ENOSPC || error == EDQUOT) {
        line += " (make room on its file system)";
    }
    if (warnings_left_out_ != 0) {
        line += " (and " + std::to_string(warnings_left_out_) + " more since the last time)";
    }
    last_warning_ = now;
    warnings_left_out_ = 0;
    config_.warn(line);
}

/// Warns even if the last warning was just before, because this warning comes only once.
void Block::warn_of_lost_data(int error) {
    if (!config_.warn) {
        return;
    }
    const ByteRange& range = being_flushed_;
    const std::string where = range.begin < range.end ? "at most bytes " + std::to_string(range.begin) + " to " +
                                                            std::to_string(range.end - 1)
                                                      : "it is not known where";
    config_.warn(
        "the disk " + image_.path() + " failed flushing: " + errno_reason(error) +
        "; what the guest wrote since its last good flush may be lost (" + where +
        "). The kernel does not try again, so every further flush fails, also after a reset of the device, until "
        "the guest is run anew: check its file system then");
}

} // namespace vmm::devices::virtio
