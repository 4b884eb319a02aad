// One file in two roles.

#include "vmm/output/file_roles.hpp"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <filesystem>
#include <string>

#include "kvm/host/unique_fd.hpp"
#include "support/host_errors.hpp"
#include "support/host_loop_device.hpp"
#include "support/host_temporary_directory.hpp"

namespace vmm {
namespace {

namespace fs = std::filesystem;
using testing::error_of;
using testing::mentions;
using Use = FileRoles::Use;

class FileRolesTest : public ::testing::Test {
  protected:
    /// The message if `path` gets this role after `other` had its role.
    static std::string refusal_of(Use use, const std::string& path, Use other_use, const std::string& other) {
        return error_of([&] {
            FileRoles roles;
            roles.add(other_use, "--kernel", other);
            roles.add(use, "--report", path);
            return 0;
        });
    }
    static bool is_refused(Use use, const std::string& path, Use other_use, const std::string& other) {
        return mentions(refusal_of(use, path, other_use, other), "cannot use " + path + " for --report: --kernel");
    }

    testing::TemporaryDirectory directory_;
};

TEST_F(FileRolesTest, AreRefusedByWhateverNameAFileHas) {
    const std::string file = directory_.write("a/file", "x");
    fs::create_hard_link(file, directory_ / "hard");
    fs::create_symlink("a/file", directory_ / "soft");
    fs::create_symlink("a", directory_ / "folder");
    for (const std::string& name :
         {file, directory_ / "hard", directory_ / "soft", directory_ / "folder/file", directory_ / "a/../a/./file"}) {
        EXPECT_TRUE(is_refused(Use::kWrite, name, Use::kRead, file)) << name;
        EXPECT_TRUE(is_refused(Use::kAppend, name, Use::kRead, file)) << name;
        EXPECT_TRUE(is_refused(Use::kWrite, name, Use::kWrite, file)) << name;
        EXPECT_TRUE(is_refused(Use::kRead, name, Use::kWrite, file)) << name;
        EXPECT_EQ(refusal_of(Use::kRead, name, Use::kRead, file), "") << name;
    }
    EXPECT_EQ(refusal_of(Use::kWrite, directory_.write("other", ""), Use::kRead, file), "");
}

TEST_F(FileRolesTest, AreRefusedForAFileThatIsNotThereYet) {
    fs::create_directory(directory_ / "a");
    fs::create_symlink("a/new", directory_ / "soft");
    EXPECT_TRUE(is_refused(Use::kWrite, directory_ / "a/new", Use::kWrite, directory_ / "a/../a/new"));
    EXPECT_TRUE(is_refused(Use::kWrite, directory_ / "soft", Use::kWrite, directory_ / "a/new"));
    EXPECT_EQ(refusal_of(Use::kWrite, directory_ / "a/new", Use::kWrite, directory_ / "new"), "");
    EXPECT_FALSE(fs::exists(directory_ / "a/new"));
}

TEST_F(FileRolesTest, GoTogetherWhereNothingIsLost) {
    for (const char* const device : {"/dev/null", "/dev/full"}) {
        EXPECT_EQ(refusal_of(Use::kWrite, device, Use::kWrite, device), "");
        EXPECT_EQ(refusal_of(Use::kWrite, device, Use::kRead, device), "");
    }
    const std::string pipe = directory_ / "pipe";
    ASSERT_EQ(::mkfifo(pipe.c_str(), 0600), 0);
    EXPECT_EQ(refusal_of(Use::kWrite, pipe, Use::kWrite, pipe), "");
    EXPECT_TRUE(is_refused(Use::kWrite, pipe, Use::kRead, pipe)) << "we would read our own words";
    const std::string log = directory_.write("log", "");
    EXPECT_EQ(refusal_of(Use::kAppend, log, Use::kAppend, log), "");
}

TEST_F(FileRolesTest, OfADescriptorAreThoseOfItsFile) {
    const std::string path = directory_.write("out", "");
    const UniqueFd fd(::open(path.c_str(), O_WRONLY | O_CLOEXEC));
    const UniqueFd appending(::open(path.c_str(), O_WRONLY | O_APPEND | O_CLOEXEC));
    const auto refusal = [&](Use use, const std::string& name, int descriptor) {
        return error_of([&] {
            FileRoles roles;
            roles.add_descriptor("standard output", descriptor);
            roles.add(use, "--report", name);
            return 0;
        });
    };
    EXPECT_TRUE(mentions(refusal(Use::kWrite, path, fd.get()), "standard output"));
    EXPECT_TRUE(mentions(refusal(Use::kAppend, path, fd.get()), "standard output"));
    EXPECT_EQ(refusal(Use::kAppend, path, appending.get()), "") << "a log beside 2>>log";
    EXPECT_EQ(refusal(Use::kWrite, "/dev/fd/" + std::to_string(fd.get()), fd.get()), "")
        << "they share their place in it";
    EXPECT_EQ(refusal(Use::kWrite, path, -1), "");
}

TEST_F(FileRolesTest, OfABlockDeviceAreThoseOfItsNumber) {
    const std::string image = directory_.write("image", std::string(1 << 20, 0));
    const testing::LoopDevice device(image);
    if (!device.is_there()) {
        GTEST_SKIP() << "no loop device can be made here: " << device.path();
    }
    struct stat facts {};
    ASSERT_EQ(::stat(device.path().c_str(), &facts), 0);
    const std::string node = directory_ / "node";
    if (::mknod(node.c_str(), S_IFBLK | 0600, facts.st_rdev) != 0) {
        GTEST_SKIP() << "this user makes no device nodes";
    }
    EXPECT_TRUE(is_refused(Use::kWrite, node, Use::kRead, device.path()));
}

TEST_F(FileRolesTest, OfDisksSayHowTheyCanShare) {
    const std::string disk = directory_.write("disk", "x");
    const std::string refusal = error_of([&] {
        FileRoles roles;
        roles.add(Use::kRead, FileRoles::kDisk, disk);
        roles.add(Use::kWrite, FileRoles::kDisk, disk);
        return 0;
    });
    EXPECT_TRUE(mentions(refusal, "another disk of this guest uses it (only readers can share a disk")) << refusal;
}

} // namespace
} // namespace vmm
