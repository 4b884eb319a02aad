// A host with less than usual: little memory, few descriptors, no /proc or /sys, no rights. For each lack there must be
// one line that names the limit, before anything is made; or the lack must not matter.

#include <gtest/gtest.h>
#include <sched.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <fstream>
#include <regex>
#include <string>
#include <utility>
#include <vector>

#include "kvm/uapi.hpp"
#include "prefault/x86/second_level_host.hpp"
#include "support/host_errors.hpp"
#include "support/host_syscall_injector.hpp"
#include "support/host_temporary_directory.hpp"
#include "support/kvm_command.hpp"
#include "support/kvm_require.hpp"

#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23 // Linux 5.14
#endif

namespace vmm::testing {
namespace {

using Words = std::vector<std::string>;

class HostLimits : public KvmTest {
  protected:
    static Words run_words(const Words& options) {
        Words words{"run", "--quiet", "--serial=none", "--cmdline", "passes=1"};
        words.insert(words.end(), options.begin(), options.end());
        return words;
    }
};

std::size_t lines_of(const std::string& text) {
    return static_cast<std::size_t>(std::ranges::count(text, '\n'));
}

/// One call of a run fails with one value of errno. The message that is expected then.
struct AdviceCase {
    const char* name;
    Words options;
    int number;
    std::uint64_t request; ///< the second argument of the call; 0: any
    int error_number;
    const char* wanted;
};

class Advice : public HostLimits {
  protected:
    void expect(const AdviceCase& one) {
        Words words = run_words(one.options);
        words.insert(words.begin(), command_under_test());
        bool refused = false;
        bool begun = false;
        const InjectedRun run = SyscallInjector({SYS_fcntl, one.number}).run(words, [&](const SystemCall& call) {
            begun = begun || call.number == SYS_fcntl; // the first call of main()
            const std::uint64_t argument = one.number == SYS_madvise ? call.arguments[2] : call.arguments[1];
            if (!begun || call.number != one.number || (one.request != 0 && argument != one.request)) {
                return 0;
            }
            refused = true;
            return one.error_number;
        });
        const std::string what = std::string(one.name) + ", " + errno_reason(one.error_number) + ": " + run.errors;
        ASSERT_TRUE(refused) << what;
        EXPECT_EQ(run.exit_status, 1) << what;
        EXPECT_TRUE(mentions(run.errors, one.wanted)) << what;
        EXPECT_TRUE(mentions(run.errors, errno_reason(one.error_number))) << what;
        EXPECT_EQ(lines_of(run.errors), 1U) << what;
        if (one.error_number != EINVAL && one.error_number != ENOTTY) {
            EXPECT_FALSE(mentions(run.errors, "Linux 5.")) << what;
        }
        if (one.error_number != EMFILE) {
            EXPECT_FALSE(mentions(run.errors, "ulimit -n")) << what;
        }
    }
};

// What broke: the advice depended on the place of the error: "Too many open files (they came with Linux 5.14)".
TEST_F(Advice, BelongsToTheErrorAtEachCall) {
    if (const std::string reason = SyscallInjector::why_not(); !reason.empty()) {
        GTEST_SKIP() << reason;
    }
    const Words small{"-m", "32M"};
    const Words filled{"-m", "32M", "--prefault=all"};
    const AdviceCase cases[] = {
        {"KVM_GET_STATS_FD", small, SYS_ioctl, KVM_GET_STATS_FD, EMFILE, "ulimit -n"},
        {"KVM_GET_STATS_FD", small, SYS_ioctl, KVM_GET_STATS_FD, ENFILE, "fs.file-max"},
        {"KVM_GET_STATS_FD", small, SYS_ioctl, KVM_GET_STATS_FD, ENOMEM, "short of memory"},
        {"KVM_GET_STATS_FD", small, SYS_ioctl, KVM_GET_STATS_FD, ENOTTY, "Linux 5.14"},
        {"KVM_GET_STATS_FD", small, SYS_ioctl, KVM_GET_STATS_FD, EINVAL, "Linux 5.14"},
        {"KVM_CREATE_VM", small, SYS_ioctl, KVM_CREATE_VM, EBUSY, "another hypervisor"},
        {"KVM_CREATE_VM", small, SYS_ioctl, KVM_CREATE_VM, EMFILE, "ulimit -n"},
        {"KVM_CREATE_VM", small, SYS_ioctl, KVM_CREATE_VM, ENOMEM, "memory"},
        {"KVM_CREATE_VCPU", small, SYS_ioctl, KVM_CREATE_VCPU, EMFILE, "ulimit -n"},
        {"KVM_CREATE_VCPU", small, SYS_ioctl, KVM_CREATE_VCPU, ENFILE, "fs.file-max"},
        {"eventfd", small, SYS_eventfd2, 0, EMFILE, "ulimit -n"},
        {"eventfd", small, SYS_eventfd2, 0, ENFILE, "fs.file-max"},
        {"eventfd", small, SYS_eventfd2, 0, ENOMEM, "short of memory"},
        {"epoll", small, SYS_epoll_create1, 0, EMFILE, "ulimit -n"},
        {"epoll", small, SYS_epoll_create1, 0, ENFILE, "fs.file-max"},
        {"epoll_ctl", small, SYS_epoll_ctl, EPOLL_CTL_ADD, ENOSPC, "max_user_watches"},
        {"epoll_ctl", small, SYS_epoll_ctl, EPOLL_CTL_ADD, ENOMEM, "short of memory"},
        {"populate", filled, SYS_madvise, MADV_POPULATE_WRITE, ENOMEM, "less memory with -m"},
        {"populate", filled, SYS_madvise, MADV_POPULATE_WRITE, EINVAL, "Linux 5.14"},
        {"populate", filled, SYS_madvise, MADV_POPULATE_WRITE, EHWPOISON, "broken"},
        {"mlock", {"-m", "32M", "--prefault=all", "--pin=mlock"}, SYS_mlock2, 0, EINVAL, "lock memory on fault"},
        {"mlock", {"-m", "32M", "--prefault=all", "--pin=mlock"}, SYS_mlock2, 0, EPERM, "seccomp filter"},
        {"io_uring", {"-m", "32M", "--pin=longterm"}, SYS_io_uring_setup, 0, ENOSYS, "no io_uring"},
        {"io_uring", {"-m", "32M", "--pin=longterm"}, SYS_io_uring_setup, 0, EMFILE, "ulimit -n"},
        {"io_uring", {"-m", "32M", "--pin=longterm"}, SYS_io_uring_setup, 0, EPERM, "--pin=mlock"},
        {"affinity", small, SYS_sched_getaffinity, 0, ENOMEM, "which CPUs"}, // It was reported as a wrong command line.
    };
    for (const AdviceCase& one : cases) {
        expect(one);
    }
}

// What broke: the control socket's thread slept for ever, and the run with it, if the one call that wakes it was
// interrupted.
TEST_F(HostLimits, AnInterruptedWakeIsMadeAgain) {
    if (const std::string reason = SyscallInjector::why_not(); !reason.empty()) {
        GTEST_SKIP() << reason;
    }
    constexpr std::uint64_t kBytesOfAWake = sizeof(std::uint64_t);
    const TemporaryDirectory directory;
    Words words = run_words({"-m", "32M", "--prefault=all", "--api", directory / "api"});
    words.insert(words.begin(), command_under_test());
    unsigned wakes = 0;
    const InjectedRun run = SyscallInjector({SYS_write}).run(words, [&](const SystemCall& call) {
        const bool is_wake = call.arguments[2] == kBytesOfAWake;
        return is_wake && wakes++ % 2 == 0 ? EINTR : 0; // Each call is interrupted; trying again succeeds.
    });
    EXPECT_GT(wakes, 0U);
    EXPECT_FALSE(run.timed_out) << run.stuck;
    EXPECT_EQ(run.exit_status, 0) << run.errors;
}

/// A control group of version 1 or 2 with a limit on memory. It is removed at the end.
class MemoryLimit {
  public:
    explicit MemoryLimit(std::uint64_t bytes) {
        const std::string name = "/vmm-test-" + std::to_string(::getpid());
        for (const auto& [root, file] : std::vector<std::pair<std::string, std::string>>{
                 {"/sys/fs/cgroup/memory", "memory.limit_in_bytes"}, {"/sys/fs/cgroup", "memory.max"}}) {
            if (::access((root + "/cgroup.procs").c_str(), W_OK) != 0 || ::mkdir((root + name).c_str(), 0755) != 0) {
                why_not_ = "cannot make a control group in " + root + ": " + errno_reason(errno);
                continue;
            }
            std::fstream limit(root + name + "/" + file, std::ios::in | std::ios::out); // makes no file
            if (limit << bytes << std::flush) {
                path() = root + name;
                why_not_.clear();
                return;
            }
            ::rmdir((root + name).c_str());
            why_not_ = root + " has no memory controller to give on";
        }
    }
    ~MemoryLimit() {
        if (!path().empty()) {
            eventually([] { return ::rmdir(path().c_str()) == 0; });
            path().clear();
        }
    }
    MemoryLimit(const MemoryLimit&) = delete;
    MemoryLimit& operator=(const MemoryLimit&) = delete;

    [[nodiscard]] const std::string& why_not() const noexcept { return why_not_; }
    /// Moves the calling process into it.
    static void enter() { std::ofstream(path() + "/cgroup.procs") << ::getpid() << std::flush; }

  private:
    static std::string& path() {
        static std::string path;
        return path;
    }
    std::string why_not_;
};

// What broke: a guest as large as its group's limit was killed with status 137 and without a message.
TEST_F(HostLimits, OfMemoryGroupsAreComparedWithAllThatIsTaken) {
#ifdef VMM_SANITIZED
    GTEST_SKIP() << "a sanitizer's own memory takes the room of the guest that fits";
#endif
    const MemoryLimit group(256ULL << 20);
    if (!group.why_not().empty()) {
        GTEST_SKIP() << group.why_not();
    }
    for (const Words& options :
         {Words{"-m", "256M", "--prefault=all"}, Words{"-m", "253M", "--page-size=4K", "--prefault=all"},
          Words{"-m", "255M", "--page-size=4K", "--prefault=host"}}) {
        const CommandResult result = run_command(run_words(options), &MemoryLimit::enter);
        EXPECT_EQ(result.exit_status, 1) << options[1] << ": " << result.errors;
        EXPECT_EQ(lines_of(result.errors), 1U) << result.errors;
        EXPECT_TRUE(mentions(result.errors, "control group")) << result.errors;
        EXPECT_TRUE(mentions(result.errors, "256.0 MiB")) << result.errors;
    }
    const CommandResult fits =
        run_command(run_words({"-m", "236M", "--page-size=4K", "--prefault=all"}), &MemoryLimit::enter);
    EXPECT_EQ(fits.exit_status, 0) << fits.errors;
}

TEST_F(HostLimits, OfMemoryGroupsAreAWarningForALazyGuest) {
    // The limit has room for a sanitizer's own memory, too.
    const MemoryLimit group(256ULL << 20);
    if (!group.why_not().empty()) {
        GTEST_SKIP() << group.why_not();
    }
    Words words{"run", "--serial=none", "--cmdline", "passes=0", "-m", "512M", "--prefault=none"};
    const CommandResult result = run_command(words, &MemoryLimit::enter);
    EXPECT_TRUE(mentions(result.errors, "warning")) << result.errors;
    EXPECT_TRUE(mentions(result.errors, "the kernel may kill this program")) << result.errors;
}

TEST_F(HostLimits, OnAddressSpaceIsNamedWithItsCommand) {
#ifdef VMM_SANITIZED
    GTEST_SKIP() << "a sanitizer reserves more addresses than the limit leaves";
#endif
    const CommandResult result = run_command(run_words({"-m", "512M"}), [] {
        const rlimit limit{256UL << 20, 256UL << 20};
        ::setrlimit(RLIMIT_AS, &limit);
    });
    EXPECT_EQ(result.exit_status, 1);
    EXPECT_TRUE(mentions(result.errors, "ulimit -v")) << result.errors;
    EXPECT_EQ(lines_of(result.errors), 1U) << result.errors;
}

void allow_open_files(rlim_t soft, rlim_t hard) {
    const rlimit limit{soft, hard};
    ::setrlimit(RLIMIT_NOFILE, &limit);
}

// What broke: 254 vCPUs and 254 workers at `ulimit -n 1024` gave "Too many open files (they came with Linux 5.14)".
TEST_F(HostLimits, OnOpenFilesIsNamedBeforeAnythingIsMade) {
    const Words options = run_words({"-m", "64M", "-c", "8", "--prefault=all", "--prefault-workers=8"});
    const CommandResult refused = run_command(options, [] { allow_open_files(40, 40); });
    EXPECT_EQ(refused.exit_status, 1);
    std::smatch number;
    ASSERT_TRUE(std::regex_search(refused.errors, number, std::regex("ulimit -n ([0-9]+)"))) << refused.errors;
    EXPECT_EQ(lines_of(refused.errors), 1U) << refused.errors;
    static rlim_t advised = 0;
    advised = std::stoul(number[1]);
    EXPECT_LT(advised, 200U) << "no more than is needed is asked for";
    const CommandResult granted = run_command(options, [] { allow_open_files(advised, advised); });
    EXPECT_EQ(granted.exit_status, 0) << granted.errors;
}

TEST_F(HostLimits, OnOpenFilesIsTheHardOneForTheCommand) {
    const Words options = run_words({"-m", "64M", "-c", "8", "--prefault=all", "--prefault-workers=8"});
    const CommandResult result = run_command(options, [] { allow_open_files(20, 400); });
    EXPECT_EQ(result.exit_status, 0) << result.errors;
}

/// Hides all files below `path` from this process and from the processes that it starts.
void hide(const char* path) {
    if (::unshare(CLONE_NEWNS) != 0 || ::mount("none", "/", nullptr, MS_REC | MS_PRIVATE, nullptr) != 0 ||
        ::mount("none", path, "tmpfs", 0, "size=1M") != 0) {
        ::_exit(99);
    }
}

constexpr int kCannotHide = 99;

// What broke: without /sys/module NPT was taken for shadow paging, and --prefault-method=ioctl was refused with a false
// reason.
TEST_F(HostLimits, WithoutSysfsTheSecondLevelIsTheSame) {
    const CommandResult with = run_command({"doctor"});
    const CommandResult without = run_command({"doctor"}, [] { hide("/sys"); });
    if (without.exit_status == kCannotHide) {
        GTEST_SKIP() << "no mount namespace can be made here";
    }
    const auto kind = [](const std::string& text) {
        std::smatch found;
        return std::regex_search(text, found, std::regex("second level: ([a-z]+),")) ? found[1].str() : text;
    };
    EXPECT_EQ(kind(without.output), kind(with.output));
    EXPECT_NE(kind(without.output), "unknown");
    EXPECT_TRUE(mentions(without.output, "cannot be read")) << without.output;
    const CommandResult run =
        run_command({"run", "-m", "64M", "--prefault=all", "--serial=none"}, [] { hide("/sys"); });
    EXPECT_EQ(run.exit_status, 0) << run.errors;
    EXPECT_TRUE(mentions(run.errors, "complete")) << run.errors;
    const bool has_ioctl = prefault::detect_second_level().kind != prefault::SecondLevelKind::kShadow;
    if (has_ioctl &&
        mentions(run_command({"run", "-m", "64M", "--prefault=all", "--serial=none"}).errors, "by ioctl")) {
        EXPECT_TRUE(mentions(run.errors, "by ioctl")) << run.errors;
    }
}

// What broke: "resident beyond guest memory: 0.0 MiB" in the summary, and doctor showed 16777216 TiB.
TEST_F(HostLimits, WithoutProcWhatIsNotKnownIsUnknown) {
#ifdef VMM_SANITIZED
    GTEST_SKIP() << "the sanitizers' own runtime needs /proc to look for leaks";
#endif
    const CommandResult run =
        run_command({"run", "-m", "64M", "--prefault=all", "--pin=mlock", "--serial=none"}, [] { hide("/proc"); });
    if (run.exit_status == kCannotHide) {
        GTEST_SKIP() << "no mount namespace can be made here";
    }
    EXPECT_EQ(run.exit_status, 0) << run.errors;
    EXPECT_TRUE(mentions(run.errors, "resident beyond guest memory: unknown")) << run.errors;
    const CommandResult doctor = run_command({"doctor"}, [] { hide("/proc"); });
    EXPECT_TRUE(mentions(doctor.output, "memory: unknown available of ")) << doctor.output;
    EXPECT_FALSE(mentions(doctor.output, "TiB")) << doctor.output;
}

/// Becomes root of a user namespace of its own, with 8 MiB of locked memory.
void become_root_of_a_namespace() {
    const rlimit limit{8UL << 20, 8UL << 20};
    ::setrlimit(RLIMIT_MEMLOCK, &limit);
    const std::string map = "0 " + std::to_string(::getuid()) + " 1\n";
    if (::unshare(CLONE_NEWUSER) != 0 || !(std::ofstream("/proc/self/uid_map") << map << std::flush)) {
        ::_exit(kCannotHide);
    }
}

// What broke: only "Cannot allocate memory" was printed. Capabilities count only in the initial user namespace.
TEST_F(HostLimits, OnLockedMemoryBindsRootOfAUserNamespace) {
    const CommandResult run =
        run_command(run_words({"-m", "64M", "--prefault=all", "--pin=mlock"}), &become_root_of_a_namespace);
    if (run.exit_status == kCannotHide) {
        GTEST_SKIP() << "no user namespace can be made here";
    }
    EXPECT_EQ(run.exit_status, 1) << run.errors;
    EXPECT_TRUE(mentions(run.errors, "RLIMIT_MEMLOCK")) << run.errors;
    EXPECT_TRUE(mentions(run.errors, "ulimit -l")) << run.errors;
    const CommandResult doctor = run_command({"doctor"}, &become_root_of_a_namespace);
    EXPECT_TRUE(mentions(doctor.output, "locked memory: at most 8 MiB\n")) << doctor.output;
    const CommandResult small =
        run_command(run_words({"-m", "4M", "--prefault=all", "--pin=mlock"}), &become_root_of_a_namespace);
    EXPECT_EQ(small.exit_status, 0) << small.errors;
}

} // namespace
} // namespace vmm::testing
