#include "prefault/host/pin.hpp"

#include <sys/mman.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <cassert>
#include <cerrno>
#include <iterator>
#include <mutex>
#include <optional>
#include <string>
#include <utility>

#include "kvm/host/error.hpp"
#include "kvm/host/mapping.hpp"
#include "kvm/host/process_memory.hpp"
#include "prefault/host/crew.hpp"
#include "prefault/plan.hpp"

namespace vmm::prefault {

namespace {

constexpr const char* kAdvice = "raise it with `ulimit -l` or LimitMEMLOCK=, give CAP_IPC_LOCK outside of user "
                                "namespaces, or take Config::pin=none";

/// How much one system call pins. A stop must wait for that call: some 10 ms for 4 KiB pages that exist, 0.1 s for
/// others.
constexpr std::uint64_t kPieceBytes = 256 * kMiB;

/// True if RLIMIT_MEMLOCK, which is `limit` bytes, binds this process. Capabilities lift it only in the initial user
/// namespace, and a security module may forbid even that. So this tries to lock one page more than the limit; no page
/// is populated by that (MLOCK_ONFAULT).
bool limit_binds(std::uint64_t limit) {
    constexpr std::uint64_t kMostToTry = 16 * kTiB; // The address space ends not far above this.
    const auto page_bytes = static_cast<std::uint64_t>(::sysconf(_SC_PAGESIZE));
    if (limit > kMostToTry) {
        return true;
    }
    const std::uint64_t bytes = align_down(limit, page_bytes) + page_bytes;
    void* const address =
        ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (address == MAP_FAILED) {
        return true;
    }
    const Mapping owned(static_cast<std::byte*>(address), bytes);
    if (::mlock2(address, bytes, MLOCK_ONFAULT) == 0) {
        return false;
    }
    // Other errors do not come from the limit. The call that really locks memory will report them.
    return errno == ENOMEM || (errno == EPERM && limit < page_bytes);
}

/// RLIMIT_MEMLOCK in bytes; nothing if `needed_bytes` are within it or it does not bind this process.
std::optional<std::uint64_t> memlock_limit(std::uint64_t needed_bytes) {
    rlimit limit{};
    if (::getrlimit(RLIMIT_MEMLOCK, &limit) != 0 || limit.rlim_cur == RLIM_INFINITY || needed_bytes <= limit.rlim_cur ||
        !limit_binds(limit.rlim_cur)) {
        return std::nullopt;
    }
    return limit.rlim_cur;
}

/// The bytes that this process has already pinned in this way; they count against the same limit. The kernel counts
/// long-term pins by user (io_uring/rsrc.c, __io_account_mem), but reports only those of one process. Without /proc the
/// function returns 0, and the kernel refuses what is too much.
std::uint64_t bytes_in_use(Pin pin) {
    return (pin == Pin::kMlock ? locked_bytes() : pinned_bytes()).value_or(0);
}

/// The sum of both, or UINT64_MAX if it would overflow.
std::uint64_t sum_of(std::uint64_t used, std::uint64_t more) {
    return more > UINT64_MAX - used ? UINT64_MAX : used + more;
}

std::string describe_limit(Pin pin, std::uint64_t limit, std::uint64_t used) {
    std::string text = "the limit on locked memory (RLIMIT_MEMLOCK) is " + format_bytes(limit);
    if (used != 0) {
        text += ", of which " + format_bytes(used) + " are in use";
    }
    if (pin == Pin::kLongterm) {
        text += used != 0 ? " by this process, and what others of this user pin counts, too"
                          : ", and what other processes of this user pin counts, too";
    }
    return text;
}

std::string_view verb(Pin pin) {
    return pin == Pin::kMlock ? "lock" : "pin";
}

/// There is one ring for each GiB, up to about 128 rings. For every huge page that is registered the kernel searches
/// all other pages of the ring (io_uring/rsrc.c, headpage_already_acct), so the time for a ring grows with the square
/// of its memory.
std::uint64_t ring_bytes_for(std::uint64_t total_bytes) {
    constexpr std::uint64_t kManyRings = 128;
    return std::bit_ceil(std::max(kGiB, total_bytes / kManyRings));
}

void unlock(std::span<const PinnedMemory::Piece> pieces) noexcept {
    for (const PinnedMemory::Piece& piece : pieces) {
        ::munlock(piece.bytes.data(), piece.bytes.size());
    }
}

/// What one call of add() pins. Its destructor unpins all of it unless add() has taken it over.
///
/// Threads: any number of threads may call pin() at the same time; the rest is for one thread.
class Batch {
  public:
    Batch(Pin kind, const GuestMemory& memory, std::uint64_t total_bytes, const PinnedMemory::Progress& progress)
        : kind_(kind), memory_(memory), total_bytes_(total_bytes), used_before_(bytes_in_use(kind)),
          progress_(progress) {}
    Batch(Batch&&) = delete;
    Batch& operator=(Batch&&) = delete;
    Batch(const Batch&) = delete;
    Batch& operator=(const Batch&) = delete;
    ~Batch() {
        if (kind_ == Pin::kMlock) {
            unlock(pieces_);
        }
    }

    /// Locks `range` piece by piece until a stop is requested. Throws Error.
    void lock(GuestRange range, const std::stop_token& stop) {
        for_each_piece(range, stop, [&](const PinnedMemory::Piece& piece) {
            pieces_.push_back(piece);
            if (::mlock2(piece.bytes.data(), piece.bytes.size(), MLOCK_ONFAULT) != 0) {
                throw_error(errno, piece.range);
            }
        });
    }

    /// Pins `range` with its own ring, piece by piece until a stop is requested. Throws Error.
    void pin(GuestRange range, const std::stop_token& stop) {
        const std::size_t pieces = plan_of(range).chunk_count();
        assert(pieces <= BufferRing::kMaxBuffers);
        BufferRing ring(static_cast<unsigned>(pieces));
        for_each_piece(range, stop, [&](const PinnedMemory::Piece& piece) {
            if (const int error = ring.pin(piece.bytes); error != 0) {
                throw_error(error, piece.range);
            }
            const std::lock_guard hold(lock_);
            pieces_.push_back(piece);
        });
        const std::lock_guard hold(lock_);
        rings_.push_back({range, std::move(ring)});
    }

    /// Hands over the pieces, in no order.
    [[nodiscard]] std::vector<PinnedMemory::Piece> take_pieces() noexcept { return std::exchange(pieces_, {}); }
    [[nodiscard]] std::vector<PinnedMemory::Ring> take_rings() noexcept { return std::exchange(rings_, {}); }

  private:
    [[nodiscard]] Plan plan_of(GuestRange range) const {
        return {std::span(&range, 1), std::max(kPieceBytes, certain_page_bytes(memory_.page_size()))};
    }

    template <typename Action>
    void for_each_piece(GuestRange range, const std::stop_token& stop, const Action& action) {
        const Plan plan = plan_of(range);
        for (std::size_t i = 0; i < plan.chunk_count() && !stop.stop_requested(); ++i) {
            const auto bytes = memory_.at(plan.chunk(i));
            assert(bytes);
            action(PinnedMemory::Piece{plan.chunk(i), *bytes});
            if (progress_) {
                progress_(bytes->size());
            }
        }
    }

    [[noreturn]] void throw_error(int error_number, GuestRange range) const {
        const std::string tried = std::string(verb(kind_)) + " guest memory " + to_string(range);
        const auto limit = memlock_limit(UINT64_MAX);
        if (limit && (error_number == ENOMEM || error_number == EPERM)) {
            throw_errno(error_number, tried,
                        describe_limit(kind_, *limit, used_before_) + "; " + format_bytes(total_bytes_) +
                            " are needed: " + kAdvice);
        }
        if (kind_ == Pin::kLongterm) {
            // The kernel first moves pages out of ZONE_MOVABLE and CMA areas (mm/gup.c).
            throw_errno(error_number, tried,
                        {{ENOMEM, "long-term pins need free memory outside of movable zones: take less memory with "
                                  "Config::memory_bytes, or "
                                  "Config::pin=mlock"},
                         {EFAULT, "not all of its pages exist, and they cannot be made: free memory for them"},
                         {EOPNOTSUPP, "memory of that kind cannot be pinned for good: take Config::pin=mlock"},
                         {EINVAL, "this kernel does not pin it: take Config::pin=mlock"}});
        }
        throw_errno(
            error_number, tried,
            {{ENOMEM, "the host, or the control group of this process, is short of memory, or the process of "
                      "mappings (vm.max_map_count): free some, or take Config::pin=none"},
             {EAGAIN, "the host is short of memory: free some, or take Config::pin=none"},
             {EPERM, "a seccomp filter or a security module forbids it: allow it, or take Config::pin=none"},
             {ENOSYS, "mlock2() needs Linux 4.4, or a seccomp filter hides it: take Config::pin=none"},
             {EINVAL,
              "this kernel does not lock memory on fault, or a seccomp filter hides the call: take Config::pin=none"}});
    }

    Pin kind_;
    const GuestMemory& memory_;
    std::uint64_t total_bytes_;
    std::uint64_t used_before_;
    const PinnedMemory::Progress& progress_;
    std::mutex lock_; ///< guards the members below
    std::vector<PinnedMemory::Piece> pieces_;
    std::vector<PinnedMemory::Ring> rings_;
};

} // namespace

std::string_view to_string(Pin pin) noexcept {
    switch (pin) {
    case Pin::kNone:
        return "none";
    case Pin::kMlock:
        return "mlock";
    case Pin::kLongterm:
        return "longterm";
    case Pin::kAuto:
        return "auto";
    }
    return "?";
}

void check_may_pin(Pin pin, std::uint64_t bytes) {
    if (pin == Pin::kNone) {
        return;
    }
    if (pin == Pin::kLongterm) {
        const BufferRing probe(1);
    }
    const std::uint64_t used = bytes_in_use(pin);
    if (const auto limit = memlock_limit(sum_of(used, bytes))) {
        throw Error("cannot " + std::string(verb(pin)) + " " + format_bytes(bytes) +
                    " of guest memory: " + describe_limit(pin, *limit, used) + " (" + kAdvice + ")");
    }
}

PinnedMemory::~PinnedMemory() {
    if (kind_ == Pin::kMlock) {
        unlock(pieces_);
    }
}

bool PinnedMemory::add(const GuestMemory& memory, std::span<const GuestRange> ranges, unsigned workers,
                       const std::stop_token& stop, const Progress& progress) {
    if (kind_ == Pin::kNone) {
        return true;
    }
    const std::vector<GuestRange> wanted = missing(memory, ranges);
    std::uint64_t wanted_bytes = 0;
    for (const GuestRange& range : wanted) {
        wanted_bytes += range.size;
    }
    Batch batch(kind_, memory, wanted_bytes, progress);
    if (kind_ == Pin::kMlock) {
        for (const GuestRange& range : wanted) {
            batch.lock(range, stop);
        }
    } else if (wanted_bytes != 0 && !stop.stop_requested()) {
        const Plan plan(wanted, std::max(ring_bytes_for(wanted_bytes), certain_page_bytes(memory.page_size())));
        ChunkQueue queue(plan);
        const auto useful = static_cast<unsigned>(std::clamp<std::size_t>(plan.chunk_count(), 1, workers));
        run_in_parallel({useful, "pin", {}, false, {}}, stop, [&](unsigned, const std::stop_token& crew_stop) {
            while (!crew_stop.stop_requested()) {
                const auto chunk = queue.take();
                if (!chunk) {
                    return;
                }
                batch.pin(*chunk, crew_stop);
            }
        });
    }
    return wanted_bytes == keep(batch.take_pieces(), batch.take_rings());
}

std::vector<GuestRange> PinnedMemory::remove(GuestRange range) {
    forget(range);
    std::vector<GuestRange> others;
    std::vector<Ring> kept;
    for (Ring& ring : rings_) {
        if (!ring.range.overlaps(range)) {
            kept.push_back(std::move(ring));
            continue;
        }
        for (const Piece& piece : pieces_) { // The remaining parts of the pieces.
            if (ring.range.contains(piece.range)) {
                others.push_back(piece.range);
            }
        }
    }
    rings_.swap(kept); // Rings that were not kept unpin their buffers.
    for (const GuestRange& other : others) {
        forget(other);
    }
    return others;
}

void PinnedMemory::forget(GuestRange range) {
    std::vector<Piece> left;
    for (const Piece& piece : pieces_) {
        if (!piece.range.overlaps(range)) {
            left.push_back(piece);
            continue;
        }
        const std::uint64_t base = to_integer(piece.range.base);
        const std::uint64_t begin = std::max(base, to_integer(range.base));
        const std::uint64_t end = std::min(to_integer(piece.range.end()), to_integer(range.end()));
        if (base < begin) {
            left.push_back({{piece.range.base, begin - base}, piece.bytes.first(begin - base)});
        }
        if (end < to_integer(piece.range.end())) {
            left.push_back({{GuestAddress{end}, to_integer(piece.range.end()) - end}, piece.bytes.subspan(end - base)});
        }
        bytes_ -= end - begin;
    }
    pieces_ = std::move(left);
}

std::uint64_t PinnedMemory::keep(std::vector<Piece> pieces, std::vector<Ring> rings) {
    std::uint64_t kept = 0;
    for (const Piece& piece : pieces) {
        kept += piece.range.size;
    }
    bytes_ += kept;
    pieces_.insert(pieces_.end(), pieces.begin(), pieces.end());
    std::ranges::sort(pieces_, {}, [](const Piece& piece) { return piece.range.base; });
    std::ranges::move(rings, std::back_inserter(rings_));
    return kept;
}

std::vector<GuestRange> PinnedMemory::missing(const GuestMemory& memory, std::span<const GuestRange> ranges) const {
    std::vector<GuestRange> sorted(ranges.begin(), ranges.end());
    std::ranges::sort(sorted, {}, &GuestRange::base);
    std::vector<GuestRange> result;
    const auto append = [&](GuestAddress start, GuestAddress end) {
        if (start >= end) {
            return;
        }
        const GuestRange part{start, to_integer(end) - to_integer(start)};
        if (!result.empty() && result.back().end() == start &&
            memory.at({result.back().base, result.back().size + part.size})) {
            result.back().size += part.size;
        } else {
            result.push_back(part);
        }
    };
    for (const GuestRange& range : sorted) {
        GuestAddress start = range.base;
        for (const Piece& piece : pieces_) {
            if (piece.range.overlaps(range)) {
                append(start, piece.range.base);
                start = piece.range.end();
            }
        }
        append(start, range.end());
    }
    return result;
}

} // namespace vmm::prefault
