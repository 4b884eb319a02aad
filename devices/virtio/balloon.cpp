#include "devices/virtio/balloon.hpp"

#include <algorithm>
#include <cassert>
#include <cstring>
#include <utility>

#include "devices/virtio/driver_link.hpp"
#include "kvm/host/error.hpp"
#include "kvm/host/guest_memory.hpp"

namespace vmm::devices::virtio {

namespace {

// Feature bits (5.5.3).
constexpr std::uint64_t kDeflateOnOom = 1ULL << 2;
constexpr std::uint64_t kPageReporting = 1ULL << 5;

constexpr std::uint16_t kInflate = 0;
constexpr std::uint16_t kDeflate = 1;
constexpr std::uint16_t kQueueSize = 128;
constexpr int kMostRequestsATurn = 64;
constexpr std::uint64_t kMostNumbersAtOnce = 1024;

// The configuration space (5.5.4): num_pages, actual, and two fields of features that are not offered.
constexpr std::size_t kConfigBytes = 16;
constexpr std::size_t kActualOffset = 4;

std::uint32_t pages_of(std::uint64_t bytes) noexcept {
    assert(bytes % Balloon::kPageBytes == 0 && bytes <= Balloon::kMostTargetBytes);
    return static_cast<std::uint32_t>(bytes / Balloon::kPageBytes);
}

Identity identity_of(std::string name, std::uint32_t target, bool reporting) {
    Identity identity;
    identity.id = DeviceId::kBalloon;
    identity.name = std::move(name);
    // The content of the balloon is of no use to us, so a guest that runs out of memory may take it back.
    identity.features = kDeflateOnOom | (reporting ? kPageReporting : 0);
    identity.queue_sizes.assign(reporting ? Balloon::kLastReportingQueue + 1U : 2U, kQueueSize);
    identity.config.resize(kConfigBytes);
    std::memcpy(identity.config.data(), &target, sizeof(target));
    identity.config_writable.resize(kActualOffset + sizeof(std::uint32_t));
    std::fill(identity.config_writable.begin() + kActualOffset, identity.config_writable.end(), std::byte{0xff});
    return identity;
}

} // namespace

Balloon::Balloon(std::string name, std::uint64_t target_bytes, bool reporting, const BalloonState& state)
    : SynchronousDevice(identity_of(std::move(name), pages_of(target_bytes), reporting)),
      works_(identity().queue_sizes.size()),
      told_target_(state.target_pages ? state.told_pages : pages_of(target_bytes)),
      target_(state.target_pages.value_or(pages_of(target_bytes))) {
    if (state.done.size() > works_.size()) {
        throw Error("cannot restore the device " + identity().name + ": it has another number of queues");
    }
    for (std::size_t index = 0; index < state.done.size(); ++index) {
        works_[index].done = state.done[index];
    }
}

DeviceState Balloon::state() const {
    BalloonState state;
    state.target_pages = target_.load(std::memory_order_relaxed);
    state.told_pages = told_target_;
    for (const Work& work : works_) {
        state.done.push_back(work.done);
    }
    return state;
}

void Balloon::set_target(std::uint64_t target_bytes) noexcept {
    target_.store(pages_of(target_bytes), std::memory_order_relaxed);
    target_changed_.ask();
}

Balloon::Statistics Balloon::statistics() const noexcept {
    return {inflated_.load(std::memory_order_relaxed), deflated_.load(std::memory_order_relaxed),
            reported_.load(std::memory_order_relaxed)};
}

// ---- Turns

void Balloon::begin(std::uint64_t /*features*/) {
    broken_ = false;
}

void Balloon::forget_queue(std::uint16_t index) noexcept {
    works_[index].is_under_way = false;
    works_[index].done = 0;
}

std::uint16_t Balloon::put_back(std::uint16_t index) noexcept {
    return std::exchange(works_[index].is_under_way, false) ? 1 : 0; // What is done of the request remains done.
}

std::vector<Source> Balloon::sources() const {
    std::vector<Source> sources = SynchronousDevice::sources();
    sources.push_back(target_changed_.source());
    return sources;
}

void Balloon::serve() {
    tell_target();
    pages_left_ = kMostPagesATurn;
    pieces_left_ = kMostPiecesATurn;
    reported_left_ = kMostReportedATurn;
    for (std::size_t index = 0; index < identity().queue_sizes.size(); ++index) {
        serve_queue(static_cast<std::uint16_t>(index));
    }
}

void Balloon::tell_target() {
    const std::uint32_t now = target_.load(std::memory_order_relaxed);
    if (now != told_target_) {
        told_target_ = now;
        driver().change_config(0, std::as_bytes(std::span(&now, 1)));
    }
}

// ---- Pages

void Balloon::serve_queue(std::uint16_t index) {
    Work& work = works_[index];
    for (int requests = 0; requests < kMostRequestsATurn; ++requests) {
        if (broken_ || working_queue(index) == nullptr) {
            return;
        }
        if (!work.is_under_way) {
            if (!take(index, work.chain)) {
                return;
            }
            work.is_under_way = true;
        }
        const Progress progress = go_on(index, work);
        if (progress == Progress::kMore) {
            break;
        }
        work.is_under_way = false;
        work.done = 0;
        working_queue(index)->push(work.chain.head, 0);
        if (progress == Progress::kBroken) {
            broken_ = true;
            driver().fail("a page of the balloon is no RAM (virtio 1.2, 5.5.6)");
        }
    }
    ask_for_another_turn();
}

/// Does as much as this turn still has time for.
Balloon::Progress Balloon::go_on(std::uint16_t index, Work& work) {
    if (index == kInflate) {
        return inflate(work);
    }
    if (index == kDeflate) { // Nothing is to do: the host gives the guest a new page when it touches one.
        deflated_.fetch_add(work.chain.readable_bytes / sizeof(std::uint32_t) * kPageBytes, std::memory_order_relaxed);
        return Progress::kDone;
    }
    return release_reported(work);
}

/// Gives back the pages whose numbers are the readable bytes of the request. An incomplete number, and numbers beyond
/// kMostPages, are ignored.
Balloon::Progress Balloon::inflate(Work& work) {
    const std::uint64_t count = std::min(work.chain.readable_bytes / sizeof(std::uint32_t), kMostPages);
    while (work.done < count) {
        const std::uint64_t now = std::min(kMostNumbersAtOnce, count - work.done);
        if (now > pages_left_) {
            return Progress::kMore;
        }
        pages_left_ -= now;
        pages_.resize(now);
        copy_from(work.chain, work.done * sizeof(std::uint32_t), std::as_writable_bytes(std::span(pages_)));
        work.done += now;
        if (!release_pages(pages_)) {
            return Progress::kBroken;
        }
    }
    return Progress::kDone;
}

/// Neighbouring pages are given back together, because each call makes the host flush the TLBs of the vCPUs'
/// processors.
bool Balloon::release_pages(std::span<std::uint32_t> pages) {
    const GuestMemory& memory = driver().memory();
    const auto bytes_of = [&memory](std::uint64_t page, std::uint64_t count) {
        return memory.at({GuestAddress{page * kPageBytes}, count * kPageBytes});
    };
    // Either all of the pages are given back or none: a request with one wrong number may be wrong in all of them.
    if (!std::ranges::all_of(pages, [&](std::uint32_t page) { return bytes_of(page, 1).has_value(); })) {
        return false;
    }
    std::ranges::sort(pages);
    const auto end = std::ranges::unique(pages).begin();
    for (auto first = pages.begin(); first != end;) {
        auto next = first + 1;
        // Continue until there is a gap, or another region begins.
        while (next != end && *next == *(next - 1) + 1 &&
               bytes_of(*first, static_cast<std::uint64_t>(next - first) + 1)) {
            ++next;
        }
        const auto count = static_cast<std::uint64_t>(next - first);
        if (memory.discard(*bytes_of(*first, count))) {
            inflated_.fetch_add(count * kPageBytes, std::memory_order_relaxed);
        }
        first = next;
    }
    return true;
}

Balloon::Progress Balloon::release_reported(Work& work) {
    std::uint64_t begin = 0;
    for (const std::span<std::byte> pages : work.chain.writable) { // It was checked to be RAM when the chain was taken.
        while (work.done - begin < pages.size()) {
            const std::uint64_t offset = work.done - begin;
            const std::uint64_t now = std::min<std::uint64_t>(pages.size() - offset, reported_left_);
            if (now == 0 || pieces_left_ == 0) {
                return Progress::kMore;
            }
            reported_left_ -= now;
            --pieces_left_;
            if (driver().memory().discard(pages.subspan(offset, now))) {
                reported_.fetch_add(now, std::memory_order_relaxed);
            }
            work.done += now;
        }
        begin += pages.size();
    }
    return Progress::kDone;
}

} // namespace vmm::devices::virtio
