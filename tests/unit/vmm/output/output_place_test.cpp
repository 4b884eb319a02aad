// Whose symbolic links are followed on the path to a file that we write.

#include "vmm/output/output_place.hpp"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <filesystem>
#include <memory>
#include <string>

#include "devices/disk_image.hpp"
#include "support/host_errors.hpp"
#include "support/host_temporary_directory.hpp"
#include "vmm/cli/long_lived_file.hpp"
#include "vmm/output/report_file.hpp"

namespace vmm {
namespace {

namespace fs = std::filesystem;
using testing::content_of;
using testing::error_of;
using testing::mentions;

constexpr uid_t kSomebody = 12345;

class OutputPlaceTest : public ::testing::Test {
  protected:
    /// A link that belongs to somebody else.
    std::string foreign_link(const std::string& name, const std::string& target) const {
        const std::string link = directory_ / name;
        fs::create_symlink(target, link);
        EXPECT_EQ(::lchown(link.c_str(), kSomebody, kSomebody), 0);
        return link;
    }
    static std::string refusal_of(const std::string& path) {
        return error_of([&] { return OutputPlace(path, "write it"); });
    }

    testing::TemporaryDirectory directory_;
};

TEST_F(OutputPlaceTest, OfALinkOfOursIsWhereItLeads) {
    fs::create_directories(directory_ / "a/b");
    fs::create_symlink("a/b", directory_ / "relative");
    fs::create_symlink(directory_ / "relative/../b/file", directory_ / "absolute");
    const OutputPlace place(directory_ / "absolute", "write it");
    EXPECT_EQ(place.name(), "file");
    EXPECT_FALSE(place.is_named_itself());
    ASSERT_TRUE(place.open(O_WRONLY | O_CREAT));
    EXPECT_TRUE(fs::exists(directory_ / "a/b/file"));
    EXPECT_TRUE(OutputPlace(directory_ / "relative/file", "write it").is_named_itself());
}

TEST_F(OutputPlaceTest, ThatIsNoFileSaysWhy) {
    EXPECT_TRUE(mentions(refusal_of(""), "No such file"));
    EXPECT_TRUE(mentions(refusal_of(directory_ / "none/file"), "No such file"));
    EXPECT_TRUE(mentions(refusal_of(directory_.write("file", "") + "/more"), "Not a directory"));
    fs::create_symlink("loop", directory_ / "loop");
    EXPECT_TRUE(mentions(refusal_of(directory_ / "loop"), "symbolic links"));
    EXPECT_FALSE(OutputPlace(directory_ / "", "write it").open(O_WRONLY)) << "a directory";
}

TEST_F(OutputPlaceTest, ThatBecameALinkSinceIsNotFollowed) {
    const OutputPlace place(directory_.write("file", ""), "write it");
    fs::rename(directory_ / "file", directory_ / "other");
    fs::create_symlink("other", directory_ / "file");
    EXPECT_FALSE(place.open(O_WRONLY));
}

TEST_F(OutputPlaceTest, BehindADescriptorHasNoName) {
    const UniqueFd fd(::open(directory_.write("file", "").c_str(), O_RDWR | O_CLOEXEC));
    const OutputPlace place("/proc/self/fd/" + std::to_string(fd.get()), "write it");
    EXPECT_FALSE(place.has_name());
    EXPECT_TRUE(place.open(O_WRONLY));
}

TEST_F(OutputPlaceTest, OverALinkOfSomebodyElseIsRefusedWhereverItStands) {
    if (::geteuid() != 0) {
        GTEST_SKIP() << "only root can give a link away";
    }
    const std::string target = directory_.write("ours/secret", "kept");
    const std::string link = foreign_link("report", target);
    const std::string folder = foreign_link("folder", directory_ / "ours");
    fs::create_symlink("report", directory_ / "innocent");
    for (const std::string& path : {link, folder + "/secret", folder + "/new", std::string(directory_ / "innocent")}) {
        EXPECT_TRUE(mentions(refusal_of(path), "belongs to another user (uid 12345)"))
            << path << ": " << refusal_of(path);
    }
    EXPECT_TRUE(mentions(error_of([&] { return ReportFile(link); }), "belongs to another user"));
    EXPECT_TRUE(mentions(error_of([&] { return std::make_unique<LongLivedFile>(link, "write the log to " + link); }),
                         "cannot write the log to " + link));
    EXPECT_EQ(content_of(target), "kept");
    EXPECT_FALSE(fs::exists(directory_ / "ours/new"));
}

TEST_F(OutputPlaceTest, LockedAsADiskIsNoOutput) {
    const std::string disk = directory_.write("disk", std::string(512, 'd'));
    const devices::DiskImage image(disk, {});
    EXPECT_TRUE(mentions(error_of([&] { return ReportFile(disk); }), "it is locked by"));
    EXPECT_TRUE(
        mentions(error_of([&] { return std::make_unique<LongLivedFile>(disk, "write serial output to " + disk); }),
                 "cannot write serial output to " + disk + ": it is locked by"));
    EXPECT_EQ(content_of(disk), std::string(512, 'd'));
}

} // namespace
} // namespace vmm
