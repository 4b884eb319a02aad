// Guests whose memory comes from a pool of warm memory.

#include <gtest/gtest.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <csignal>
#include <filesystem>
#include <fstream>
#include <mutex>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "support/host_child_process.hpp"
#include "support/host_errors.hpp"
#include "support/host_temporary_directory.hpp"
#include "support/host_waiting.hpp"
#include "support/kvm_command.hpp"
#include "support/kvm_huge_pages.hpp"
#include "support/kvm_machine.hpp"
#include "support/kvm_require.hpp"
#include "vmm/memory_pool.hpp"

namespace vmm {
namespace {

using testing::CommandBeside;
using testing::error_of;
using testing::eventually;
using testing::HugePages;
using testing::mentions;
using testing::run_beside;
using testing::run_command;
using testing::TestKernel;
using testing::TouchingGuest;
namespace kernels = testing::kernels;

constexpr std::uint64_t kPiece = 4 * kMiB;
constexpr std::uint64_t kGuestBytes = 16 * kMiB; ///< TestKernel's

/// A pool that serves on a thread of its own.
class PoolBeside {
  public:
    explicit PoolBeside(MemoryPoolConfig config) : pool_(std::move(config)), server_([this] { pool_.serve(); }) {}
    ~PoolBeside() { end(); }
    PoolBeside(const PoolBeside&) = delete;
    PoolBeside& operator=(const PoolBeside&) = delete;

    [[nodiscard]] bool is_full_at_last() const {
        return eventually([this] { return pool_.is_full(); });
    }
    [[nodiscard]] MemoryPool& pool() noexcept { return pool_; }
    void end() {
        pool_.request_stop();
        if (server_.joinable()) {
            server_.join();
        }
    }

  private:
    MemoryPool pool_;
    std::jthread server_;
};

/// While this object exists, shared memory gets huge pages on demand, if this process may set that.
class SharedHugePages {
  public:
    SharedHugePages() : before_(read()) { write("advise"); }
    ~SharedHugePages() { write(before_); }
    SharedHugePages(const SharedHugePages&) = delete;
    SharedHugePages& operator=(const SharedHugePages&) = delete;

    [[nodiscard]] static bool are_there() {
        return error_of([] {
                   prefault::check_warm_page_size(PageSize::kThp);
                   return 0;
               })
            .empty();
    }

  private:
    static constexpr const char* kFile = "/sys/kernel/mm/transparent_hugepage/shmem_enabled";
    static std::string read() {
        const std::string text = testing::content_of(kFile);
        const std::size_t open = text.find('[');
        return open == std::string::npos ? "" : text.substr(open + 1, text.find(']') - open - 1);
    }
    static void write(const std::string& word) { std::ofstream(kFile) << word; }
    std::string before_;
};

class PoolMemory : public testing::KvmTest {
  protected:
    [[nodiscard]] MemoryPoolConfig pool_config(std::uint64_t bytes = kGuestBytes,
                                               PageSize page_size = PageSize::k4K) const {
        MemoryPoolConfig config;
        config.path = path_;
        config.size_bytes = bytes;
        config.piece_bytes = kPiece;
        config.page_size = page_size;
        return config;
    }

    /// `config` with memory from the pool.
    [[nodiscard]] Config from_pool(Config config, PageSize page_size = PageSize::k4K) const {
        config.page_size = page_size;
        config.memory_from = MemoryFrom{path_};
        return config;
    }

    void expect_no_fault(PageSize page_size) const {
        PoolBeside pool(pool_config(kGuestBytes, page_size));
        ASSERT_TRUE(pool.is_full_at_last());
        const TouchingGuest guest;
        Machine machine(from_pool(guest.config(), page_size));
        const prefault::Report report = machine.prefault();
        EXPECT_TRUE(report.complete) << report.problem;
        const std::uint64_t large = largest_page_bytes(page_size);
        if (large == 2 * kMiB) { // Guest and host addresses agree, so KVM makes large mappings.
            EXPECT_EQ(report.mapped.pages_2m, kGuestBytes / large);
        }
        run_beside(machine, [&] {
            EXPECT_TRUE(guest.touch({GuestAddress{2 * kMiB}, kGuestBytes - 2 * kMiB}));
            guest.power_off();
        });
        EXPECT_EQ(machine.report().second_level_faults_total(), 0U);
        EXPECT_EQ(machine.report().warm_bytes, kGuestBytes);
        if (!is_from_pool(page_size)) { // The kernel does not count huge pages, which are never swapped.
            EXPECT_EQ(machine.report().locked_bytes, kGuestBytes);
        }
    }

    testing::TemporaryDirectory directory_;
    std::string path_ = directory_ / "pool";
};

TEST_F(PoolMemory, SaysThatAllOfItIsReady) {
    std::atomic<unsigned> filled = 0;
    MemoryPoolConfig config = pool_config();
    config.filled = [&filled] { ++filled; };
    PoolBeside pool(config);
    ASSERT_TRUE(pool.is_full_at_last());
    EXPECT_TRUE(testing::eventually([&] { return filled == 1; }));
    const TouchingGuest guest;
    const Machine machine(from_pool(guest.config()));
    EXPECT_TRUE(testing::eventually([&] { return filled == 2; })) << "it was filled again";
}

TEST_F(PoolMemory, GuestOfSmallPagesTakesNoFault) {
    expect_no_fault(PageSize::k4K);
}

TEST_F(PoolMemory, GuestOfHugePagesTakesNoFault) {
    const HugePages pages(2 * kGuestBytes / (2 * kMiB) + 1); // The pool makes new pieces while the guest runs.
    if (!pages.why_not().empty()) {
        GTEST_SKIP() << pages.why_not();
    }
    expect_no_fault(PageSize::k2M);
}

TEST_F(PoolMemory, GuestOfTransparentHugePagesTakesNoFault) {
    const SharedHugePages pages;
    if (!pages.are_there()) {
        GTEST_SKIP() << "this host gives shared memory no huge pages, or none at the moment";
    }
    expect_no_fault(PageSize::kThp);
}

TEST_F(PoolMemory, LongtermPinHoldsIt) {
    PoolBeside pool(pool_config());
    ASSERT_TRUE(pool.is_full_at_last());
    const TestKernel kernel(kernels::kPowerOff);
    Config config = from_pool(kernel.config());
    config.prefault.scope = prefault::Scope::kAll;
    config.pin = prefault::Pin::kLongterm;
    Machine machine(config);
    EXPECT_TRUE(machine.prefault().complete);
    EXPECT_EQ(machine.run(), ExitReason::kPowerOff);
    EXPECT_EQ(machine.report().pinned_bytes, kGuestBytes);
}

TEST_F(PoolMemory, GuestTakesAPartOfItsLastPiece) {
    PoolBeside pool(pool_config());
    ASSERT_TRUE(pool.is_full_at_last());
    const TestKernel kernel(kernels::kPowerOff);
    Config config = from_pool(kernel.config());
    config.memory_bytes = 2 * kPiece + 8192;
    Machine machine(config);
    EXPECT_EQ(machine.run(), ExitReason::kPowerOff);
    EXPECT_EQ(machine.report().warm_bytes, 2 * kPiece + 8192);
}

TEST_F(PoolMemory, TwoGuestsNeverShare) {
    PoolBeside pool(pool_config());
    const TestKernel kernel(kernels::kSpin);
    constexpr GuestAddress kPlace{8 * kMiB};
    constexpr std::uint64_t kSecret = 0x5ec2e7;
    {
        ASSERT_TRUE(pool.is_full_at_last());
        const Machine first(from_pool(kernel.config()));
        ASSERT_TRUE(first.memory().store(kPlace, kSecret));
        ASSERT_TRUE(pool.is_full_at_last());
        const Machine second(from_pool(kernel.config()));
        EXPECT_EQ(second.memory().load<std::uint64_t>(kPlace), 0U);
        ASSERT_TRUE(second.memory().store(kPlace, std::uint64_t{1}));
        EXPECT_EQ(first.memory().load<std::uint64_t>(kPlace), kSecret);
    }
    for (int i = 0; i < 3; ++i) { // The memory of the first two guests does not come back, either.
        ASSERT_TRUE(pool.is_full_at_last());
        const Machine later(from_pool(kernel.config()));
        for (std::uint64_t at = 2 * kMiB; at < kGuestBytes; at += 4096) {
            ASSERT_EQ(later.memory().load<std::uint64_t>(GuestAddress{at}), 0U) << at;
        }
    }
}

TEST_F(PoolMemory, PoolThatEndsLeavesItsGuestAlone) {
    std::optional<PoolBeside> pool(pool_config());
    ASSERT_TRUE(pool->is_full_at_last());
    const TouchingGuest guest;
    Machine machine(from_pool(guest.config()));
    EXPECT_TRUE(machine.prefault().complete);
    run_beside(machine, [&] {
        EXPECT_TRUE(guest.touch({GuestAddress{2 * kMiB}, 4 * kMiB}));
        pool.reset();
        EXPECT_TRUE(guest.touch({GuestAddress{2 * kMiB}, kGuestBytes - 2 * kMiB}));
        guest.power_off();
    });
    EXPECT_EQ(machine.report().second_level_faults_total(), 0U);
    EXPECT_FALSE(std::filesystem::exists(path_));
}

TEST_F(PoolMemory, PoolThatIsShortRefuses) {
    PoolBeside pool(pool_config(2 * kPiece));
    ASSERT_TRUE(pool.is_full_at_last());
    const TestKernel kernel(kernels::kPowerOff);
    const std::string error = error_of([&] {
        const Machine machine(from_pool(kernel.config()));
        return 0;
    });
    EXPECT_TRUE(mentions(error, "cannot take 16 MiB of 4K pages from the pool at " + path_ + ": it has 8 MiB ready"))
        << error;
    EXPECT_EQ(pool.pool().ready_pieces(), 2U);
}

TEST_F(PoolMemory, RestIsOrdinaryMemoryIfThatWillDo) {
    PoolBeside pool(pool_config(2 * kPiece));
    ASSERT_TRUE(pool.is_full_at_last());
    const TouchingGuest guest;
    Config config = from_pool(guest.config());
    config.memory_from->fallback = true;
    std::mutex lock;
    std::string warnings;
    config.log = [&](LogLevel level, std::string_view line) {
        const std::lock_guard hold(lock);
        warnings += level == LogLevel::kWarning ? std::string(line) + "\n" : "";
    };
    Machine machine(config);
    EXPECT_TRUE(machine.prefault().complete);
    run_beside(machine, [&] {
        EXPECT_TRUE(guest.touch({GuestAddress{2 * kMiB}, kGuestBytes - 2 * kMiB}));
        guest.power_off();
    });
    EXPECT_EQ(machine.report().second_level_faults_total(), 0U);
    EXPECT_EQ(machine.report().warm_bytes, 2 * kPiece);
    EXPECT_TRUE(mentions(warnings, "it has 8 MiB ready; 8 MiB of the guest's memory are ordinary memory")) << warnings;
}

TEST_F(PoolMemory, WithoutAPoolAllIsOrdinaryMemoryIfThatWillDo) {
    const TestKernel kernel(kernels::kPowerOff);
    Config config = from_pool(kernel.config());
    EXPECT_TRUE(mentions(error_of([&] {
                             const Machine machine(config);
                             return 0;
                         }),
                         "there is none"));
    config.memory_from->fallback = true;
    Machine machine(config);
    EXPECT_EQ(machine.run(), ExitReason::kPowerOff);
    EXPECT_EQ(machine.report().warm_bytes, 0U);
}

TEST_F(PoolMemory, BalloonIsRefused) {
    const TestKernel kernel(kernels::kPowerOff);
    Config config = from_pool(kernel.config());
    config.balloon = BalloonConfig{kMiB};
    EXPECT_TRUE(mentions(error_of([&] {
                             check_values(config);
                             return 0;
                         }),
                         "Config::memory_from"));
}

/// The command, as users run it: a pool in one terminal, guests in others.
class PoolCommands : public PoolMemory {
  protected:
    [[nodiscard]] std::vector<std::string> pool_words(const std::string& size = "16M") const {
        return {"pool", "--size", size, "--piece", "4M", "--page-size", "4K", "--socket", path_};
    }
    [[nodiscard]] std::vector<std::string> run_words(const std::string& kernel, const std::string& from) const {
        return {"run",           "-m", "16M",      "--page-size", "4K",  "--prefault=all",
                "--memory-from", from, "--report", report_,       kernel};
    }
    static bool is_ready(const CommandBeside& pool) {
        return eventually([&] { return pool.has_ended() || mentions(pool.errors(), "are ready\n"); }) &&
               !pool.has_ended();
    }

    std::string report_ = directory_ / "report";
    std::string kernel_ = directory_.write("kernel", testing::kernel_image(kernels::kPowerOff));
};

TEST_F(PoolCommands, GuestTakesWhatThePoolHas) {
    CommandBeside pool(pool_words());
    ASSERT_TRUE(is_ready(pool)) << pool.errors();
    const auto run = run_command(run_words(kernel_, path_));
    EXPECT_EQ(run.exit_status, 0) << run.errors;
    EXPECT_TRUE(mentions(run.errors, "16 MiB from a pool")) << run.errors;
    EXPECT_EQ(nlohmann::json::parse(testing::content_of(report_))["memory"]["warm_bytes"], kGuestBytes);
    EXPECT_TRUE(eventually([&] { return mentions(pool.errors(), "16 MiB went to process "); })) << pool.errors();
    pool.send(SIGTERM);
    EXPECT_EQ(pool.wait(), 0);
    EXPECT_FALSE(std::filesystem::exists(path_));
}

TEST_F(PoolCommands, PoolThatIsKilledIsNamedAndReplaced) {
    {
        CommandBeside pool(pool_words());
        ASSERT_TRUE(is_ready(pool)) << pool.errors();
    } // SIGKILL
    ASSERT_TRUE(std::filesystem::exists(path_));
    const auto run = run_command(run_words(kernel_, path_));
    EXPECT_EQ(run.exit_status, 1);
    EXPECT_TRUE(mentions(run.errors, "it has ended (start one: `vmm pool")) << run.errors;
    EXPECT_EQ(std::ranges::count(run.errors, '\n'), 1) << run.errors;
    CommandBeside next(pool_words());
    EXPECT_TRUE(is_ready(next)) << next.errors();
    EXPECT_TRUE(mentions(next.errors(), "left behind by a process that has ended")) << next.errors();
}

TEST_F(PoolCommands, LiveSocketIsNotReplaced) {
    CommandBeside pool(pool_words());
    ASSERT_TRUE(is_ready(pool)) << pool.errors();
    const auto second = run_command(pool_words());
    EXPECT_EQ(second.exit_status, 1);
    EXPECT_TRUE(mentions(second.errors, "another process uses it")) << second.errors;
    EXPECT_EQ(run_command(run_words(kernel_, path_)).exit_status, 0);
}

TEST_F(PoolCommands, OtherPageSizeIsNamedByItsOption) {
    CommandBeside pool(pool_words());
    ASSERT_TRUE(is_ready(pool)) << pool.errors();
    const auto run = run_command({"run", "-m", "16M", "--memory-from", path_ + ",fallback", kernel_});
    EXPECT_EQ(run.exit_status, 1);
    EXPECT_TRUE(mentions(run.errors, "it has 4K pages (take --page-size=4K)")) << run.errors;
}

TEST_F(PoolCommands, ShortPoolNamesTheFallback) {
    CommandBeside pool(pool_words("8M"));
    ASSERT_TRUE(is_ready(pool)) << pool.errors();
    const auto run = run_command(run_words(kernel_, path_));
    EXPECT_EQ(run.exit_status, 1);
    EXPECT_TRUE(mentions(run.errors, "--memory-from fallback")) << run.errors;
    EXPECT_EQ(run_command(run_words(kernel_, path_ + ",fallback")).exit_status, 0);
}

TEST_F(PoolCommands, OptionsThatCannotBeAreRefusedBeforeASocketIsThere) {
    const auto refused = [&](const std::vector<std::string>& options, int status, const std::string& part) {
        std::vector<std::string> words{"pool", "--socket", path_};
        words.insert(words.end(), options.begin(), options.end());
        const auto result = run_command(words);
        EXPECT_EQ(result.exit_status, status) << result.errors;
        EXPECT_TRUE(mentions(result.errors, part)) << result.errors;
        EXPECT_EQ(std::ranges::count(result.errors, '\n'), 1) << result.errors;
        EXPECT_FALSE(std::filesystem::exists(path_));
    };
    refused({"--size", "3M", "--piece", "2M", "--page-size", "4K"}, 1, "multiple of the piece");
    refused({"--size", "3M", "--piece", "3M", "--page-size", "4K"}, 1, "multiple of 2 MiB");
    refused({"--size", "1G", "--piece", "512M", "--page-size", "1G"}, 1, "multiple of 1 GiB");
    refused({"--size", "0"}, 1, "multiple of the piece");
    refused({"--size", "16T", "--piece", "2M", "--page-size", "4K"}, 1, "16384");
    refused({"--size", "15T", "--piece", "1T", "--page-size", "4K"}, 1, "this host has");
    refused({"--size", "much"}, 2, "is no size");
    refused({"--size", "2M", "--piece", "2M", "--workers", "0"}, 1, "0 workers");
    refused({"--size", "2M", "--numa", "interleave"}, 2, "interleave");
    EXPECT_EQ(run_command({"pool", "--size", "2M"}).exit_status, 2); // --socket is required.
}

TEST_F(PoolCommands, OfAnotherUserIsRefused) {
    if (::geteuid() != 0) {
        GTEST_SKIP() << "only root can be another user";
    }
    std::filesystem::permissions(directory_.path(), std::filesystem::perms(0777));
    constexpr uid_t kNobody = 65534;
    const auto take = [&] {
        return error_of([&] {
            return prefault::take_warm_memory(
                       {.path = path_, .page_size = PageSize::k4K, .shares = {{.bytes = kPiece}}})
                .bytes;
        });
    };
    const auto take_as_nobody = [&] {
        return testing::in_child_process([&] { return ::setuid(kNobody) == 0 ? take() : "cannot be nobody"; });
    };
    {
        CommandBeside pool(pool_words());
        ASSERT_TRUE(is_ready(pool)) << pool.errors();
        EXPECT_TRUE(mentions(take_as_nobody(), "it is another user's"));
        ASSERT_EQ(::chmod(path_.c_str(), 0666), 0); // Even a client that reaches the pool gets nothing from it.
        EXPECT_TRUE(mentions(take_as_nobody(), "it serves its own user and root alone"));
        EXPECT_TRUE(eventually([&] {
            return mentions(pool.errors(), "(user 65534) got 0 bytes: it is another user's");
        })) << pool.errors();
        pool.send(SIGTERM);
        EXPECT_EQ(pool.wait(), 0);
    }
    // A pool of the user nobody could read the memory of root's guests.
    CommandBeside pool(pool_words(), [] {
        if (::setgid(kNobody) != 0 || ::setuid(kNobody) != 0) {
            ::_exit(125);
        }
    });
    if (!is_ready(pool)) {
        GTEST_SKIP() << "another user cannot run the command here: " << pool.errors();
    }
    EXPECT_TRUE(mentions(take(), "it is of user 65534, who could look into the guest's memory")) << take();
}

} // namespace
} // namespace vmm
