// The requests that a broker fulfils for the process that made it, and those that it refuses.

#include "vmm/sandbox/broker.hpp"

#include <fcntl.h>
#include <linux/fs.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <csignal>
#include <filesystem>
#include <fstream>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include <gtest/gtest.h>

#include "kvm/host/error.hpp"
#include "support/host_errors.hpp"
#include "support/host_temporary_directory.hpp"
#include "support/host_waiting.hpp"
#include "vmm/host/child_process.hpp"
#include "vmm/state/snapshot_files.hpp"
#include "vmm/state/snapshot_writer.hpp"

namespace vmm {
namespace {

using testing::content_of;
using testing::eventually;
using testing::mentions;
using testing::TemporaryDirectory;

class BrokerTest : public ::testing::Test {
  protected:
    UniqueFd open_directory(const std::string& path) const {
        return UniqueFd(::open(path.c_str(), O_PATH | O_DIRECTORY | O_CLOEXEC));
    }
    /// True if it was refused with EACCES, and not for another reason.
    static bool is_refused(bool done) { return !done && errno == EACCES; }
    static bool is_refused(const UniqueFd& fd) { return is_refused(static_cast<bool>(fd)); }

    TemporaryDirectory directory_;
    UniqueFd here_ = open_directory(directory_ / "");
};

/// Makes this thread use a broker as long as this object exists.
class UseOf {
  public:
    explicit UseOf(Broker& broker) { use_file_server_in_this_thread(&broker); }
    ~UseOf() { use_file_server_in_this_thread(nullptr); }
    UseOf(const UseOf&) = delete;
    UseOf& operator=(const UseOf&) = delete;
};

TEST_F(BrokerTest, WithoutRulesRefusesEverything) {
    Broker broker({});
    directory_.write("state", "a state");
    EXPECT_TRUE(is_refused(broker.open_at(AT_FDCWD, "/etc/passwd", O_RDONLY | O_CLOEXEC, 0)));
    EXPECT_TRUE(is_refused(broker.open_at(AT_FDCWD, "/", O_PATH | O_DIRECTORY | O_CLOEXEC, 0)));
    EXPECT_TRUE(is_refused(broker.open_at(here_.get(), "state", O_RDONLY, 0)));
    EXPECT_TRUE(is_refused(broker.make_directory_at(here_.get(), ".x.partial-1-0", 0700)));
    EXPECT_TRUE(is_refused(broker.remove_at(here_.get(), "state", 0)));
    EXPECT_TRUE(is_refused(broker.rename_at(here_.get(), "state", "memory", 0)));
    EXPECT_TRUE(is_refused(broker.sync_directory(here_.get())));
    EXPECT_EQ(broker.canonical("/etc"), "");
    std::string problem;
    EXPECT_TRUE(is_refused(broker.write_output("/etc/passwd", "x", problem)));
    EXPECT_TRUE(is_refused(broker.open_process_of_peer(here_.get())));
    const std::array<std::string, 3> words{"/bin/true", "true", "x"};
    EXPECT_THROW(static_cast<void>(broker.start({words, {}}, "try")), Error);
}

TEST_F(BrokerTest, OpensTheProcessAtTheOtherEndOfAConnection) {
    Broker broker({});
    std::array<int, 2> ends{-1, -1};
    ASSERT_EQ(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends.data()), 0);
    const UniqueFd one(ends[0]);
    const UniqueFd other(ends[1]);
    const UniqueFd process = broker.open_process_of_peer(one.get()); // this process
    ASSERT_TRUE(process);
    const std::string facts = content_of("/proc/self/fdinfo/" + std::to_string(process.get()));
    EXPECT_TRUE(mentions(facts, "Pid:\t" + std::to_string(::getpid()) + "\n")) << facts;
}

TEST_F(BrokerTest, OfSnapshotsItOpensNothingButTheirFiles) {
    Broker broker({.snapshots = true});
    const std::string inside = directory_.write("secret", "a secret");
    directory_.write("state", "a state");
    // Only files with these names can be read.
    EXPECT_TRUE(broker.open_at(here_.get(), "state", O_RDONLY | O_CLOEXEC, 0));
    for (const char* const name : {"secret", "../state", "/etc/passwd", "..", ".", "", "./state"}) {
        EXPECT_TRUE(is_refused(broker.open_at(here_.get(), name, O_RDONLY | O_CLOEXEC, 0))) << name;
    }
    EXPECT_TRUE(is_refused(broker.open_at(AT_FDCWD, inside.c_str(), O_RDONLY | O_CLOEXEC, 0)));
    EXPECT_TRUE(is_refused(broker.open_at(AT_FDCWD, "state", O_RDONLY | O_CLOEXEC, 0)));
    // An existing file is not written, and nothing is made beside it.
    for (const int flags :
         {O_RDWR, O_WRONLY, O_RDWR | O_CREAT | O_EXCL, O_RDONLY | O_TRUNC, O_RDWR | O_CREAT, O_RDWR | O_TMPFILE}) {
        EXPECT_TRUE(is_refused(broker.open_at(here_.get(), "state", flags | O_CLOEXEC, 0600))) << flags;
    }
    EXPECT_TRUE(is_refused(broker.open_at(here_.get(), "memory", O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600)));
    EXPECT_TRUE(is_refused(broker.make_directory_at(here_.get(), "mine", 0777)));
    EXPECT_TRUE(is_refused(broker.make_directory_at(here_.get(), "../.x.partial-1-0", 0777)));
    EXPECT_TRUE(is_refused(broker.remove_at(here_.get(), "state", 0)));
    EXPECT_TRUE(is_refused(broker.rename_at(here_.get(), "state", "memory", 0)));
    std::filesystem::create_directory(directory_ / "theirs");
    EXPECT_TRUE(is_refused(broker.remove_at(here_.get(), "theirs", AT_REMOVEDIR)));
    EXPECT_TRUE(is_refused(broker.rename_at(here_.get(), "theirs", "mine", 0)));
    EXPECT_EQ(content_of(directory_ / "state"), "a state");
}

TEST_F(BrokerTest, ListOfADirectoryIsNotGivenAway) {
    Broker broker({.snapshots = true});
    EXPECT_TRUE(is_refused(broker.open_at(AT_FDCWD, directory_.path().c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC, 0)));
    const UniqueFd found = broker.open_at(AT_FDCWD, directory_.path().c_str(), O_PATH | O_DIRECTORY | O_CLOEXEC, 0);
    ASSERT_TRUE(found);
    EXPECT_TRUE((::fcntl(found.get(), F_GETFL) & O_PATH) != 0);
}

TEST_F(BrokerTest, PipeOfTheNameOfASnapshotsFileIsNotWaitedFor) {
    Broker broker({.snapshots = true});
    ASSERT_EQ(::mkfifo((directory_ / "state").c_str(), 0600), 0);
    EXPECT_TRUE(is_refused(broker.open_at(here_.get(), "state", O_RDONLY | O_CLOEXEC, 0)));
}

TEST_F(BrokerTest, SnapshotIsMadeWholeOrRemoved) {
    Broker broker({.snapshots = true});
    const UseOf use(broker);
    const std::array<std::byte, 3> state{std::byte{1}, std::byte{2}, std::byte{3}};
    {
        SnapshotWriter writer(directory_ / "one");
        writer.commit(state, "{}");
    }
    EXPECT_EQ(content_of(directory_ / "one/config.json"), "{}");
    EXPECT_EQ(std::filesystem::file_size(directory_ / "one/state"), state.size());
    // From now on it belongs to somebody else.
    const UniqueFd one = open_directory(directory_ / "one");
    EXPECT_TRUE(is_refused(broker.open_at(one.get(), "state", O_RDWR | O_CLOEXEC, 0)));
    EXPECT_TRUE(is_refused(broker.remove_at(one.get(), "state", 0)));
    { const SnapshotWriter given_up(directory_ / "two"); }
    std::size_t left = 0;
    for ([[maybe_unused]] const auto& entry : std::filesystem::directory_iterator(directory_.path())) {
        ++left;
    }
    EXPECT_EQ(left, 1U) << "of the second nothing is left";
    const std::string refusal = testing::error_of([&] { return std::make_unique<SnapshotWriter>(directory_ / "one"); });
    EXPECT_TRUE(mentions(refusal, "there is a file")) << refusal;
}

TEST_F(BrokerTest, RemovesTheSocketsThatItKnows) {
    const std::string socket = directory_ / "socket";
    const std::string file = directory_.write("file", "kept");
    const auto bind_to = [](const std::string& path) {
        UniqueFd bound(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
        sockaddr_un address{};
        address.sun_family = AF_UNIX;
        path.copy(address.sun_path, sizeof(address.sun_path) - 1);
        EXPECT_EQ(::bind(bound.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address), 0);
        return bound;
    };
    const std::string other = directory_ / "other";
    const std::string early = directory_ / "early";
    Broker broker({.sockets = {file, other, early}});
    const UniqueFd zero = bind_to(early);
    EXPECT_TRUE(broker.remove_at(AT_FDCWD, early.c_str(), 0)) << "what comes to nothing leaves nothing";
    broker.add_socket(socket);
    const UniqueFd one = bind_to(socket);
    const UniqueFd two = bind_to(other);
    broker.settle();
    EXPECT_THROW(broker.add_socket("/another"), Error) << "the rules stay as they are";
    EXPECT_TRUE(is_refused(broker.remove_at(AT_FDCWD, file.c_str(), 0))) << "it is no socket";
    EXPECT_TRUE(broker.remove_at(AT_FDCWD, socket.c_str(), 0));
    EXPECT_FALSE(std::filesystem::exists(socket));
    std::filesystem::remove(other);
    const UniqueFd another = bind_to(directory_ / "new");
    std::filesystem::rename(directory_ / "new", other);
    EXPECT_TRUE(is_refused(broker.remove_at(AT_FDCWD, other.c_str(), 0))) << "it is another process's by now";
}

TEST_F(BrokerTest, LogIsOpenedAnewWhereItBelongs) {
    const std::string log = directory_ / "log";
    Broker broker({.outputs = {log}});
    constexpr int kFlags = O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC | O_NOFOLLOW;
    EXPECT_TRUE(broker.open_at(here_.get(), "log", kFlags, 0600));
    EXPECT_TRUE(is_refused(broker.open_at(here_.get(), "log", O_RDONLY | O_CLOEXEC, 0)));
    EXPECT_TRUE(is_refused(broker.open_at(here_.get(), "log", O_RDWR | O_CLOEXEC, 0)));
    EXPECT_TRUE(is_refused(broker.open_at(here_.get(), "log", O_WRONLY | O_TRUNC | O_CLOEXEC, 0)));
    EXPECT_TRUE(is_refused(broker.open_at(here_.get(), "log2", kFlags, 0600)));
    std::filesystem::create_directory(directory_ / "elsewhere");
    const UniqueFd elsewhere = open_directory(directory_ / "elsewhere");
    EXPECT_TRUE(is_refused(broker.open_at(elsewhere.get(), "log", kFlags, 0600)));
}

TEST_F(BrokerTest, ReportIsWrittenToItsPlaceAndErrorsAreSaid) {
    const std::string report = directory_ / "report";
    const auto write = [report](std::string_view path, std::string_view text) {
        if (path != report) {
            return std::string("cannot write there");
        }
        std::ofstream(report) << text;
        return std::string();
    };
    Broker broker({.write_output = write});
    std::string problem;
    const std::string text(300'000, 'x');
    EXPECT_TRUE(broker.write_output(report.c_str(), text, problem));
    EXPECT_EQ(content_of(report), text);
    EXPECT_FALSE(broker.write_output("/elsewhere", text, problem));
    EXPECT_EQ(problem, "cannot write there");
}

TEST_F(BrokerTest, StartsTheProgramsThatItKnows) {
    Broker broker({.programs = {{"/bin/sh", {"-c"}, 3}}});
    const UseOf use(broker);
    std::array<int, 2> ends{-1, -1};
    ASSERT_EQ(::pipe2(ends.data(), O_CLOEXEC), 0);
    const UniqueFd reader(ends[0]);
    UniqueFd writer(ends[1]);
    {
        ChildProcess program({.program = "/bin/sh", .arguments = {"sh", "-c", "echo here"}, .out = writer.get()},
                             "try");
        writer.reset();
        std::string text(16, '\0');
        text.resize(static_cast<std::size_t>(std::max<ssize_t>(::read(reader.get(), text.data(), text.size()), 0)));
        EXPECT_EQ(text, "here\n");
        EXPECT_NE(program.pid(), broker.pid());
    }
    for (const std::vector<std::string>& arguments :
         {std::vector<std::string>{"sh", "-s", "echo here"}, {"sh", "-c"}, {"sh", "-c", "true", "more"}}) {
        EXPECT_THROW(ChildProcess({.program = "/bin/sh", .arguments = arguments}, "try"), Error) << arguments[1];
    }
    EXPECT_THROW(ChildProcess({.program = "/bin/true", .arguments = {"true", "-c", "x"}}, "try"), Error);
}

TEST_F(BrokerTest, ProgramThatIsNotThereIsSaidSo) {
    Broker broker({.programs = {{"/nowhere/program", {"x"}, 2}}});
    const UseOf use(broker);
    EXPECT_THROW(ChildProcess({.program = "/nowhere/program", .arguments = {"program", "x"}}, "try"), ProgramError);
}

TEST_F(BrokerTest, HasOneDescriptorAndEndsWithItsClient) {
    const UniqueFd kept(::open("/dev/null", O_RDONLY));
    auto broker = std::make_unique<Broker>(BrokerRules{.snapshots = true});
    EXPECT_EQ(broker->canonical("/proc/self/../.."), "/") << "it has begun";
    std::size_t fds = 0;
    for ([[maybe_unused]] const auto& fd :
         std::filesystem::directory_iterator("/proc/" + std::to_string(broker->pid()) + "/fd")) {
        ++fds;
    }
    EXPECT_EQ(fds, 1U);
    const pid_t pid = broker->pid();
    broker.reset();
    EXPECT_EQ(::kill(pid, 0), -1);
}

TEST_F(BrokerTest, EndsIfItsClientIsKilled) {
    std::array<int, 2> ends{-1, -1};
    ASSERT_EQ(::pipe2(ends.data(), O_CLOEXEC), 0);
    const pid_t client = ::fork();
    if (client == 0) {
        const Broker broker({});
        const pid_t pid = broker.pid();
        [[maybe_unused]] const ssize_t told = ::write(ends[1], &pid, sizeof pid);
        ::raise(SIGKILL);
    }
    pid_t broker = 0;
    ASSERT_EQ(::read(ends[0], &broker, sizeof broker), static_cast<ssize_t>(sizeof broker));
    ::waitpid(client, nullptr, 0);
    // Its new parent may be slow to wait for it.
    EXPECT_TRUE(eventually([broker] {
        std::ifstream status("/proc/" + std::to_string(broker) + "/stat");
        std::string number;
        std::string name;
        std::string state;
        return !(status >> number >> name >> state) || state == "Z";
    }));
    ::close(ends[0]);
    ::close(ends[1]);
}

TEST_F(BrokerTest, ThatIsGoneIsAnErrorAndNoWait) {
    Broker broker({.snapshots = true});
    ::kill(broker.pid(), SIGKILL);
    EXPECT_TRUE(eventually([&] { return !broker.sync_directory(here_.get()) && errno == EPIPE; }));
}

} // namespace
} // namespace vmm
