#include "devices/byte_ring.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <deque>
#include <random>
#include <string>
#include <string_view>
#include <vector>

namespace vmm::devices {
namespace {

std::size_t push(ByteRing& ring, std::string_view text) {
    return ring.push(std::as_bytes(std::span{text}));
}

std::string pop(ByteRing& ring, std::size_t count) {
    std::string out(count, '\0');
    out.resize(ring.pop(std::as_writable_bytes(std::span{out})));
    return out;
}

TEST(ByteRing, GivesBytesInTheOrderTheyCame) {
    ByteRing ring(8);
    EXPECT_EQ(push(ring, "abc"), 3U);
    EXPECT_EQ(push(ring, "de"), 2U);
    EXPECT_EQ(pop(ring, 4), "abcd");
    EXPECT_EQ(pop(ring, 4), "e");
    EXPECT_TRUE(ring.empty());
}

TEST(ByteRing, TakesOnlyWhatFits) {
    ByteRing ring(4);
    EXPECT_EQ(push(ring, "abcdef"), 4U);
    EXPECT_EQ(push(ring, "g"), 0U);
    EXPECT_EQ(ring.room(), 0U);
    EXPECT_EQ(pop(ring, 9), "abcd");
}

TEST(ByteRing, WrapsAroundItsEnd) {
    ByteRing ring(4);
    push(ring, "abc");
    EXPECT_EQ(pop(ring, 2), "ab");
    EXPECT_EQ(push(ring, "defg"), 3U);
    EXPECT_EQ(pop(ring, 4), "cdef");
}

TEST(ByteRing, NothingInNothingOut) {
    ByteRing ring(1);
    EXPECT_EQ(ring.push({}), 0U);
    EXPECT_EQ(ring.pop({}), 0U);
    EXPECT_EQ(pop(ring, 1), "");
}

TEST(ByteRing, BehavesLikeABoundedDeque) {
    std::mt19937_64 random(1);
    for (const std::size_t capacity : {1U, 2U, 3U, 7U, 16U, 100U}) {
        ByteRing ring(capacity);
        std::deque<std::byte> model;
        for (int step = 0; step < 5000; ++step) {
            std::vector<std::byte> bytes(random() % (capacity * 2));
            if (random() % 2 == 0) {
                std::ranges::generate(bytes, [&] { return static_cast<std::byte>(random()); });
                const std::size_t fits = std::min(bytes.size(), capacity - model.size());
                ASSERT_EQ(ring.push(bytes), fits);
                model.insert(model.end(), bytes.begin(), bytes.begin() + static_cast<std::ptrdiff_t>(fits));
            } else {
                const auto there = static_cast<std::ptrdiff_t>(std::min(bytes.size(), model.size()));
                ASSERT_EQ(ring.pop(bytes), static_cast<std::size_t>(there));
                ASSERT_TRUE(std::equal(bytes.begin(), bytes.begin() + there, model.begin()));
                model.erase(model.begin(), model.begin() + there);
            }
            ASSERT_EQ(ring.size(), model.size());
            ASSERT_EQ(ring.room(), capacity - model.size());
        }
    }
}

} // namespace
} // namespace vmm::devices
