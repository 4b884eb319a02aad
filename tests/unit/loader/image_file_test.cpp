#include "loader/image_file.hpp"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <array>
#include <csignal>
#include <filesystem>
#include <fstream>
#include <memory>
#include <thread>

#include "kvm/host/stoppable_read.hpp"
#include "kvm/host/unique_fd.hpp"
#include "support/loader_images.hpp"

namespace vmm::loader {
namespace {

using testing::bytes_of;
using testing::error_of;
using testing::guest_memory;
using testing::mentions;
using testing::pattern;

class ImageFileTest : public ::testing::Test {
  protected:
    ImageFileTest() {
        std::string name = (std::filesystem::temp_directory_path() / "vmm-image-XXXXXX").string();
        directory_ = ::mkdtemp(name.data());
    }
    ~ImageFileTest() override { std::filesystem::remove_all(directory_); }

    [[nodiscard]] std::string write(const std::string& name, std::span<const std::byte> bytes) const {
        const std::string path = (directory_ / name).string();
        std::ofstream out{path, std::ios::binary};
        for (const std::byte byte : bytes) {
            out.put(static_cast<char>(byte));
        }
        return path;
    }

    std::filesystem::path directory_;
};

/// The path of a pipe's reading end, like a shell's <(command), and a thread that writes to the other end.
class PipeWithWriter {
  public:
    explicit PipeWithWriter(std::vector<std::byte> bytes) {
        std::array<int, 2> ends{};
        EXPECT_EQ(::pipe2(ends.data(), O_CLOEXEC), 0);
        reader_.reset(ends[0]);
        path = "/proc/self/fd/" + std::to_string(ends[0]);
        writer_ = std::jthread{[bytes = std::move(bytes), fd = UniqueFd{ends[1]}] {
            std::size_t done = 0;
            while (done < bytes.size()) {
                const ssize_t count = ::write(fd.get(), bytes.data() + done, bytes.size() - done);
                if (count <= 0) {
                    return;
                }
                done += static_cast<std::size_t>(count);
            }
        }};
    }

    std::string path;

  private:
    UniqueFd reader_;
    std::jthread writer_;
};

TEST_F(ImageFileTest, RegularFileIsReadByOffset) {
    const ImageFile file{write("image", pattern(100))};
    EXPECT_EQ(file.size(), 100U);
    EXPECT_EQ(file.load<std::uint8_t>(99), 100);
    EXPECT_EQ(file.load<std::uint16_t>(0), 0x0201);
}

TEST_F(ImageFileTest, ReadBeyondTheEndGivesNothing) {
    const ImageFile file = ImageFile::from_bytes("image", pattern(100));
    EXPECT_FALSE(file.load<std::uint16_t>(99));
    EXPECT_FALSE(file.load<std::uint8_t>(100));
    EXPECT_FALSE(file.load<std::uint64_t>(UINT64_MAX));
    EXPECT_FALSE(file.load<std::uint64_t>(UINT64_MAX - 7));
    EXPECT_TRUE(file.read_at(100, {}));
    EXPECT_FALSE(file.read_at(101, {}));
}

TEST_F(ImageFileTest, MissingFileIsNamed) {
    const std::string error = error_of([] { return ImageFile{"/nonexistent/vmlinux"}; });
    EXPECT_TRUE(error.starts_with("cannot open /nonexistent/vmlinux: No such file or directory")) << error;
}

TEST_F(ImageFileTest, DirectoryIsRefused) {
    const std::string error = error_of([this] { return ImageFile{directory_.string()}; });
    EXPECT_TRUE(mentions(error, "it is a directory")) << error;
}

TEST_F(ImageFileTest, EndlessDeviceIsRefused) {
    const std::string error = error_of([] { return ImageFile{"/dev/zero"}; });
    EXPECT_TRUE(mentions(error, "/dev/zero: it is a character device")) << error;
}

TEST_F(ImageFileTest, PipeIsReadToItsEnd) {
    const auto bytes = pattern(300'000); // more than a pipe holds
    const PipeWithWriter pipe{bytes};
    const ImageFile file{pipe.path};
    ASSERT_EQ(file.size(), bytes.size());
    std::vector<std::byte> read(bytes.size());
    ASSERT_TRUE(file.read_at(0, read));
    EXPECT_EQ(read, bytes);
}

TEST_F(ImageFileTest, FifoIsReadToItsEnd) {
    const std::string path = (directory_ / "fifo").string();
    ASSERT_EQ(::mkfifo(path.c_str(), 0600), 0);
    const std::jthread writer{[&path] { std::ofstream{path} << "content"; }};
    EXPECT_EQ(ImageFile{path}.size(), 7U);
}

TEST_F(ImageFileTest, PipeThatGivesTooMuchIsRefused) {
    const PipeWithWriter within{pattern(1000)};
    EXPECT_EQ((ImageFile{within.path, 1000}.size()), 1000U);
    const PipeWithWriter beyond{pattern(1001)};
    const std::string error = error_of([&] { return ImageFile{beyond.path, 1000}; });
    EXPECT_TRUE(mentions(error, "it is a pipe that gives more than 1000 bytes")) << error;
}

/// A full pipe, and a request to stop.
class Stop {
  public:
    Stop() {
        std::array<int, 2> ends{};
        EXPECT_EQ(::pipe2(ends.data(), O_CLOEXEC), 0);
        reader_.reset(ends[0]);
        writer_.reset(ends[1]);
    }
    [[nodiscard]] int fd() const { return reader_.get(); }
    void request() const { EXPECT_EQ(::write(writer_.get(), "", 1), 1); }

  private:
    UniqueFd reader_;
    UniqueFd writer_;
};

TEST_F(ImageFileTest, FifoThatNobodyWritesToIsWaitedForUntilAStop) {
    const std::string path = (directory_ / "fifo").string();
    ASSERT_EQ(::mkfifo(path.c_str(), 0600), 0);
    const Stop stop;
    std::string error;
    std::jthread reader{[&] { error = error_of([&] { return ImageFile{path, 1000, stop.fd()}; }); }};
    UniqueFd writer;
    while (!writer) { // until it is open for reading
        writer.reset(::open(path.c_str(), O_WRONLY | O_NONBLOCK | O_CLOEXEC));
    }
    stop.request();
    reader.join();
    EXPECT_EQ(error, "cannot read " + path + ": a stop was requested");
}

TEST_F(ImageFileTest, PipeThatHasMoreEndsAtAStop) {
    const PipeWithWriter endless{pattern(1000)};
    const Stop stop;
    stop.request();
    const std::string error = error_of([&] { return ImageFile{endless.path, kGiB, stop.fd()}; });
    EXPECT_TRUE(mentions(error, "a stop was requested")) << error;
}

TEST_F(ImageFileTest, FileIsNotReadOnAfterAStop) {
    const std::string path = write("image", pattern(100));
    const Stop stop;
    const ImageFile file{path, 1000, stop.fd()};
    EXPECT_EQ(file.load<std::uint8_t>(99), 100);
    stop.request();
    EXPECT_THROW(static_cast<void>(file.load<std::uint8_t>(99)), StoppedError);
}

TEST_F(ImageFileTest, FileWithALeaseIsWaitedForAndAStopEndsThat) {
    const std::string path = write("image", pattern(100));
    std::signal(SIGIO, SIG_IGN); // This signal tells the holder of the lease.
    UniqueFd holder{::open(path.c_str(), O_RDWR | O_CLOEXEC)};
    if (::fcntl(holder.get(), F_SETLEASE, F_WRLCK) != 0) {
        GTEST_SKIP() << "this file system has no leases";
    }
    const Stop stop;
    stop.request();
    const std::string error = error_of([&] { return ImageFile{path, 1000, stop.fd()}; });
    EXPECT_EQ(error, "cannot open " + path + ": a stop was requested");
    holder.reset();
    EXPECT_EQ(ImageFile{path}.size(), 100U);
}

TEST_F(ImageFileTest, BytesInMemoryAreSharedAndNotCopied) {
    const auto owner = std::make_shared<const std::vector<std::byte>>(pattern(100));
    const ImageFile file{"image", owner};
    EXPECT_EQ(owner.use_count(), 2);
    EXPECT_EQ(file.size(), 100U);
    EXPECT_EQ(file.load<std::uint16_t>(98), 0x6463);
    EXPECT_FALSE(file.load<std::uint16_t>(99));
    EXPECT_EQ(ImageFile("image", nullptr).size(), 0U);
}

TEST_F(ImageFileTest, FileCutShortAfterOpeningIsAnErrorAndNoSignal) {
    const std::string path = write("image", pattern(10'000));
    const ImageFile file{path};
    std::filesystem::resize_file(path, 5000);
    EXPECT_FALSE(file.load<std::uint64_t>(6000));
    const GuestMemory memory = guest_memory(kMiB);
    const std::string error = error_of([&] {
        file.read_into(memory, GuestAddress{0}, 0, 10'000);
        return 0;
    });
    EXPECT_TRUE(mentions(error, "it became shorter while it was read")) << error;
}

TEST_F(ImageFileTest, ReadIntoGuestMemoryCrossesRegions) {
    constexpr std::uint64_t kBorder = 2 * kMiB;
    const std::array layout{GuestRange{GuestAddress{0}, kBorder}, GuestRange{GuestAddress{kBorder}, kBorder}};
    const GuestMemory memory{layout, PageSize::k4K};
    const auto bytes = pattern(100);
    ImageFile::from_bytes("image", bytes).read_into(memory, GuestAddress{kBorder - 50}, 10, 90);
    EXPECT_EQ(memory.load<std::uint8_t>(GuestAddress{kBorder - 51}), 0);
    EXPECT_EQ(memory.load<std::uint8_t>(GuestAddress{kBorder - 50}), 11);
    EXPECT_EQ(memory.load<std::uint8_t>(GuestAddress{kBorder}), 61);
    EXPECT_EQ(memory.load<std::uint8_t>(GuestAddress{kBorder + 39}), 100);
    EXPECT_EQ(memory.load<std::uint8_t>(GuestAddress{kBorder + 40}), 0);
}

TEST_F(ImageFileTest, ReadIntoGuestMemoryTakesMoreThanOneChunk) {
    const auto bytes = pattern(9 * kMiB + 17);
    const GuestMemory memory = guest_memory(16 * kMiB);
    ImageFile::from_bytes("image", bytes).read_into(memory, GuestAddress{4096}, 0, bytes.size());
    const auto loaded = memory.at({GuestAddress{4096}, bytes.size()});
    ASSERT_TRUE(loaded);
    EXPECT_TRUE(std::equal(bytes.begin(), bytes.end(), loaded->begin()));
}

} // namespace
} // namespace vmm::loader
