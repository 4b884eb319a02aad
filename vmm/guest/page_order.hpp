// A random-looking order that visits every page of a share once, computed without memory.
#pragma once

#include <bit>
#include <cstdint>

namespace vmm::guest {

/// A permutation of the numbers below `count`. It is the same for the same seed.
///
/// It mixes the numbers below the next power of two by steps that can be undone (add, multiply by an odd number, fold
/// high bits down), so no two numbers give the same result. It leaves out results that are not below `count`, which are
/// fewer than half.
class PageOrder {
  public:
    constexpr PageOrder(std::uint64_t count, std::uint64_t seed) noexcept
        : count_(count), mask_(count <= 1 ? 0 : UINT64_MAX >> std::countl_zero(count - 1)),
          fold_((static_cast<unsigned>(std::bit_width(mask_)) / 2) + 1), key_((seed * kMultiplier) + 1) {}

    /// Calls `visit(number)` for each number below `count`.
    template <typename Visit>
    constexpr void for_each(Visit visit) const noexcept {
        std::uint64_t left = count_;
        for (std::uint64_t i = 0; left > 0; ++i) {
            const std::uint64_t number = mix(i);
            if (number < count_) {
                visit(number);
                --left;
            }
        }
    }

  private:
    /// 2^64 divided by the golden ratio, made odd. The high bits of a product with it depend on every bit of the other
    /// factor.
    static constexpr std::uint64_t kMultiplier = 0x9e3779b97f4a7c15;

    [[nodiscard]] constexpr std::uint64_t mix(std::uint64_t value) const noexcept {
        value = (value + key_) & mask_;
        for (int round = 0; round < 3; ++round) {
            value = (value * kMultiplier) & mask_;
            value ^= value >> fold_;
        }
        return value;
    }

    std::uint64_t count_;
    std::uint64_t mask_;
    unsigned fold_;
    std::uint64_t key_;
};

} // namespace vmm::guest
