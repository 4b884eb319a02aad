// The output of `vmm`: with no reader, at places where it must not be written, and while others change its files.

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <filesystem>
#include <fstream>
#include <initializer_list>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include "support/host_errors.hpp"
#include "support/host_pipe.hpp"
#include "support/kvm_command.hpp"
#include "support/kvm_require.hpp"

namespace vmm::testing {
namespace {

namespace fs = std::filesystem;

/// A full pipe, whose reader exists but does not read.
struct FullPipe : Pipe {
    FullPipe() {
        ::fcntl(writer.get(), F_SETFL, O_NONBLOCK);
        const std::string filling(4096, 'f');
        while (::write(writer.get(), filling.data(), filling.size()) > 0) {
        }
        ::fcntl(writer.get(), F_SETFL, 0);
    }
};

/// Waits until `condition` is true. The bound is only for hangs, on a machine however busy.
template <typename Condition>
bool comes_true(Condition condition) {
    for (int i = 0; i < 12; ++i) {
        if (eventually(condition)) {
            return true;
        }
    }
    return false;
}

/// `vmm ARGUMENTS...` with its standard output and error where a test says.
class CommandWith {
  public:
    CommandWith(const std::vector<std::string>& arguments, int output, int errors) : child_(::fork()) {
        if (child_ == 0) {
            redirect(STDIN_FILENO, "/dev/null", O_RDONLY);
            if (::dup2(output, STDOUT_FILENO) < 0 || ::dup2(errors, STDERR_FILENO) < 0) {
                ::_exit(126);
            }
            exec_command(arguments);
        }
    }
    ~CommandWith() {
        if (child_ > 0) {
            ::kill(child_, SIGKILL);
            ::waitpid(child_, nullptr, 0);
        }
    }
    CommandWith(const CommandWith&) = delete;
    CommandWith& operator=(const CommandWith&) = delete;

    void send(int signal) const { ::kill(child_, signal); }
    [[nodiscard]] bool has_thread(const std::string& name) const {
        return testing::has_thread(std::to_string(child_), name);
    }
    /// Its exit status; -1: a signal ended it; -2: it did not end.
    int wait() {
        int status = 0;
        if (!comes_true([&] { return ::waitpid(child_, &status, WNOHANG) == child_; })) {
            return -2;
        }
        child_ = -1;
        return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
    }

  private:
    pid_t child_;
};

class Output : public KvmTest {
  protected:
    static const std::vector<std::string>& endless() {
        static const std::vector<std::string> kArguments{"run", "-m", "16M", "--cmdline", "passes=1000000"};
        return kArguments;
    }
    static std::vector<std::string> with(std::vector<std::string> arguments, std::initializer_list<std::string> more) {
        arguments.insert(arguments.end(), more);
        return arguments;
    }
    /// Checks that the run is refused with `part` in the message, and that nothing in the folder has changed.
    void expect_refused(const std::vector<std::string>& arguments, const std::string& part) {
        const auto before = contents();
        const CommandResult result = run_command(arguments);
        EXPECT_EQ(result.exit_status, 1) << result.errors;
        EXPECT_NE(result.errors.find(part), std::string::npos) << result.errors;
        EXPECT_EQ(contents(), before);
    }
    [[nodiscard]] std::vector<std::pair<std::string, std::string>> contents() const {
        std::vector<std::pair<std::string, std::string>> all;
        for (const auto& entry : fs::directory_iterator(directory_.path())) {
            all.emplace_back(entry.path(), entry.is_regular_file() ? content_of(entry.path()) : "");
        }
        std::sort(all.begin(), all.end());
        return all;
    }
    [[nodiscard]] nlohmann::json output_of(const std::vector<std::string>& arguments) const {
        const std::string report = directory_ / "report";
        const CommandResult run = run_command(with(arguments, {"--report", report}));
        EXPECT_EQ(run.exit_status, 0) << run.errors;
        errors_ = run.errors;
        return nlohmann::json::parse(content_of(report)).at("guest").at("output");
    }

    TemporaryDirectory directory_;
    UniqueFd null_{::open("/dev/null", O_WRONLY | O_CLOEXEC)};
    mutable std::string errors_;
};

TEST_F(Output, OnAFullPipeThatNobodyReadsEndsWithTheGuest) {
    const FullPipe pipe;
    EXPECT_EQ(CommandWith({"run", "-m", "16M", "-vv", "--watch"}, null_.get(), pipe.writer.get()).wait(), 0);
    EXPECT_EQ(::fcntl(pipe.writer.get(), F_GETFL) & O_NONBLOCK, 0) << "the pipe is not ours to change";
}

TEST_F(Output, OnFullPipesThatNobodyReadsIsStoppedBySignals) {
    for (const int signal : {SIGTERM, SIGINT, SIGHUP, SIGQUIT}) {
        const FullPipe output;
        const FullPipe errors;
        CommandWith command(endless(), output.writer.get(), errors.writer.get());
        ASSERT_TRUE(comes_true([&] { return command.has_thread("vcpu0"); }));
        command.send(signal);
        EXPECT_EQ(command.wait(), 4);
    }
}

TEST_F(Output, OfProgramsThatOnlyPrintEndsOnAFullPipe) {
    const FullPipe output;
    for (const std::vector<std::string>& arguments :
         {std::vector<std::string>{"--version"}, {"--help"}, {"run", "--help"}, {"doctor"}, {"config-schema"}}) {
        const Pipe errors;
        EXPECT_EQ(CommandWith(arguments, output.writer.get(), errors.writer.get()).wait(), 1) << arguments.front();
        EXPECT_TRUE(mentions(read_available(errors.reader.get()), "cannot write to standard output: nobody read it"))
            << arguments.front();
    }
    const FullPipe errors;
    EXPECT_EQ(CommandWith({"no-such-command"}, null_.get(), errors.writer.get()).wait(), 2);
}

TEST_F(Output, OfAReportThatNobodyReadsIsAnErrorInTheEnd) {
    const std::string fifo = directory_ / "fifo";
    ASSERT_EQ(::mkfifo(fifo.c_str(), 0600), 0);
    const UniqueFd both(::open(fifo.c_str(), O_RDWR | O_NONBLOCK | O_CLOEXEC));
    const std::string filling(4096, 'f');
    while (::write(both.get(), filling.data(), filling.size()) > 0) {
    }
    for (const char* const option : {"--report", "--dump-dtb"}) {
        const Pipe errors;
        EXPECT_EQ(CommandWith({"run", "-q", "-m", "16M", option, fifo}, null_.get(), errors.writer.get()).wait(), 1);
        EXPECT_TRUE(mentions(read_available(errors.reader.get()), fifo + ": nobody read it")) << option;
    }
    // The log at that place is dropped, and delays nobody.
    EXPECT_EQ(CommandWith({"run", "-q", "-m", "16M", "--log-file", fifo}, null_.get(), null_.get()).wait(), 0);
    const FullPipe output;
    EXPECT_EQ(CommandWith({"run", "-q", "-m", "16M", "--serial", "none", "--report", "/dev/stdout"},
                          output.writer.get(), null_.get())
                  .wait(),
              1);
}

TEST_F(Output, OfASlowReaderIsWhole) {
    const Pipe errors;
    ASSERT_GT(::fcntl(errors.writer.get(), F_SETPIPE_SZ, 4096), 0);
    CommandWith command({"run", "-m", "16M", "-vv"}, null_.get(), errors.writer.get());
    std::string said;
    while (said.find("all given back") == std::string::npos) {
        std::string piece(64, '\0');
        const ssize_t count = ::read(errors.reader.get(), piece.data(), piece.size());
        ASSERT_GT(count, 0) << said;
        said.append(piece, 0, static_cast<std::size_t>(count));
        ::usleep(1000);
    }
    EXPECT_EQ(command.wait(), 0);
    EXPECT_FALSE(mentions(said, "dropped")) << said;
    EXPECT_LT(said.find("kernel:"), said.find("guest: poweroff"));
}

TEST_F(Output, AtATerminalThatIsNotReadEndsWithTheGuest) {
    CommandAtTerminal command({"run", "-m", "16M", "-vv", "--watch"});
    // Nobody reads the screen until the command has ended, so its messages find no room.
    int status = 0;
    EXPECT_TRUE(comes_true([&] { return command.has_ended(status); }));
    EXPECT_TRUE(WIFEXITED(status)) << status;
}

TEST_F(Output, IntoAFileThatTheGuestUsesIsRefused) {
    const std::string disk = directory_.write("disk", std::string(512, 'd'));
    const std::string kernel = directory_.write("kernel", "no kernel");
    fs::create_hard_link(disk, directory_ / "hard");
    fs::create_symlink("disk", directory_ / "soft");
    for (const char* const option : {"--serial", "--console", "--report", "--log-file", "--dump-dtb"}) {
        for (const std::string& name : {disk, directory_ / "hard", directory_ / "soft"}) {
            expect_refused({"run", "--disk", disk, option, name}, "cannot use " + name + " for " + option);
            expect_refused({"run", "--disk", disk + ",ro", option, name}, "cannot use " + name + " for " + option);
        }
        expect_refused({"run", "--kernel", kernel, option, kernel}, "for " + std::string(option) + ": --kernel has");
        expect_refused({"run", "--initrd", kernel, option, kernel}, "for " + std::string(option) + ": --initrd has");
    }
    expect_refused({"run", "--serial", directory_ / "new", "--report", directory_ / "./new"}, "for --report: --serial");
    expect_refused({"run", "--disk", disk + ",lock=off", "--disk", disk}, "another disk of this guest");
    const std::string config = directory_.write("config", R"({"memory": "16M"})");
    expect_refused({"run", "--config", config, "--report", config}, "for --report: --config has");
}

TEST_F(Output, IntoTheDiskOfAnotherGuestIsRefused) {
    const std::string disk = directory_.write("disk", std::string(512, 'd'));
    CommandBeside guest({"run", "-q", "-m", "16M", "--cmdline", "passes=1000000", "--disk", disk});
    ASSERT_TRUE(comes_true([&] { return guest.has_thread("blk0"); })) << guest.errors();
    for (const char* const option : {"--serial", "--console", "--report", "--log-file", "--dump-dtb"}) {
        expect_refused({"run", "-q", "-m", "16M", option, disk}, disk + ": it is locked by");
    }
}

TEST_F(Output, OfSeveralKindsMayGoToOneDevice) {
    const CommandResult run = run_command({"run", "-q", "-m", "16M", "--serial", "/dev/null", "--console", "/dev/null",
                                           "--report", "/dev/null", "--log-file", "/dev/null"});
    EXPECT_EQ(run.exit_status, 0) << run.errors;
}

TEST_F(Output, OfTheSerialPortFollowsItsNameThroughARotation) {
    const std::string serial = directory_ / "serial";
    CommandBeside guest({"run", "-q", "-m", "16M", "--cmdline", "passes=1000000 verbose", "--serial", serial});
    if (!comes_true([&] { return !content_of(serial).empty(); })) {
        GTEST_SKIP() << "the built-in guest says nothing while it runs";
    }
    fs::rename(serial, serial + ".1");
    EXPECT_TRUE(comes_true([&] { return !content_of(serial).empty(); })) << "it goes on under the old name";
}

TEST_F(Output, OfTheLogIsAppendedAndHoldsTheErrorOfARefusal) {
    const std::string log = directory_.write("log", "old\n");
    EXPECT_EQ(run_command({"run", "-q", "-m", "16M", "--log-file", log}).exit_status, 0);
    EXPECT_TRUE(content_of(log).starts_with("old\n"));
    EXPECT_TRUE(mentions(content_of(log), "kernel:"));
    EXPECT_EQ(run_command({"run", "-q", "-m", "16M", "--log-file", log, "/nowhere"}).exit_status, 1);
    EXPECT_TRUE(mentions(content_of(log), "/nowhere"));
}

TEST_F(Output, ThatIsLostIsSaidAndReportedForTheSerialPort) {
    const nlohmann::json whole = output_of({"run", "-q", "-m", "16M"});
    EXPECT_EQ(whole.at(0).at("device"), "serial");
    EXPECT_GT(whole.at(0).at("bytes"), 0);
    EXPECT_EQ(whole.at(0).at("lost_bytes"), 0);
    const nlohmann::json full = output_of({"run", "-m", "16M", "--serial", "/dev/full"});
    EXPECT_EQ(full.at(0).at("bytes"), full.at(0).at("lost_bytes"));
    EXPECT_TRUE(mentions(full.at(0).at("lost_because").get<std::string>(), "the disk is full"));
    EXPECT_TRUE(mentions(errors_, "bytes of serial output were dropped: the disk is full")) << errors_;
}

TEST_F(Output, OfAReportKeepsModeAndOwnerAndOtherNames) {
    const std::string report = directory_.write("report", "old");
    ASSERT_EQ(::chmod(report.c_str(), 0600), 0);
    const std::vector<std::string> run{"run", "-q", "-m", "16M", "--serial", "none", "--report", report};
    EXPECT_EQ(run_command(run).exit_status, 0);
    EXPECT_EQ(fs::status(report).permissions(), fs::perms(0600));
    fs::create_hard_link(report, directory_ / "other");
    std::ofstream(report) << "old";
    EXPECT_EQ(run_command(run).exit_status, 0);
    EXPECT_TRUE(mentions(content_of(directory_ / "other"), "\"schema\": 1"));
}

} // namespace
} // namespace vmm::testing
