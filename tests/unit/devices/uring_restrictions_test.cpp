// What a disk's ring refuses. The test asks the kernel directly, because an attacker in the disk's thread would write
// to the ring directly.

#include <gtest/gtest.h>

#include <fcntl.h>
#include <linux/io_uring.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>

#include "devices/uring_disk_io.hpp"
#include "kvm/host/unique_fd.hpp"
#include "support/host_temporary_directory.hpp"

namespace vmm::devices::testing {
namespace {

constexpr unsigned kEntries = 8;

/// The offsets of the parts of a ring of so many entries, taken from another ring of the same kind.
std::optional<io_uring_params> layout_of_ring() {
    io_uring_params parameters{};
    const UniqueFd ring(static_cast<int>(::syscall(SYS_io_uring_setup, kEntries, &parameters)));
    return ring ? std::optional(parameters) : std::nullopt;
}

/// A ring behind the descriptor of another ring, used without its library.
class StolenRing {
  public:
    StolenRing(int fd, const io_uring_params& layout)
        : fd_(fd), layout_(layout),
          ring_bytes_(std::max<std::size_t>(layout.sq_off.array + layout.sq_entries * sizeof(std::uint32_t),
                                            layout.cq_off.cqes + layout.cq_entries * sizeof(io_uring_cqe))),
          entries_bytes_(layout.sq_entries * sizeof(io_uring_sqe)),
          ring_(::mmap(nullptr, ring_bytes_, PROT_READ | PROT_WRITE, MAP_SHARED, fd, IORING_OFF_SQ_RING)),
          entries_(::mmap(nullptr, entries_bytes_, PROT_READ | PROT_WRITE, MAP_SHARED, fd, IORING_OFF_SQES)) {}
    ~StolenRing() {
        ::munmap(ring_, ring_bytes_);
        ::munmap(entries_, entries_bytes_);
    }
    StolenRing(const StolenRing&) = delete;
    StolenRing& operator=(const StolenRing&) = delete;

    [[nodiscard]] bool is_mapped() const { return ring_ != MAP_FAILED && entries_ != MAP_FAILED; }

    /// The result of `entry`; below zero it is an errno.
    std::optional<int> result_of(const io_uring_sqe& entry) {
        const std::uint32_t tail = word(layout_.sq_off.tail).load();
        const std::uint32_t slot = tail & word(layout_.sq_off.ring_mask).load();
        static_cast<io_uring_sqe*>(entries_)[slot] = entry;
        word(layout_.sq_off.array + slot * static_cast<std::uint32_t>(sizeof(std::uint32_t))).store(slot);
        word(layout_.sq_off.tail).store(tail + 1);
        if (::syscall(SYS_io_uring_enter, fd_, 1, 1, IORING_ENTER_GETEVENTS, nullptr, 0) < 0) {
            return -errno;
        }
        const std::uint32_t head = word(layout_.cq_off.head).load();
        if (head == word(layout_.cq_off.tail).load()) {
            return std::nullopt;
        }
        const std::size_t place = head & word(layout_.cq_off.ring_mask).load();
        const int result = reinterpret_cast<const io_uring_cqe*>( // within ring_bytes_, see the constructor
                               static_cast<const std::byte*>(ring_) + layout_.cq_off.cqes)[place]
                               .res;
        word(layout_.cq_off.head).store(head + 1);
        return result;
    }

  private:
    [[nodiscard]] std::atomic_ref<std::uint32_t> word(std::uint32_t offset) const {
        // The kernel's words are within the ring, and aligned.
        return std::atomic_ref(*reinterpret_cast<std::uint32_t*>(static_cast<std::byte*>(ring_) + offset));
    }

    int fd_;
    io_uring_params layout_;
    std::size_t ring_bytes_;
    std::size_t entries_bytes_;
    void* ring_;
    void* entries_;
};

class UringRestrictions : public ::testing::Test {
  protected:
    void SetUp() override {
        layout_ = layout_of_ring();
        if (!layout_ || (layout_->features & IORING_FEAT_SINGLE_MMAP) == 0) {
            GTEST_SKIP() << "this host has no io_uring, or not for this process";
        }
        disk_.reset(::open(directory_.write("disk", std::string(4096, 'x')).c_str(), O_RDWR | O_CLOEXEC));
        ring_.emplace(DiskFiles{.fd = disk_.get(), .tail_fd = -1, .tail_begins = 4096}, kEntries);
    }
    static constexpr std::array<std::uint8_t, 6> kAllowed{IORING_OP_READV,       IORING_OP_WRITEV, IORING_OP_READ_FIXED,
                                                          IORING_OP_WRITE_FIXED, IORING_OP_FSYNC,  IORING_OP_FALLOCATE};
    static bool is_allowed(std::uint8_t operation) { return std::ranges::find(kAllowed, operation) != kAllowed.end(); }

    vmm::testing::TemporaryDirectory directory_;
    UniqueFd disk_;
    std::optional<io_uring_params> layout_;
    std::optional<UringDiskIo> ring_;
};

TEST_F(UringRestrictions, OperationsThatNoDiskHasAreRefused) {
    StolenRing stolen(ring_->fd(), *layout_);
    ASSERT_TRUE(stolen.is_mapped());
    // Newer kernels have more of them. A request that a kernel does not know gives EINVAL.
    constexpr std::uint8_t kMoreThanThereAre = 96;
    unsigned refused = 0;
    for (std::uint8_t operation = 0; operation < kMoreThanThereAre; ++operation) {
        if (is_allowed(operation)) {
            continue;
        }
        io_uring_sqe entry{};
        entry.opcode = operation;
        entry.flags = IOSQE_FIXED_FILE;
        const std::optional<int> result = stolen.result_of(entry);
        ASSERT_TRUE(result) << static_cast<int>(operation);
        EXPECT_TRUE(*result == -EACCES || (*result == -EINVAL && operation > IORING_OP_UNLINKAT))
            << static_cast<int>(operation) << ": " << *result;
        refused += *result == -EACCES ? 1 : 0;
    }
    EXPECT_GE(refused, static_cast<unsigned>(IORING_OP_UNLINKAT) - kAllowed.size())
        << "opening, sockets, and all others";
}

TEST_F(UringRestrictions, DescriptorsThatAreNotTheDiskAreRefused) {
    StolenRing stolen(ring_->fd(), *layout_);
    ASSERT_TRUE(stolen.is_mapped());
    for (const std::uint8_t operation : kAllowed) {
        io_uring_sqe entry{};
        entry.opcode = operation;
        entry.fd = disk_.get(); // as a descriptor of this process, not as one of the ring's files
        EXPECT_EQ(stolen.result_of(entry), -EACCES) << static_cast<int>(operation);
    }
    io_uring_sqe flush{};
    flush.opcode = IORING_OP_FSYNC;
    flush.flags = IOSQE_FIXED_FILE;
    EXPECT_EQ(stolen.result_of(flush), 0) << "the disk itself";
    flush.fd = 1;
    EXPECT_EQ(stolen.result_of(flush), -EBADF) << "there is no other";
}

TEST_F(UringRestrictions, NothingMoreIsRegistered) {
    constexpr unsigned kMoreThanThereAre = 40;
    for (unsigned operation = 0; operation < kMoreThanThereAre; ++operation) {
        if (operation == IORING_REGISTER_BUFFERS) {
            continue;
        }
        EXPECT_LT(::syscall(SYS_io_uring_register, ring_->fd(), operation, nullptr, 0), 0) << operation;
        const int error_number = errno;
        EXPECT_TRUE(error_number == EACCES || (error_number == EINVAL && operation > IORING_REGISTER_ENABLE_RINGS) ||
                    (error_number == EBADFD && operation == IORING_REGISTER_ENABLE_RINGS))
            << operation << ": " << error_number;
    }
}

} // namespace
} // namespace vmm::devices::testing
