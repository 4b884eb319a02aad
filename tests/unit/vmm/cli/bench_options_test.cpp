// The options of `vmm bench`.

#include <gtest/gtest.h>

#include <variant>
#include <vector>

#include "support/host_errors.hpp"
#include "vmm/cli/command_line.hpp"

namespace vmm {
namespace {

using testing::mentions;
using Words = std::vector<const char*>;

Command parse_bench(Words words) {
    words.insert(words.begin(), {"vmm", "bench"});
    return parse_command_line(static_cast<int>(words.size()), words.data());
}

BenchCommand understood(const Words& words) {
    const Command command = parse_bench(words);
    if (const auto* const text = std::get_if<TextCommand>(&command)) {
        ADD_FAILURE() << text->text;
    }
    const auto* const bench = std::get_if<BenchCommand>(&command);
    return bench != nullptr ? *bench : BenchCommand{};
}

/// The message for words that are not understood.
std::string refusal(const Words& words) {
    const Command command = parse_bench(words);
    const auto* const text = std::get_if<TextCommand>(&command);
    return text != nullptr && text->exit_code == 2 ? text->text : "";
}

TEST(BenchCommandLine, WithoutWordsLeavesEverythingToThePreset) {
    const BenchCommand bench = understood({});
    EXPECT_EQ(bench.preset, bench::Preset::kNone);
    EXPECT_TRUE(bench.matrix.memory_bytes.empty());
    EXPECT_TRUE(bench.matrix.methods.empty());
    EXPECT_TRUE(bench.matrix.orders.empty());
    EXPECT_FALSE(bench.runs.has_value());
    EXPECT_TRUE(bench.warm);
}

TEST(BenchCommandLine, StateHasOptionsOfItsOwn) {
    const Command command =
        parse_bench({"state", "--quick", "-m", "64M", "--vcpus", "2", "--workers", "3", "--page-size", "4K,thp",
                     "--restore-mode", "cow", "--runs", "7", "--clones", "9", "--no-warm", "--json", "a"});
    const auto* const state = std::get_if<BenchStateCommand>(&command);
    ASSERT_NE(state, nullptr);
    EXPECT_TRUE(state->quick);
    EXPECT_EQ(state->memory_bytes, 64 * kMiB);
    EXPECT_EQ(state->vcpus, 2U);
    EXPECT_EQ(state->workers, 3U);
    EXPECT_EQ(state->page_sizes, (std::vector{PageSize::k4K, PageSize::kThp}));
    EXPECT_EQ(state->modes, std::vector{RestoreMode::kCow});
    EXPECT_EQ(state->runs, 7U);
    EXPECT_EQ(state->clones, 9U);
    EXPECT_FALSE(state->warm);
    EXPECT_EQ(state->json, "a");
}

TEST(BenchCommandLine, StateRefusesWhatCannotBe) {
    EXPECT_TRUE(mentions(refusal({"state", "--memory", "3M"}), "'3M' is no size of at least 16M"));
    EXPECT_TRUE(mentions(refusal({"state", "--restore-mode", "slow"}), "'slow' is not one of full, cow, lazy"));
    EXPECT_TRUE(mentions(refusal({"state", "--clones", "0"}), "not a number from 1 to"));
}

TEST(BenchCommandLine, MigrateTakesListsOfWhatVaries) {
    const Command command = parse_bench(
        {"migrate", "-m",   "64M",        "--mode", "idle,post-copy", "--page-size", "4K,thp",    "--vcpus",   "1,2",
         "--link",  "tcp",  "--streams",  "1,4",    "--prefault",     "none",        "--every",   "--workers", "3",
         "--runs",  "7",    "--downtime", "50",     "--give-up",      "9",           "--no-warm", "--json",    "a",
         "--plot",  "b.svg"});
    const auto* const migrate = std::get_if<BenchMigrateCommand>(&command);
    ASSERT_NE(migrate, nullptr);
    EXPECT_EQ(migrate->memory_bytes, 64 * kMiB);
    EXPECT_EQ(migrate->lists, (bench::MigrateLists{.modes = {bench::MigrateMode::kIdle, bench::MigrateMode::kPostCopy},
                                                   .page_sizes = {PageSize::k4K, PageSize::kThp},
                                                   .vcpus = {1, 2},
                                                   .links = {bench::MigrateLink::kTcp},
                                                   .streams = {1, 4},
                                                   .fills = {bench::MigrateFill::kNone}}));
    EXPECT_TRUE(migrate->every);
    EXPECT_EQ(migrate->workers, 3U);
    EXPECT_EQ(migrate->runs, 7U);
    EXPECT_EQ(migrate->downtime_ms, 50U);
    EXPECT_EQ(migrate->give_up_seconds, 9U);
    EXPECT_FALSE(migrate->warm);
    EXPECT_EQ(migrate->json, "a");
    EXPECT_EQ(migrate->plot, "b.svg");
}

TEST(BenchCommandLine, MigrateRefusesWhatCannotBe) {
    EXPECT_TRUE(mentions(refusal({"migrate", "--memory", "3M"}), "'3M' is no size of at least 16M"));
    EXPECT_TRUE(mentions(refusal({"migrate", "--mode", "slow"}),
                         "'slow' is not one of idle, worker, writer, local, post-copy"));
    EXPECT_TRUE(mentions(refusal({"migrate", "--link", "rdma"}), "'rdma' is not one of unix, tcp"));
    EXPECT_TRUE(mentions(refusal({"migrate", "--streams", "17"}), "not a number from 1 to 16"));
    EXPECT_TRUE(mentions(refusal({"migrate", "--prefault", "host"}), "'host' is not one of all, none"));
}

TEST(BenchCommandLine, TakesLists) {
    const BenchCommand bench =
        understood({"rfc", "--memory", "256M,1G", "--vcpus", "1,2", "--page-size", "4K,thp,2M,1G", "--prefault",
                    "none,host,touch,ioctl,reader", "--order", "seq,random", "--workers", "1,4"});
    EXPECT_EQ(bench.preset, bench::Preset::kRfc);
    EXPECT_EQ(bench.matrix.memory_bytes, (std::vector<std::uint64_t>{256 * kMiB, kGiB}));
    EXPECT_EQ(bench.matrix.vcpus, (std::vector<unsigned>{1, 2}));
    EXPECT_EQ(bench.matrix.workers, (std::vector<unsigned>{1, 4}));
    EXPECT_EQ(bench.matrix.page_sizes.size(), 4U);
    EXPECT_EQ(bench.matrix.methods, (std::vector{bench::Method::kNone, bench::Method::kHost, bench::Method::kTouch,
                                                 bench::Method::kIoctl, bench::Method::kReader}));
    EXPECT_EQ(bench.matrix.orders.size(), 2U);
}

TEST(BenchCommandLine, AnItemGivenTwiceCountsOnce) {
    EXPECT_EQ(understood({"--vcpus", "2,1,2"}).matrix.vcpus, (std::vector<unsigned>{2, 1}));
}

TEST(BenchCommandLine, TakesTheRest) {
    const BenchCommand bench = understood(
        {"scale", "--runs", "3",     "--passes",  "4",    "--no-warm",    "--full", "--model",   "--json", "a", "--csv",
         "b",     "--plot", "c.svg", "--against", "qemu", "--time-limit", "7",      "--timeout", "9"});
    EXPECT_EQ(bench.runs, 3U);
    EXPECT_EQ(bench.settings.passes, 4U);
    EXPECT_FALSE(bench.warm);
    EXPECT_TRUE(bench.full);
    EXPECT_TRUE(bench.model);
    EXPECT_EQ(bench.json, "a");
    EXPECT_EQ(bench.csv, "b");
    EXPECT_EQ(bench.plot, "c.svg");
    EXPECT_TRUE(bench.matrix.qemu);
    EXPECT_FALSE(bench.matrix.command);
    EXPECT_EQ(bench.time_limit_seconds, 7);
    EXPECT_EQ(bench.timeout_seconds, 9);
}

TEST(BenchCommandLine, AgainstIsQemuOrACommandOrBoth) {
    const BenchCommand bench = understood({"--against", "other {kernel}", "--against", "qemu"});
    EXPECT_TRUE(bench.matrix.qemu);
    EXPECT_TRUE(bench.matrix.command);
    EXPECT_EQ(bench.settings.command, "other {kernel}");
}

TEST(BenchCommandLine, CompareTakesTwoFilesAndAThreshold) {
    const Command command = parse_bench({"compare", "a.json", "b.json", "--threshold", "5"});
    const auto* const compare = std::get_if<BenchCompareCommand>(&command);
    ASSERT_NE(compare, nullptr);
    EXPECT_EQ(compare->before, "a.json");
    EXPECT_EQ(compare->after, "b.json");
    EXPECT_DOUBLE_EQ(compare->threshold, 0.05);
}

TEST(BenchCommandLine, WhatCannotBeIsAUsageErrorThatNamesIt) {
    EXPECT_TRUE(mentions(refusal({"slow"}), "slow"));
    EXPECT_TRUE(mentions(refusal({"--memory", "1G,"}), "''"));
    EXPECT_TRUE(mentions(refusal({"--memory", "1000001"}), "1000001"));
    EXPECT_TRUE(mentions(refusal({"--vcpus", "1-3"}), "1-3"));
    EXPECT_TRUE(mentions(refusal({"--vcpus", "99999999999"}), "99999999999"));
    EXPECT_TRUE(mentions(refusal({"--prefault", "all"}), "none, host, touch, ioctl, ioctl+touch, pool, reader"));
    EXPECT_NE(refusal({"--runs", "0"}), "");
    EXPECT_NE(refusal({"--passes", "1"}), "") << "there is no steady pass";
    EXPECT_NE(refusal({"--time-limit", "0"}), "");
    EXPECT_NE(refusal({"--json", ""}), "");
    EXPECT_NE(refusal({"--against", ""}), "");
    EXPECT_NE(refusal({"compare", "a"}), "");
    EXPECT_NE(refusal({"compare", "a", "b", "--threshold", "-1"}), "");
}

TEST(BenchCommandLine, TakesAShareOfTheCells) {
    const BenchCommand bench = understood({"quick", "--cells", "2/4", "--attempt", "3"});
    EXPECT_EQ(bench.cells, (bench::Share{2, 4}));
    EXPECT_EQ(bench.attempt, 3U);
    EXPECT_EQ(understood({"quick"}).cells, std::nullopt);
    EXPECT_TRUE(mentions(refusal({"--cells", "5/4"}), "'5/4' is no share like 2/4"));
    EXPECT_TRUE(mentions(refusal({"--cells", ""}), "--cells"));
    EXPECT_TRUE(mentions(refusal({"--cells", "1/2", "--attempt", "0"}), "not a number from 1 to 1000"));
    EXPECT_TRUE(mentions(refusal({"--attempt", "2"}), "--cells"));
}

TEST(BenchCommandLine, MergeTakesFiles) {
    const Command command = parse_bench({"merge", "a.json", "b.json", "--json", "c.json", "--plot", "d.svg"});
    const auto* const merge = std::get_if<BenchMergeCommand>(&command);
    ASSERT_NE(merge, nullptr);
    EXPECT_EQ(merge->files, (std::vector<std::string>{"a.json", "b.json"}));
    EXPECT_EQ(merge->json, "c.json");
    EXPECT_EQ(merge->plot, "d.svg");
    EXPECT_NE(refusal({"merge"}), "");
    EXPECT_NE(refusal({"merge", "a.json", "--csv", "x"}), "");
}

} // namespace
} // namespace vmm
