// `vmm run --snapshot-on`, as users run it: a signal saves the guest, and another command restores it.

#include <gtest/gtest.h>

#include <algorithm>
#include <csignal>
#include <filesystem>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include "support/host_errors.hpp"
#include "support/kvm_command.hpp"
#include "support/kvm_require.hpp"

namespace vmm::testing {
namespace {

namespace fs = std::filesystem;

class SnapshotSignalled : public KvmTest {
  protected:
    /// The words for a guest that passes over its memory for ever, and prints a line for each pass.
    [[nodiscard]] std::vector<std::string> words(const std::string& memory = "16M") const {
        return {"run",
                "-q",
                "-m",
                memory,
                "--page-size=4K",
                "--prefault=all",
                "--cmdline",
                "passes=1000000 report=live",
                "--serial",
                serial_,
                "--report",
                report_,
                "--snapshot-on",
                "SIGUSR1:" + saved_};
    }
    [[nodiscard]] bool says(const std::string& what) const {
        return eventually([&] { return content_of(serial_).find(what) != std::string::npos; });
    }
    [[nodiscard]] nlohmann::json report() const { return nlohmann::json::parse(content_of(report_)); }
    [[nodiscard]] std::vector<std::string> left() const {
        std::vector<std::string> names;
        for (const auto& entry : fs::directory_iterator(directory_.path())) {
            names.push_back(entry.path().filename());
        }
        return names;
    }

    TemporaryDirectory directory_;
    std::string serial_ = directory_ / "serial";
    std::string report_ = directory_ / "report";
    std::string saved_ = directory_ / "saved";
};

TEST_F(SnapshotSignalled, IsSavedAndEndsAndGoesOnElsewhere) {
    {
        CommandBeside command(words());
        ASSERT_TRUE(says("pass=2 ")) << command.errors();
        command.send(SIGUSR1);
        EXPECT_EQ(command.wait(), 4) << command.errors();
        EXPECT_EQ(command.errors(), "") << "it is quiet";
    }
    EXPECT_EQ(report()["guest"]["exit"], "signal");
    ASSERT_TRUE(fs::exists(saved_ + "/state"));
    const CommandResult verified = run_command({"snapshot", "verify", saved_});
    EXPECT_EQ(verified.exit_status, 0) << verified.errors;

    fs::remove(serial_);
    CommandBeside again({"run", "-q", "--restore", saved_, "--serial", serial_, "--report", report_});
    EXPECT_TRUE(says("pass=")) << again.errors();
    EXPECT_EQ(content_of(serial_).find("pass=1 "), std::string::npos) << "it does not begin anew";
    again.send(SIGTERM);
    EXPECT_EQ(again.wait(), 4) << again.errors();
    EXPECT_EQ(report()["guest"]["second_level_faults_total"], 0);
}

TEST_F(SnapshotSignalled, BeforeItRunsIsSavedOnceItRuns) {
    CommandBeside command(words("256M"));
    ASSERT_TRUE(eventually([&] { return command.catches(SIGUSR1); })) << command.errors();
    command.send(SIGUSR1);
    EXPECT_EQ(command.wait(), 4) << command.errors();
    EXPECT_TRUE(fs::exists(saved_ + "/state")) << command.errors();
}

TEST_F(SnapshotSignalled, GoesOnIfItCannotBeSavedAndIsSavedTheNextTime) {
    CommandBeside command(words());
    ASSERT_TRUE(says("pass=2 ")) << command.errors();
    fs::create_directory(saved_); // another process takes the name meanwhile
    command.send(SIGUSR1);
    EXPECT_TRUE(eventually([&] { return mentions(command.errors(), "the guest goes on"); })) << command.errors();
    EXPECT_TRUE(mentions(command.errors(), "there is a file or a directory of this name")) << command.errors();
    const std::size_t before = content_of(serial_).size();
    EXPECT_TRUE(eventually([&] { return content_of(serial_).size() > before; })) << "the guest stands still";
    fs::remove(saved_);
    command.send(SIGUSR1);
    EXPECT_EQ(command.wait(), 4) << command.errors();
    EXPECT_TRUE(fs::exists(saved_ + "/state"));
}

TEST_F(SnapshotSignalled, EndsWithoutASnapshotOnSigterm) {
    CommandBeside command(words());
    ASSERT_TRUE(says("pass=2 ")) << command.errors();
    command.send(SIGTERM);
    EXPECT_EQ(command.wait(), 4) << command.errors();
    EXPECT_EQ(report()["guest"]["exit"], "signal");
    EXPECT_FALSE(fs::exists(saved_));
    EXPECT_EQ(left().size(), 2U) << "the serial port's file and the report";
}

TEST_F(SnapshotSignalled, IsRefusedBeforeAnythingIsMade) {
    const auto refused = [this](const std::string& where, const std::string& why) {
        std::vector<std::string> all = words();
        *(std::ranges::find(all, "--snapshot-on") + 1) = "SIGUSR1:" + where;
        const CommandResult result = run_command(all);
        EXPECT_EQ(result.exit_status, 1) << result.errors;
        EXPECT_TRUE(mentions(result.errors, why)) << result.errors;
        EXPECT_EQ(std::count(result.errors.begin(), result.errors.end(), '\n'), 1) << result.errors;
        EXPECT_FALSE(fs::exists(report_));
        EXPECT_FALSE(fs::exists(serial_));
    };
    refused(directory_ / "missing/saved", "make the parent directory first");
    refused("/", "has no name of its own");
    fs::create_directory(saved_);
    refused(saved_, "there is a file or a directory of this name");
    EXPECT_EQ(left(), std::vector<std::string>{"saved"});
}

} // namespace
} // namespace vmm::testing
