#include "devices/aligned_disk_io.hpp"

#include <algorithm>
#include <bit>
#include <cassert>
#include <cerrno>
#include <cstdlib>
#include <new>
#include <utility>

namespace vmm::devices {

struct AlignedDiskIo::Operation {
    enum class Kind { kRead, kWrite, kFlush, kAllocate };
    /// The part of the operation that is with the host.
    enum class Step {
        kWhole,    ///< the operation itself
        kThrough,  ///< the operation, through a buffer
        kReadOld,  ///< reading the block of which a write changes a part
        kWriteNew, ///< writing that block after the change
    };
    Kind kind = Kind::kFlush;
    Step step = Step::kWhole;
    std::uint64_t host_token = 0; ///< its place in operations_
    std::uint64_t token = 0;
    std::uint64_t offset = 0;
    std::uint64_t bytes = 0; ///< the length of the part that is done
    int mode = 0;
    std::span<const iovec> pieces;
    std::vector<iovec> cut;  ///< the pieces, if the last one had to be made shorter
    std::uint64_t begin = 0; ///< the range in the file that goes through the buffer, or that is changed
    std::uint64_t end = 0;
    bool abandoned = false;
    Buffer* buffer = nullptr;
    iovec buffer_piece{};

    [[nodiscard]] bool changes() const noexcept { return kind == Kind::kWrite || kind == Kind::kAllocate; }
    [[nodiscard]] bool rewrites() const noexcept { return step == Step::kReadOld || step == Step::kWriteNew; }
    /// Copies the first `count` bytes of the operation's memory.
    void copy_from_guest(std::byte* to, std::uint64_t count) const {
        for (const iovec& piece : pieces) {
            const std::uint64_t now = std::min<std::uint64_t>(count, piece.iov_len);
            to = std::copy_n(static_cast<const std::byte*>(piece.iov_base), now, to);
            count -= now;
        }
    }
    void copy_to_guest(const std::byte* from, std::uint64_t count) const {
        for (const iovec& piece : pieces) {
            const std::uint64_t now = std::min<std::uint64_t>(count, piece.iov_len);
            std::copy_n(from, now, static_cast<std::byte*>(piece.iov_base));
            from += now;
            count -= now;
        }
    }
};

class AlignedDiskIo::Buffer {
  public:
    explicit Buffer(std::size_t alignment)
        : bytes(static_cast<std::byte*>(std::aligned_alloc(alignment, kBufferBytes))) {
        if (bytes == nullptr) {
            throw std::bad_alloc();
        }
    }
    ~Buffer() { std::free(bytes); }
    Buffer(const Buffer&) = delete;
    Buffer& operator=(const Buffer&) = delete;

    std::byte* const bytes;
};

AlignedDiskIo::AlignedDiskIo(std::unique_ptr<DiskIo> host, unsigned depth, const DiskAlignment& alignment)
    : host_(std::move(host)), alignment_(alignment) {
    assert(std::has_single_bit(alignment.offset) && alignment.offset <= kBufferBytes &&
           std::has_single_bit(alignment.memory) && alignment.memory <= kBufferBytes);
    for (unsigned i = 0; i < depth; ++i) {
        free_.push_back(operations_.emplace_back(std::make_unique<Operation>()).get());
        free_.back()->host_token = i;
    }
}

AlignedDiskIo::~AlignedDiskIo() = default;

AlignedDiskIo::Operation& AlignedDiskIo::begin(std::uint64_t token, std::uint64_t offset,
                                               std::span<const iovec> pieces) {
    assert(has_room());
    Operation& operation = *free_.back();
    free_.pop_back();
    operation.step = Operation::Step::kWhole;
    operation.token = token;
    operation.offset = offset;
    operation.pieces = pieces;
    operation.abandoned = false;
    operation.buffer = nullptr;
    return operation;
}

bool AlignedDiskIo::is_fit(const iovec& piece) const noexcept {
    // Only the remainder of the address is used, so the number is never turned back into an address.
    return reinterpret_cast<std::uintptr_t>(piece.iov_base) % alignment_.memory == 0 &&
           piece.iov_len % alignment_.offset == 0;
}

/// Decides how much of a transfer is done, and how.
void AlignedDiskIo::plan(Operation& operation) const {
    std::uint64_t bytes = 0;
    for (const iovec& piece : operation.pieces) {
        bytes += piece.iov_len;
    }
    const std::uint64_t block = alignment_.offset;
    operation.begin = operation.offset;
    if (operation.offset >= alignment_.free_from) {
        operation.bytes = bytes;
        operation.end = operation.offset + bytes;
        return;
    }
    bytes = std::min(bytes, alignment_.free_from - operation.offset);
    if (operation.offset % block == 0 && is_fit({operation.pieces.front().iov_base, 0})) {
        std::uint64_t fit = 0;
        std::size_t count = 0;
        while (count < operation.pieces.size() && is_fit(operation.pieces[count]) &&
               fit + operation.pieces[count].iov_len <= bytes) {
            fit += operation.pieces[count++].iov_len;
        }
        std::uint64_t more = 0; // The usable part of the next piece, which is too long or ends within a block.
        if (count < operation.pieces.size() && is_fit({operation.pieces[count].iov_base, 0})) {
            more = std::min<std::uint64_t>(bytes - fit, operation.pieces[count].iov_len) / block * block;
        }
        if (fit + more != 0) {
            if (more != 0) {
                operation.cut.assign(operation.pieces.begin(),
                                     operation.pieces.begin() + static_cast<std::ptrdiff_t>(count) + 1);
                operation.cut.back().iov_len = more;
                operation.pieces = operation.cut;
            } else {
                operation.pieces = operation.pieces.first(count);
            }
            operation.bytes = fit + more;
            operation.end = operation.offset + operation.bytes;
            return;
        }
    }
    const std::uint64_t within = operation.offset % block;
    if (operation.kind == Operation::Kind::kWrite && (within != 0 || bytes < block)) {
        operation.step = Operation::Step::kReadOld;
        operation.bytes = std::min(bytes, block - within);
        operation.begin = operation.offset - within;
        operation.end = operation.begin + block;
        return;
    }
    operation.step = Operation::Step::kThrough;
    operation.begin = operation.offset - within;
    if (operation.kind == Operation::Kind::kWrite) {
        operation.bytes = std::min<std::uint64_t>(bytes, kBufferBytes) / block * block;
        operation.end = operation.begin + operation.bytes;
    } else {
        operation.bytes = std::min<std::uint64_t>(bytes, kBufferBytes - within);
        operation.end = operation.begin + (within + operation.bytes + block - 1) / block * block;
    }
}

void AlignedDiskIo::read(std::uint64_t token, std::uint64_t offset, std::span<const iovec> pieces) {
    Operation& operation = begin(token, offset, pieces);
    operation.kind = Operation::Kind::kRead;
    plan(operation);
    start(operation);
}

void AlignedDiskIo::write(std::uint64_t token, std::uint64_t offset, std::span<const iovec> pieces) {
    Operation& operation = begin(token, offset, pieces);
    operation.kind = Operation::Kind::kWrite;
    plan(operation);
    start(operation);
}

void AlignedDiskIo::flush(std::uint64_t token) {
    Operation& operation = begin(token, 0, {});
    operation.kind = Operation::Kind::kFlush;
    operation.bytes = 0;
    start(operation);
}

void AlignedDiskIo::allocate(std::uint64_t token, int mode, std::uint64_t offset, std::uint64_t bytes) {
    Operation& operation = begin(token, offset, {});
    operation.kind = Operation::Kind::kAllocate;
    operation.mode = mode;
    operation.bytes = bytes;
    operation.begin = offset;
    operation.end = offset + bytes;
    start(operation);
}

/// True if `operation` changes a block that another operation rewrites, or rewrites a block that another one changes.
/// The operation that came first goes first.
bool AlignedDiskIo::must_wait(const Operation& operation) const {
    const auto collides = [&operation](const Operation* other) {
        return operation.begin < other->end && other->begin < operation.end &&
               (operation.rewrites() || other->rewrites());
    };
    const auto* const self =
        std::find(waiting_for_range_.data(), waiting_for_range_.data() + waiting_for_range_.size(), &operation);
    return std::ranges::any_of(changing_, collides) || std::any_of(waiting_for_range_.data(), self, collides);
}

void AlignedDiskIo::start(Operation& operation) {
    if (operation.changes() && must_wait(operation)) {
        waiting_for_range_.push_back(&operation);
        return;
    }
    start_in_turn(operation);
}

/// Starts an operation that need not wait for another change of the disk.
void AlignedDiskIo::start_in_turn(Operation& operation) {
    if (operation.changes()) {
        changing_.push_back(&operation);
    }
    switch (operation.kind) {
    case Operation::Kind::kFlush:
        host_->flush(operation.host_token);
        return;
    case Operation::Kind::kAllocate:
        host_->allocate(operation.host_token, operation.mode, operation.offset, operation.bytes);
        return;
    case Operation::Kind::kRead:
    case Operation::Kind::kWrite:
        break;
    }
    if (operation.step != Operation::Step::kWhole) {
        if (free_buffers_.empty() && buffers_.size() < kMostBuffers) {
            constexpr std::size_t kPage = 4096;
            buffers_.push_back(std::make_unique<Buffer>(std::max<std::size_t>(alignment_.memory, kPage)));
            free_buffers_.push_back(buffers_.back().get());
        }
        if (free_buffers_.empty()) {
            waiting_for_buffer_.push_back(&operation);
            return;
        }
        start_with_buffer(operation);
        return;
    }
    if (operation.kind == Operation::Kind::kRead) {
        host_->read(operation.host_token, operation.offset, operation.pieces);
    } else {
        host_->write(operation.host_token, operation.offset, operation.pieces);
    }
}

void AlignedDiskIo::start_with_buffer(Operation& operation) {
    operation.buffer = free_buffers_.back();
    free_buffers_.pop_back();
    operation.buffer_piece = {operation.buffer->bytes, operation.end - operation.begin};
    if (operation.kind == Operation::Kind::kRead || operation.step == Operation::Step::kReadOld) {
        host_->read(operation.host_token, operation.begin, std::span(&operation.buffer_piece, 1));
        return;
    }
    operation.copy_from_guest(operation.buffer->bytes, operation.bytes);
    host_->write(operation.host_token, operation.begin, std::span(&operation.buffer_piece, 1));
}

/// Continues after the host's answer. Returns true if there was more to do, which is with the host now.
bool AlignedDiskIo::go_on(Operation& operation, int& result) {
    if (result < 0 || operation.step == Operation::Step::kWhole) {
        return false;
    }
    const std::uint64_t within = operation.offset - operation.begin;
    const auto moved = static_cast<std::uint64_t>(result);
    switch (operation.step) {
    case Operation::Step::kReadOld:
        if (moved != operation.end - operation.begin) { // The file has become shorter.
            result = -EIO;
            return false;
        }
        if (operation.abandoned) {
            result = -ECANCELED;
            return false;
        }
        operation.copy_from_guest(operation.buffer->bytes + within, operation.bytes);
        operation.step = Operation::Step::kWriteNew;
        host_->write(operation.host_token, operation.begin, std::span(&operation.buffer_piece, 1));
        return true;
    case Operation::Step::kWriteNew:
        result = moved == operation.end - operation.begin ? static_cast<int>(operation.bytes) : -EIO;
        return false;
    case Operation::Step::kThrough: {
        const std::uint64_t useful = moved > within ? std::min(moved - within, operation.bytes) : 0;
        if (operation.kind == Operation::Kind::kRead) {
            operation.copy_to_guest(operation.buffer->bytes + within, useful);
        }
        result = static_cast<int>(useful);
        return false;
    }
    case Operation::Step::kWhole:
        break;
    }
    return false;
}

void AlignedDiskIo::end(Operation& operation) {
    if (operation.changes()) {
        std::erase(changing_, &operation);
    }
    if (operation.buffer != nullptr) {
        free_buffers_.push_back(operation.buffer);
        operation.buffer = nullptr;
    }
    free_.push_back(&operation);
}

/// Starts the waiting operations that need not wait any longer.
void AlignedDiskIo::start_waiting() {
    while (!waiting_for_buffer_.empty() && !free_buffers_.empty()) {
        Operation& next = *waiting_for_buffer_.front();
        waiting_for_buffer_.erase(waiting_for_buffer_.begin());
        start_with_buffer(next);
    }
    for (std::size_t i = 0; i < waiting_for_range_.size();) {
        Operation& next = *waiting_for_range_[i];
        if (must_wait(next)) {
            ++i;
            continue;
        }
        waiting_for_range_.erase(waiting_for_range_.begin() + static_cast<std::ptrdiff_t>(i));
        start_in_turn(next);
    }
}

std::size_t AlignedDiskIo::reap(std::span<Completion> completions) {
    const std::size_t local = std::min(completions.size(), done_.size());
    std::copy_n(done_.begin(), local, completions.begin());
    done_.erase(done_.begin(), done_.begin() + static_cast<std::ptrdiff_t>(local));
    std::size_t count = local;
    while (count < completions.size()) {
        const std::span<Completion> room = completions.subspan(count);
        const std::size_t came = host_->reap(room);
        std::size_t kept = 0;
        for (std::size_t i = 0; i < came; ++i) {
            Operation& operation = *operations_[room[i].token];
            int result = room[i].result;
            if (!go_on(operation, result)) {
                room[kept++] = {operation.token, result};
                end(operation);
            }
        }
        count += kept;
        if (came != 0) {
            start_waiting();
        }
        if (came < room.size()) {
            break;
        }
    }
    return count;
}

void AlignedDiskIo::abandon() {
    for (auto* const waiting : {&waiting_for_range_, &waiting_for_buffer_}) {
        for (Operation* const operation : *waiting) {
            done_.push_back({operation->token, -ECANCELED});
            end(*operation);
        }
        waiting->clear();
    }
    for (Operation* const operation : changing_) {
        operation->abandoned = true;
    }
    host_->abandon();
}

} // namespace vmm::devices
