#include "prefault/host/warm_stock.hpp"

#include <algorithm>
#include <cassert>
#include <utility>

namespace vmm::prefault {

WarmStock::WarmStock(PageSize page_size, std::uint64_t piece_bytes, const std::vector<Target>& targets)
    : page_size_(page_size), piece_bytes_(piece_bytes) {
    assert(!targets.empty() && piece_bytes != 0 && is_aligned(piece_bytes, largest_page_bytes(page_size)));
    for (const Target& target : targets) {
        shelves_.push_back({target, {}});
    }
}

std::uint64_t WarmStock::free_bytes_locked() const noexcept {
    std::uint64_t pieces = 0;
    for (const Shelf& shelf : shelves_) {
        pieces += shelf.pieces.size();
    }
    return pieces * piece_bytes_;
}

WarmStock::Shelf* WarmStock::shelf_for(std::uint32_t node) noexcept {
    if (node == warm::kAnyNode) {
        return &*std::ranges::max_element(shelves_, {}, [](const Shelf& shelf) { return shelf.pieces.size(); });
    }
    const auto found = std::ranges::find_if(shelves_, [node](const Shelf& shelf) { return shelf.target.node == node; });
    return found != shelves_.end() ? &*found : nullptr;
}

const WarmStock::Shelf& WarmStock::emptiest() const noexcept {
    const auto lack = [](const Shelf& shelf) {
        return shelf.target.pieces > shelf.pieces.size() ? shelf.target.pieces - shelf.pieces.size() : 0;
    };
    return *std::ranges::max_element(shelves_, {}, lack);
}

WarmStock::Grant WarmStock::take(const warm::Request& request) {
    const std::lock_guard hold(lock_);
    Grant grant;
    grant.free_bytes = free_bytes_locked();
    const auto end_with = [&](warm::Status status) {
        for (Portion& portion : grant.portions) {
            const auto node = portion.piece.node();
            shelf_for(node.value_or(warm::kAnyNode))->pieces.push_back(std::move(portion.piece));
        }
        grant.portions.clear();
        grant.bytes = 0;
        grant.status = status;
        return std::move(grant);
    };
    for (std::uint32_t i = 0; i < request.share_count; ++i) {
        const warm::Share& share = request.shares[i];
        for (std::uint64_t left = share.bytes; left != 0;) {
            Shelf* const shelf = shelf_for(share.node);
            if (shelf == nullptr) {
                return end_with(warm::Status::kNoNode);
            }
            if (shelf->pieces.empty()) {
                if (request.may_be_less == 0) {
                    return end_with(warm::Status::kShort);
                }
                break;
            }
            const std::uint64_t part = std::min(left, piece_bytes_);
            grant.portions.push_back(
                {std::move(shelf->pieces.front()), i, *align_up(part, largest_page_bytes(page_size_))});
            shelf->pieces.pop_front();
            grant.bytes += part;
            left -= part;
        }
    }
    taken_.notify_all();
    return grant;
}

void WarmStock::put(WarmPiece piece) {
    assert(piece.bytes() == piece_bytes_);
    const std::lock_guard hold(lock_);
    const auto node = piece.node();
    shelf_for(node.value_or(warm::kAnyNode))->pieces.push_back(std::move(piece));
}

std::optional<WarmPiece::Spec> WarmStock::wait_for_lack(const std::stop_token& stop) {
    std::unique_lock hold(lock_);
    const auto lacks = [this] {
        const Shelf& shelf = emptiest();
        return shelf.pieces.size() < shelf.target.pieces;
    };
    if (!taken_.wait(hold, stop, lacks) || stop.stop_requested()) {
        return std::nullopt;
    }
    return WarmPiece::Spec{piece_bytes_, page_size_, emptiest().target.node};
}

bool WarmStock::is_full() const {
    const std::lock_guard hold(lock_);
    return std::ranges::all_of(shelves_, [](const Shelf& shelf) { return shelf.pieces.size() >= shelf.target.pieces; });
}

std::size_t WarmStock::ready_pieces() const {
    const std::lock_guard hold(lock_);
    return static_cast<std::size_t>(free_bytes_locked() / piece_bytes_);
}

} // namespace vmm::prefault
