#include "vmm/guest/page_order.hpp"

#include <gtest/gtest.h>

#include <vector>

namespace vmm::guest {
namespace {

std::vector<std::uint64_t> order(std::uint64_t count, std::uint64_t seed) {
    std::vector<std::uint64_t> numbers;
    PageOrder(count, seed).for_each([&](std::uint64_t number) { numbers.push_back(number); });
    return numbers;
}

void expect_each_once(std::uint64_t count, std::uint64_t seed) {
    std::vector<bool> seen(count);
    std::uint64_t visits = 0;
    PageOrder(count, seed).for_each([&](std::uint64_t number) {
        ASSERT_LT(number, count);
        EXPECT_FALSE(seen[number]) << number << " of " << count << ", seed " << seed;
        seen[number] = true;
        ++visits;
    });
    EXPECT_EQ(visits, count);
}

TEST(GuestPageOrder, EachPageIsVisitedOnce) {
    for (std::uint64_t count = 0; count <= 300; ++count) {
        for (const std::uint64_t seed : {0U, 1U, 253U}) {
            expect_each_once(count, seed);
        }
    }
}

TEST(GuestPageOrder, EachPageOfAGigabyteIsVisitedOnce) {
    for (const std::uint64_t count : {262'143U, 262'144U, 262'145U}) {
        expect_each_once(count, 7);
    }
}

TEST(GuestPageOrder, SameSeedGivesTheSameOrderAndAnotherOneAnother) {
    EXPECT_EQ(order(1000, 5), order(1000, 5));
    EXPECT_NE(order(1000, 5), order(1000, 6));
}

TEST(GuestPageOrder, NeighboursAreRarelyVisitedOneAfterTheOther) {
    const auto numbers = order(65'536, 0);
    int near = 0;
    for (std::size_t i = 1; i < numbers.size(); ++i) {
        const std::uint64_t a = numbers[i - 1];
        const std::uint64_t b = numbers[i];
        near += (a < b ? b - a : a - b) <= 16 ? 1 : 0;
    }
    EXPECT_LT(near, 65'536 / 100); // by chance, about one in 2000
}

} // namespace
} // namespace vmm::guest
