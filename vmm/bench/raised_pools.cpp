#include "vmm/bench/raised_pools.hpp"

#include <algorithm>
#include <optional>
#include <string>
#include <utility>

#include "kvm/host/error.hpp"

namespace vmm::bench {

RaisedPools::RaisedPools(const std::vector<Cell>& cells, const HostRoom& room, const std::stop_token& stop) {
    for (const PageSize page_size : {PageSize::k2M, PageSize::k1G}) {
        if (missing_pool_bytes(cells, page_size, room) == 0) {
            continue;
        }
        const auto largest = std::ranges::max_element(cells, [&](const Cell& one, const Cell& other) {
            return (one.page_size == page_size ? one.memory_bytes : 0) <
                   (other.page_size == page_size ? other.memory_bytes : 0);
        });
        try {
            auto reservation = prefault::HugePageReservation::unless_stopped(
                stop, prefault::HugePageDemand{
                          page_size, {prefault::HugePageShare{std::nullopt, largest->memory_bytes}}, true});
            if (!reservation) {
                return;
            }
            reservations_.push_back(std::move(*reservation));
        } catch (const Error& error) {
            throw Error("cannot measure " + to_string(*largest) + ": " + error.what());
        }
        reservations_.back().release_turn();
    }
}

} // namespace vmm::bench
