// Guests whose memory is loaded while they run.

#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <cstddef>
#include <filesystem>
#include <fstream>
#include <optional>
#include <string>

#include "kvm/host/user_fault_fd.hpp"
#include "support/host_errors.hpp"
#include "support/kvm_machine.hpp"
#include "support/kvm_snapshot.hpp"
#include "vmm/machine.hpp"
#include "vmm/state/working_set.hpp"

namespace vmm {
namespace {

using testing::error_of;
using testing::eventually;
using testing::mentions;
using testing::Running;

struct LazyTest : testing::SnapshotTest {
    void SetUp() override {
        SnapshotTest::SetUp();
        if (const std::string problem = UserFaultFd::problem(); !problem.empty()) {
            GTEST_SKIP() << problem;
        }
    }
    /// Saves a guest in the middle of a pass.
    void save(const Config& config) const {
        Running running(config);
        ASSERT_TRUE(running.says("pass=2 "));
        ASSERT_TRUE(take(running).complete);
    }
    [[nodiscard]] Config lazily_restored(const Config& saved) const {
        Config config = restored(saved);
        config.restore->mode = RestoreMode::kLazy;
        return config;
    }
    [[nodiscard]] std::string working_set() const { return path + "/working-set.json"; }
};

struct LazyBacking {
    PageSize page_size;
    unsigned vcpus;
};

class LazyOf : public LazyTest, public ::testing::WithParamInterface<LazyBacking> {
  protected:
    [[nodiscard]] static Config config() {
        Config config = guest(GetParam().vcpus);
        config.page_size = GetParam().page_size;
        return config;
    }
};

TEST_P(LazyOf, GuestGoesOnWhileItsMemoryComes) {
    save(config());
    Running again(lazily_restored(config()));
    const RunReport report = expect_goes_on(again);
    ASSERT_TRUE(report.lazy);
    EXPECT_EQ(report.lazy->chunks, 8U);
    EXPECT_EQ(report.lazy->working_set_chunks, 0U);
}

/// From the moment when all memory is loaded and mapped, the guest takes no second-level fault. The number of faults
/// before depends on who reaches a chunk first, the guest or the mapping thread: `vmm bench state` counts them.
TEST_P(LazyOf, EndsFull) {
    Config saved = config();
    saved.prefault.scope = prefault::Scope::kAll;
    save(saved);
    Config wanted = lazily_restored(saved);
    std::atomic<bool> full = false;
    wanted.filled = [&full] { full = true; };
    Running again(wanted);
    ASSERT_TRUE(eventually([&] { return full.load(); }));
    const RunReport report = expect_goes_on(again);
    EXPECT_EQ(report.prefault_when, PrefaultWhen::kBackground);
    EXPECT_TRUE(report.prefault.complete) << report.prefault.problem;
    ASSERT_TRUE(report.lazy);
    EXPECT_TRUE(report.lazy->seconds_until_loaded);
    ASSERT_TRUE(report.faults_until_full);
    EXPECT_EQ(report.second_level_faults_total(), *report.faults_until_full);
}

INSTANTIATE_TEST_SUITE_P(, LazyOf,
                         ::testing::Values(LazyBacking{PageSize::k4K, 1}, LazyBacking{PageSize::k4K, 3},
                                           LazyBacking{PageSize::kThp, 2}));

TEST_F(LazyTest, RecordsWhatTheGuestNeedsFirstAndReadsThatFirst) {
    save(guest());
    Config config = lazily_restored(guest());
    config.restore->record_working_set = RestoreFrom::kLongestRecord; // It ends with the guest.
    {
        Running recording(config);
        EXPECT_TRUE(expect_goes_on(recording).lazy);
    }
    ASSERT_TRUE(std::filesystem::exists(working_set()));
    config.restore->record_working_set = {};
    Running again(config);
    const RunReport report = expect_goes_on(again);
    ASSERT_TRUE(report.lazy);
    EXPECT_GT(report.lazy->working_set_chunks, 0U);
    EXPECT_LE(report.lazy->working_set_chunks, report.lazy->chunks);
}

TEST_F(LazyTest, OnlyWhatIsTouchedComesWhileItIsRecorded) {
    save(guest());
    Config config = lazily_restored(guest());
    config.restore->record_working_set = RestoreFrom::kLongestRecord;
    std::optional<LazyReport> lazy;
    {
        Running again(config);
        lazy = expect_goes_on(again).lazy;
    }
    ASSERT_TRUE(lazy);
    EXPECT_GT(lazy->demanded_chunks, 0U);
    EXPECT_LE(lazy->demanded_chunks, lazy->chunks);
    const WorkingSet recorded =
        parse_working_set(testing::content_of(working_set()), static_cast<std::size_t>(lazy->chunks));
    EXPECT_EQ(recorded.size(), lazy->demanded_chunks);
}

TEST_F(LazyTest, WorkingSetThatIsDamagedIsNoObstacle) {
    save(guest());
    std::ofstream(working_set()) << "nonsense";
    std::string warned;
    Config config = lazily_restored(guest());
    config.log = [&warned](LogLevel level, std::string_view line) {
        if (level == LogLevel::kWarning) {
            warned += line;
        }
    };
    Running again(config);
    expect_goes_on(again);
    EXPECT_TRUE(mentions(warned, working_set()));
}

/// The writer of a snapshot also touches memory that is not loaded yet.
TEST_F(LazyTest, GuestIsSavedWhileItsMemoryComes) {
    save(guest(2));
    {
        Config config = lazily_restored(guest(2));
        config.restore->record_working_set = RestoreFrom::kLongestRecord;
        Running again(config);
        path = directory / "second";
        ASSERT_TRUE(take(again).complete);
    }
    Running once_more(restored(guest(2)));
    expect_goes_on(once_more);
}

TEST_F(LazyTest, StopDoesNotWaitForMemory) {
    save(guest());
    Config config = lazily_restored(guest());
    config.prefault.scope = prefault::Scope::kAll;
    config.restore->record_working_set = RestoreFrom::kLongestRecord;
    Running again(config);
    const RunReport report = again.stop();
    EXPECT_FALSE(report.prefault.complete);
    ASSERT_TRUE(report.lazy);
    EXPECT_FALSE(report.lazy->seconds_until_loaded);
}

TEST_F(LazyTest, DamagedMemoryEndsTheRunAndIsNamed) {
    save(guest());
    {
        std::fstream file(path + "/memory", std::ios::in | std::ios::out | std::ios::binary);
        for (std::streamoff chunk = 1; chunk < 8; ++chunk) { // The guest needs the first chunk to make progress.
            file.seekp(chunk * 2 * static_cast<std::streamoff>(kMiB) + 0x1234);
            file.put('\x5a');
            file.put('\xa5');
        }
    }
    Config config = lazily_restored(guest());
    std::string error;
    {
        Running again(config);
        error = again.failure();
    }
    EXPECT_TRUE(mentions(error, "the snapshot is damaged")) << error;
    EXPECT_TRUE(mentions(error, path + "/memory")) << error;
}

TEST_F(LazyTest, WhatTheKernelCannotDoIsRefused) {
    save(guest());
    Config config = lazily_restored(guest());
    config.memory_bytes = kGiB;
    config.page_size = PageSize::k1G;
    EXPECT_TRUE(mentions(error_of([&] { const Machine machine(config); }), "Config::restore.mode=full"));
    config = lazily_restored(guest());
    config.memory_from.emplace().path = directory / "pool";
    EXPECT_TRUE(mentions(error_of([&] { const Machine machine(config); }), "warm memory"));
    config = restored(guest());
    config.restore->record_working_set = std::chrono::milliseconds(1);
    EXPECT_TRUE(mentions(error_of([&] { const Machine machine(config); }), "Config::restore.mode=lazy"));
}

} // namespace
} // namespace vmm
