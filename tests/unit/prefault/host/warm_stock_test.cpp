#include "prefault/host/warm_stock.hpp"

#include <gtest/gtest.h>

#include <future>
#include <set>

#include "support/prefault_stop.hpp"
#include "support/prefault_warm.hpp"

namespace vmm::prefault {
namespace {

using testing::kWarmPiece;
using testing::make_memfd;
using testing::make_warm_piece;
using testing::request_for;
using warm::Status;

WarmStock stock_of(std::size_t target) {
    return {PageSize::k4K, kWarmPiece, {{std::nullopt, target}}};
}

/// A piece that claims to be on `node`, wherever it is.
WarmPiece piece_of_node(unsigned node) {
    return {make_memfd(kWarmPiece, F_SEAL_SHRINK | F_SEAL_GROW), kWarmPiece, PageSize::k4K, node};
}

TEST(WarmStock, APieceIsHandedOutOnce) {
    WarmStock stock = stock_of(2);
    stock.put(make_warm_piece());
    stock.put(make_warm_piece());
    const auto first = stock.take(request_for(kWarmPiece));
    const auto second = stock.take(request_for(kWarmPiece));
    ASSERT_EQ(first.portions.size(), 1U);
    ASSERT_EQ(second.portions.size(), 1U);
    EXPECT_NE(first.portions[0].piece.fd(), second.portions[0].piece.fd());
    EXPECT_EQ(stock.take(request_for(kWarmPiece)).status, Status::kShort);
}

TEST(WarmStock, ShortageLeavesEverythingThere) {
    WarmStock stock = stock_of(2);
    stock.put(make_warm_piece());
    const auto grant = stock.take(request_for(2 * kWarmPiece));
    EXPECT_EQ(grant.status, Status::kShort);
    EXPECT_TRUE(grant.portions.empty());
    EXPECT_EQ(grant.free_bytes, kWarmPiece);
    EXPECT_EQ(stock.ready_pieces(), 1U);
}

TEST(WarmStock, LessIsGrantedWhereThatMayBe) {
    WarmStock stock = stock_of(2);
    stock.put(make_warm_piece());
    const auto grant = stock.take(request_for(2 * kWarmPiece, true));
    EXPECT_EQ(grant.status, Status::kGranted);
    EXPECT_EQ(grant.bytes, kWarmPiece);
    EXPECT_EQ(grant.portions.size(), 1U);
}

TEST(WarmStock, LastPieceIsWantedInPart) {
    WarmStock stock = stock_of(2);
    stock.put(make_warm_piece());
    stock.put(make_warm_piece());
    const auto grant = stock.take(request_for(kWarmPiece + 8192));
    ASSERT_EQ(grant.portions.size(), 2U);
    EXPECT_EQ(grant.bytes, kWarmPiece + 8192);
    EXPECT_EQ(grant.portions[1].bytes, 8192U);
}

TEST(WarmStock, NodesHaveTheirOwn) {
    WarmStock stock(PageSize::k4K, kWarmPiece, {{0U, 1}, {3U, 1}});
    stock.put(piece_of_node(0));
    stock.put(piece_of_node(3));
    warm::Request request = request_for(kWarmPiece);
    request.shares[0].node = 3;
    const auto grant = stock.take(request);
    ASSERT_EQ(grant.portions.size(), 1U);
    EXPECT_EQ(grant.portions[0].piece.node(), 3U);
    EXPECT_EQ(stock.take(request).status, Status::kShort);
    request.shares[0].node = 1;
    EXPECT_EQ(stock.take(request).status, Status::kNoNode);
    EXPECT_EQ(stock.take(request_for(kWarmPiece)).bytes, kWarmPiece); // of any node
}

TEST(WarmStock, WithoutNodesNoNodeHasAny) {
    WarmStock stock = stock_of(1);
    stock.put(make_warm_piece());
    warm::Request request = request_for(kWarmPiece);
    request.shares[0].node = 0;
    EXPECT_EQ(stock.take(request).status, Status::kNoNode);
    EXPECT_EQ(stock.ready_pieces(), 1U);
}

TEST(WarmStock, WhatIsTakenIsLackingThen) {
    WarmStock stock = stock_of(1);
    stock.put(make_warm_piece());
    EXPECT_TRUE(stock.is_full());
    auto lack = std::async(std::launch::async, [&] { return stock.wait_for_lack({}); });
    static_cast<void>(stock.take(request_for(kWarmPiece)));
    const auto spec = lack.get();
    ASSERT_TRUE(spec);
    EXPECT_EQ(spec->bytes, kWarmPiece);
    EXPECT_FALSE(stock.is_full());
}

TEST(WarmStock, StopEndsTheWaitForALack) {
    WarmStock stock = stock_of(1);
    stock.put(make_warm_piece());
    EXPECT_FALSE(stock.wait_for_lack(vmm::testing::stop_requested_already()));
}

TEST(WarmStock, NodeThatLacksMostComesFirst) {
    WarmStock stock(PageSize::k4K, kWarmPiece, {{0U, 2}, {1U, 2}});
    stock.put(piece_of_node(0));
    EXPECT_EQ(stock.wait_for_lack({})->node, 1U);
}

} // namespace
} // namespace vmm::prefault
