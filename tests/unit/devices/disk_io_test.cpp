// The requests of a disk to the host, by io_uring and by threads. The host's demands must change nothing for the guest.

#include <gtest/gtest.h>

#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <poll.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <memory>
#include <optional>
#include <random>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "devices/aligned_disk_io.hpp"
#include "devices/disk_image.hpp"
#include "devices/disk_io.hpp"
#include "devices/thread_disk_io.hpp"
#include "devices/uring_disk_io.hpp"
#include "kvm/host/error.hpp"
#include "support/devices_held_disk_io.hpp"
#include "support/host_errors.hpp"
#include "support/host_loop_device.hpp"
#include "support/host_temporary_directory.hpp"

namespace vmm::devices::testing {
namespace {

using vmm::testing::content_of;
using vmm::testing::error_of;
using vmm::testing::mentions;

constexpr unsigned kDepth = 16;

/// A folder on a tmpfs of a bounded size, or none.
class TmpfsDirectory {
  public:
    explicit TmpfsDirectory(const std::string& size) : path_(outer_ / "tmpfs") {
        std::filesystem::create_directory(path_);
        mounted_ = ::mount("tmpfs", path_.c_str(), "tmpfs", 0, ("size=" + size).c_str()) == 0;
    }
    ~TmpfsDirectory() {
        if (mounted_) {
            ::umount2(path_.c_str(), MNT_DETACH);
        }
    }
    TmpfsDirectory(const TmpfsDirectory&) = delete;
    TmpfsDirectory& operator=(const TmpfsDirectory&) = delete;
    [[nodiscard]] bool is_there() const { return mounted_; }
    [[nodiscard]] std::string file(std::uint64_t bytes) const {
        const std::string path = path_ + "/disk";
        std::ofstream(path, std::ios::binary).close();
        std::filesystem::resize_file(path, bytes);
        return path;
    }
    [[nodiscard]] bool set_read_only() const {
        return ::mount("", path_.c_str(), "", MS_REMOUNT | MS_RDONLY, nullptr) == 0;
    }

  private:
    vmm::testing::TemporaryDirectory outer_;
    std::string path_;
    bool mounted_ = false;
};

/// Waits for operations of a DiskIo, one at a time.
class Caller {
  public:
    explicit Caller(DiskIo& io) : io_(io) {}

    int read(std::uint64_t offset, std::span<const iovec> pieces) {
        io_.read(1, offset, pieces);
        return wait();
    }
    int write(std::uint64_t offset, std::span<const iovec> pieces) {
        io_.write(1, offset, pieces);
        return wait();
    }
    int flush() {
        io_.flush(1);
        return wait();
    }
    int allocate(int mode, std::uint64_t offset, std::uint64_t bytes) {
        io_.allocate(1, mode, offset, bytes);
        return wait();
    }
    int wait() {
        std::array<DiskIo::Completion, 1> completion{};
        while (true) {
            EXPECT_TRUE(io_.submit());
            if (io_.reap(completion) == 1) {
                return completion[0].result;
            }
            if (!io_.submit()) {
                continue;
            }
            pollfd waited{io_.fd(), POLLIN, 0};
            ::poll(&waited, 1, 100);
        }
    }

  private:
    DiskIo& io_;
};

/// Makes system call `number` fail with `error` in this thread, permanently.
void forbid(int number, int error) {
    std::array filter{
        sock_filter{BPF_LD | BPF_W | BPF_ABS, 0, 0, offsetof(seccomp_data, nr)},
        sock_filter{BPF_JMP | BPF_JEQ | BPF_K, 0, 1, static_cast<std::uint32_t>(number)},
        sock_filter{BPF_RET | BPF_K, 0, 0, SECCOMP_RET_ERRNO | static_cast<std::uint32_t>(error)},
        sock_filter{BPF_RET | BPF_K, 0, 0, SECCOMP_RET_ALLOW},
    };
    const sock_fprog program{static_cast<unsigned short>(filter.size()), filter.data()};
    ASSERT_EQ(::prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), 0);
    ASSERT_EQ(::prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program), 0);
}

template <typename Body>
void in_a_thread(Body body) {
    std::thread(body).join();
}

class DiskIoTest : public ::testing::Test {
  protected:
    std::string file(std::uint64_t bytes) const {
        const std::string path = directory_.write("disk", "");
        std::filesystem::resize_file(path, bytes);
        return path;
    }
    vmm::testing::TemporaryDirectory directory_;
};

// Each system call of io_uring, and each way in which a kernel or a filter can refuse it.
TEST_F(DiskIoTest, GoesThroughThreadsWhereIoUringIsForbiddenAndSaysWhy) {
    const DiskImage image(file(1 << 20), {});
    for (const int call : {SYS_io_uring_setup, SYS_io_uring_register, SYS_io_uring_enter}) {
        for (const int error : {EPERM, EACCES, ENOSYS, ENOMEM}) {
            in_a_thread([&] {
                forbid(call, error);
                const DiskIoChoice choice = make_disk_io(image, kDepth, DiskIoKind::kAuto);
                EXPECT_EQ(choice.io->kind(), DiskIoKind::kThreads) << call << " " << error;
                EXPECT_TRUE(mentions(choice.why_threads, errno_reason(error))) << choice.why_threads;
                EXPECT_FALSE(why_no_uring().empty());
                const std::string refusal =
                    error_of([&] { static_cast<void>(make_disk_io(image, kDepth, DiskIoKind::kUring)); });
                EXPECT_TRUE(mentions(refusal, "io=uring")) << refusal;
                EXPECT_TRUE(mentions(refusal, errno_reason(error))) << refusal;
                std::array<std::byte, 512> bytes{};
                const iovec piece{bytes.data(), bytes.size()};
                EXPECT_EQ(Caller(*choice.io).read(0, {&piece, 1}), 512);
            });
        }
    }
}

TEST_F(DiskIoTest, GoesThroughThreadsWhereThatIsAskedForAndSaysNothing) {
    const DiskImage image(file(1 << 20), {});
    const DiskIoChoice choice = make_disk_io(image, kDepth, DiskIoKind::kThreads);
    EXPECT_EQ(choice.io->kind(), DiskIoKind::kThreads);
    EXPECT_EQ(choice.why_threads, "");
}

TEST_F(DiskIoTest, WithoutADescriptorIsRefusedAndNotTriedInAnotherWay) {
    const DiskImage image(file(1 << 20), {});
    rlimit before{};
    ASSERT_EQ(::getrlimit(RLIMIT_NOFILE, &before), 0);
    rlimit none = before;
    const int lowest = ::dup(image.fd());
    ::close(lowest);
    none.rlim_cur = static_cast<rlim_t>(lowest);
    for (const DiskIoKind kind : {DiskIoKind::kAuto, DiskIoKind::kUring, DiskIoKind::kThreads}) {
        ::setrlimit(RLIMIT_NOFILE, &none);
        const std::string refusal = error_of([&] { static_cast<void>(make_disk_io(image, kDepth, kind)); });
        ::setrlimit(RLIMIT_NOFILE, &before);
        EXPECT_TRUE(mentions(refusal, "ulimit -n")) << to_string(kind) << ": " << refusal;
    }
}

TEST_F(DiskIoTest, ByThreadsDoesWhatTheCallsDoAndGivesTheirErrors) {
    const std::string path = file(1 << 20);
    const DiskImage image(path, {});
    ThreadDiskIo io({image.fd(), -1, UINT64_MAX}, kDepth, true);
    Caller caller(io);
    std::string text(4096, 'x');
    const std::array pieces{iovec{text.data(), 1000}, iovec{text.data() + 1000, 3096}};
    EXPECT_EQ(caller.write(512, pieces), 4096);
    EXPECT_EQ(caller.flush(), 0);
    EXPECT_EQ(content_of(path).substr(512, 4096), text);
    std::string read(4096, '\0');
    const iovec into{read.data(), read.size()};
    EXPECT_EQ(caller.read(512, {&into, 1}), 4096);
    EXPECT_EQ(read, text);
    EXPECT_EQ(caller.read(1 << 20, {&into, 1}), 0) << "the end of the file";
    EXPECT_EQ(caller.allocate(1 << 30, 0, 4096), -EOPNOTSUPP);
    const DiskImage other(directory_.write("other", std::string(512, 'y')), {.read_only = true});
    ThreadDiskIo reader({other.fd(), -1, UINT64_MAX}, kDepth, true);
    EXPECT_EQ(Caller(reader).write(0, {&into, 1}), -EBADF);
}

TEST_F(DiskIoTest, ByThreadsHasAFewOfThemHoweverMuchThereIsToDo) {
    const DiskImage image(file(1 << 20), {});
    ThreadDiskIo io({image.fd(), -1, UINT64_MAX}, 256, false);
    EXPECT_EQ(io.threads(), 1U);
    std::string bytes(4096, 'x');
    const iovec piece{bytes.data(), bytes.size()};
    for (int round = 0; round < 10; ++round) {
        std::size_t back = 0;
        for (std::uint64_t token = 0; token < 256; ++token) {
            io.write(token, token * 4096, {&piece, 1});
        }
        EXPECT_FALSE(io.has_room());
        EXPECT_TRUE(io.submit());
        std::array<DiskIo::Completion, 256> completions{};
        while (back < 256) {
            const std::size_t count = io.reap(completions);
            for (std::size_t i = 0; i < count; ++i) {
                EXPECT_EQ(completions[i].result, 4096);
            }
            back += count;
        }
        EXPECT_TRUE(io.has_room());
    }
    EXPECT_LE(io.threads(), ThreadDiskIo::kMostThreads);
}

TEST_F(DiskIoTest, ByThreadsGivesBackWhatIsAbandonedEachOnce) {
    const DiskImage image(file(1 << 20), {});
    ThreadDiskIo io({image.fd(), -1, UINT64_MAX}, 256, false);
    std::string bytes(4096, 'x');
    const iovec piece{bytes.data(), bytes.size()};
    for (std::uint64_t token = 0; token < 256; ++token) {
        io.write(token, token * 4096, {&piece, 1});
        if (token == 200) {
            EXPECT_TRUE(io.submit());
        }
    }
    io.abandon();
    std::vector<int> times(256);
    for (std::size_t back = 0; back < 256;) {
        std::array<DiskIo::Completion, 64> completions{};
        const std::size_t count = io.reap(completions);
        for (std::size_t i = 0; i < count; ++i) {
            ++times[completions[i].token];
            EXPECT_TRUE(completions[i].result == 4096 || completions[i].result == -ECANCELED);
            EXPECT_TRUE(completions[i].token <= 200 || completions[i].result == -ECANCELED);
        }
        back += count;
    }
    EXPECT_EQ(std::count(times.begin(), times.end(), 1), 256);
}

// ---- The host's demands

TEST_F(DiskIoTest, OnlyTheImageAndTheOptionsSayWhatTheGuestSees) {
    const TmpfsDirectory tmpfs("8M");
    std::vector<std::string> paths{file(1 << 20)};
    if (tmpfs.is_there()) {
        paths.push_back(tmpfs.file(1 << 20));
    }
    const std::string backing = directory_.write("backing", std::string(1 << 20, 'x'));
    const vmm::testing::LoopDevice loop(backing, 4096);
    if (loop.is_there()) {
        paths.push_back(loop.path());
    }
    for (const std::string& path : paths) {
        for (const bool direct : {false, true}) {
            for (const std::uint32_t sector : {512U, 4096U}) {
                const DiskImage image(path, {.direct = direct, .sector_bytes = sector});
                EXPECT_EQ(image.sectors(), 2048U) << path;
                EXPECT_EQ(image.logical_block_bytes(), sector) << path;
                EXPECT_EQ(image.physical_block_bytes(), 4096U) << path;
            }
        }
    }
}

TEST_F(DiskIoTest, OfAnImageThatIsNoWholeSectorsIsRefusedWithWhatToDo) {
    const std::string path = file(4096 + 512);
    const std::string refusal = error_of([&] { const DiskImage image(path, {.sector_bytes = 4096}); });
    EXPECT_TRUE(mentions(refusal, "no whole sectors of 4096")) << refusal;
    EXPECT_TRUE(mentions(refusal, "truncate -s %4096")) << refusal;
    EXPECT_TRUE(mentions(refusal, "sector=512")) << refusal;
    EXPECT_EQ(error_of([&] { const DiskImage image(path, {}); }), "");
    EXPECT_EQ(error_of([&] { const DiskImage image(path, {.direct = true}); }), "");
}

TEST_F(DiskIoTest, OfMediaThatCannotBeWrittenIsRefusedUnlessReadOnly) {
    const TmpfsDirectory tmpfs("8M");
    if (tmpfs.is_there()) {
        const std::string path = tmpfs.file(1 << 20);
        ASSERT_TRUE(tmpfs.set_read_only());
        const std::string refusal = error_of([&] { const DiskImage image(path, {}); });
        EXPECT_TRUE(mentions(refusal, "mounted read-only") && mentions(refusal, path + ",ro")) << refusal;
        EXPECT_EQ(error_of([&] { const DiskImage image(path, {.read_only = true, .direct = true}); }), "");
    }
    const vmm::testing::LoopDevice loop(directory_.write("backing", std::string(1 << 20, 'x')));
    if (!loop.is_there()) {
        GTEST_SKIP() << "no loop device can be made here";
    }
    loop.set_read_only(true);
    const std::string refusal = error_of([&] { const DiskImage image(loop.path(), {}); });
    EXPECT_TRUE(mentions(refusal, loop.path() + ",ro")) << refusal;
    EXPECT_EQ(error_of([&] { const DiskImage image(loop.path(), {.read_only = true}); }), "");
    loop.set_read_only(false);
    EXPECT_EQ(error_of([&] { const DiskImage image(loop.path(), {}); }), "");
}

/// A file whose host demands whole blocks of 4096 in every request of DiskIo; others fail.
class PickyDiskIo final : public DiskIo {
  public:
    explicit PickyDiskIo(std::size_t bytes) : content_(bytes, '\0') {}

    [[nodiscard]] const std::string& content() const { return content_; }
    [[nodiscard]] DiskIoKind kind() const noexcept override { return DiskIoKind::kUring; }
    [[nodiscard]] bool register_buffers(std::span<const std::span<std::byte>> /*buffers*/) override { return false; }
    [[nodiscard]] int fd() const noexcept override { return -1; }
    [[nodiscard]] bool has_room() const noexcept override { return true; }
    void read(std::uint64_t token, std::uint64_t offset, std::span<const iovec> pieces) override {
        transfer(token, offset, pieces, false);
    }
    void write(std::uint64_t token, std::uint64_t offset, std::span<const iovec> pieces) override {
        transfer(token, offset, pieces, true);
    }
    void flush(std::uint64_t token) override { queued_.push_back({token, 0, {}, Kind::kNothing}); }
    void allocate(std::uint64_t token, int /*mode*/, std::uint64_t offset, std::uint64_t bytes) override {
        std::fill_n(content_.begin() + static_cast<std::ptrdiff_t>(offset), bytes, '\0');
        flush(token);
    }
    [[nodiscard]] bool submit() override { return true; }
    /// The operations may complete in any order.
    [[nodiscard]] std::size_t reap(std::span<Completion> completions) override {
        std::size_t count = 0;
        while (count < completions.size() && count < 3 && !queued_.empty()) {
            const std::size_t which = random_() % queued_.size();
            completions[count++] = perform(queued_[which]);
            queued_.erase(queued_.begin() + static_cast<std::ptrdiff_t>(which));
        }
        return count;
    }
    void abandon() override {}

  private:
    enum class Kind { kNothing, kRead, kWrite };
    struct Queued {
        std::uint64_t token;
        std::uint64_t offset;
        std::vector<iovec> pieces;
        Kind kind;
    };
    void transfer(std::uint64_t token, std::uint64_t offset, std::span<const iovec> pieces, bool write) {
        EXPECT_EQ(offset % 4096, 0U);
        for (const iovec& piece : pieces) {
            EXPECT_EQ(piece.iov_len % 4096, 0U);
            EXPECT_EQ(reinterpret_cast<std::uintptr_t>(piece.iov_base) % 512, 0U);
        }
        queued_.push_back({token, offset, {pieces.begin(), pieces.end()}, write ? Kind::kWrite : Kind::kRead});
    }
    Completion perform(const Queued& queued) {
        int moved = 0;
        for (const iovec& piece : queued.pieces) {
            char* const here = content_.data() + queued.offset + moved;
            char* const memory = static_cast<char*>(piece.iov_base);
            std::copy_n(queued.kind == Kind::kWrite ? memory : here, piece.iov_len,
                        queued.kind == Kind::kWrite ? here : memory);
            moved += static_cast<int>(piece.iov_len);
        }
        return {queued.token, moved};
    }

    std::string content_;
    std::vector<Queued> queued_;
    std::mt19937 random_{11}; // NOLINT(cert-msc51-cpp): the same each time.
};

TEST(AlignedDiskIo, DoesWhatAnArrayOfBytesDoesWhateverOverlapsWithinABlock) {
    constexpr std::size_t kBytes = 64 * 1024;
    auto owned = std::make_unique<PickyDiskIo>(kBytes);
    PickyDiskIo& host = *owned;
    AlignedDiskIo io(std::move(owned), kDepth, {4096, 512, UINT64_MAX});
    std::mt19937 random(3); // NOLINT(cert-msc51-cpp): the same each time.
    std::string model(kBytes, '\0');
    // Sixteen operations at once, each with every sixteenth sector: they share blocks, but no sector.
    struct Slot {
        bool busy = false;
        bool write = false;
        std::uint64_t offset = 0;
        std::size_t bytes = 0;
        std::string memory;
        std::array<iovec, 2> pieces{};
    };
    std::vector<Slot> slots(kDepth);
    constexpr std::size_t kOperations = 4000;
    std::size_t begun = 0;
    std::size_t ended = 0;
    while (ended < kOperations) {
        for (std::size_t i = 0; i < slots.size() && begun < kOperations; ++i) {
            Slot& slot = slots[i];
            if (slot.busy) {
                continue;
            }
            slot.busy = true;
            ++begun;
            // Some sixteenths of the disk are written as a whole, in others single sectors.
            slot.write = random() % 2 == 0;
            slot.bytes = 512;
            slot.offset = (i + (16 * (random() % (kBytes / 512 / 16)))) * 512;
            slot.memory.assign(slot.bytes + 64, '\0');
            char* const memory = slot.memory.data() + random() % 64;
            if (slot.write) {
                std::generate_n(memory, slot.bytes, [&] { return static_cast<char>(random()); });
                model.replace(slot.offset, slot.bytes, memory, slot.bytes);
            }
            const std::size_t cut = 1 + random() % (slot.bytes - 1);
            slot.pieces = {iovec{memory, cut}, iovec{memory + cut, slot.bytes - cut}};
            if (slot.write) {
                io.write(i, slot.offset, slot.pieces);
            } else {
                io.read(i, slot.offset, slot.pieces);
            }
        }
        std::array<DiskIo::Completion, 4> completions{};
        const std::size_t count = io.reap(completions);
        for (std::size_t i = 0; i < count; ++i) {
            Slot& slot = slots[completions[i].token];
            ASSERT_TRUE(slot.busy);
            slot.busy = false;
            ++ended;
            ASSERT_EQ(completions[i].result, static_cast<int>(slot.bytes));
            if (!slot.write) {
                const char* const memory = static_cast<const char*>(slot.pieces[0].iov_base);
                ASSERT_EQ(std::string(memory, slot.bytes), model.substr(slot.offset, slot.bytes));
            }
        }
    }
    EXPECT_EQ(host.content(), model);
}

TEST(AlignedDiskIo, DoesThePartThatIsFitAndSaysHowMuchThatWas) {
    constexpr std::size_t kBytes = 64 * 1024;
    auto owned = std::make_unique<PickyDiskIo>(kBytes);
    PickyDiskIo& host = *owned;
    AlignedDiskIo io(std::move(owned), kDepth, {4096, 512, UINT64_MAX});
    alignas(4096) static std::array<char, 16384> memory;
    memory.fill('m');
    std::string model(kBytes, '\0');
    // From the middle of a block, over whole blocks, into another one: one operation for each part.
    std::uint64_t offset = 3584;
    std::size_t done = 0;
    std::vector<int> parts;
    while (done < 9216) {
        const iovec piece{memory.data() + done, 9216 - done};
        io.write(0, offset + done, {&piece, 1});
        std::array<DiskIo::Completion, 1> completion{};
        while (io.reap(completion) == 0) {
        }
        ASSERT_GT(completion[0].result, 0);
        parts.push_back(completion[0].result);
        done += static_cast<std::size_t>(completion[0].result);
    }
    model.replace(offset, 9216, std::string(9216, 'm'));
    EXPECT_EQ(host.content(), model);
    EXPECT_EQ(parts, (std::vector<int>{512, 8192, 512}));
}

TEST(AlignedDiskIo, WritesNothingMoreOnceItIsAbandoned) {
    auto owned = std::make_unique<HeldDiskIo>();
    HeldDiskIo& host = *owned;
    AlignedDiskIo io(std::move(owned), kDepth, {4096, 512, UINT64_MAX});
    std::array<char, 512> sector{};
    const iovec piece{sector.data(), sector.size()};
    for (std::uint64_t token = 0; token < 8; ++token) {
        io.write(token, token * 512, {&piece, 1}); // all in one block
    }
    EXPECT_EQ(host.begun(), 1U) << "one at a time";
    io.abandon();
    std::array<DiskIo::Completion, kDepth> completions{};
    EXPECT_EQ(io.reap(completions), 7U);
    ASSERT_TRUE(host.release(HeldDiskIo::Kind::kRead));
    ASSERT_EQ(io.reap(completions), 1U);
    EXPECT_EQ(completions[0].result, -ECANCELED);
    EXPECT_EQ(host.begun(), 1U) << "the old block was read, and no new one written";
}

} // namespace
} // namespace vmm::devices::testing
