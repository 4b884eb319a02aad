// `vmm run --jail`, as root and as an ordinary user: what its process can still see, and what is refused before
// anything is made. Also what an ordinary user gets without a jail.

#include <fcntl.h>
#include <grp.h>
#include <sched.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>
#include <sstream>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "support/host_errors.hpp"
#include "support/host_temporary_directory.hpp"
#include "support/host_waiting.hpp"
#include "support/kvm_command.hpp"
#include "support/kvm_machine.hpp"
#include "support/kvm_require.hpp"
#include "vmm/limits.hpp"

namespace vmm {
namespace {

using testing::CommandBeside;
using testing::CommandResult;
using testing::content_of;
using testing::eventually;
using testing::mentions;
using testing::run_command;
using testing::TemporaryDirectory;

constexpr uid_t kUser = 65534;

/// Becomes an ordinary user, who finds another node of the same device as /dev/kvm, owned by root and with this mode.
void become_user_with_node(mode_t mode) {
    constexpr unsigned kMisc = 10;
    constexpr unsigned kKvm = 232; // Documentation/admin-guide/devices.txt
    const std::string node = std::filesystem::temp_directory_path() / ("vmm-test-kvm." + std::to_string(::getpid()));
    const bool made = ::unshare(CLONE_NEWNS) == 0 && ::mount("none", "/", nullptr, MS_REC | MS_PRIVATE, nullptr) == 0 &&
                      ::mknod(node.c_str(), S_IFCHR | 0600, makedev(kMisc, kKvm)) == 0 &&
                      ::chmod(node.c_str(), mode) == 0 &&
                      ::mount(node.c_str(), "/dev/kvm", nullptr, MS_BIND, nullptr) == 0;
    ::unlink(node.c_str());
    if (!made || ::setgroups(0, nullptr) != 0 || ::setresgid(kUser, kUser, kUser) != 0 ||
        ::setresuid(kUser, kUser, kUser) != 0) {
        ::_exit(125);
    }
    ::umask(0022);
}

/// The user has nothing but /dev/kvm.
void become_ordinary_user() {
    become_user_with_node(0666);
}

/// The same without /dev/kvm: only root may open it.
void become_user_without_kvm() {
    become_user_with_node(0600);
}

/// Two descriptors and a variable that must not reach a process in a jail.
void leave_something_open() {
    ::dup2(::open("/etc/passwd", O_RDONLY), 100);
    ::setenv("VMM_TEST_SECRET", "x", 1);
}
void become_ordinary_user_and_leave_something_open() {
    become_ordinary_user();
    leave_something_open();
}

class JailTest : public testing::KvmTest {
  protected:
    void SetUp() override {
        KvmTest::SetUp();
#ifdef VMM_SANITIZED
        GTEST_SKIP() << "a sanitizer's runtime makes calls of its own, so the sandbox is off";
#endif
        if (::geteuid() != 0) {
            GTEST_SKIP() << "only root can become an ordinary user, or a user for a jail";
        }
        std::filesystem::create_directory(root_);
        disk_ = directory_.write("disk", std::string(1 << 20U, 0));
        for (const std::string& path : {directory_.path().string(), root_, disk_}) {
            ASSERT_EQ(::chown(path.c_str(), kUser, kUser), 0);
        }
        ASSERT_EQ(::chmod(directory_.path().c_str(), 0755), 0);
    }
    [[nodiscard]] std::vector<std::string> words(const std::vector<std::string>& more) const {
        std::vector<std::string> all{"run",   "--memory", "16M",  "--disk", disk_, "--report",
                                     report_, "--serial", "none", "--jail", root_};
        all.insert(all.end(), more.begin(), more.end());
        return all;
    }
    [[nodiscard]] static std::vector<std::string> with(std::vector<std::string> all,
                                                       const std::vector<std::string>& more) {
        all.insert(all.end(), more.begin(), more.end());
        return all;
    }
    [[nodiscard]] nlohmann::json report() const {
        std::ifstream file(report_);
        return nlohmann::json::parse(file, nullptr, false);
    }

    const std::vector<std::string> as_user_{"--uid", std::to_string(kUser), "--gid", std::to_string(kUser)};
    TemporaryDirectory directory_;
    std::string root_ = directory_ / "root";
    std::string disk_;
    std::string report_ = directory_ / "report";
};

/// The child of `process` that has a thread of that name; 0 if there is none.
pid_t child_with_thread(pid_t process, const std::string& name) {
    std::ifstream children("/proc/" + std::to_string(process) + "/task/" + std::to_string(process) + "/children");
    for (pid_t child = 0; children >> child;) {
        if (testing::has_thread(std::to_string(child), name)) {
            return child;
        }
    }
    return 0;
}

std::string status_line(pid_t process, const std::string& name) {
    std::ifstream file("/proc/" + std::to_string(process) + "/status");
    for (std::string line; std::getline(file, line);) {
        if (line.starts_with(name + ":\t")) {
            return line.substr(name.size() + 2);
        }
    }
    return "nothing";
}

/// Checks that `process` sees nothing of the host's.
void expect_nothing_of_the_host(pid_t process) {
    const std::string proc = "/proc/" + std::to_string(process);
    for (const auto& entry : std::filesystem::directory_iterator(proc + "/root/")) {
        EXPECT_EQ(entry.path().filename(), "proc");
    }
    struct stat facts {};
    EXPECT_NE(::stat((proc + "/root/etc/passwd").c_str(), &facts), 0);
    EXPECT_NE(::stat((proc + "/root/dev/kvm").c_str(), &facts), 0);
    for (const char* const space : {"mnt", "pid", "ipc", "uts", "net"}) {
        EXPECT_NE(std::filesystem::read_symlink(proc + "/ns/" + space),
                  std::filesystem::read_symlink(std::string("/proc/self/ns/") + space))
            << space;
    }
    EXPECT_TRUE(status_line(process, "NSpid").ends_with("\t1")) << "it is the first of its processes";
    EXPECT_EQ(status_line(process, "Uid"), "65534\t65534\t65534\t65534");
    EXPECT_EQ(status_line(process, "Gid"), "65534\t65534\t65534\t65534");
    const std::string groups = status_line(process, "Groups");
    EXPECT_EQ(groups.find_first_not_of(' '), std::string::npos) << groups;
    EXPECT_EQ(status_line(process, "NoNewPrivs"), "1");
    EXPECT_EQ(std::stoull("0" + status_line(process, "CapEff"), nullptr, 16) & ~(1ULL << 14U), 0U) << "CAP_IPC_LOCK";
    for (const auto& fd : std::filesystem::directory_iterator(proc + "/fd")) {
        std::error_code gone;
        const std::string target = std::filesystem::read_symlink(fd.path(), gone);
        EXPECT_NE(target, "/etc/passwd");
    }
    std::ifstream limits(proc + "/limits");
    std::string line;
    bool has_no_core = false;
    while (std::getline(limits, line)) {
        std::istringstream words(line);
        std::string max;
        std::string core;
        std::string file;
        std::string size;
        std::string soft;
        std::string hard;
        words >> max >> core >> file >> size >> soft >> hard;
        has_no_core = has_no_core || (core == "core" && soft == "0" && hard == "0");
    }
    EXPECT_TRUE(has_no_core);
}

TEST_F(JailTest, AsRootTheProcessSeesNothingOfTheHost) {
    const std::string api = directory_ / "api";
    const std::string log = directory_ / "log";
    CommandBeside command(
        with(words(as_user_), {"--cmdline", "passes=1000000", "--api", api, "--log-file", log, "--prefault", "all"}),
        leave_something_open);
    pid_t inside = 0;
    ASSERT_TRUE(eventually([&] { return (inside = child_with_thread(command.process(), "vcpu0")) != 0; }))
        << command.errors();
    expect_nothing_of_the_host(inside);
    EXPECT_TRUE(std::filesystem::is_empty(root_)) << "nothing is made in the directory itself";
    command.send(SIGTERM); // The parent passes it on.
    EXPECT_EQ(command.wait(), exit_codes::kStoppedBySignal) << command.errors();
    EXPECT_EQ(report()["guest"]["exit"], "signal");
    EXPECT_EQ(report()["prefault"]["complete"], true);
    EXPECT_FALSE(std::filesystem::exists(api)) << "the broker removes it";
    EXPECT_TRUE(std::filesystem::exists(log));
}

TEST_F(JailTest, AsAnOrdinaryUserTheProcessSeesNothingOfTheHost) {
    CommandBeside command(words({"--cmdline", "passes=1000000", "--net", "user"}),
                          become_ordinary_user_and_leave_something_open);
    pid_t inside = 0;
    ASSERT_TRUE(eventually(
        [&] { return command.has_ended() || (inside = child_with_thread(command.process(), "vcpu0")) != 0; }));
    if (command.has_ended() && mentions(command.errors(), "lets users have no namespaces")) {
        GTEST_SKIP() << command.errors();
    }
    ASSERT_NE(inside, 0) << command.errors();
    expect_nothing_of_the_host(inside);
    command.send(SIGTERM);
    EXPECT_EQ(command.wait(), exit_codes::kStoppedBySignal) << command.errors();
    EXPECT_EQ(report()["guest"]["exit"], "signal");
}

TEST_F(JailTest, GuestWorksAndItsEndIsThatOfTheCommand) {
    const CommandResult result = run_command(words(as_user_));
    EXPECT_EQ(result.exit_status, exit_codes::kSuccess) << result.errors;
    EXPECT_EQ(report()["guest"]["exit"], "poweroff");
    EXPECT_TRUE(report()["vmm"]["resident_overhead_bytes"].is_number()) << "it has a /proc of its own";
}

/// The process inside cannot name any file. Its broker makes the snapshot, as the user of the jail.
TEST_F(JailTest, SnapshotLeavesItAndBelongsToItsUser) {
    const std::string api = directory_ / "api";
    CommandBeside command(with(words(as_user_), {"--cmdline", "passes=1000000", "--api", api}));
    ASSERT_TRUE(eventually([&] { return child_with_thread(command.process(), "vcpu0") != 0; })) << command.errors();
    const std::string one = directory_ / "one";
    const CommandResult taken = run_command({"ctl", api, "snapshot", one, "--resume"});
    EXPECT_EQ(taken.exit_status, exit_codes::kSuccess) << taken.output << taken.errors;
    struct stat facts {};
    ASSERT_EQ(::stat((one + "/state").c_str(), &facts), 0);
    EXPECT_EQ(facts.st_uid, kUser);
    const std::string other = directory_ / "other"; // It builds on the first snapshot, which is read again.
    const CommandResult more = run_command({"ctl", api, "snapshot", other, "--resume", "--incremental-to", one});
    EXPECT_EQ(more.exit_status, exit_codes::kSuccess) << more.output << more.errors;
    EXPECT_EQ(run_command({"snapshot", "verify", other}).exit_status, exit_codes::kSuccess);
    // Only root may write there, and the process in the jail is not root.
    const std::string of_root = directory_ / "of_root";
    std::filesystem::create_directory(of_root);
    const CommandResult refused = run_command({"ctl", api, "snapshot", of_root + "/three", "--resume"});
    EXPECT_NE(refused.exit_status, exit_codes::kSuccess);
    EXPECT_TRUE(mentions(refused.output + refused.errors, "Permission denied")) << refused.output << refused.errors;
    command.send(SIGTERM);
    EXPECT_EQ(command.wait(), exit_codes::kStoppedBySignal) << command.errors();
}

/// A directory of a hierarchy of control groups, of the version that the host has; empty if none can be made.
class ControlGroup {
  public:
    ControlGroup() {
        for (const char* const hierarchy : {"/sys/fs/cgroup", "/sys/fs/cgroup/unified", "/sys/fs/cgroup/pids"}) {
            const std::string path = std::string(hierarchy) + "/vmm-test." + std::to_string(::getpid());
            std::error_code none;
            if (std::filesystem::exists(std::string(hierarchy) + "/cgroup.procs") &&
                std::filesystem::create_directory(path, none)) {
                path_ = path;
                return;
            }
        }
    }
    ~ControlGroup() {
        if (!path_.empty()) { // The kernel releases ended processes a little later.
            EXPECT_TRUE(eventually([this] { return ::rmdir(path_.c_str()) == 0; })) << path_;
        }
    }
    ControlGroup(const ControlGroup&) = delete;
    ControlGroup& operator=(const ControlGroup&) = delete;

    [[nodiscard]] const std::string& path() const noexcept { return path_; }

  private:
    std::string path_;
};

TEST_F(JailTest, JoinsTheControlGroupThatIsNamed) {
    const ControlGroup group;
    if (group.path().empty()) {
        GTEST_SKIP() << "this host lets nobody make a control group";
    }
    CommandBeside command(with(words(as_user_), {"--cmdline", "passes=1000000", "--cgroup", group.path()}));
    pid_t inside = 0;
    ASSERT_TRUE(eventually([&] { return (inside = child_with_thread(command.process(), "vcpu0")) != 0; }))
        << command.errors();
    std::ifstream members(group.path() + "/cgroup.procs");
    const std::vector<pid_t> all{std::istream_iterator<pid_t>(members), {}};
    EXPECT_NE(std::ranges::find(all, inside), all.end());
    EXPECT_NE(std::ranges::find(all, command.process()), all.end()) << "who waits for it is in the group, too";
    command.send(SIGTERM);
    EXPECT_EQ(command.wait(), exit_codes::kStoppedBySignal) << command.errors();
}

TEST_F(JailTest, GoesToTheNetworkNamespaceThatIsNamed) {
    const std::string name = "vmm-test." + std::to_string(::getpid());
    if (std::system(("ip netns add " + name + " 2>/dev/null").c_str()) != 0) {
        GTEST_SKIP() << "`ip netns add` makes no network namespace here";
    }
    struct stat named {};
    EXPECT_EQ(::stat(("/run/netns/" + name).c_str(), &named), 0);
    CommandBeside command(with(words(as_user_), {"--cmdline", "passes=1000000", "--netns", name}));
    pid_t inside = 0;
    EXPECT_TRUE(eventually([&] { return (inside = child_with_thread(command.process(), "vcpu0")) != 0; }))
        << command.errors();
    struct stat own {};
    EXPECT_EQ(::stat(("/proc/" + std::to_string(inside) + "/ns/net").c_str(), &own), 0);
    EXPECT_EQ(own.st_ino, named.st_ino);
    command.send(SIGTERM);
    EXPECT_EQ(command.wait(), exit_codes::kStoppedBySignal) << command.errors();
    EXPECT_EQ(std::system(("ip netns delete " + name).c_str()), 0);
}

TEST_F(JailTest, KilledParentTakesTheGuestWithIt) {
    CommandBeside command(with(words(as_user_), {"--cmdline", "passes=1000000"}));
    pid_t inside = 0;
    ASSERT_TRUE(eventually([&] { return (inside = child_with_thread(command.process(), "vcpu0")) != 0; }))
        << command.errors();
    command.send(SIGKILL);
    EXPECT_EQ(command.wait(), -1);
    EXPECT_TRUE(eventually([inside] {
        const std::string state = status_line(inside, "State");
        return state == "nothing" || state.starts_with("Z");
    }));
}

TEST_F(JailTest, WhatCannotBeIsRefusedBeforeAnythingIsMade) {
    const std::string full = directory_ / "full";
    directory_.write("full/file", "x");
    const std::string file = directory_.write("file", "x");
    struct Case {
        std::vector<std::string> options;
        std::string said;
        int status;
        std::string jail;
    };
    const std::vector<Case> cases{
        {{}, "--uid and --gid", exit_codes::kHostFailed, root_},
        {{"--uid", "0", "--gid", "0"}, "cannot run as root in a jail", exit_codes::kHostFailed, root_},
        {as_user_, "it is not empty", exit_codes::kHostFailed, full},
        {as_user_, "it is no directory", exit_codes::kHostFailed, file},
        {as_user_, "make an empty directory first", exit_codes::kHostFailed, directory_ / "nowhere"},
        {with(as_user_, {"--cgroup", "/nowhere"}), "--cgroup", exit_codes::kHostFailed, root_},
        {with(as_user_, {"--netns", "nowhere"}), "ip netns add", exit_codes::kHostFailed, root_},
        {with(as_user_, {"--sandbox", "off"}), "--jail takes --sandbox on", exit_codes::kUsageError, root_},
        {with(as_user_, {"--vsock", directory_ / "vsock"}), "--jail and --vsock", exit_codes::kUsageError, root_},
        {with(as_user_, {"--incoming", "unix:" + directory_ / "in"}), "exclude each other", exit_codes::kUsageError,
         root_},
    };
    for (const Case& one : cases) {
        std::vector<std::string> all = words({});
        all.back() = one.jail;
        const CommandResult result = run_command(with(all, one.options));
        EXPECT_EQ(result.exit_status, one.status) << result.errors;
        EXPECT_TRUE(mentions(result.errors, one.said)) << result.errors;
        EXPECT_FALSE(std::filesystem::exists(report_)) << one.said;
        EXPECT_FALSE(std::filesystem::exists(directory_ / "vsock")) << one.said;
    }
    const CommandResult alone = run_command({"run", "--uid", "1"});
    EXPECT_EQ(alone.exit_status, exit_codes::kUsageError);
    EXPECT_TRUE(mentions(alone.errors, "are for --jail")) << alone.errors;
    const CommandResult other = run_command(words({"--uid", "1"}), become_ordinary_user);
    EXPECT_EQ(other.exit_status, exit_codes::kHostFailed);
    EXPECT_TRUE(mentions(other.errors, "only root may")) << other.errors;
}

/// An ordinary user with /dev/kvm and nothing else: a sandbox, a disk and a network in user mode.
TEST_F(JailTest, OrdinaryUserHasSandboxDiskAndNetworkWithoutAJail) {
    const CommandResult result = run_command({"run", "--memory", "4M", "--disk", disk_, "--net", "user", "--report",
                                              report_, "--serial", "none", "--sandbox", "on"},
                                             become_ordinary_user);
    if (mentions(result.errors, "passt is not in PATH")) {
        GTEST_SKIP() << result.errors;
    }
    EXPECT_EQ(result.exit_status, exit_codes::kSuccess) << result.errors;
    EXPECT_EQ(report()["guest"]["exit"], "poweroff");
}

TEST_F(JailTest, DoctorSaysWhatAnOrdinaryUserLacks) {
    const CommandResult without = run_command({"doctor"}, become_user_without_kvm);
    EXPECT_EQ(without.exit_status, exit_codes::kHostFailed);
    EXPECT_TRUE(mentions(without.output, "cannot open /dev/kvm: Permission denied (join the group that owns it"))
        << without.output;
    const CommandResult with_kvm = run_command({"doctor"}, become_ordinary_user);
    EXPECT_EQ(with_kvm.exit_status, exit_codes::kSuccess) << with_kvm.output;
}

} // namespace
} // namespace vmm
