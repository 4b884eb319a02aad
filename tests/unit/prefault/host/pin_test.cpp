#include "prefault/host/pin.hpp"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <linux/filter.h>
#include <linux/io_uring.h>
#include <linux/seccomp.h>
#include <sched.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <fstream>
#include <iostream>
#include <memory>
#include <optional>
#include <span>
#include <stdexcept>
#include <string>
#include <tuple>
#include <vector>

#include "support/host_child_process.hpp"
#include "support/host_errors.hpp"
#include "support/host_page_size.hpp"
#include "support/host_process_facts.hpp"
#include "support/host_temporary_directory.hpp"
#include "support/kvm_huge_pages.hpp"
#include "support/prefault_stop.hpp"

namespace vmm::prefault {
namespace {

using testing::error_of;
using testing::mentions;

std::string pin_refusal(Pin pin, std::uint64_t bytes) {
    return error_of([&]() -> int {
        check_may_pin(pin, bytes);
        return 0;
    });
}

/// The result of `action` in a process that may lock only `limit_bytes`.
template <typename Action>
std::string with_locked_memory_limit(std::uint64_t limit_bytes, Action action) {
    return testing::in_child_process([&]() -> std::string {
        testing::drop_capabilities();
        testing::set_limit(RLIMIT_MEMLOCK, limit_bytes);
        return action();
    });
}

constexpr std::uint64_t kSmallBytes = 4 * kMiB;
const std::array kAllOfIt{GuestRange{GuestAddress{0}, kSmallBytes}};

GuestMemory small_memory() {
    return {kAllOfIt, PageSize::k4K};
}

bool add_all(PinnedMemory& pinned, const GuestMemory& memory, unsigned workers = 1) {
    std::vector<GuestRange> ranges;
    for (const MemoryRegion& region : memory.regions()) {
        ranges.push_back(region.range);
    }
    return pinned.add(memory, ranges, workers, {});
}

std::string add_refusal(PinnedMemory& pinned, const GuestMemory& memory) {
    return error_of([&] { return add_all(pinned, memory); });
}

/// A field of /proc/self/status that is in KiB, in bytes.
std::uint64_t status_bytes(const std::string& field) {
    std::ifstream status("/proc/self/status");
    std::string word;
    std::uint64_t kib = 0;
    while (status >> word && word != field) {
    }
    status >> kib;
    return kib * kKiB;
}
std::uint64_t pinned_in_kernel() {
    return status_bytes("VmPin:");
}

/// Why this machine cannot do long-term pins of `bytes`; empty if it can.
std::string why_no_longterm(std::uint64_t bytes) {
    return pin_refusal(Pin::kLongterm, bytes);
}

TEST(PinLimit, TooLowSaysLimitNeedAndRemedy) {
    const std::string error = with_locked_memory_limit(64 * kKiB, [] { return pin_refusal(Pin::kMlock, 512 * kMiB); });
    EXPECT_TRUE(mentions(error, "cannot lock 512 MiB")) << error;
    EXPECT_TRUE(mentions(error, "RLIMIT_MEMLOCK")) << error;
    EXPECT_TRUE(mentions(error, "64 KiB")) << error;
    EXPECT_TRUE(mentions(error, "ulimit -l")) << error;
    EXPECT_TRUE(mentions(error, "Config::pin=none")) << error;
}

// What broke: root of a user namespace has every capability but may lock no more than others. It got "Cannot allocate
// memory".
TEST(PinLimit, BindsRootOfAUserNamespace) {
    const std::string error = testing::in_child_process([]() -> std::string {
        testing::set_limit(RLIMIT_MEMLOCK, 64 * kKiB);
        return ::unshare(CLONE_NEWUSER) != 0 ? "none" : pin_refusal(Pin::kMlock, 512 * kMiB);
    });
    if (error == "none") {
        GTEST_SKIP() << "no user namespace can be made here";
    }
    EXPECT_TRUE(mentions(error, "cannot lock 512 MiB")) << error;
    EXPECT_TRUE(mentions(error, "RLIMIT_MEMLOCK")) << error;
}

TEST(PinLimit, ThatDoesNotBindIsNoError) {
    const std::string error = testing::in_child_process([]() -> std::string {
        rlimit limit{64 * kKiB, 64 * kKiB};
        if (::setrlimit(RLIMIT_MEMLOCK, &limit) != 0) {
            return "cannot set a limit";
        }
        const Mapping memory = Mapping::anonymous(kMiB, 4 * kKiB, 0, "a test");
        // The kernel decides if the capability counts here. The question and the check must agree.
        const bool may = ::mlock2(memory.data(), memory.size(), MLOCK_ONFAULT) == 0;
        ::munlock(memory.data(), memory.size());
        return (pin_refusal(Pin::kMlock, kMiB).empty() == may) ? "" : "the kernel and the check do not agree";
    });
    EXPECT_EQ(error, "");
}

TEST(PinLimit, ThatJustSufficesIsNoError) {
    EXPECT_EQ(with_locked_memory_limit(2 * kMiB, [] { return pin_refusal(Pin::kMlock, 2 * kMiB); }), "");
}

TEST(PinLimit, CountsWhatIsLockedAlready) {
    const std::string error = with_locked_memory_limit(2 * kMiB, []() -> std::string {
        const Mapping locked = Mapping::anonymous(kMiB + 512 * kKiB, 4 * kKiB, 0, "a test");
        // mlock() is not used, because sanitizers make it do nothing.
        if (::syscall(SYS_mlock, locked.data(), locked.size()) != 0) {
            return "could not lock at all";
        }
        return pin_refusal(Pin::kMlock, kMiB);
    });
    EXPECT_TRUE(mentions(error, "RLIMIT_MEMLOCK"))
        << "1.5 of 2 MiB are locked, and 1 MiB more passed the check" << error;
}

TEST(PinLimit, DoesNotMatterWithoutPinning) {
    EXPECT_EQ(with_locked_memory_limit(0, [] { return pin_refusal(Pin::kNone, 512 * kMiB); }), "");
}

TEST(PinMemory, LocksWithoutPopulating) {
    const GuestMemory memory = small_memory();
    PinnedMemory pinned(Pin::kMlock);
    try {
        EXPECT_TRUE(add_all(pinned, memory));
    } catch (const Error& error) {
        GTEST_SKIP() << "this process may not lock 4 MiB: " << error.what();
    }
    EXPECT_TRUE(testing::has_flag(memory.regions()[0].host, "lo"));
    EXPECT_EQ(testing::count_resident_pages(memory.regions()[0].bytes()), 0U);
}

TEST(PinMemory, UnlocksInTheEnd) {
#ifdef VMM_SANITIZED
    GTEST_SKIP() << "sanitizers make munlock() do nothing";
#endif
    const GuestMemory memory = small_memory();
    {
        PinnedMemory pinned(Pin::kMlock);
        try {
            EXPECT_TRUE(add_all(pinned, memory));
        } catch (const Error& error) {
            GTEST_SKIP() << "this process may not lock 4 MiB: " << error.what();
        }
    }
    EXPECT_FALSE(testing::has_flag(memory.regions()[0].host, "lo"));
}

TEST(PinMemory, DoesNothingWhereNothingIsAsked) {
    const GuestMemory memory = small_memory();
    PinnedMemory pinned(Pin::kNone);
    EXPECT_TRUE(add_all(pinned, memory));
    EXPECT_FALSE(testing::has_flag(memory.regions()[0].host, "lo"));
    EXPECT_EQ(pinned.bytes(), 0U);
}

TEST(PinMemory, ThatTheKernelRefusesIsAnErrorThatNamesTheLimit) {
    const std::string error = with_locked_memory_limit(64 * kKiB, [] {
        const GuestMemory memory = small_memory();
        PinnedMemory pinned(Pin::kMlock);
        return add_refusal(pinned, memory);
    });
    EXPECT_TRUE(mentions(error, "cannot lock guest memory 0x0-0x3fffff")) << error;
    EXPECT_TRUE(mentions(error, "RLIMIT_MEMLOCK")) << error;
}

TEST(PinMemory, ThatTheKernelRefusesInTheMiddleLeavesNothingOfTheCall) {
#ifdef VMM_SANITIZED
    GTEST_SKIP() << "sanitizers make munlock() do nothing";
#endif
    const std::string left = with_locked_memory_limit(6 * kMiB, []() -> std::string {
        const std::array layout{kAllOfIt[0], GuestRange{GuestAddress{kGiB}, kSmallBytes}};
        const GuestMemory memory(layout, PageSize::k4K);
        PinnedMemory pinned(Pin::kMlock);
        const std::string error = add_refusal(pinned, memory);
        return error.empty() ? "no error" : std::to_string(status_bytes("VmLck:") + pinned.bytes());
    });
    EXPECT_EQ(left, "0");
}

/// The kind of pages, and the number of workers that pin them.
using LongtermCase = std::tuple<PageSize, unsigned>;

constexpr std::uint64_t kLowBytes = 12 * kMiB;
constexpr std::uint64_t kHighBytes = 6 * kMiB;
const std::array kTwoRegions{GuestRange{GuestAddress{0}, kLowBytes}, GuestRange{GuestAddress{4 * kGiB}, kHighBytes}};

class LongtermPin : public ::testing::TestWithParam<LongtermCase> {
  protected:
    void SetUp() override {
        if (const std::string reason = why_no_longterm(kLowBytes + kHighBytes); !reason.empty()) {
            GTEST_SKIP() << reason;
        }
        if (std::get<PageSize>(GetParam()) == PageSize::k2M) {
            pool_.emplace((kLowBytes + kHighBytes) / (2 * kMiB));
            if (!pool_->why_not().empty()) {
                GTEST_SKIP() << pool_->why_not();
            }
        }
        memory_.emplace(kTwoRegions, std::get<PageSize>(GetParam()));
    }
    [[nodiscard]] static unsigned workers() { return std::get<unsigned>(GetParam()); }

    const std::uint64_t before_ = pinned_in_kernel();
    std::optional<testing::HugePages> pool_;
    std::optional<GuestMemory> memory_;
};

TEST_P(LongtermPin, PinsAllOfMemoryAndNoMore) {
    PinnedMemory pinned(Pin::kLongterm);
    EXPECT_TRUE(add_all(pinned, *memory_, workers()));
    EXPECT_EQ(pinned_in_kernel() - before_, memory_->size_bytes());
    EXPECT_EQ(pinned.bytes(), memory_->size_bytes());
}

TEST_P(LongtermPin, CountsPartsOnce) {
    PinnedMemory pinned(Pin::kLongterm);
    const std::array middle{GuestRange{GuestAddress{4 * kMiB}, 2 * kMiB}};
    EXPECT_TRUE(pinned.add(*memory_, middle, workers(), {}));
    EXPECT_EQ(pinned_in_kernel() - before_, 2 * kMiB);
    EXPECT_TRUE(add_all(pinned, *memory_, workers()));
    EXPECT_TRUE(add_all(pinned, *memory_, workers()));
    EXPECT_EQ(pinned_in_kernel() - before_, memory_->size_bytes());
    EXPECT_EQ(pinned.bytes(), memory_->size_bytes());
}

TEST_P(LongtermPin, IsReleasedAtOnce) {
    {
        PinnedMemory pinned(Pin::kLongterm);
        EXPECT_TRUE(add_all(pinned, *memory_, workers()));
    }
    EXPECT_EQ(pinned_in_kernel(), before_);
}

INSTANTIATE_TEST_SUITE_P(Backings, LongtermPin,
                         ::testing::Combine(::testing::Values(PageSize::k4K, PageSize::kThp, PageSize::k2M),
                                            ::testing::Values(1U, 2U)),
                         [](const auto& test) {
                             return std::string(to_string(std::get<PageSize>(test.param))) + "With" +
                                    std::to_string(std::get<unsigned>(test.param));
                         });

/// 4 KiB pages, long-term.
class LongtermPinOfSmallPages : public ::testing::Test {
  protected:
    void SetUp() override {
        if (const std::string reason = why_no_longterm(3 * kGiB); !reason.empty()) {
            GTEST_SKIP() << reason;
        }
    }
    const std::uint64_t before_ = pinned_in_kernel();
};

TEST_F(LongtermPinOfSmallPages, GrowsWithMemory) {
    GuestMemory memory = small_memory();
    PinnedMemory pinned(Pin::kLongterm);
    EXPECT_TRUE(add_all(pinned, memory));
    memory.add(memory.map({GuestAddress{kGiB}, kSmallBytes}));
    EXPECT_TRUE(add_all(pinned, memory));
    EXPECT_EQ(pinned_in_kernel() - before_, 2 * kSmallBytes);
}

TEST_F(LongtermPinOfSmallPages, ListsItsPiecesInOrder) {
    const GuestMemory memory(kTwoRegions, PageSize::k4K);
    PinnedMemory pinned(Pin::kLongterm);
    const std::array middle{GuestRange{GuestAddress{4 * kMiB}, 2 * kMiB}};
    EXPECT_TRUE(pinned.add(memory, middle, 2, {}));
    EXPECT_TRUE(add_all(pinned, memory, 2));
    std::vector<GuestRange> ranges;
    for (const PinnedMemory::Piece& piece : pinned.pieces()) {
        ranges.push_back(piece.range);
        EXPECT_EQ(piece.bytes.data(), memory.at(piece.range)->data());
        EXPECT_EQ(piece.bytes.size(), piece.range.size);
    }
    EXPECT_EQ(ranges, (std::vector<GuestRange>{{GuestAddress{0}, 4 * kMiB},
                                               {GuestAddress{4 * kMiB}, 2 * kMiB},
                                               {GuestAddress{6 * kMiB}, 6 * kMiB},
                                               kTwoRegions[1]}));
}

TEST_F(LongtermPinOfSmallPages, JoinsNeighbours) {
    const GuestMemory memory = small_memory();
    PinnedMemory pinned(Pin::kLongterm);
    const std::array halves{GuestRange{GuestAddress{kMiB}, 3 * kMiB}, GuestRange{GuestAddress{0}, kMiB}};
    EXPECT_TRUE(pinned.add(memory, halves, 1, {}));
    ASSERT_EQ(pinned.pieces().size(), 1U);
    EXPECT_EQ(pinned.pieces()[0].range, kAllOfIt[0]);
}

TEST_F(LongtermPinOfSmallPages, TellsWhatIsPinned) {
    const GuestMemory memory(kTwoRegions, PageSize::k4K);
    PinnedMemory pinned(Pin::kLongterm);
    std::atomic<std::uint64_t> told{0};
    EXPECT_TRUE(pinned.add(memory, kTwoRegions, 2, {}, [&](std::uint64_t bytes) { told += bytes; }));
    EXPECT_EQ(told.load(), memory.size_bytes());
}

TEST_F(LongtermPinOfSmallPages, DoesNothingOnceAStopIsRequested) {
    const GuestMemory memory = small_memory();
    PinnedMemory pinned(Pin::kLongterm);
    EXPECT_FALSE(pinned.add(memory, kAllOfIt, 2, testing::stop_requested_already()));
    EXPECT_EQ(pinned.bytes(), 0U);
    EXPECT_EQ(pinned_in_kernel(), before_);
}

TEST_F(LongtermPinOfSmallPages, StopsBetweenPiecesAndGoesOnFromThere) {
    const std::array layout{GuestRange{GuestAddress{0}, 600 * kMiB}};
    const GuestMemory memory(layout, PageSize::kThp); // quickly populated
    PinnedMemory pinned(Pin::kLongterm);
    const auto source = std::make_unique<std::stop_source>(); // on the heap: gcc 12 takes a local one for uninitialised
    EXPECT_FALSE(
        pinned.add(memory, layout, 1, source->get_token(), [&](std::uint64_t /*bytes*/) { source->request_stop(); }));
    EXPECT_GT(pinned.bytes(), 0U);
    EXPECT_LT(pinned.bytes(), memory.size_bytes());
    EXPECT_EQ(pinned_in_kernel() - before_, pinned.bytes());
    EXPECT_TRUE(pinned.add(memory, layout, 1, {}));
    EXPECT_EQ(pinned_in_kernel() - before_, memory.size_bytes());
}

TEST_F(LongtermPinOfSmallPages, WhoseObserverThrowsLeavesNothingOfTheCall) {
    const GuestMemory memory(kTwoRegions, PageSize::k4K);
    PinnedMemory pinned(Pin::kLongterm);
    EXPECT_TRUE(pinned.add(memory, std::span(kTwoRegions).first(1), 1, {}));
    EXPECT_THROW(
        pinned.add(memory, kTwoRegions, 2, {}, [](std::uint64_t /*bytes*/) { throw std::runtime_error("observer"); }),
        std::runtime_error);
    EXPECT_EQ(pinned.bytes(), kLowBytes);
    EXPECT_EQ(pinned_in_kernel() - before_, kLowBytes);
}

TEST_F(LongtermPinOfSmallPages, LeavesNoDescriptor) {
    const std::size_t descriptors = testing::count_descriptors();
    {
        const GuestMemory memory = small_memory();
        PinnedMemory pinned(Pin::kLongterm);
        EXPECT_TRUE(add_all(pinned, memory, 8));
        EXPECT_TRUE(add_all(pinned, memory, 8));
        EXPECT_EQ(testing::count_descriptors(), descriptors + 1);
    }
    EXPECT_EQ(testing::count_descriptors(), descriptors);
}

/// The frames of all pages of `bytes`, or nothing if this process may not see them (without CAP_SYS_ADMIN they are 0:
/// Documentation/admin-guide/mm/pagemap.rst).
std::vector<std::uint64_t> frames_of(std::span<const std::byte> bytes) {
    constexpr std::uint64_t kFrameMask = (1ULL << 55) - 1;
    const UniqueFd pagemap(::open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC));
    std::vector<std::uint64_t> frames(bytes.size() / 4096);
    // NOLINTNEXTLINE(*-reinterpret-cast): an address as a number.
    const auto offset = static_cast<off_t>(reinterpret_cast<std::uintptr_t>(bytes.data()) / 4096 * sizeof(frames[0]));
    const auto size = static_cast<ssize_t>(frames.size() * sizeof(frames[0]));
    if (::pread(pagemap.get(), frames.data(), static_cast<std::size_t>(size), offset) != size) {
        return {};
    }
    for (std::uint64_t& frame : frames) {
        frame &= kFrameMask;
    }
    return std::ranges::find(frames, 0U) == frames.end() ? frames : std::vector<std::uint64_t>{};
}

/// How many pages of populated and pinned memory move when the kernel compacts all of its memory; nothing if that
/// cannot be found out.
std::optional<std::size_t> count_moved_by_compaction(Pin kind) {
    constexpr std::uint64_t kPieceBytes = 64 * kKiB;
    const std::array layout{GuestRange{GuestAddress{0}, 64 * kMiB}};
    const GuestMemory memory(layout, PageSize::k4K);
    const auto bytes = memory.regions()[0].bytes();
    {
        // Other pages between ours, which are free by then. So moving our pages would help the kernel.
        const Mapping others = Mapping::anonymous(bytes.size(), 4096, 0, "a test");
        for (std::size_t offset = 0; offset < bytes.size(); offset += 4096) {
            std::memset(bytes.subspan(offset, 1).data(), 1, 1);
            if (offset % kPieceBytes != 0) {
                std::memset(others.bytes().subspan(offset, 1).data(), 1, 1);
            }
        }
    }
    PinnedMemory pinned(kind);
    add_all(pinned, memory);
    const auto before = frames_of(bytes);
    const UniqueFd compact(::open("/proc/sys/vm/compact_memory", O_WRONLY | O_CLOEXEC));
    if (before.empty() || !compact || ::write(compact.get(), "1", 1) != 1) {
        return std::nullopt;
    }
    const auto after = frames_of(bytes);
    std::size_t moved = 0;
    for (std::size_t i = 0; i < before.size(); ++i) {
        moved += i >= after.size() || before[i] != after[i] ? 1 : 0;
    }
    return moved;
}

TEST_F(LongtermPinOfSmallPages, KeepsPagesFromBeingCompacted) {
    const auto moved_unpinned = count_moved_by_compaction(Pin::kNone);
    const auto moved_locked = count_moved_by_compaction(Pin::kMlock);
    const auto moved_pinned = count_moved_by_compaction(Pin::kLongterm);
    if (!moved_unpinned || !moved_locked || !moved_pinned) {
        GTEST_SKIP() << "needs a root that is told page frames, and a kernel that compacts memory";
    }
    std::cout << "pages that compaction moved, of 16384: " << *moved_unpinned << " not pinned, " << *moved_locked
              << " locked, " << *moved_pinned << " long-term pinned\n";
    EXPECT_EQ(*moved_pinned, 0U);
}

TEST(LongtermPinLimit, TooLowSaysLimitNeedAndRemedy) {
    if (const std::string reason = why_no_longterm(0); !reason.empty()) {
        GTEST_SKIP() << reason;
    }
    const std::string error =
        with_locked_memory_limit(64 * kKiB, [] { return pin_refusal(Pin::kLongterm, 512 * kMiB); });
    for (const char* part : {"cannot pin 512 MiB", "RLIMIT_MEMLOCK", "64 KiB", "ulimit -l", "CAP_IPC_LOCK", "user"}) {
        EXPECT_TRUE(mentions(error, part)) << error;
    }
}

TEST(LongtermPinLimit, CountsWhatIsPinnedAlready) {
    if (const std::string reason = why_no_longterm(kSmallBytes); !reason.empty()) {
        GTEST_SKIP() << reason;
    }
    const std::string error = with_locked_memory_limit(8 * kMiB, [] {
        const GuestMemory memory = small_memory();
        PinnedMemory pinned(Pin::kLongterm);
        add_all(pinned, memory);
        return pin_refusal(Pin::kLongterm, 6 * kMiB);
    });
    EXPECT_TRUE(mentions(error, "of which 4 MiB are in use")) << error;
}

TEST(LongtermPinLimit, ThatTheKernelRefusesIsAnErrorThatNamesTheLimit) {
    if (const std::string reason = why_no_longterm(0); !reason.empty()) {
        GTEST_SKIP() << reason;
    }
    const std::string error = with_locked_memory_limit(64 * kKiB, [] {
        const GuestMemory memory = small_memory();
        PinnedMemory pinned(Pin::kLongterm);
        return add_refusal(pinned, memory) + "; pinned: " + std::to_string(pinned_in_kernel());
    });
    for (const char* part : {"cannot pin guest memory 0x0-0x3fffff", "RLIMIT_MEMLOCK", "is 64 KiB", "4 MiB are needed",
                             "ulimit -l", "pinned: 0"}) {
        EXPECT_TRUE(mentions(error, part)) << error;
    }
}

/// The result of `action` in a process in which io_uring_setup() fails with `error_number`.
template <typename Action>
std::string without_io_uring(unsigned error_number, Action action) {
    return testing::in_child_process([&]() -> std::string {
        std::array filter{
            sock_filter{BPF_LD | BPF_W | BPF_ABS, 0, 0, offsetof(seccomp_data, nr)},
            sock_filter{BPF_JMP | BPF_JEQ | BPF_K, 0, 1, SYS_io_uring_setup},
            sock_filter{BPF_RET | BPF_K, 0, 0, SECCOMP_RET_ERRNO | error_number},
            sock_filter{BPF_RET | BPF_K, 0, 0, SECCOMP_RET_ALLOW},
        };
        const sock_fprog program{filter.size(), filter.data()};
        if (::prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0 ||
            ::prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) != 0) {
            return "no filter";
        }
        return action();
    });
}

TEST(LongtermPinCheck, SaysThatIoUringIsForbidden) {
    const std::string error = without_io_uring(EPERM, [] { return pin_refusal(Pin::kLongterm, kSmallBytes); });
    EXPECT_TRUE(mentions(error, "cannot make an io_uring")) << error;
    EXPECT_TRUE(mentions(error, "Config::pin=mlock")) << error;
}

TEST(LongtermPinCheck, SaysThatIoUringIsMissing) {
    const std::string error = without_io_uring(ENOSYS, [] { return pin_refusal(Pin::kLongterm, kSmallBytes); });
    EXPECT_TRUE(mentions(error, "no io_uring")) << error;
}

TEST(LongtermPinCheck, IsNotMadeForOtherPins) {
    EXPECT_EQ(without_io_uring(EPERM, [] { return pin_refusal(Pin::kNone, kSmallBytes); }), "");
}

TEST(RingAdvice, NamesTheSwitchThatIsOff) {
    const testing::TemporaryDirectory sysctl;
    sysctl.write("io_uring_disabled", "2\n");
    EXPECT_TRUE(mentions(ring_advice(EPERM, sysctl.path().native()), "kernel.io_uring_disabled is 2"));
    sysctl.write("io_uring_disabled", "1\n");
    EXPECT_TRUE(mentions(ring_advice(EPERM, sysctl.path().native()), "kernel.io_uring_group"));
    sysctl.write("io_uring_disabled", "0\n");
    EXPECT_TRUE(mentions(ring_advice(EPERM, sysctl.path().native()), "seccomp"));
}

TEST(RingAdvice, TakesAnOldKernelsMissingSwitchForOn) {
    EXPECT_TRUE(mentions(ring_advice(EPERM, "/nonexistent"), "seccomp"));
}

TEST(BufferRing, CanDoNothingButPin) {
    if (const std::string reason = why_no_longterm(0); !reason.empty()) {
        GTEST_SKIP() << reason;
    }
    const BufferRing ring(1);
    const int file = STDIN_FILENO;
    EXPECT_EQ(::syscall(SYS_io_uring_register, ring.fd(), IORING_REGISTER_FILES, &file, 1), -1);
    EXPECT_EQ(errno, EACCES);
}

TEST(BufferRing, IsNotInheritedByPrograms) {
    if (const std::string reason = why_no_longterm(0); !reason.empty()) {
        GTEST_SKIP() << reason;
    }
    const BufferRing ring(1);
    EXPECT_NE(::fcntl(ring.fd(), F_GETFD) & FD_CLOEXEC, 0);
}

TEST(Pin, HasTheNamesOfTheCommandLine) {
    EXPECT_EQ(to_string(Pin::kNone), "none");
    EXPECT_EQ(to_string(Pin::kMlock), "mlock");
    EXPECT_EQ(to_string(Pin::kLongterm), "longterm");
}

} // namespace
} // namespace vmm::prefault
