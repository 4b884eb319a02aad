// A machine is controlled from outside, as its users do it.

#include <gtest/gtest.h>

#include <fcntl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <cstdlib>
#include <nlohmann/json.hpp>
#include <sstream>
#include <string>
#include <vector>

#include "kvm/host/error.hpp"
#include "kvm/host/unix_listener.hpp"
#include "support/control_client.hpp"
#include "support/host_errors.hpp"
#include "support/host_temporary_directory.hpp"
#include "support/host_waiting.hpp"
#include "support/kvm_command.hpp"
#include "support/kvm_guest.hpp"
#include "support/kvm_machine.hpp"
#include "support/kvm_require.hpp"
#include "vmm/control/client.hpp"
#include "vmm/machine.hpp"

namespace vmm {
namespace {

using control::Client;
using testing::CommandBeside;
using testing::CommandResult;
using testing::content_of;
using testing::eventually;
using testing::mentions;
using testing::RawClient;
using testing::run_command;
using testing::TemporaryDirectory;
using Json = nlohmann::ordered_json;
using Words = std::vector<std::string>;

/// A guest that is busy until somebody stops it, behind a control socket.
class ControlledGuest {
  public:
    explicit ControlledGuest(const Words& more = {}) : guest_(words(more)) {
        is_there_ = eventually([&] {
            try {
                return state() == "running" || guest_.has_ended();
            } catch (const control::NobodyThere&) {
                return guest_.has_ended();
            }
        });
    }

    [[nodiscard]] bool is_there() const { return is_there_ && !guest_.has_ended(); }
    [[nodiscard]] const std::string& path() const { return path_; }
    [[nodiscard]] Json get(const std::string& target) const { return Json::parse(client_.ask("GET", target).body); }
    [[nodiscard]] std::string state() const { return get("/status").at("state"); }
    [[nodiscard]] unsigned ask(const std::string& method, const std::string& target, const std::string& body = "") {
        const auto answer = client_.ask(method, target, body);
        last_ = Json::parse(answer.body);
        return answer.status;
    }
    [[nodiscard]] const Json& last() const { return last_; }
    [[nodiscard]] CommandResult ctl(const Words& words) const {
        Words all{"ctl", path_};
        all.insert(all.end(), words.begin(), words.end());
        return run_command(all);
    }
    [[nodiscard]] CommandBeside& guest() { return guest_; }

  private:
    [[nodiscard]] Words words(const Words& more) const {
        Words all{"run", "-m", "64M", "--cmdline", "passes=1000000", "--serial", "none", "--api", path_};
        all.insert(all.end(), more.begin(), more.end());
        return all;
    }

    TemporaryDirectory directory_;
    std::string path_ = directory_ / "api";
    CommandBeside guest_;
    Client client_{path_};
    bool is_there_ = false;
    Json last_;
};

class Control : public testing::KvmTest {};

/// How many events of that name there were.
std::size_t count_events(const std::string& lines, const std::string& event) {
    std::istringstream in(lines);
    std::size_t count = 0;
    for (std::string line; std::getline(in, line);) {
        count += Json::parse(line).at("event") == event ? 1 : 0;
    }
    return count;
}

TEST_F(Control, IsASessionInWords) {
    ControlledGuest guest({"-c", "2", "--prefault=all", "--rng"});
    ASSERT_TRUE(guest.is_there()) << guest.guest().errors();

    const CommandResult status = guest.ctl({"status"});
    EXPECT_EQ(status.exit_status, 0) << status.errors;
    EXPECT_TRUE(mentions(status.output, "state: running\n")) << status.output;
    EXPECT_TRUE(mentions(status.output, "  memory: 64M\n")) << status.output;
    EXPECT_TRUE(mentions(status.output, "rng0")) << status.output;

    EXPECT_EQ(guest.ctl({"pause"}).output, "state: paused\n");
    EXPECT_EQ(guest.ctl({"pause"}).output, "state: paused\n"); // It changes nothing.
    EXPECT_EQ(guest.ctl({"resume"}).output, "state: running\n");

    const CommandResult prefault = guest.ctl({"prefault", "--workers", "1", "--json"});
    EXPECT_EQ(prefault.exit_status, 0) << prefault.output << prefault.errors;
    const Json job = Json::parse(prefault.output);
    EXPECT_EQ(job["state"], "done");
    EXPECT_EQ(job["result"]["complete"], true);

    const CommandResult events = guest.ctl({"events"});
    EXPECT_EQ(count_events(events.output, "started"), 1U) << events.output;
    EXPECT_EQ(count_events(events.output, "paused"), 1U) << events.output;
    EXPECT_EQ(count_events(events.output, "resumed"), 1U) << events.output;
    EXPECT_EQ(count_events(events.output, "full"), 2U) << events.output;

    const CommandResult metrics = guest.ctl({"metrics"});
    EXPECT_TRUE(mentions(metrics.output, "vmm_state{state=\"running\"} 1\n")) << metrics.output;
    EXPECT_TRUE(mentions(metrics.output, "vmm_vcpu_second_level_faults_total{vcpu=\"1\"} ")) << metrics.output;

    const CommandResult stop = guest.ctl({"stop", "--within", "0"});
    EXPECT_EQ(stop.exit_status, 0) << stop.errors;
    EXPECT_EQ(stop.output, "ended: stopped\n");
    EXPECT_EQ(guest.guest().wait(), 0);
    EXPECT_EQ(guest.ctl({"status"}).exit_status, 3);
    struct stat file {};
    EXPECT_NE(::lstat(guest.path().c_str(), &file), 0) << "the socket was left behind";
}

TEST_F(Control, SaysByItsExitStatusWhoseFaultItIs) {
    ControlledGuest guest;
    ASSERT_TRUE(guest.is_there()) << guest.guest().errors();
    const CommandResult refused = guest.ctl({"balloon", "16M"});
    EXPECT_EQ(refused.exit_status, 1);
    EXPECT_TRUE(mentions(refused.errors, "vmm ctl: cannot set the size of the balloon")) << refused.errors;
    EXPECT_EQ(guest.ctl({"job", "7"}).exit_status, 1);
    for (const Words& words : {Words{"balloon"}, Words{"balloon", "many"}, Words{"status", "more"}, Words{"dance"},
                               Words{"status", "--force"}, Words{"stop", "--within", "-1"}, Words{"cancel", "1K"}}) {
        const CommandResult wrong = guest.ctl(words);
        EXPECT_EQ(wrong.exit_status, 2) << words.front();
        EXPECT_TRUE(mentions(wrong.errors, "vmm ctl --help")) << wrong.errors;
    }
    EXPECT_EQ(run_command({"ctl", guest.path() + "x", "status"}).exit_status, 3);
    EXPECT_EQ(guest.state(), "running");
}

TEST_F(Control, HoldsTheGuestWhileItIsPaused) {
    ControlledGuest guest({"-c", "2"});
    ASSERT_TRUE(guest.is_there()) << guest.guest().errors();
    ASSERT_EQ(guest.ask("POST", "/pause"), 200U);
    EXPECT_EQ(guest.last()["state"], "paused");
    const Json before = guest.get("/statistics").at("vcpus");
    ASSERT_EQ(before.size(), 2U);
    for (int i = 0; i < 20; ++i) {
        ASSERT_EQ(guest.get("/statistics").at("vcpus"), before);
    }
    ASSERT_EQ(guest.ask("POST", "/resume"), 200U);
    EXPECT_TRUE(eventually([&] { return guest.get("/statistics").at("vcpus") != before; }));
}

TEST_F(Control, AddsMemoryAndPopulatesIt) {
    ControlledGuest guest;
    ASSERT_TRUE(guest.is_there()) << guest.guest().errors();
    const CommandResult added = guest.ctl({"add-memory", "8G", "32M", "--json"});
    EXPECT_EQ(added.exit_status, 0) << added.output << added.errors;
    EXPECT_EQ(Json::parse(added.output)["result"]["bytes"], 32U << 20U);
    // Using the same place again is the caller's error, and the job says so.
    const CommandResult again = guest.ctl({"add-memory", "8G", "32M", "--json"});
    EXPECT_EQ(again.exit_status, 1);
    EXPECT_EQ(Json::parse(again.output)["state"], "failed");
    EXPECT_FALSE(Json::parse(again.output)["error"].get<std::string>().empty());
    EXPECT_EQ(guest.get("/jobs").at("jobs").size(), 2U);
}

TEST_F(Control, SetsTheBalloonWhereThereIsOne) {
    ControlledGuest guest({"--balloon", "0"});
    ASSERT_TRUE(guest.is_there()) << guest.guest().errors();
    EXPECT_EQ(guest.ask("POST", "/balloon", R"({"target": 4194304})"), 200U);
    EXPECT_EQ(guest.last()["target_bytes"], 4194304);
    EXPECT_EQ(guest.ask("POST", "/balloon", R"({"target": 1})"), 400U);
    EXPECT_EQ(guest.ask("POST", "/balloon", R"({"target": 1099511627776})"), 400U);
    EXPECT_FALSE(guest.last()["error"].get<std::string>().empty());
}

TEST_F(Control, SaysMoreWhenItIsTold) {
    ControlledGuest guest;
    ASSERT_TRUE(guest.is_there()) << guest.guest().errors();
    EXPECT_EQ(guest.get("/log-level").at("level"), "warning");
    EXPECT_EQ(guest.ctl({"set-log-level", "debug"}).exit_status, 0);
    EXPECT_EQ(guest.get("/log-level").at("level"), "debug");
    EXPECT_EQ(guest.ctl({"stop", "--force"}).exit_status, 0);
    EXPECT_EQ(guest.guest().wait(), 0);
    EXPECT_TRUE(mentions(guest.guest().errors(), "vmm: debug: ")) << guest.guest().errors();
}

TEST_F(Control, ResetsAsAGuestDoes) {
    ControlledGuest guest;
    ASSERT_TRUE(guest.is_there()) << guest.guest().errors();
    EXPECT_EQ(guest.ctl({"reset"}).exit_status, 0);
    EXPECT_EQ(guest.guest().wait(), 0);
    EXPECT_TRUE(mentions(guest.guest().errors(), "guest: reboot ")) << guest.guest().errors();
}

TEST_F(Control, StopsAPausedGuest) {
    ControlledGuest guest;
    ASSERT_TRUE(guest.is_there()) << guest.guest().errors();
    ASSERT_EQ(guest.ask("POST", "/pause"), 200U);
    EXPECT_EQ(guest.ctl({"stop", "--force"}).output, "ended: stopped\n");
    EXPECT_EQ(guest.guest().wait(), 0);
}

/// A guest that waits until its power button is pressed, and switches itself off. It reads the requests of the second
/// PIC, whose input 1 is line 9. again: mov $0x0a, %al; out %al, $0xa0; in $0xa0, %al; test $2, %al; jz again; power
/// off
testing::kernels::Code off_by_button() {
    testing::kernels::Code code{0xb0, 0x0a, 0xe6, 0xa0, 0xe4, 0xa0, 0xa8, 0x02, 0x74, 0xf6};
    code.insert(code.end(), testing::kernels::kPowerOff.begin(), testing::kernels::kPowerOff.end());
    return code;
}

TEST_F(Control, StopPressesThePowerButtonFirst) {
    const testing::TestKernel kernel(off_by_button());
    ControlledGuest guest({"--kernel", kernel.config().kernel_path});
    ASSERT_TRUE(guest.is_there()) << guest.guest().errors();
    ASSERT_EQ(guest.ask("POST", "/pause"), 200U); // A paused guest goes on, so that it sees the button.
    const CommandResult stop = guest.ctl({"stop", "--within", "3600"});
    EXPECT_EQ(stop.exit_status, 0) << stop.errors;
    EXPECT_EQ(stop.output, "ended: poweroff\n");
    EXPECT_EQ(guest.guest().wait(), 0);
}

TEST_F(Control, AJobThatIsCancelledLeavesTheGuestAlone) {
    ControlledGuest guest;
    ASSERT_TRUE(guest.is_there()) << guest.guest().errors();
    ASSERT_EQ(guest.ask("POST", "/stop", R"({"within": 3600})"), 202U);
    const std::string job = "/jobs/" + guest.last()["id"].dump();
    ASSERT_EQ(guest.ask("DELETE", job), 200U);
    EXPECT_TRUE(eventually([&] { return guest.get(job).at("state") == "cancelled"; }));
    EXPECT_EQ(guest.state(), "running");
}

TEST_F(Control, SocketIsItsUsersAlone) {
    ControlledGuest guest;
    ASSERT_TRUE(guest.is_there()) << guest.guest().errors();
    struct stat file {};
    ASSERT_EQ(::lstat(guest.path().c_str(), &file), 0);
    EXPECT_TRUE(S_ISSOCK(file.st_mode));
    EXPECT_EQ(file.st_mode & 07777U, 0600U);
    // A second machine does not replace the socket, and says what to do.
    const CommandResult second = run_command({"run", "-m", "16M", "--serial", "none", "--api", guest.path()});
    EXPECT_EQ(second.exit_status, 1);
    EXPECT_TRUE(mentions(second.errors, "another process uses it (take another path)")) << second.errors;
    EXPECT_EQ(guest.state(), "running");
    // When its process has been killed, the socket is stale, and is replaced.
    guest.guest().send(SIGKILL);
    static_cast<void>(guest.guest().wait());
    const CommandResult third = run_command({"run", "-m", "16M", "--serial", "none", "--api", guest.path()});
    EXPECT_EQ(third.exit_status, 0) << third.errors;
    EXPECT_TRUE(mentions(third.errors, "it is replaced")) << third.errors;
}

TEST_F(Control, OfAnotherUserIsClosedWithoutAnAnswer) {
    if (::geteuid() != 0) {
        GTEST_SKIP() << "only root can be another user";
    }
    ControlledGuest guest;
    ASSERT_TRUE(guest.is_there()) << guest.guest().errors();
    ASSERT_EQ(::chmod(guest.path().c_str(), 0666), 0);
    // Each directory above must let the other user through.
    ASSERT_EQ(::chmod(std::filesystem::path(guest.path()).parent_path().c_str(), 0755), 0);
    const pid_t child = ::fork();
    ASSERT_GE(child, 0);
    if (child == 0) {
        constexpr uid_t kNobody = 65534;
        if (::setresuid(kNobody, kNobody, kNobody) != 0) {
            ::_exit(2);
        }
        RawClient client(guest.path());
        client.send("GET /status HTTP/1.1\r\nConnection: close\r\n\r\n");
        ::_exit(client.is_connected() && client.read_all().empty() ? 0 : 1);
    }
    int status = 0;
    ::waitpid(child, &status, 0);
    EXPECT_TRUE(WIFEXITED(status));
    EXPECT_EQ(WEXITSTATUS(status), 0);
    EXPECT_EQ(guest.state(), "running");
}

/// A listening socket, as an init system passes it: inherited as descriptor 3.
constexpr int kInherited = 3;
std::string inherited_path; // NOLINT: for a function without arguments in the new process

void inherit_listener() {
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    inherited_path.copy(address.sun_path, sizeof(address.sun_path) - 1);
    const int fd = ::socket(AF_UNIX, SOCK_STREAM, 0);
    if (fd < 0 || ::bind(fd, reinterpret_cast<const sockaddr*>(&address), sizeof(address)) != 0 ||
        ::listen(fd, 8) != 0 || ::dup2(fd, kInherited) != kInherited) {
        ::_exit(126);
    }
    ::setenv("LISTEN_FDS", "1", 1);
    ::setenv("LISTEN_PID", std::to_string(::getpid()).c_str(), 1);
}

TEST_F(Control, ServesOnASocketThatItInherits) {
    for (const Words& how : {Words{"--api-fd", "3"}, Words{}}) {
        const TemporaryDirectory directory;
        inherited_path = directory / "inherited";
        Words words{"run", "-m", "64M", "--cmdline", "passes=1000000", "--serial", "none"};
        words.insert(words.end(), how.begin(), how.end());
        CommandBeside guest(words, inherit_listener);
        RawClient client(inherited_path);
        client.send("GET /status HTTP/1.1\r\nConnection: close\r\n\r\n");
        EXPECT_TRUE(mentions(client.read_all(), "\"state\"")) << guest.errors();
        EXPECT_EQ(run_command({"ctl", inherited_path, "stop", "--force"}).exit_status, 0);
        EXPECT_EQ(guest.wait(), 0) << guest.errors();
    }
}

TEST_F(Control, RefusesADescriptorThatIsNoListener) {
    const CommandResult closed = run_command({"run", "-m", "16M", "--serial", "none", "--api-fd", "99"});
    EXPECT_EQ(closed.exit_status, 1);
    EXPECT_TRUE(mentions(closed.errors, "it is not open")) << closed.errors;
    const CommandResult wrong = run_command({"run", "-m", "16M", "--serial", "none", "--api-fd", "0"});
    EXPECT_EQ(wrong.exit_status, 1);
    EXPECT_TRUE(mentions(wrong.errors, "no unix stream socket that listens")) << wrong.errors;
    EXPECT_EQ(run_command({"run", "--api", "a", "--api-fd", "3"}).exit_status, 2);
}

TEST_F(Control, TellsOfAGuestThatCrashes) {
    const TemporaryDirectory directory;
    inherited_path = directory / "inherited";
    const testing::TestKernel kernel(testing::kernels::kTripleFault);
    CommandBeside guest({"run", kernel.config().kernel_path, "-m", "16M", "--serial", "none"}, inherit_listener);
    RawClient client(inherited_path); // The socket exists before the guest.
    client.send("GET /events?follow=true HTTP/1.1\r\n\r\n");
    const std::string& text = client.read_all();
    EXPECT_EQ(guest.wait(), 3);
    EXPECT_TRUE(mentions(text, "\"event\":\"started\"")) << text;
    EXPECT_TRUE(mentions(text, "\"event\":\"guest-panic\"")) << text;
    EXPECT_TRUE(mentions(text, "\"event\":\"ended\",\"reason\":\"crash\"")) << text;
}

void notify_socket() {
    ::setenv("NOTIFY_SOCKET", inherited_path.c_str(), 1);
}

TEST_F(Control, TellsWhoeverWaitsThatTheGuestRuns) {
    const TemporaryDirectory directory;
    inherited_path = directory / "notify";
    const UniqueFd socket = make_unix_socket(SOCK_DGRAM);
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    inherited_path.copy(address.sun_path, sizeof(address.sun_path) - 1);
    ASSERT_EQ(::bind(socket.get(), reinterpret_cast<const sockaddr*>(&address), sizeof(address)), 0);
    const std::string api = directory / "api";
    CommandBeside guest({"run", "-m", "64M", "--cmdline", "passes=1000000", "--serial", "none", "--api", api},
                        notify_socket);
    std::string text(64, '\0');
    ssize_t size = 0;
    ASSERT_TRUE(eventually([&] {
        size = ::recv(socket.get(), text.data(), text.size(), 0);
        return size > 0;
    })) << guest.errors();
    text.resize(static_cast<std::size_t>(size));
    EXPECT_EQ(text, "READY=1");
    // From now on the socket is served, and the guest runs: no client has to try again.
    EXPECT_EQ(Json::parse(Client(api).ask("GET", "/status").body).at("state"), "running");
    EXPECT_EQ(run_command({"ctl", api, "stop", "--force"}).exit_status, 0);
    EXPECT_EQ(guest.wait(), 0);
}

TEST_F(Control, HasAPowerButtonUnlessATreeAloneTellsOfIt) {
    Config config;
    config.memory_bytes = 16 * kMiB;
    Machine machine(config);
    EXPECT_NO_THROW(machine.press_power_button());
    config.hardware = HardwareDescription::kFdt;
    Machine without(config);
    EXPECT_THROW(without.press_power_button(), Error);
}

} // namespace
} // namespace vmm
