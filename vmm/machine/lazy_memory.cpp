#include "vmm/machine/lazy_memory.hpp"

#include <poll.h>
#include <pthread.h>
#include <sys/mman.h>

#include <algorithm>
#include <array>
#include <cassert>
#include <exception>
#include <memory>
#include <utility>

#include "kvm/host/error.hpp"
#include "kvm/host/mapping.hpp"
#include "kvm/host/stoppable_read.hpp"
#include "kvm/host/stopwatch.hpp"
#include "kvm/host/thread.hpp"
#include "kvm/host/unique_fd.hpp"
#include "prefault/host/low_priority.hpp"

#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25
#endif

namespace vmm {

namespace {

using Clock = std::chrono::steady_clock;

constexpr const char* kLazyPurpose = "the memory of a snapshot on its way to the guest";

/// Drops all pages, so that the memory is as if nobody had touched it.
void drop_pages(std::span<std::byte> bytes) noexcept {
    ::madvise(bytes.data(), bytes.size(), MADV_DONTNEED);
}

} // namespace

/// The data of each thread that loads.
class LazyMemory::Loader {
  public:
    explicit Loader(LazyMemory& owner)
        : owner_(owner), source_(owner.make_source_()),
          content_(Mapping::anonymous(kMemoryChunkBytes, kMemoryChunkBytes, 0, kLazyPurpose)),
          zeros_(Mapping::anonymous(kMemoryChunkBytes, kMemoryChunkBytes, 0, kLazyPurpose)) {
        ::madvise(content_.data(), content_.size(), owner.can_move_ ? MADV_HUGEPAGE : MADV_NOHUGEPAGE);
        ::madvise(zeros_.data(), zeros_.size(), MADV_NOHUGEPAGE); // It is only read: one page of zeros is enough.
    }

    /// Loads chunk `chunk`. Throws Error.
    void load(std::size_t chunk) {
        const std::span<std::byte> memory = owner_.piece_of(chunk).bytes;
        const std::span<std::byte> content = content_.bytes().first(memory.size());
        const bool moves = owner_.can_move_ && memory.size() == content_.size();
        if (!source_->read(chunk, content)) {
            if (!moves) {
                owner_.faults_.provide(memory, zeros_.bytes().first(memory.size()));
                return;
            }
            drop_pages(content_.bytes());
            ::madvise(content_.data(), content_.size(), MADV_POPULATE_WRITE); // What it leaves out is copied below.
        }
        if (moves && owner_.faults_.provide_by_moving(memory, content)) {
            return;
        }
        owner_.faults_.provide(memory, content);
    }

    /// Provides `page` again, which was there and was given back. Throws Error.
    void provide_zeros(std::span<std::byte> page) { owner_.faults_.provide(page, zeros_.bytes().first(page.size())); }

  private:
    LazyMemory& owner_;
    std::unique_ptr<ChunkSource> source_;
    Mapping content_;
    Mapping zeros_;
};

LazyMemory::LazyMemory(const MemoryLayout& layout, MakeSource make_source, std::size_t page_bytes, Settings settings)
    : layout_(layout), make_source_(std::move(make_source)), page_bytes_(page_bytes), settings_(std::move(settings)),
      present_at_first_(settings_.present), faults_(page_bytes), states_(layout.chunks()) {
    assert(page_bytes <= kMemoryChunkBytes);
    std::vector<bool> is_first(states_.size());
    order_ = settings_.working_set;
    for (std::size_t chunk = 0; chunk < settings_.present.size(); ++chunk) {
        if (settings_.present[chunk]) {
            states_[chunk] = State::kPresent;
            is_first[chunk] = true;
            ++present_;
        }
    }
    for (const std::size_t chunk : order_) {
        is_first[chunk] = true;
    }
    for (std::size_t chunk = 0; chunk < states_.size(); ++chunk) {
        if (!is_first[chunk]) {
            order_.push_back(chunk);
        }
    }
}

LazyMemory::~LazyMemory() {
    abandon();
    let_go();
}

void LazyMemory::start(const char* name, void (LazyMemory::*body)() noexcept) {
    auto thread = start_thread(kLazyPurpose, [this, name, body] {
        ::pthread_setname_np(::pthread_self(), name);
        (this->*body)();
    });
    (body == &LazyMemory::serve_demand ? demand_threads_ : load_threads_).push_back(std::move(thread));
}

void LazyMemory::serve(const GuestRam& ram) {
    begin_ = Clock::now();
    const std::vector<prefault::PlacedRange>& placed = ram.placement().ranges;
    const bool anywhere = std::ranges::none_of(placed, [](const auto& part) { return part.node.has_value(); });
    is_thp_ = ram.memory().page_size() == PageSize::kThp;
    can_move_ = is_thp_ && anywhere && faults_.can_move();
    for (const MemoryPiece& region : layout_.regions()) {
        regions_.push_back({ram.memory().at(region.range).value(), region.range.base,
                            static_cast<std::size_t>(region.file_offset / kMemoryChunkBytes)});
    }
    leave_out_absent_memory(placed);
    for (const Region& region : regions_) {
        watch(region);
    }
    is_serving_ = true;
    records_ = settings_.record_for.count() != 0;
    for (unsigned i = 0; i < settings_.demand_threads; ++i) {
        start("lazy", &LazyMemory::serve_demand);
    }
}

/// Marks memory that the guest can be given and has not yet as neither watched nor read. Its blocks are whole chunks.
void LazyMemory::leave_out_absent_memory(std::span<const prefault::PlacedRange> placed) {
    for (std::size_t chunk = 0; chunk < states_.size(); ++chunk) {
        const GuestRange range = layout_.chunk(chunk).range;
        if (std::ranges::any_of(placed, [&](const auto& part) { return part.range.overlaps(range); })) {
            continue;
        }
        present_at_first_.resize(states_.size());
        if (states_[chunk].exchange(State::kPresent) != State::kPresent) {
            ++present_;
        }
        present_at_first_[chunk] = true;
    }
}

/// Watches all of the region except chunks that are present. In the latter a missing page is zero.
void LazyMemory::watch(const Region& region) {
    const auto watch = [this](std::span<std::byte> bytes) {
        faults_.watch(bytes);
        watched_.push_back(bytes);
    };
    if (present_at_first_.empty()) {
        watch(region.bytes);
        return;
    }
    std::size_t begin = 0;
    for (std::size_t offset = 0; offset < region.bytes.size(); offset += kMemoryChunkBytes) {
        const std::size_t end = std::min<std::size_t>(offset + kMemoryChunkBytes, region.bytes.size());
        const bool present = present_at_first_[region.first_chunk + offset / kMemoryChunkBytes];
        if (!present && end != region.bytes.size()) {
            continue;
        }
        const std::size_t stop = present ? offset : end;
        if (stop > begin) {
            const std::span<std::byte> absent = region.bytes.subspan(begin, stop - begin);
            drop_pages(absent);
            watch(absent);
        }
        begin = end;
    }
}

void LazyMemory::load(MachineSecondLevel* second_level, const std::stop_token& stop) {
    stop_.emplace(stop, RequestStop{&loading_});
    record_until_ = Clock::now() + settings_.record_for;
    if (second_level != nullptr) {
        {
            const std::lock_guard hold(lock_);
            maps_ = true;
        }
        map_thread_ = start_thread("the mapping of memory that comes", [this, second_level] {
            ::pthread_setname_np(::pthread_self(), "lazy map");
            map_chunks(*second_level);
        });
    }
    for (unsigned i = 0; i < settings_.workers; ++i) {
        start("lazy load", &LazyMemory::load_rest);
    }
}

LazyMemory::Piece LazyMemory::piece_of(std::size_t chunk) const {
    const GuestRange range = layout_.chunk(chunk).range;
    const auto after = std::ranges::upper_bound(regions_, chunk, {}, &Region::first_chunk);
    const Region& region = *std::prev(after);
    return {region.bytes.subspan(to_integer(range.base) - to_integer(region.base), range.size), range};
}

std::optional<std::size_t> LazyMemory::chunk_at(const std::byte* page) const noexcept {
    const auto address = reinterpret_cast<std::uintptr_t>(page);
    for (const Region& region : regions_) {
        const auto base = reinterpret_cast<std::uintptr_t>(region.bytes.data());
        if (address >= base && address - base < region.bytes.size()) {
            return region.first_chunk + (address - base) / kMemoryChunkBytes;
        }
    }
    return std::nullopt;
}

void LazyMemory::serve_demand() noexcept {
    try {
        Loader loader(*this);
        while (is_serving_) {
            std::array<pollfd, 2> ready{pollfd{faults_.fd(), POLLIN, 0}, pollfd{ended_.fd(), POLLIN, 0}};
            ::poll(ready.data(), ready.size(), -1);
            while (const auto fault = faults_.take_fault()) {
                try {
                    heed(*fault, loader);
                } catch (...) { // Other threads may still wait for memory that can be provided.
                    fail(std::current_exception());
                }
            }
        }
    } catch (...) {
        fail(std::current_exception());
    }
}

std::span<std::byte> LazyMemory::page_at(std::byte* address) const {
    const Piece piece = piece_of(*chunk_at(address));
    const auto offset = static_cast<std::size_t>(address - piece.bytes.data()) / page_bytes_ * page_bytes_;
    return piece.bytes.subspan(offset, page_bytes_);
}

void LazyMemory::heed(UserFaultFd::Fault fault, Loader& loader) {
    const auto begin = Clock::now();
    const auto chunk = chunk_at(fault.page);
    if (!chunk) {
        return;
    }
    if (has_failed_ && states_[*chunk] != State::kPresent) {
        heed_without_memory(fault, loader);
        return;
    }
    std::atomic<State>& state = states_[*chunk];
    State seen = state.load();
    while (seen != State::kPresent && seen != State::kDemanded) {
        // It is read here even if a background thread reads it already: that thread has a low priority, and would be
        // too slow.
        if (state.compare_exchange_weak(seen, State::kDemanded)) {
            {
                const std::lock_guard hold(lock_);
                demanded_.push_back(*chunk);
            }
            load(*chunk, loader);
            note_present(*chunk, begin);
            return;
        }
    }
    if (seen == State::kPresent) {
        const std::span<std::byte> bytes = page_at(fault.page);
        try {
            loader.provide_zeros(bytes);
        } catch (const Error&) {
            throw_if_needed();
        }
        faults_.wake(bytes);
    }
}

void LazyMemory::load(std::size_t chunk, Loader& loader) {
    try {
        loader.load(chunk);
    } catch (const Error&) {
        throw_if_needed();
    }
}

/// Throws the current exception again if the memory is still needed. If everything is loaded or loading has failed,
/// memory is not watched any more, and nobody needs what could not be provided.
void LazyMemory::throw_if_needed() const {
    if (!is_loaded_ && !has_failed_) {
        throw;
    }
}

void LazyMemory::load_rest() noexcept {
    try {
        wait_for_record();
        Loader loader(*this);
        std::optional<prefault::LowPriority> nice;
        const std::stop_token stop = loading_.get_token();
        while (!stop.stop_requested() && !has_failed_) {
            const std::size_t index = next_++;
            if (index >= order_.size()) {
                return;
            }
            if (index >= settings_.working_set.size() && !nice) {
                nice.emplace(stop);
            }
            const std::size_t chunk = order_[index];
            State absent = State::kAbsent;
            if (states_[chunk].compare_exchange_strong(absent, State::kLoading)) {
                load(chunk, loader);
                note_present(chunk, std::nullopt);
            }
        }
    } catch (...) {
        fail(std::current_exception());
    }
}

void LazyMemory::wait_for_record() {
    WorkingSet recorded;
    {
        std::unique_lock hold(lock_);
        const auto ended = [this] { return !records_; };
        if (ended()) {
            return;
        }
        changed_.wait_until(hold, loading_.get_token(), record_until_, ended);
        if (!std::exchange(records_, false)) {
            return; // Another thread has loaded the last chunk.
        }
        recorded = demanded_;
    }
    changed_.notify_all();
    if (settings_.recorded) {
        settings_.recorded(recorded);
    }
}

/// Lets the thread that waits for the chunk go on when the chunk is mapped, or at once if chunks are not mapped.
void LazyMemory::note_present(std::size_t chunk, std::optional<Clock::time_point> demanded) {
    const bool is_new = states_[chunk].exchange(State::kPresent) != State::kPresent;
    bool is_mapped_first = false;
    {
        const std::lock_guard hold(lock_);
        is_mapped_first = maps_;
        if (maps_ && demanded) {
            to_map_.push_front({chunk, demanded});
        } else if (maps_) {
            to_map_.push_back({chunk, demanded});
        }
    }
    if (is_mapped_first) {
        changed_.notify_all();
    } else {
        let_go_on({chunk, demanded});
    }
    if (is_new && ++present_ == states_.size()) {
        note_loaded();
    }
}

void LazyMemory::let_go_on(const Waited& waited) {
    faults_.wake(piece_of(waited.chunk).bytes);
    if (waited.since) {
        const std::lock_guard hold(lock_);
        longest_wait_seconds_ = std::max(longest_wait_seconds_, seconds_since(*waited.since));
    }
}

void LazyMemory::map_chunks(MachineSecondLevel& second_level) noexcept {
    const std::stop_token stop = loading_.get_token();
    bool can_map = true;
    try {
        second_level.begin_pieces(stop);
    } catch (const std::exception&) { // The prefault that follows reports the reason.
        can_map = false;
    }
    std::unique_lock hold(lock_);
    for (;;) {
        can_map = can_map && changed_.wait(hold, stop, [this] { return !to_map_.empty() || is_loaded_; });
        if (!can_map || to_map_.empty()) {
            break;
        }
        const Waited next = to_map_.front();
        to_map_.pop_front();
        hold.unlock();
        try {
            // Once everything is loaded, the prefault that follows maps the rest with several threads.
            can_map = is_loaded_ || second_level.fill_piece(piece_of(next.chunk).range, stop) || !stop.stop_requested();
        } catch (const std::exception&) {
            can_map = false;
        }
        let_go_on(next);
        hold.lock();
    }
    maps_ = false;
    const std::deque<Waited> rest = std::exchange(to_map_, {});
    hold.unlock();
    for (const Waited& waited : rest) {
        let_go_on(waited);
    }
}

void LazyMemory::note_loaded() noexcept {
    is_loaded_ = true;
    for (const std::span<std::byte> bytes : watched_) {
        faults_.unwatch(bytes);
        if (is_thp_ && !can_move_) { // Small pages become huge ones, if the host can do this (Linux 6.1).
            ::madvise(bytes.data(), bytes.size(), MADV_COLLAPSE);
        }
    }
    is_serving_ = false;
    ended_.signal();
    {
        const std::lock_guard hold(lock_);
        seconds_until_loaded_ = seconds_since(begin_);
    }
    changed_.notify_all();
    if (settings_.loaded) {
        settings_.loaded();
    }
}

void LazyMemory::fail(std::exception_ptr why) noexcept {
    {
        const std::lock_guard hold(lock_);
        if (failure_) {
            return;
        }
        failure_ = why;
        has_failed_ = true;
    }
    changed_.notify_all();
    if (settings_.failed) {
        settings_.failed(std::move(why));
    }
    wake_all(); // The waiting threads fault again, and heed_without_memory() handles them.
}

void LazyMemory::wake_all() noexcept {
    for (std::size_t chunk = 0; chunk < states_.size(); ++chunk) {
        faults_.wake(piece_of(chunk).bytes);
    }
}

void LazyMemory::note_guest_runs(bool runs) noexcept {
    guest_runs_ = runs;
    if (has_failed_) {
        wake_all();
    }
}

/// Handles an access to memory that cannot be provided. A page of zeros would look like the guest's data, and might be
/// written to its disks. Therefore the kernel gets an error instead. This process gets zeros, but only when the guest
/// has ended: a device that reads a request then can only report an error.
void LazyMemory::heed_without_memory(UserFaultFd::Fault fault, Loader& loader) {
    const std::span<std::byte> page = page_at(fault.page);
    switch (UserFaultFd::accessor(fault.thread)) {
    case UserFaultFd::Accessor::kKernel: {
        const UniqueFd nothing(::memfd_create("memory that could not be read", MFD_CLOEXEC));
        // If this fails, the kernel looks there once more, and asks again.
        static_cast<void>(
            ::mmap(page.data(), page.size(), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, nothing.get(), 0));
        break;
    }
    case UserFaultFd::Accessor::kProgram:
        if (guest_runs_) {
            return; // note_guest_runs() wakes the thread.
        }
        loader.provide_zeros(page);
        break;
    case UserFaultFd::Accessor::kNobody:
        break;
    }
    faults_.wake(page);
}

void LazyMemory::wait(const std::stop_token& stop) {
    const std::stop_callback wake(stop, [this] {
        const std::lock_guard hold(lock_);
        changed_.notify_all();
    });
    std::unique_lock hold(lock_);
    changed_.wait(hold, loading_.get_token(), [&] { return is_loaded_ || failure_ || stop.stop_requested(); });
    if (failure_) {
        std::rethrow_exception(failure_);
    }
    if (!is_loaded_) {
        throw StoppedError("cannot wait until all of the guest's memory is there: a stop was requested");
    }
}

void LazyMemory::abandon() noexcept {
    loading_.request_stop();
    for (std::thread& thread : load_threads_) {
        thread.join();
    }
    load_threads_.clear();
    if (map_thread_.joinable()) {
        map_thread_.join();
    }
}

void LazyMemory::let_go() noexcept {
    is_serving_ = false;
    ended_.signal();
    for (std::thread& thread : demand_threads_) {
        thread.join();
    }
    demand_threads_.clear();
    regions_.clear();
    for (const std::span<std::byte> bytes : std::exchange(watched_, {})) {
        faults_.unwatch(bytes);
    }
}

LazyReport LazyMemory::report() const {
    const std::lock_guard hold(lock_);
    return {.chunks = states_.size(),
            .demanded_chunks = demanded_.size(),
            .working_set_chunks = settings_.working_set.size(),
            .longest_wait_seconds = longest_wait_seconds_,
            .seconds_until_loaded = seconds_until_loaded_};
}

} // namespace vmm
