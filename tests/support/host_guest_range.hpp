// A range of guest memory by its numbers.
#pragma once

#include <cstdint>

#include "kvm/host/guest_address.hpp"

namespace vmm::testing {

constexpr GuestRange range(std::uint64_t base, std::uint64_t size) {
    return {GuestAddress{base}, size};
}

} // namespace vmm::testing
