// The log and the serial output, and the effects of log rotation on them.

#include "vmm/cli/long_lived_file.hpp"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <string_view>

#include "kvm/host/unique_fd.hpp"
#include "support/host_errors.hpp"
#include "support/host_pipe.hpp"
#include "support/host_temporary_directory.hpp"

namespace vmm {
namespace {

namespace fs = std::filesystem;
using testing::content_of;
using testing::error_of;
using testing::mentions;

void write(LongLivedFile& file, std::string_view text) {
    EXPECT_EQ(file.write(std::as_bytes(std::span(text))).written, text.size());
}

TEST(LongLivedFile, LeavesWhatIsThereUntilItIsEmptied) {
    const testing::TemporaryDirectory directory;
    const std::string path = directory.write("log", "old\n");
    LongLivedFile file(path, "write it");
    EXPECT_EQ(content_of(path), "old\n");
    write(file, "new\n");
    EXPECT_EQ(content_of(path), "old\nnew\n");
    file.empty();
    write(file, "alone\n");
    EXPECT_EQ(content_of(path), "alone\n");
}

TEST(LongLivedFile, ThatWasMadeForNothingIsTakenAway) {
    const testing::TemporaryDirectory directory;
    { const LongLivedFile file(directory / "log", "write it"); }
    EXPECT_FALSE(fs::exists(directory / "log"));
    directory.write("log", "old");
    { const LongLivedFile file(directory / "log", "write it"); }
    EXPECT_EQ(content_of(directory / "log"), "old");
    LongLivedFile(directory / "kept", "write it").keep();
    EXPECT_TRUE(fs::exists(directory / "kept"));
}

TEST(LongLivedFile, ThatIsRenamedIsMadeAnewWithItsMode) {
    const testing::TemporaryDirectory directory;
    const std::string path = directory.write("log", "");
    ASSERT_EQ(::chmod(path.c_str(), 0600), 0);
    LongLivedFile file(path, "write it");
    file.keep();
    write(file, "one\n");
    fs::rename(path, path + ".1");
    write(file, "two\n");
    EXPECT_EQ(content_of(path + ".1"), "one\n");
    EXPECT_EQ(content_of(path), "two\n");
    EXPECT_EQ(fs::status(path).permissions(), fs::perms(0600));
    fs::remove(path);
    write(file, "three\n");
    EXPECT_EQ(content_of(path), "three\n");
}

TEST(LongLivedFile, ThatIsReplacedGoesOnInTheNewOne) {
    const testing::TemporaryDirectory directory;
    const std::string path = directory.write("log", "");
    LongLivedFile file(path, "write it");
    fs::rename(path, path + ".1");
    directory.write("log", "made by logrotate\n");
    write(file, "two\n");
    EXPECT_EQ(content_of(path), "made by logrotate\ntwo\n");
}

TEST(LongLivedFile, ThatIsCutOffHasNoHole) {
    const testing::TemporaryDirectory directory;
    const std::string path = directory.write("log", "");
    LongLivedFile file(path, "write it");
    write(file, "a long text before\n");
    fs::resize_file(path, 0);
    write(file, "after\n");
    EXPECT_EQ(content_of(path), "after\n");
}

TEST(LongLivedFile, WhoseFolderIsGoneKeepsWhatItHas) {
    const testing::TemporaryDirectory directory;
    const std::string path = directory.write("folder/log", "");
    LongLivedFile file(path, "write it");
    fs::rename(directory / "folder", directory / "elsewhere");
    write(file, "still\n");
    EXPECT_EQ(content_of(directory / "elsewhere/log"), "still\n");
}

TEST(LongLivedFile, WhoseNameBecameALinkOfSomebodyElseStays) {
    if (::geteuid() != 0) {
        GTEST_SKIP() << "only root can give a link away";
    }
    const testing::TemporaryDirectory directory;
    const std::string path = directory.write("log", "");
    const std::string victim = directory.write("victim", "kept");
    LongLivedFile file(path, "write it");
    fs::rename(path, path + ".1");
    fs::create_symlink("victim", path);
    ASSERT_EQ(::lchown(path.c_str(), 12345, 12345), 0);
    write(file, "two\n");
    EXPECT_EQ(content_of(victim), "kept");
    EXPECT_EQ(content_of(path + ".1"), "two\n");
}

TEST(LongLivedFile, OfADescriptorsNameIsThatDescriptor) {
    const testing::TemporaryDirectory directory;
    const std::string path = directory.write("out", "");
    const UniqueFd fd(::open(path.c_str(), O_WRONLY | O_CLOEXEC));
    testing::write_text(fd.get(), "before\n");
    LongLivedFile file("/dev/fd/" + std::to_string(fd.get()), "write it");
    file.empty();
    write(file, "ours\n");
    testing::write_text(fd.get(), "after\n");
    EXPECT_EQ(content_of(path), "before\nours\nafter\n");
}

TEST(LongLivedFile, MayBeADeviceAndIsRefusedAsAPipeThatNobodyReads) {
    const testing::TemporaryDirectory directory;
    LongLivedFile null("/dev/null", "write it");
    null.empty();
    write(null, "gone");
    ASSERT_EQ(::mkfifo((directory / "pipe").c_str(), 0600), 0);
    EXPECT_TRUE(mentions(error_of([&] { return std::make_unique<LongLivedFile>(directory / "pipe", "write it"); }),
                         "a pipe that nobody reads yet"));
}

} // namespace
} // namespace vmm
