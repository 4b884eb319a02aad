#include "vmm/output/report_file.hpp"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <filesystem>
#include <string>

#include "kvm/host/unique_fd.hpp"
#include "support/host_child_process.hpp"
#include "support/host_errors.hpp"
#include "support/host_pipe.hpp"
#include "support/host_process_facts.hpp"
#include "support/host_temporary_directory.hpp"

namespace vmm {
namespace {

namespace fs = std::filesystem;
using testing::content_of;
using testing::error_of;
using testing::mentions;
using testing::TemporaryDirectory;

TEST(ReportFile, IsWritten) {
    const TemporaryDirectory directory;
    ReportFile(directory / "report.json").write("text\n");
    EXPECT_EQ(content_of(directory / "report.json"), "text\n");
}

TEST(ReportFile, IsNotMadeBeforeItIsWritten) {
    const TemporaryDirectory directory;
    ReportFile report(directory / "report.json");
    EXPECT_EQ(testing::count_entries(directory.path()), 0U);
}

TEST(ReportFile, IsReplacedAsAWhole) {
    const TemporaryDirectory directory;
    const std::string path = directory.write("report.json", "a longer text than the new one\n");
    const UniqueFd reader(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
    ReportFile(path).write("new\n");
    EXPECT_EQ(content_of(path), "new\n");
    EXPECT_EQ(testing::read_available(reader.get()), "a longer text than the new one\n")
        << "who has it open sees the old text";
}

TEST(ReportFile, LeavesNothingBesideIt) {
    const TemporaryDirectory directory;
    ReportFile(directory / "report.json").write("text\n");
    EXPECT_EQ(testing::count_entries(directory.path()), 1U);
}

TEST(ReportFile, HasThePermissionsOfAnyNewFile) {
    const TemporaryDirectory directory;
    const mode_t before = ::umask(027);
    ReportFile(directory / "report.json").write("text\n");
    ::umask(before);
    EXPECT_EQ(fs::status(directory / "report.json").permissions(), fs::perms(0640));
}

TEST(ReportFile, KeepsALink) {
    const TemporaryDirectory directory;
    directory.write("elsewhere/target.json", "old\n");
    fs::create_symlink("elsewhere/target.json", directory / "report.json");
    ReportFile(directory / "report.json").write("new\n");
    EXPECT_TRUE(fs::is_symlink(directory / "report.json"));
    EXPECT_EQ(content_of(directory / "elsewhere/target.json"), "new\n");
}

TEST(ReportFile, KeepsALinkToAFileThatIsNotThereYet) {
    const TemporaryDirectory directory;
    fs::create_symlink("target.json", directory / "report.json");
    ReportFile(directory / "report.json").write("new\n");
    EXPECT_TRUE(fs::is_symlink(directory / "report.json"));
    EXPECT_EQ(content_of(directory / "target.json"), "new\n");
}

TEST(ReportFile, InTheWorkingDirectoryNeedsNoFolderInItsName) {
    const TemporaryDirectory directory;
    const std::string outcome = testing::in_child_process([&]() -> std::string {
        fs::current_path(directory.path());
        ReportFile("report.json").write("text\n");
        return "written";
    });
    EXPECT_EQ(outcome, "written");
    EXPECT_EQ(content_of(directory / "report.json"), "text\n");
}

TEST(ReportFile, ThatIsADirectoryIsAnError) {
    const TemporaryDirectory directory;
    const std::string path = directory.path();
    EXPECT_TRUE(mentions(error_of([&] { return ReportFile(path); }), "Is a directory"));
}

TEST(ReportFile, InADirectoryThatDoesNotExistIsAnError) {
    const TemporaryDirectory directory;
    const std::string error = error_of([&] { return ReportFile(directory / "missing/report.json"); });
    EXPECT_TRUE(mentions(error, "missing/report.json: No such file or directory")) << error;
}

/// The message for a user other than root who makes a report at `path`.
std::string error_for_nobody(const std::string& path) {
    return testing::in_child_process([&]() -> std::string {
        constexpr uid_t kNobody = 65534;
        if (::geteuid() == 0 && ::setresuid(kNobody, kNobody, kNobody) != 0) {
            return "cannot become nobody";
        }
        return error_of([&] { return ReportFile(path); });
    });
}

TEST(ReportFile, InADirectoryThatIsNotWritableIsAnErrorAtOnce) {
    const TemporaryDirectory directory;
    fs::permissions(directory.path(), fs::perms(0555));
    const std::string error = error_for_nobody(directory / "report.json");
    EXPECT_TRUE(mentions(error, "Permission denied (its directory must exist and be writable)")) << error;
}

TEST(ReportFile, ThatIsNotWritableIsAnErrorAtOnce) {
    const TemporaryDirectory directory;
    const std::string path = directory.write("report.json", "old\n");
    fs::permissions(path, fs::perms(0444));
    fs::permissions(directory.path(), fs::perms(0777));
    const std::string error = error_for_nobody(path);
    EXPECT_TRUE(mentions(error, "report.json: Permission denied")) << error;
}

TEST(ReportFile, KeepsModeAndOwnerOfWhatIsReplaced) {
    const TemporaryDirectory directory;
    const std::string path = directory.write("report.json", "old\n");
    fs::permissions(path, fs::perms(0640));
    if (::geteuid() == 0) {
        ASSERT_EQ(::chown(path.c_str(), 12345, 23456), 0);
    }
    struct stat before {};
    struct stat after {};
    ASSERT_EQ(::stat(path.c_str(), &before), 0);
    ReportFile(path).write("new\n");
    ASSERT_EQ(::stat(path.c_str(), &after), 0);
    EXPECT_EQ(content_of(path), "new\n");
    EXPECT_EQ(after.st_mode, before.st_mode);
    EXPECT_EQ(after.st_uid, before.st_uid);
    EXPECT_EQ(after.st_gid, before.st_gid);
    EXPECT_NE(after.st_ino, before.st_ino) << "it was replaced as a whole";
}

TEST(ReportFile, IsWrittenInPlaceWhereItHasOtherNamesOrAnotherOwner) {
    const TemporaryDirectory directory;
    const std::string path = directory.write("report.json", "old\n");
    fs::create_hard_link(path, directory / "other.json");
    ReportFile(path).write("new\n");
    EXPECT_EQ(content_of(directory / "other.json"), "new\n");
    EXPECT_EQ(fs::hard_link_count(path), 2U);
    if (::geteuid() != 0) {
        GTEST_SKIP() << "only root can give files away";
    }
    const std::string given = directory.write("given.json", "old\n");
    fs::permissions(given, fs::perms(0666));
    fs::permissions(directory.path(), fs::perms(0777));
    EXPECT_EQ(testing::in_child_process([&]() -> std::string {
                  if (::setresuid(65534, 65534, 65534) != 0) {
                      return "cannot become nobody";
                  }
                  ReportFile(given).write("new\n");
                  return "written";
              }),
              "written");
    struct stat after {};
    ASSERT_EQ(::stat(given.c_str(), &after), 0);
    EXPECT_EQ(after.st_uid, 0U);
    EXPECT_EQ(content_of(given), "new\n");
}

TEST(ReportFile, BehindALinkIsWrittenInPlaceBecauseThatFolderWasNotNamed) {
    const TemporaryDirectory directory;
    const std::string target = directory.write("elsewhere/target.json", "old\n");
    fs::create_symlink("elsewhere/target.json", directory / "report.json");
    const auto inode = [&] {
        struct stat facts {};
        return ::stat(target.c_str(), &facts) == 0 ? facts.st_ino : 0;
    };
    const auto before = inode();
    ReportFile(directory / "report.json").write("new\n");
    EXPECT_EQ(inode(), before);
    EXPECT_EQ(content_of(target), "new\n");
}

TEST(ReportFile, ThatChangedMeanwhileIsLookedAtAgain) {
    const TemporaryDirectory directory;
    const std::string path = directory.write("report.json", "old\n");
    ReportFile report(path);
    fs::create_hard_link(path, directory / "other.json");
    report.write("new\n");
    EXPECT_EQ(content_of(directory / "other.json"), "new\n");
}

TEST(ReportFile, MayBeADevice) {
    EXPECT_NO_THROW(ReportFile("/dev/null").write("text\n"));
    EXPECT_TRUE(fs::is_character_file("/dev/null"));
}

TEST(ReportFile, OnAFullDeviceIsAnErrorOfWriting) {
    ReportFile report("/dev/full");
    EXPECT_TRUE(mentions(error_of([&]() -> int {
                             report.write("text\n");
                             return 0;
                         }),
                         "No space left on device"));
}

TEST(ReportFile, MayBeAPipeWithAName) {
    const TemporaryDirectory directory;
    const std::string path = directory / "pipe";
    ASSERT_EQ(::mkfifo(path.c_str(), 0600), 0);
    const UniqueFd reader(::open(path.c_str(), O_RDWR | O_CLOEXEC));
    ReportFile(path).write("through a pipe\n");
    EXPECT_EQ(testing::read_available(reader.get()), "through a pipe\n");
    EXPECT_TRUE(fs::is_fifo(path));
}

TEST(ReportFile, MayBeAnOpenDescriptor) {
    const testing::Pipe pipe;
    ReportFile("/dev/fd/" + std::to_string(pipe.writer.get())).write("text\n");
    EXPECT_EQ(testing::read_available(pipe.reader.get()), "text\n");
}

} // namespace
} // namespace vmm
