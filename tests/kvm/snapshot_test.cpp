// Snapshots: a restored guest is the guest that was saved, with a full second level if requested.

#include <gtest/gtest.h>

#include <sys/resource.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstddef>
#include <filesystem>
#include <fstream>
#include <functional>
#include <future>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <thread>
#include <vector>

#include "kvm/host/user_fault_fd.hpp"
#include "support/host_errors.hpp"
#include "support/host_temporary_directory.hpp"
#include "support/host_waiting.hpp"
#include "support/kvm_machine.hpp"
#include "support/kvm_snapshot.hpp"
#include "vmm/machine.hpp"
#include "vmm/machine/generation_id.hpp"
#include "vmm/machine/memory_map.hpp"
#include "vmm/vmm.h"

namespace vmm {
namespace {

using testing::content_of;
using testing::error_of;
using testing::eventually;
using testing::mentions;
using testing::Running;
using testing::SnapshotTest;
using testing::TemporaryDirectory;
using testing::TestKernel;
namespace kernels = testing::kernels;

TEST_F(SnapshotTest, GuestGoesOnFromIt) {
    {
        Running running(guest());
        ASSERT_TRUE(running.says("pass=2 "));
        const SnapshotReport report = take(running);
        EXPECT_TRUE(report.complete);
        EXPECT_EQ(report.memory_bytes, 16 * kMiB);
        EXPECT_GT(report.written_bytes, 0U);
        EXPECT_EQ(running->statistics().state, RunState::kPaused);
        EXPECT_EQ(running.stop().exit, ExitReason::kStopped);
    }
    Running again(restored(guest()));
    expect_goes_on(again);
}

TEST_F(SnapshotTest, GuestWithSeveralVcpusGoesOnFromIt) {
    {
        Running running(guest(3));
        ASSERT_TRUE(running.says("pass=2 "));
        ASSERT_TRUE(take(running).complete);
    }
    Running again(restored(guest(3)));
    expect_goes_on(again);
}

TEST_F(SnapshotTest, GuestThatWasSavedGoesOnToo) {
    Running running(guest(2));
    ASSERT_TRUE(running.says("pass=2 "));
    EXPECT_TRUE(take(running, true).complete);
    expect_goes_on(running);
}

TEST_F(SnapshotTest, PausedGuestIsSavedAndStaysPaused) {
    {
        Running running(guest(2));
        ASSERT_TRUE(running.says("pass=2 "));
        running->pause();
        const SnapshotReport report = take(running);
        EXPECT_EQ(report.passes, 1U);
        EXPECT_EQ(running->statistics().state, RunState::kPaused);
    }
    Running again(restored(guest(2)));
    expect_goes_on(again);
}

struct Backing {
    PageSize page_size;
    prefault::Scope scope;
    RestoreMode mode = RestoreMode::kFull;
};

class SnapshotOf : public SnapshotTest, public ::testing::WithParamInterface<Backing> {};

TEST_P(SnapshotOf, PrefaultedGuestComesBackFull) {
    Config config = guest(2);
    config.page_size = GetParam().page_size;
    config.prefault.scope = GetParam().scope;
    {
        Running running(config);
        ASSERT_TRUE(running.says("pass=2 "));
        const SnapshotReport report = take(running);
        ASSERT_TRUE(report.complete);
        EXPECT_EQ(report.refilled, GetParam().scope == prefault::Scope::kAll);
    }
    Config other = restored(config);
    other.restore->mode = GetParam().mode;
    Running again(other);
    const RunReport report = expect_goes_on(again);
    if (GetParam().scope == prefault::Scope::kAll) {
        EXPECT_TRUE(again.filled().complete) << again.filled().problem;
        EXPECT_EQ(report.second_level_faults_total(), 0U);
    }
}

INSTANTIATE_TEST_SUITE_P(, SnapshotOf,
                         ::testing::Values(Backing{PageSize::k4K, prefault::Scope::kAll},
                                           Backing{PageSize::kThp, prefault::Scope::kAll},
                                           Backing{PageSize::kThp, prefault::Scope::kHost},
                                           Backing{PageSize::k4K, prefault::Scope::kAll, RestoreMode::kCow},
                                           Backing{PageSize::kThp, prefault::Scope::kAll, RestoreMode::kCow}));

/// Two guests on one file: neither sees the writes of the other, and the file does not change.
TEST_F(SnapshotTest, ClonesOfOneFileGoOnBesideEachOther) {
    {
        Running running(guest());
        ASSERT_TRUE(running.says("pass=2 "));
        ASSERT_TRUE(take(running).complete);
    }
    const std::string before = content_of(path + "/memory");
    Config config = restored(guest());
    config.restore->mode = RestoreMode::kCow;
    Running one(config);
    Running other(config);
    expect_goes_on(one);
    expect_goes_on(other);
    EXPECT_TRUE(content_of(path + "/memory") == before);
    config.page_size = PageSize::k2M;
    EXPECT_TRUE(mentions(error_of([&] { const Machine machine(config); }), "Config::restore.mode=full"));
}

TEST_F(SnapshotTest, OfASnapshotGoesOnAsWell) {
    for (unsigned generation = 0; generation < 3; ++generation) {
        Running running(generation == 0 ? guest() : restored(guest()));
        ASSERT_TRUE(running.says("pass="));
        if (generation != 0) { // The base is open, and has another name now.
            std::filesystem::rename(path, directory / ("old" + std::to_string(generation)));
        }
        ASSERT_TRUE(take(running).complete);
    }
    Running again(restored(guest()));
    expect_goes_on(again);
}

TEST_F(SnapshotTest, EveryGuestThatGoesOnFromItIsOfAnotherGeneration) {
    const auto generation_of = [](Running& running) {
        return running->memory().load<GenerationId>(memory_map::kGenerationId.base);
    };
    std::vector<std::optional<GenerationId>> seen;
    {
        Running running(guest());
        ASSERT_TRUE(running.says("pass=2 "));
        seen.emplace_back(generation_of(running));
        ASSERT_TRUE(take(running).complete);
    }
    std::vector<RestoreMode> modes{RestoreMode::kFull, RestoreMode::kCow, RestoreMode::kFull, RestoreMode::kCow};
    if (UserFaultFd::problem().empty()) {
        modes.insert(modes.end(), 2, RestoreMode::kLazy);
    }
    for (const RestoreMode mode : modes) {
        Config config = restored(guest());
        config.restore->mode = mode;
        Running again(config);
        const auto generation = generation_of(again);
        EXPECT_EQ(std::ranges::find(seen, generation), seen.end());
        seen.push_back(generation);
        expect_goes_on(again);
    }
}

struct Incremental : SnapshotTest {
    static constexpr unsigned kWords = 3;
    static GuestAddress place(unsigned word) { return GuestAddress{(2 + 2 * word) * 2 * kMiB + 0x1238}; }

    /// Saves a guest three times, each time based on the snapshot before. Between them the guest writes one word more.
    void save_chain() {
        Running running(TestKernel(kernels::kSpin).config());
        std::string base;
        for (unsigned word = 0; word < kWords; ++word) {
            ASSERT_TRUE(running->memory().store(place(word), std::uint64_t{100} + word));
            SnapshotOptions options;
            options.base = base;
            options.directory = path = directory / ("snapshot" + std::to_string(word));
            options.resume = true;
            const SnapshotReport report = running->snapshot(options);
            ASSERT_TRUE(report.complete);
            if (base.empty()) {
                EXPECT_EQ(report.based_bytes, 0U);
            } else {
                EXPECT_GT(report.based_bytes, 0U);
                EXPECT_LT(report.written_bytes, 2 * kMiB);
            }
            base = path;
        }
    }
    [[nodiscard]] Config config() const { return restored(TestKernel(kernels::kSpin).config()); }
    void expect_all_words(const Config& config) const {
        Running again(config);
        for (unsigned word = 0; word < kWords; ++word) {
            EXPECT_EQ(again->memory().load<std::uint64_t>(place(word)), std::uint64_t{100} + word) << word;
        }
    }
    [[nodiscard]] std::string refused() const {
        return error_of([&] { const Machine machine(config()); });
    }
};

TEST_F(Incremental, GuestGoesOnFromAChain) {
    save_chain();
    for (const RestoreMode mode : {RestoreMode::kFull, RestoreMode::kCow}) {
        Config wanted = config();
        wanted.restore->mode = mode;
        expect_all_words(wanted);
    }
    // The folder that contains them may have another name.
    const std::string elsewhere = directory / "elsewhere";
    std::filesystem::create_directory(elsewhere);
    for (const char* const name : {"snapshot0", "snapshot1", "snapshot2"}) {
        std::filesystem::rename(directory / name, elsewhere + "/" + name);
    }
    path = elsewhere + "/snapshot2";
    expect_all_words(config());
}

/// Nothing has changed, so all content that is not zero is in the base.
TEST_F(Incremental, GuestThatStandsStillGoesOn) {
    {
        Running running(guest(2));
        ASSERT_TRUE(running.says("pass=2 "));
        ASSERT_TRUE(take(running).complete);
        SnapshotOptions options;
        options.base = path;
        options.directory = path = directory / "second";
        const SnapshotReport report = running->snapshot(options);
        EXPECT_TRUE(report.complete);
        EXPECT_GT(report.based_bytes, 0U);
        EXPECT_EQ(report.written_bytes, 0U);
    }
    Running again(restored(guest(2)));
    expect_goes_on(again);
}

TEST_F(Incremental, BaseThatIsNotAsItWasIsRefused) {
    save_chain();
    const std::string first = directory / "snapshot0";
    const std::string away = directory / "away";
    std::filesystem::rename(first, away);
    EXPECT_TRUE(mentions(refused(), first)) << refused();
    std::filesystem::copy(directory / "snapshot2", first);
    EXPECT_TRUE(mentions(refused(), first)) << refused(); // It builds on a snapshot that builds on this one.
    std::filesystem::remove_all(first);
    {
        Running running(TestKernel(kernels::kSpin).config());
        SnapshotOptions options;
        options.directory = first;
        ASSERT_TRUE(running->snapshot(options).complete);
    }
    EXPECT_TRUE(mentions(refused(), "another one is there now")) << refused();
    std::filesystem::remove_all(first);
    std::filesystem::rename(away, first);
    expect_all_words(config());
}

TEST_F(Incremental, BaseThatIsNoSnapshotIsRefusedAndNothingIsLeft) {
    Running running(guest());
    SnapshotOptions options;
    options.directory = path;
    options.base = directory / "nothing";
    EXPECT_TRUE(mentions(error_of([&] { static_cast<void>(running->snapshot(options)); }), "nothing"));
    expect_no_leftovers();
    expect_goes_on(running);
}

TEST_F(SnapshotTest, TwoGuestsCannotGoOnWithTheSameWritableDisk) {
    const std::string disk = directory.write("disk", std::string(64 * kKiB, ' '));
    const TestKernel kernel(kernels::kSpin);
    Config config = kernel.config();
    config.disks.push_back({.path = disk});
    {
        Running running(config);
        ASSERT_TRUE(take(running).complete);
    }
    Running first(restored(config));
    const std::string error = error_of([&] { const Machine second(restored(config)); });
    EXPECT_TRUE(mentions(error, "cannot use the disk " + disk + ": another process")) << error;
    EXPECT_TRUE(mentions(error, "end it, or take a copy")) << error;
    EXPECT_EQ(error.find('\n'), std::string::npos) << error;
    Config other = restored(config);
    other.disks[0].path = directory.write("copy", std::string(64 * kKiB, ' '));
    const Running second(other);
}

TEST_F(SnapshotTest, MemoryThatWasAddedIsAPartOfIt) {
    const GuestRange added{GuestAddress{4 * kGiB}, 4 * kMiB};
    const std::vector<std::byte> words(100, std::byte{0x5a});
    {
        Running running(TestKernel(kernels::kSpin).config());
        running->add_memory(added);
        ASSERT_TRUE(running->memory().copy_in(GuestAddress{to_integer(added.base) + 0x1234}, words));
        ASSERT_TRUE(take(running).complete);
    }
    Running again(restored(TestKernel(kernels::kSpin).config()));
    std::vector<std::byte> found(words.size());
    ASSERT_TRUE(again->memory().copy_out(GuestAddress{to_integer(added.base) + 0x1234}, found));
    EXPECT_EQ(found, words);
}

TEST_F(SnapshotTest, NothingIsLeftOfOneThatIsStopped) {
    Running running(guest());
    ASSERT_TRUE(running.says("pass=2 "));
    std::stop_source stop;
    stop.request_stop();
    SnapshotOptions options;
    options.directory = path;
    EXPECT_FALSE(running->snapshot(options, stop.get_token()).complete);
    expect_no_leftovers();
    expect_goes_on(running);
}

TEST_F(SnapshotTest, GuestGoesOnIfTheDiskIsFull) {
    Running running(guest());
    ASSERT_TRUE(running.says("pass=2 "));
    rlimit before{};
    ASSERT_EQ(::getrlimit(RLIMIT_FSIZE, &before), 0);
    const rlimit little{kMiB, before.rlim_max};
    ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &little), 0);
    auto* const handler = ::signal(SIGXFSZ, SIG_IGN);
    const std::string error = error_of([&] { static_cast<void>(take(running)); });
    ::signal(SIGXFSZ, handler);
    ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &before), 0);
    EXPECT_TRUE(mentions(error, path));
    EXPECT_TRUE(mentions(error, "ulimit -f"));
    expect_no_leftovers();
    expect_goes_on(running);
}

TEST_F(SnapshotTest, DirectoryThatIsThereIsRefused) {
    Running running(TestKernel(kernels::kSpin).config());
    std::filesystem::create_directory(path);
    EXPECT_TRUE(mentions(error_of([&] { static_cast<void>(take(running)); }), path));
    EXPECT_TRUE(std::filesystem::is_empty(path));
}

TEST_F(SnapshotTest, MachineThatDoesNotRunIsRefused) {
    Machine machine(TestKernel(kernels::kSpin).config());
    SnapshotOptions options;
    options.directory = path;
    EXPECT_THROW(static_cast<void>(machine.snapshot(options)), UsageError);
    expect_no_leftovers();
}

TEST_F(SnapshotTest, AnotherMachineIsRefused) {
    {
        Running running(TestKernel(kernels::kSpin).config());
        ASSERT_TRUE(take(running).complete);
    }
    const Config same = restored(TestKernel(kernels::kSpin).config());
    const auto refusal = [](const Config& config) { return error_of([&] { const Machine machine(config); }); };
    Config config = same;
    config.memory_bytes = 32 * kMiB;
    EXPECT_TRUE(mentions(refusal(config), "16 MiB"));
    config = same;
    config.vcpus = 2;
    EXPECT_TRUE(mentions(refusal(config), "vCPU"));
    config = same;
    config.rng = true;
    EXPECT_TRUE(mentions(refusal(config), "rng0"));
    config = same;
    config.restore->path = directory / "none";
    EXPECT_TRUE(mentions(refusal(config), config.restore->path));
    config = same;
    config.command_line = "quiet";
    EXPECT_TRUE(mentions(refusal(config), "Config::restore"));
}

TEST_F(SnapshotTest, IsTakenAndGoneOnFromByC) {
    const TestKernel kernel(kernels::kSpin);
    const auto run = [&](bool restores, const std::function<void(vmm_machine*)>& meanwhile) {
        vmm_config* config = nullptr;
        ASSERT_EQ(vmm_config_new(&config), 0);
        EXPECT_EQ(vmm_config_set_memory(config, 16 * kMiB, VMM_PAGE_4K), 0);
        EXPECT_EQ(restores ? vmm_config_set_restore(config, path.c_str(), VMM_RESTORE_COW)
                           : vmm_config_set_kernel(config, kernel.config().kernel_path.c_str()),
                  0);
        vmm_machine* machine = nullptr;
        ASSERT_EQ(vmm_machine_new(config, &machine), 0) << vmm_last_error();
        EXPECT_EQ(vmm_machine_snapshot(machine, (path + "too-early").c_str(), 0), -EBUSY);
        std::thread runs([machine] { vmm_machine_run(machine, nullptr); });
        EXPECT_TRUE(eventually([machine] {
            vmm_state state = VMM_STATE_READY;
            return vmm_machine_statistics(machine, &state, nullptr, nullptr, 0, nullptr) == 0 &&
                   state == VMM_STATE_RUNNING && vmm_machine_pause(machine) == 0 && vmm_machine_resume(machine) == 0;
        }));
        meanwhile(machine);
        vmm_machine_request_stop(machine);
        runs.join();
        vmm_machine_free(machine);
        vmm_config_free(config);
    };
    constexpr std::uint64_t kPlace = 4 * kMiB;
    const std::uint32_t written = 0x12345678;
    run(false, [&](vmm_machine* machine) {
        EXPECT_EQ(vmm_machine_write_memory(machine, kPlace, &written, sizeof written), 0);
        EXPECT_TRUE(eventually([&] { return vmm_machine_snapshot(machine, path.c_str(), 1) == 0; }))
            << vmm_last_error();
        EXPECT_EQ(vmm_machine_snapshot(machine, path.c_str(), 1), -EIO);
        EXPECT_TRUE(mentions(vmm_last_error(), path));
    });
    run(true, [&](vmm_machine* machine) {
        std::uint32_t read = 0;
        EXPECT_EQ(vmm_machine_read_memory(machine, kPlace, &read, sizeof read), 0);
        EXPECT_EQ(read, written);
    });
}

/// Each file is cut short, and each of a few of its bytes is changed.
TEST_F(SnapshotTest, DamageIsOneClearError) {
    {
        Running running(guest());
        ASSERT_TRUE(running.says("pass=2 "));
        ASSERT_TRUE(take(running).complete);
    }
    const Config config = restored(guest());
    for (const char* const name : {"state", "memory"}) {
        const std::string file = path + "/" + name;
        const std::string whole = content_of(file);
        const auto try_it = [&](const std::string& content) {
            std::ofstream(file, std::ios::binary | std::ios::trunc) << content;
            const std::string error = error_of([&] {
                Machine machine(config);
                static_cast<void>(machine.prefault());
                machine.run();
            });
            EXPECT_TRUE(mentions(error, path)) << name;
            EXPECT_EQ(error.find('\n'), std::string::npos);
        };
        try_it(whole.substr(0, whole.size() / 2));
        // A byte of memory that is zero may be in a hole. Nothing is read for a hole.
        const std::size_t at = whole.find_last_not_of('\0');
        std::string flipped = whole;
        flipped[at] = static_cast<char>(flipped[at] ^ 4);
        try_it(flipped);
        std::ofstream(file, std::ios::binary | std::ios::trunc) << whole;
    }
}

TEST_F(SnapshotTest, ResumeIsRefusedWhileItIsWritten) {
    Running running(guest());
    ASSERT_TRUE(running.says("pass=2 "));
    running->pause();
    SnapshotOptions options;
    options.directory = path;
    std::string error;
    options.progress = [&](const SnapshotProgress&) {
        if (error.empty()) {
            error = error_of([&] { running->resume(); });
        }
    };
    ASSERT_TRUE(running->snapshot(options).complete);
    EXPECT_TRUE(mentions(error, "snapshot"));
    running->resume();
    expect_goes_on(running);
}

} // namespace
} // namespace vmm
