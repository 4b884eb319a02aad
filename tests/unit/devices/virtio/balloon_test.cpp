// virtio-balloon (virtio 1.2, 5.5).

#include <gtest/gtest.h>
#include <sys/mman.h>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <numeric>
#include <string>
#include <vector>

#include "devices/virtio/balloon.hpp"
#include "support/devices_hostile_driver.hpp"
#include "support/devices_virtio_driver.hpp"

namespace vmm::devices::testing {
namespace {

using virtio::Balloon;

constexpr std::uint16_t kInflate = 0;
constexpr std::uint16_t kDeflate = 1;
constexpr std::uint64_t kDeflateOnOom = 1ULL << 2;
constexpr std::uint64_t kPageReporting = 1ULL << 5;
constexpr std::uint64_t kPage = Balloon::kPageBytes;

/// 1 MiB that the tests put into the balloon, far away from everything else.
constexpr GuestRange kPages{GuestAddress{16 * kMiB}, kMiB};

/// How many pages of `range` have memory of the host.
std::size_t resident_pages(VirtioRig& rig, GuestRange range) {
    const auto bytes = rig.memory().at(range);
    std::vector<unsigned char> pages(bytes->size() / kPage);
    EXPECT_EQ(::mincore(bytes->data(), bytes->size(), pages.data()), 0);
    return static_cast<std::size_t>(
        std::count_if(pages.begin(), pages.end(), [](unsigned char page) { return (page & 1) != 0; }));
}

void fill(VirtioRig& rig, GuestRange range) {
    std::ranges::fill(*rig.memory().at(range), std::byte{0x5a});
}

/// Puts page numbers into memory; returns the buffer.
Buffer page_numbers(VirtioRig& rig, const std::vector<std::uint32_t>& pages) {
    const GuestAddress at = rig.allocate(pages.size() * sizeof(std::uint32_t));
    EXPECT_TRUE(rig.memory().copy_in(at, std::as_bytes(std::span(pages))));
    return {at, static_cast<std::uint32_t>(pages.size() * sizeof(std::uint32_t))};
}

std::vector<std::uint32_t> numbers_of(GuestRange range) {
    std::vector<std::uint32_t> pages(range.size / kPage);
    std::iota(pages.begin(), pages.end(), static_cast<std::uint32_t>(to_integer(range.base) / kPage));
    return pages;
}

/// True if the device takes `pages` in queue `index` and goes on.
bool sends(VirtioRig& rig, std::uint16_t index, const std::vector<std::uint32_t>& pages) {
    const std::uint16_t head = rig.queue(index).add({page_numbers(rig, pages)});
    rig.ring(index);
    return rig.wait_for_used(index) == Used{head, 0} && rig.is_alive();
}

TEST(VirtioBalloon, SaysHowMuchItWantsAndHearsHowMuchItHas) { // 5.5.4, 5.5.6
    Balloon balloon("balloon0", 3 * kMiB, false);
    VirtioRig rig(balloon);
    ASSERT_TRUE(rig.start());
    EXPECT_EQ(rig.driver().read_config<std::uint32_t>(0), 3 * kMiB / kPage);
    EXPECT_EQ(rig.driver().read_config<std::uint32_t>(4), 0U);
    rig.driver().write_config<std::uint32_t>(4, 77);
    EXPECT_EQ(rig.driver().read_config<std::uint32_t>(4), 77U);
    rig.driver().write_config<std::uint32_t>(0, 0);
    EXPECT_EQ(rig.driver().read_config<std::uint32_t>(0), 3 * kMiB / kPage) << "num_pages is the device's";
}

TEST(VirtioBalloon, TellsOfAnotherTarget) { // 5.5.6
    constexpr std::uint32_t kConfigChange = 2;
    Balloon balloon("balloon0", 0, false);
    VirtioRig rig(balloon);
    ASSERT_TRUE(rig.start());
    balloon.set_target(5 * kMiB);
    rig.settle();
    EXPECT_EQ(rig.driver().read_config<std::uint32_t>(0), 5 * kMiB / kPage);
    EXPECT_EQ(rig.driver().take_interrupts() & kConfigChange, kConfigChange);
    balloon.set_target(0);
    rig.settle();
    ASSERT_TRUE(rig.start()) << "what was said lasts longer than a reset";
    EXPECT_EQ(rig.driver().read_config<std::uint32_t>(0), 0U);
}

TEST(VirtioBalloon, GivesPagesBackToTheHost) { // 5.5.6.2: before the request is acknowledged
    Balloon balloon("balloon0", 0, false);
    VirtioRig rig(balloon);
    ASSERT_TRUE(rig.start());
    fill(rig, {GuestAddress{to_integer(kPages.base) - kPage}, kPages.size + 2 * kPage});
    ASSERT_EQ(resident_pages(rig, kPages), 256U);
    std::vector<std::uint32_t> pages = numbers_of(kPages);
    std::ranges::reverse(pages); // in an order that does not help
    std::swap(pages[3], pages[200]);
    ASSERT_TRUE(sends(rig, kInflate, pages));
    EXPECT_EQ(resident_pages(rig, kPages), 0U);
    EXPECT_EQ(balloon.statistics().inflated, kMiB);
    EXPECT_EQ(rig.irq().take(), 1U);
    // Their neighbours stay. The pages exist again, with zeros, when the guest touches them.
    EXPECT_EQ(rig.memory().load<std::uint8_t>(GuestAddress{to_integer(kPages.base) - 1}), 0x5a);
    EXPECT_EQ(rig.memory().load<std::uint8_t>(kPages.end()), 0x5a);
    EXPECT_EQ(rig.memory().load<std::uint64_t>(kPages.base), 0U);
}

TEST(VirtioBalloon, TakesPagesOutAsItGoes) {
    Balloon balloon("balloon0", 0, false);
    VirtioRig rig(balloon);
    ASSERT_TRUE(rig.start());
    fill(rig, kPages);
    ASSERT_TRUE(sends(rig, kDeflate, numbers_of(kPages)));
    EXPECT_EQ(resident_pages(rig, kPages), 256U) << "a deflated page is the guest's";
    EXPECT_EQ(balloon.statistics().deflated, kMiB);
    EXPECT_EQ(balloon.statistics().inflated, 0U);
}

TEST(VirtioBalloon, CountsAPageOnceWhateverIsSaidOfIt) {
    Balloon balloon("balloon0", 0, false);
    VirtioRig rig(balloon);
    ASSERT_TRUE(rig.start());
    ASSERT_TRUE(sends(rig, kInflate, std::vector<std::uint32_t>(1000, 4096)));
    EXPECT_EQ(balloon.statistics().inflated, kPage);
}

TEST(VirtioBalloon, IgnoresHalfANumberAndManyMoreThanThereAre) {
    Balloon balloon("balloon0", 0, false);
    VirtioRig rig(balloon);
    ASSERT_TRUE(rig.start());
    Buffer buffer = page_numbers(rig, {4096, 0xffffffff});
    buffer.length = 7;
    rig.queue(kInflate).add({buffer});
    rig.ring(kInflate);
    ASSERT_TRUE(rig.wait_for_used(kInflate));
    EXPECT_TRUE(rig.is_alive());
    EXPECT_EQ(balloon.statistics().inflated, kPage);
    std::vector<std::uint32_t> many(Balloon::kMostPages + 1, 4097);
    many.back() = 0xffffffff;
    EXPECT_TRUE(sends(rig, kInflate, many));
}

class BalloonPages : public ::testing::TestWithParam<std::uint32_t> {};

TEST_P(BalloonPages, ThatAreNoRamBreakTheRules) {
    Balloon balloon("balloon0", 0, false);
    VirtioRig rig(balloon);
    ASSERT_TRUE(rig.start());
    fill(rig, kPages);
    std::vector<std::uint32_t> pages = numbers_of(kPages);
    pages[100] = GetParam();
    const std::uint16_t head = rig.queue(kInflate).add({page_numbers(rig, pages)});
    rig.queue(kInflate).add({page_numbers(rig, numbers_of(kPages))});
    rig.ring(kInflate);
    EXPECT_TRUE(rig.pump_until([&] { return rig.needs_reset(); }));
    EXPECT_EQ(rig.queue(kInflate).take_used(), (Used{head, 0})) << "no request is lost";
    rig.settle();
    EXPECT_EQ(rig.queue(kInflate).take_used(), std::nullopt) << "nor another one taken";
    EXPECT_EQ(resident_pages(rig, kPages), 256U) << "nothing of a request that is wrong in part is done";
    EXPECT_NE(rig.transport().negotiation().failure().find("balloon"), std::string::npos);
    ASSERT_TRUE(rig.start());
    EXPECT_TRUE(sends(rig, kInflate, numbers_of(kPages)));
}

INSTANTIATE_TEST_SUITE_P(Every, BalloonPages,
                         ::testing::Values(32 * kMiB / kPage, 0x000fffff, 0x00100000, 0x80000000, 0xffffffff));

/// The number in the specification, and the number that Linux uses.
class BalloonReporting : public ::testing::TestWithParam<std::uint16_t> {};

TEST_P(BalloonReporting, GivesFreePagesBackToTheHost) { // 5.5.6.6
    Balloon balloon("balloon0", 0, true);
    VirtioRig rig(balloon);
    ASSERT_TRUE(rig.start());
    fill(rig, kPages);
    const std::uint16_t head = rig.queue(GetParam())
                                   .add({{kPages.base, kMiB / 2, kWritable},
                                         {kPages.base + kMiB / 2, kMiB / 4, kWritable},
                                         // A half page is not a page.
                                         {kPages.base + kMiB * 3 / 4 + 100, 2 * kPage, kWritable}});
    rig.ring(GetParam());
    ASSERT_EQ(rig.wait_for_used(GetParam()), (Used{head, 0}));
    EXPECT_EQ(resident_pages(rig, kPages), 256U - 128U - 64U - 1U);
    EXPECT_EQ(rig.memory().load<std::uint8_t>(kPages.base + kMiB * 3 / 4 + 100), 0x5a);
}

INSTANTIATE_TEST_SUITE_P(Every, BalloonReporting, ::testing::Values(2, 4));

TEST(VirtioBalloon, OffersReportingOnlyIfAskedTo) { // 5.5.2: reporting_vq only exists with its feature
    Balloon without("balloon0", 0, false);
    Balloon with("balloon1", 0, true);
    EXPECT_EQ(without.identity().features, kDeflateOnOom);
    EXPECT_EQ(without.identity().queue_sizes.size(), 2U);
    EXPECT_EQ(with.identity().features, kDeflateOnOom | kPageReporting);
}

class BalloonHostile : public ::testing::TestWithParam<HostileCase> {
  protected:
    static void run(std::uint16_t queue, std::function<void(VirtioRig&)> request) {
        run_hostile_case(GetParam(),
                         {.make = [] { return std::make_unique<Balloon>("balloon0", kMiB, true); },
                          .queue = queue,
                          .looks_at_once = true,
                          .request = std::move(request),
                          .works = [](VirtioRig& rig) { return sends(rig, kInflate, numbers_of(kPages)); }});
    }
};

TEST_P(BalloonHostile, DriverOfTheInflateQueueIsAnsweredAndNothingElseIsTouched) {
    run(kInflate, [](VirtioRig& rig) { rig.queue(kInflate).add({page_numbers(rig, {5000, 5001})}); });
}

TEST_P(BalloonHostile, DriverOfTheDeflateQueueIsAnsweredAndNothingElseIsTouched) {
    run(kDeflate, [](VirtioRig& rig) { rig.queue(kDeflate).add({page_numbers(rig, {5000, 5001})}); });
}

TEST_P(BalloonHostile, DriverOfTheReportingQueueIsAnsweredAndNothingElseIsTouched) {
    run(4, [](VirtioRig& rig) { rig.queue(4).add({{kPages.base, 2 * kPage, kWritable}}); });
}

INSTANTIATE_TEST_SUITE_P(Every, BalloonHostile, ::testing::ValuesIn(hostile_cases()), hostile_case_name);

} // namespace
} // namespace vmm::devices::testing
