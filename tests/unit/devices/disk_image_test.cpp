// Which files can be a disk, and the messages for those that cannot.

#include <gtest/gtest.h>

#include <fcntl.h>
#include <linux/filter.h>
#include <linux/fs.h>
#include <linux/seccomp.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <chrono>
#include <cstddef>
#include <filesystem>
#include <memory>
#include <string>
#include <thread>

#include "devices/disk_image.hpp"
#include "kvm/host/unique_fd.hpp"
#include "support/host_child_process.hpp"
#include "support/host_errors.hpp"
#include "support/host_loop_device.hpp"
#include "support/host_temporary_directory.hpp"
#include "support/host_waiting.hpp"

namespace vmm::devices {
namespace {

using vmm::testing::error_of;
using vmm::testing::mentions;

class DiskImageTest : public ::testing::Test {
  protected:
    std::string file(const char* name, std::uint64_t bytes) {
        const std::string path = directory_.write(name, "");
        std::filesystem::resize_file(path, bytes);
        return path;
    }
    static std::string refusal_of(const std::string& path, const DiskImage::Options& options = {}) {
        return error_of([&] { const DiskImage image(path, options); });
    }

    vmm::testing::TemporaryDirectory directory_;
};

TEST_F(DiskImageTest, HasTheSizeOfItsFile) {
    const DiskImage image(file("a", 3 * 512), {});
    EXPECT_EQ(image.sectors(), 3U);
    EXPECT_EQ(image.logical_block_bytes(), 512U);
    EXPECT_EQ(image.memory_alignment(), 1U);
    EXPECT_FALSE(image.is_read_only());
}

TEST_F(DiskImageTest, ThatSomebodyElseHasOpenedIsCheckedAndLockedAsOneOfItsOwn) {
    const std::string path = file("a", 3 * 512);
    const DiskImage image(path, DiskImage::open(path, {}), {});
    EXPECT_EQ(image.sectors(), 3U);
    EXPECT_TRUE(mentions(refusal_of(path), "another process, or another disk of this guest, uses it"));
    EXPECT_TRUE(mentions(error_of([&] { const DiskImage second(path, DiskImage::open(path, {}), {}); }), "uses it"));
}

TEST_F(DiskImageTest, ThatSomebodyElseHasOpenedForSomethingElseIsRefused) {
    const std::string path = file("a", 512);
    const auto refusal = [&](const std::string& what, int flags, const DiskImage::Options& options) {
        return error_of(
            [&] { const DiskImage image(path, {.file = UniqueFd(::open(what.c_str(), flags | O_CLOEXEC))}, options); });
    };
    EXPECT_EQ(refusal(path, O_RDWR, {}), "");
    EXPECT_EQ(refusal(path, O_RDWR, {.read_only = true}), "");
    EXPECT_EQ(refusal(path, O_RDONLY, {.read_only = true}), "");
    EXPECT_TRUE(mentions(refusal(path, O_RDONLY, {}), "it is not open for reading and writing"));
    EXPECT_TRUE(mentions(refusal(path, O_WRONLY, {}), "it is not open for reading and writing"));
    EXPECT_TRUE(mentions(refusal(path, O_WRONLY, {.read_only = true}), "it is not open for reading"));
    EXPECT_TRUE(mentions(refusal(path, O_PATH, {.read_only = true}), "it is not open for reading"));
    EXPECT_TRUE(mentions(refusal(directory_ / ".", O_RDONLY, {.read_only = true}), "neither a regular file nor"));
    EXPECT_TRUE(mentions(refusal("/dev/null", O_RDWR, {}), "neither a regular file nor a block device"));
    EXPECT_TRUE(mentions(refusal(file("empty", 0), O_RDWR, {}), "it is empty"));
    EXPECT_TRUE(mentions(refusal(file("odd", 513), O_RDWR, {}), "no whole sectors"));
}

TEST_F(DiskImageTest, ThatSomebodyElseHasOpenedAppendsNothing) {
    const std::string path = file("a", 512);
    const DiskImage image(path, {.file = UniqueFd(::open(path.c_str(), O_RDWR | O_APPEND | O_CLOEXEC))}, {});
    EXPECT_EQ(::pwrite(image.fd(), "x", 1, 0), 1);
    EXPECT_EQ(std::filesystem::file_size(path), 512U);
}

TEST_F(DiskImageTest, ThatIsNotThereOrEmptyOrOfAnOddSizeOrADirectoryIsRefusedByName) {
    const std::string none = (directory_.path() / "none").string();
    EXPECT_TRUE(mentions(refusal_of(none), none));
    EXPECT_TRUE(mentions(refusal_of(file("empty", 0)), "it is empty"));
    EXPECT_TRUE(mentions(refusal_of(file("odd", 1000)), "it has 1000 bytes, which are no whole sectors"));
    EXPECT_TRUE(mentions(refusal_of(directory_.path().string(), {.read_only = true}), "neither a regular file nor"));
    EXPECT_TRUE(mentions(refusal_of("/dev/null"), "neither a regular file nor"));
    const std::string fifo = (directory_.path() / "fifo").string();
    ASSERT_EQ(::mkfifo(fifo.c_str(), 0600), 0);
    EXPECT_TRUE(mentions(refusal_of(fifo), "neither a regular file nor")) << "and nobody waits for its other end";
}

TEST_F(DiskImageTest, ThatMayNotBeWrittenSaysHowItCanBeRead) {
    if (::geteuid() == 0) {
        GTEST_SKIP() << "root may write to every file";
    }
    const std::string path = file("ro", 512);
    ASSERT_EQ(::chmod(path.c_str(), 0400), 0);
    EXPECT_TRUE(mentions(refusal_of(path), path + ",ro"));
    EXPECT_EQ(refusal_of(path, {.read_only = true}), "");
}

TEST_F(DiskImageTest, HasOneWriterOrManyReaders) {
    const std::string path = file("a", 512);
    {
        const DiskImage writer(path, {});
        EXPECT_TRUE(mentions(refusal_of(path), "another process"));
        EXPECT_TRUE(mentions(refusal_of(path, {.read_only = true}), "writes to it"));
    }
    const DiskImage reader(path, {.read_only = true});
    EXPECT_EQ(refusal_of(path, {.read_only = true}), "");
    EXPECT_TRUE(mentions(refusal_of(path), ",ro"));
}

/// The message of opening the disk if the kernel refuses every OFD lock with `error_number`.
std::string refusal_without_locks(const std::string& path, int error_number, const DiskImage::Options& options = {}) {
    return vmm::testing::in_child_process([&]() -> std::string {
        std::array<sock_filter, 6> program{{
            BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(seccomp_data, nr)),
            BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_fcntl, 0, 3),
            BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(seccomp_data, args[1])),
            BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, F_OFD_SETLK, 0, 1),
            BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | static_cast<unsigned>(error_number)),
            BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
        }};
        const sock_fprog filter{static_cast<unsigned short>(program.size()), program.data()};
        if (::prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0 ||
            ::prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &filter) != 0) {
            return "no seccomp here";
        }
        return error_of([&] { const DiskImage image(path, options); });
    });
}

TEST_F(DiskImageTest, OnAFileSystemWithoutLocksIsRefusedWithAdvice) {
    const std::string path = file("a", 512);
    struct Case {
        int error_number;
        const char* advice;
    };
    for (const auto& [error_number, advice] :
         {Case{ENOLCK, "lock manager does not answer"}, Case{EOPNOTSUPP, "its file system has no locks"},
          Case{EINVAL, "its file system has no locks"}, Case{ENOSYS, "its file system has no locks"},
          Case{EIO, "does not answer"}, Case{EPERM, "goes without the lock"}}) {
        const std::string refusal = refusal_without_locks(path, error_number);
        EXPECT_TRUE(mentions(refusal, "cannot lock the disk " + path)) << refusal;
        EXPECT_TRUE(mentions(refusal, advice)) << refusal;
        EXPECT_TRUE(mentions(refusal, ",lock=off\"")) << refusal;
    }
}

TEST_F(DiskImageTest, WithoutALockIsTakenWhereThereAreNoneAndBesideAnotherWriter) {
    const std::string path = file("a", 512);
    EXPECT_EQ(refusal_without_locks(path, ENOLCK, {.lock = false}), "");
    const DiskImage writer(path, {});
    EXPECT_EQ(refusal_of(path, {.lock = false}), "");
}

TEST_F(DiskImageTest, InUseIsWaitedForAsLongAsAsked) {
    const std::string path = file("a", 512);
    auto writer = std::make_unique<DiskImage>(path, DiskImage::Options{});
    std::thread other([&] {
        std::this_thread::sleep_for(std::chrono::milliseconds(20));
        writer.reset();
    });
    EXPECT_EQ(refusal_of(path, {.patience = vmm::testing::kPatience}), "");
    other.join();
}

TEST_F(DiskImageTest, WithDirectIoNamesWhatItsMemoryHasToBeAlignedTo) {
    const std::string path = file("a", 8192);
    const std::string refusal = refusal_of(path, {.direct = true});
    if (!refusal.empty()) {
        EXPECT_TRUE(mentions(refusal, "leave out \"direct\"")) << refusal;
        GTEST_SKIP() << "the file system of temporary files knows no direct I/O";
    }
    const DiskImage image(path, {.direct = true});
    EXPECT_GE(image.logical_block_bytes(), 512U);
    EXPECT_EQ(image.memory_alignment() & (image.memory_alignment() - 1), 0U);
}

TEST_F(DiskImageTest, IsWaitedForAndNotAskedAgain) {
    // If a file is open with O_NONBLOCK, io_uring returns requests for which it would have to wait.
    const DiskImage image(file("a", 512), {});
    EXPECT_EQ(::fcntl(image.fd(), F_GETFL) & O_NONBLOCK, 0);
}

TEST_F(DiskImageTest, OfALoopDeviceThatSomebodyHasLeftReadOnlyCanBeWritten) {
    {
        const vmm::testing::LoopDevice left(file("a", 64 * 512));
        if (!left.is_there()) {
            GTEST_SKIP() << "no loop device can be made here: " << left.path();
        }
        const UniqueFd device(::open(left.path().c_str(), O_RDONLY | O_CLOEXEC));
        const int read_only = 1;
        ASSERT_EQ(::ioctl(device.get(), BLKROSET, &read_only), 0);
    }
    const vmm::testing::LoopDevice device(file("b", 64 * 512)); // the same, if nobody took it meanwhile
    ASSERT_TRUE(device.is_there()) << device.path();
    EXPECT_EQ(refusal_of(device.path()), "");
}

TEST_F(DiskImageTest, OfABlockDeviceHasItsSizeAndOneWriterByWhateverName) {
    const vmm::testing::LoopDevice device(file("a", 64 * 512));
    if (!device.is_there()) {
        GTEST_SKIP() << "no loop device can be made here: " << device.path();
    }
    {
        const DiskImage image(device.path(), {});
        EXPECT_EQ(image.sectors(), 64U);
        EXPECT_EQ(image.logical_block_bytes(), 512U);
        struct stat status {};
        ASSERT_EQ(::stat(device.path().c_str(), &status), 0);
        const std::string other_name = directory_ / "node";
        if (::mknod(other_name.c_str(), S_IFBLK | 0600, status.st_rdev) == 0 &&
            UniqueFd(::open(other_name.c_str(), O_RDONLY | O_CLOEXEC))) {
            EXPECT_TRUE(mentions(refusal_of(other_name), "another program writes to it")) << refusal_of(other_name);
        }
        EXPECT_NE(refusal_of(device.path()), "");
    }
    EXPECT_EQ(refusal_of(device.path()), "");
}

} // namespace
} // namespace vmm::devices
