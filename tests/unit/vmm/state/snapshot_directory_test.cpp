// A snapshot's directory: it is written and read, and neither happens if the host fails or a file is damaged.

#include <fcntl.h>
#include <gtest/gtest.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <span>
#include <string>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

#include "support/host_errors.hpp"
#include "support/host_temporary_directory.hpp"
#include "support/vmm_full_state.hpp"
#include "vmm/state/crc32c.hpp"
#include "vmm/state/snapshot_files.hpp"
#include "vmm/state/snapshot_reader.hpp"
#include "vmm/state/snapshot_writer.hpp"
#include "vmm/state/state_file.hpp"
#include "vmm/state/verify_memory.hpp"

namespace vmm {
namespace {

using testing::content_of;
using testing::error_of;
using testing::FullState;
using testing::mentions;
using testing::TemporaryDirectory;

namespace fs = std::filesystem;

constexpr std::string_view kConfigText = R"({"memory": "7M"})";

/// The content of the memory file of `FullState`: the second chunk is a hole, the third is a part of a chunk.
std::vector<std::byte> memory_content(const MemoryLayout& layout) {
    std::vector<std::byte> content(layout.file_bytes());
    for (std::size_t i = 0; i < layout.chunks(); ++i) {
        const MemoryPiece piece = layout.chunk(i);
        if (i != 1) {
            std::fill_n(content.begin() + static_cast<std::ptrdiff_t>(piece.file_offset), piece.range.size / 2,
                        static_cast<std::byte>(i + 1));
        }
    }
    return content;
}

SnapshotState state_of_memory(const std::vector<std::byte>& content) {
    SnapshotState state = FullState::make(1);
    const MemoryLayout layout(state.machine.memory);
    for (std::size_t i = 0; i < layout.chunks(); ++i) {
        const MemoryPiece piece = layout.chunk(i);
        const auto bytes = std::span(content).subspan(piece.file_offset, piece.range.size);
        (*state.memory)[i] = i == 1 ? MemoryChunk{} : MemoryChunk{false, crc32c(bytes)};
    }
    return state;
}

void write_memory(const SnapshotWriter& writer, const std::vector<std::byte>& content) {
    ASSERT_EQ(::ftruncate(writer.memory_fd(), static_cast<off_t>(content.size())), 0);
    for (std::size_t offset = 0; offset < content.size(); offset += kMemoryChunkBytes) {
        const auto chunk = std::span(content).subspan(offset, kMemoryChunkBytes);
        if (std::ranges::any_of(chunk, [](std::byte byte) { return byte != std::byte{0}; })) {
            ASSERT_EQ(::pwrite(writer.memory_fd(), chunk.data(), chunk.size(), static_cast<off_t>(offset)),
                      static_cast<ssize_t>(chunk.size()));
        }
    }
}

/// A complete snapshot.
void write_snapshot(const fs::path& directory) {
    const auto content = memory_content(MemoryLayout(FullState::make(1).machine.memory));
    SnapshotWriter writer(directory);
    write_memory(writer, content);
    writer.commit(encode_state(state_of_memory(content)), kConfigText);
}

std::vector<std::string> names_in(const fs::path& directory) {
    std::vector<std::string> names;
    for (const auto& entry : fs::directory_iterator(directory)) {
        names.push_back(entry.path().filename());
    }
    std::ranges::sort(names);
    return names;
}

using Names = std::vector<std::string>;

/// Runs `action` on a thread of its own, whose system call `number` fails with `error_number`. Returns what it throws.
std::string error_where_fails(long number, int error_number, const std::function<void()>& action) {
    std::string error;
    std::thread([&] {
        std::array filter{
            sock_filter(BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(seccomp_data, nr))),
            sock_filter(BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, static_cast<std::uint32_t>(number), 0, 1)),
            sock_filter(BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | static_cast<std::uint32_t>(error_number))),
            sock_filter(BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW))};
        const sock_fprog program{static_cast<unsigned short>(filter.size()), filter.data()};
        if (::prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0 ||
            ::syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &program) != 0) {
            error = "no filter of system calls can be set here: " + errno_reason(errno);
            return;
        }
        error = error_of([&] {
            action();
            return 0;
        });
    }).join();
    return error;
}

std::string refusal_of(const fs::path& directory) {
    return error_of([&] { return SnapshotReader(directory).layout().chunks(); });
}

TEST(SnapshotDirectory, IsReadAsItWasWritten) {
    const TemporaryDirectory parent;
    const std::string directory = parent / "snapshot";
    write_snapshot(directory + "/");
    EXPECT_EQ(names_in(parent.path()), Names{"snapshot"});
    EXPECT_EQ(names_in(directory), (Names{"config.json", "memory", "state"}));
    EXPECT_EQ(fs::status(directory).permissions(), fs::perms::owner_all);
    for (const std::string& name : names_in(directory)) {
        EXPECT_EQ(fs::status(directory + "/" + name).permissions(), fs::perms::owner_read | fs::perms::owner_write);
    }

    const SnapshotReader reader(directory);
    EXPECT_EQ(reader.config(), kConfigText);
    EXPECT_EQ(reader.layout().file_bytes(), 8 * kMiB);
    EXPECT_EQ(reader.state().machine.vcpus.size(), 1U);
    EXPECT_EQ(reader.state().memory->size(), 4U);
    std::byte first{};
    ASSERT_EQ(::pread(reader.memory_fd(), &first, 1, 4 * kMiB), 1);
    EXPECT_EQ(first, std::byte{3});
    const UniqueFd again = reader.open_memory(0);
    ASSERT_TRUE(again);
    ASSERT_EQ(::pread(again.get(), &first, 1, 0), 1);
    EXPECT_EQ(first, std::byte{1});
}

TEST(SnapshotDirectory, IsPrivateWhateverTheMaskOfModesIs) {
    const TemporaryDirectory parent;
    const mode_t before = ::umask(0);
    write_snapshot(parent / "snapshot");
    ::umask(before);
    EXPECT_EQ(fs::status(parent / "snapshot").permissions(), fs::perms::owner_all);
    EXPECT_EQ(fs::status(parent / "snapshot/state").permissions(), fs::perms::owner_read | fs::perms::owner_write);
}

TEST(SnapshotDirectory, IsNotThereBeforeItIsWhole) {
    const TemporaryDirectory parent;
    {
        const SnapshotWriter writer(parent / "snapshot");
        const SnapshotWriter other(parent / "snapshot");
        const Names names = names_in(parent.path());
        ASSERT_EQ(names.size(), 2U);
        EXPECT_TRUE(names[0].starts_with(".snapshot.partial-")) << names[0];
    }
    EXPECT_EQ(names_in(parent.path()), Names{});
}

TEST(SnapshotDirectory, IsWrittenWhereRelativePathsAre) {
    const TemporaryDirectory parent;
    const fs::path before = fs::current_path();
    fs::current_path(parent.path());
    const std::string error = error_of([] {
        write_snapshot("snapshot");
        return SnapshotReader("snapshot").layout().chunks();
    });
    fs::current_path(before);
    EXPECT_EQ(error, "");
    EXPECT_EQ(names_in(parent.path()), Names{"snapshot"});
}

TEST(SnapshotDirectory, ReplacesNothing) {
    const TemporaryDirectory parent;
    const auto refusal = [&](const std::string& name) {
        return error_of([&] { return SnapshotWriter(parent / name).memory_fd(); });
    };
    fs::create_directory(parent / "empty");
    parent.write("file", "");
    fs::create_symlink("nowhere", parent / "link");
    for (const std::string name : {"empty", "file", "link"}) {
        EXPECT_TRUE(mentions(refusal(name), "there is a file or a directory of this name")) << name;
    }
    EXPECT_TRUE(mentions(refusal("missing/snapshot"), "No such file or directory (make the parent directory first)"));
    EXPECT_TRUE(mentions(refusal("file/snapshot"), "Not a directory (make the parent directory first)"));
    EXPECT_TRUE(mentions(refusal("."), "it has no name of its own"));
    EXPECT_TRUE(mentions(refusal(".."), "it has no name of its own"));
    EXPECT_TRUE(mentions(error_of([] { return SnapshotWriter("").memory_fd(); }), "it has no name of its own"));
    EXPECT_TRUE(mentions(error_of([] { return SnapshotWriter("/").memory_fd(); }), "it has no name of its own"));
    EXPECT_TRUE(mentions(refusal(std::string("a\0b", 3)), "NUL"));
    EXPECT_EQ(names_in(parent.path()), (Names{"empty", "file", "link"}));
}

TEST(SnapshotDirectory, IsCheckedWithoutMakingAnything) {
    const TemporaryDirectory directory;
    SnapshotWriter::check_place(directory.path() / "snapshot");
    SnapshotWriter::check_place(directory.path() / "snapshot/");
    EXPECT_TRUE(fs::is_empty(directory.path()));
    const auto refusal = [](const fs::path& path) {
        return error_of([&] {
            SnapshotWriter::check_place(path);
            return 0;
        });
    };
    EXPECT_TRUE(mentions(refusal(directory.path()), "there is a file or a directory of this name"));
    EXPECT_TRUE(mentions(refusal(directory.path() / "missing/snapshot"), "make the parent directory first"));
    EXPECT_TRUE(mentions(refusal("/"), "has no name of its own"));
}

TEST(SnapshotDirectory, ReplacesNothingThatCameMeanwhile) {
    const TemporaryDirectory parent;
    {
        SnapshotWriter writer(parent / "snapshot");
        fs::create_directory(parent / "snapshot");
        EXPECT_TRUE(mentions(error_of([&] {
                                 writer.commit({}, "");
                                 return 0;
                             }),
                             "there is a file or a directory of this name"));
    }
    EXPECT_EQ(names_in(parent.path()), Names{"snapshot"});
    EXPECT_EQ(names_in(parent / "snapshot"), Names{});
}

TEST(SnapshotDirectory, IsRenamedWhereTheFileSystemCannotDoItAtOnce) {
    const TemporaryDirectory parent;
    EXPECT_EQ(error_where_fails(SYS_renameat2, EINVAL, [&] { write_snapshot(parent / "snapshot"); }), "");
    EXPECT_EQ(refusal_of(parent / "snapshot"), "");
}

TEST(SnapshotDirectory, LeavesNothingWhereTheHostFails) {
    const TemporaryDirectory parent;
    const std::string directory = parent / "snapshot";
    struct Failure {
        long call;
        int error_number;
        std::string says;
    };
    const std::vector<Failure> failures{
        {SYS_mkdirat, EACCES, "cannot make the snapshot " + directory + ": Permission denied (name a directory whose"},
        {SYS_mkdirat, EROFS, "cannot make the snapshot " + directory + ": Read-only file system (name a"},
        {SYS_write, EIO, "cannot write " + directory + "/state: Input/output error (the disk fails"},
        {SYS_write, ENOSPC, "cannot write " + directory + "/state: No space left on device (free some space"},
        {SYS_fsync, EIO, "cannot write " + directory + "/state to the disk: Input/output error (the disk fails"},
        {SYS_renameat2, EIO, "cannot give the snapshot its name, " + directory + ": Input/output error"},
    };
    for (const Failure& failure : failures) {
        const std::string error =
            error_where_fails(failure.call, failure.error_number, [&] { write_snapshot(directory); });
        EXPECT_TRUE(error.starts_with(failure.says)) << error;
        EXPECT_EQ(names_in(parent.path()), Names{}) << failure.says;
    }
}

TEST(SnapshotDirectory, LeavesNothingWhereTheFileSystemIsFull) {
    const TemporaryDirectory parent;
    const std::string small = parent / "small";
    fs::create_directory(small);
    if (::mount("tmpfs", small.c_str(), "tmpfs", 0, "size=16k") != 0) {
        GTEST_SKIP() << "no tmpfs can be mounted here: " << errno_reason(errno);
    }
    const std::string error = error_of([&] {
        SnapshotWriter writer(small + "/snapshot");
        const std::vector<std::byte> state(64 * kKiB, std::byte{1});
        writer.commit(state, "");
        return 0;
    });
    const Names left = names_in(small);
    ::umount(small.c_str());
    EXPECT_TRUE(mentions(error, "/snapshot/state: No space left on device (free some space, or name a directory of "
                                "another file system)"))
        << error;
    EXPECT_EQ(left, Names{});
}

TEST(SnapshotDirectory, IsRefusedWhereItIsNoSnapshot) {
    const TemporaryDirectory parent;
    EXPECT_TRUE(
        mentions(refusal_of(parent / "missing"), "No such file or directory (name the directory of a snapshot"));
    parent.write("file", "");
    EXPECT_TRUE(mentions(refusal_of(parent / "file"), "Not a directory (name the directory of a snapshot)"));
    EXPECT_TRUE(mentions(refusal_of(parent.path()), "/state: No such file or directory"));
    parent.write("state", "text that is no state of a machine");
    EXPECT_TRUE(mentions(refusal_of(parent.path()), "it is no state of a machine"));
    fs::remove(parent / "state");
    fs::create_directory(parent / "state");
    EXPECT_TRUE(mentions(refusal_of(parent.path()), "/state: it is no regular file"));
    fs::remove(parent / "state");
    ASSERT_EQ(::mkfifo((parent / "state").c_str(), 0600), 0); // nobody ever writes to it
    EXPECT_TRUE(mentions(refusal_of(parent.path()), "/state: it is no regular file"));
}

TEST(SnapshotDirectory, IsRefusedWithoutOneOfItsFiles) {
    for (const std::string name : {"state", "memory", "config.json"}) {
        const TemporaryDirectory parent;
        write_snapshot(parent / "snapshot");
        fs::remove(parent.path() / "snapshot" / name);
        EXPECT_TRUE(
            mentions(refusal_of(parent / "snapshot"),
                     "/" + name + ": No such file or directory (name the directory of a snapshot that is whole)"))
            << name;
    }
}

TEST(SnapshotDirectory, IsRefusedWithFilesOfWrongSizes) {
    const TemporaryDirectory parent;
    write_snapshot(parent / "snapshot");
    fs::resize_file(parent / "snapshot/memory", 8 * kMiB - 1);
    EXPECT_TRUE(
        mentions(refusal_of(parent / "snapshot"), "has 8388607 bytes, and its state says 8388608: it is truncated"));
    fs::resize_file(parent / "snapshot/memory", 9 * kMiB);
    EXPECT_TRUE(
        mentions(refusal_of(parent / "snapshot"), "has 9437184 bytes, and its state says 8388608: it is another's"));
    fs::resize_file(parent / "snapshot/memory", 8 * kMiB);
    fs::resize_file(parent / "snapshot/config.json", kMiB + 1);
    EXPECT_TRUE(mentions(refusal_of(parent / "snapshot"), "config.json: it has 1048577 bytes, and can have 1048576"));
    fs::resize_file(parent / "snapshot/state", 1000);
    EXPECT_TRUE(mentions(refusal_of(parent / "snapshot"), "it is truncated"));
    fs::resize_file(parent / "snapshot/state", 65 * kMiB);
    EXPECT_TRUE(mentions(refusal_of(parent / "snapshot"), "/state: it has 68157440 bytes, and can have 67108864"));
}

TEST(SnapshotDirectory, IsRefusedWithAStateThatHasNoMemory) {
    const TemporaryDirectory parent;
    SnapshotState state = FullState::make(1);
    state.memory.reset();
    SnapshotWriter(parent / "snapshot").commit(encode_state(state), kConfigText);
    EXPECT_TRUE(mentions(refusal_of(parent / "snapshot"), "its section 'memory' is missing"));
}

TEST(SnapshotDirectory, IsRefusedWhereTheHostFails) {
    const TemporaryDirectory parent;
    write_snapshot(parent / "snapshot");
    const auto read = [&] { static_cast<void>(SnapshotReader(parent / "snapshot")); };
    EXPECT_TRUE(mentions(error_where_fails(SYS_read, EIO, read), "/state: Input/output error (the disk fails"));
    EXPECT_TRUE(
        mentions(error_where_fails(SYS_openat, EACCES, read), "Permission denied (become the user who made it"));
}

TEST(VerifyMemory, FindsAllAsItWas) {
    const TemporaryDirectory parent;
    write_snapshot(parent / "snapshot");
    const SnapshotReader reader(parent / "snapshot");
    for (const unsigned threads : {1U, 3U, 16U}) {
        std::uint64_t last = 0;
        verify_memory(reader, threads, [&](std::uint64_t done, std::uint64_t all) {
            EXPECT_GT(done, last);
            EXPECT_EQ(all, 7 * kMiB);
            last = done;
        });
        EXPECT_EQ(last, 7 * kMiB);
    }
}

/// The message about a snapshot in whose memory one byte was changed.
std::string error_with_byte(off_t offset, std::uint8_t value) {
    const TemporaryDirectory parent;
    write_snapshot(parent / "snapshot");
    const UniqueFd memory(::open((parent / "snapshot/memory").c_str(), O_RDWR | O_CLOEXEC));
    EXPECT_EQ(::pwrite(memory.get(), &value, 1, offset), 1);
    const SnapshotReader reader(parent / "snapshot");
    return error_of([&] {
        verify_memory(reader, 2);
        return 0;
    });
}

TEST(VerifyMemory, NamesWhatIsDamaged) {
    EXPECT_TRUE(mentions(error_with_byte(5, 77), "is damaged: guest memory 0x0-0x1fffff, at offset 0x0 of "));
    EXPECT_TRUE(mentions(error_with_byte(4 * kMiB, 77), "guest memory 0x400000-0x4fffff, at offset 0x400000"));
    EXPECT_TRUE(
        mentions(error_with_byte(8 * kMiB - 1, 77), "guest memory 0x100000000-0x1001fffff, at offset 0x600000"));
    // In a hole, zeros are the same as nothing.
    EXPECT_TRUE(mentions(error_with_byte(3 * kMiB, 77), "guest memory 0x200000-0x3fffff, at offset 0x200000"));
    EXPECT_EQ(error_with_byte(3 * kMiB, 0), "");
    // The bytes between regions belong to no region.
    EXPECT_EQ(error_with_byte(5 * kMiB, 77), "");
}

TEST(VerifyMemory, SaysThatTheDiskFails) {
    const TemporaryDirectory parent;
    write_snapshot(parent / "snapshot");
    const SnapshotReader reader(parent / "snapshot");
    EXPECT_TRUE(mentions(error_where_fails(SYS_pread64, EIO, [&] { verify_memory(reader, 1); }),
                         "/memory: Input/output error (the disk fails"));
    fs::resize_file(parent / "snapshot/memory", 0);
    EXPECT_TRUE(mentions(error_of([&] {
                             verify_memory(reader, 2);
                             return 0;
                         }),
                         "it has become shorter"));
}

} // namespace
} // namespace vmm
