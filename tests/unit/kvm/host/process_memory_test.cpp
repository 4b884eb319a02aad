#include "kvm/host/process_memory.hpp"

#include <gtest/gtest.h>
#include <sys/mman.h>

#include <array>
#include <cstring>
#include <span>

#include "kvm/host/guest_address.hpp"
#include "kvm/host/mapping.hpp"
#include "support/host_temporary_directory.hpp"

#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23 // Linux 5.14
#endif

namespace vmm {
namespace {

constexpr std::size_t kBytes = 8 * kMiB;

Mapping make_small_pages() {
    Mapping mapping = Mapping::anonymous(kBytes, 2 * kMiB, 0, "a test");
    ::madvise(mapping.data(), mapping.size(), MADV_NOHUGEPAGE);
    ::madvise(mapping.data(), mapping.size(), MADV_DONTFORK); // so that no neighbour is joined to it
    return mapping;
}

TEST(ResidentMemory, OfUntouchedMemoryIsNothing) {
    const Mapping mapping = make_small_pages();
    EXPECT_EQ(resident_memory_of(mapping.bytes()).value().bytes, 0U);
}

TEST(ResidentMemory, CountsWhatWasTouched) {
    const Mapping mapping = make_small_pages();
    std::memset(mapping.data(), 1, 3 * kMiB);
    EXPECT_EQ(resident_memory_of(mapping.bytes()).value().bytes, 3 * kMiB);
}

TEST(ResidentMemory, OfSmallPagesIsNotHuge) {
    const Mapping mapping = make_small_pages();
    std::memset(mapping.data(), 1, kBytes);
    EXPECT_FALSE(resident_memory_of(mapping.bytes()).value().all_transparent_huge);
}

TEST(ResidentMemory, OfUntouchedMemoryIsNotHuge) {
    const Mapping mapping = Mapping::anonymous(kBytes, 2 * kMiB, 0, "a test");
    ::madvise(mapping.data(), mapping.size(), MADV_HUGEPAGE);
    EXPECT_FALSE(resident_memory_of(mapping.bytes()).value().all_transparent_huge);
}

TEST(ResidentMemory, OfNoMappingIsNothing) {
    const Mapping mapping = make_small_pages();
    const auto gone = std::span<const std::byte>(mapping.data(), mapping.size());
    ::munmap(mapping.data(), mapping.size());
    const ResidentMemory resident = resident_memory_of(gone).value();
    EXPECT_EQ(resident.bytes, 0U);
    EXPECT_FALSE(resident.all_transparent_huge);
}

TEST(ResidentMemory, OutsideLeavesOutWhatIsExcluded) {
    const Mapping mapping = make_small_pages();
    std::memset(mapping.data(), 1, kBytes);
    const std::array excluded{mapping.bytes()};
    const std::uint64_t with = resident_bytes_outside({}).value();
    const std::uint64_t without = resident_bytes_outside(excluded).value();
    EXPECT_NEAR(static_cast<double>(with - without), static_cast<double>(kBytes), 2.0 * kMiB);
}

/// mlock() is not used, because sanitizers make it do nothing.
void lock(const Mapping& mapping, std::size_t bytes) {
    ASSERT_EQ(::mlock2(mapping.data(), bytes, MLOCK_ONFAULT), 0) << "the least that hosts permit is 8 MiB";
}

TEST(LockedBytes, CountWhatIsLockedWhetherItExistsOrNot) {
    const Mapping mapping = make_small_pages();
    const std::uint64_t before = locked_bytes().value();
    std::memset(mapping.data(), 1, kMiB);
    lock(mapping, 2 * kMiB);
    EXPECT_EQ(locked_bytes(), before + 2 * kMiB);
}

TEST(LockedBytes, NoLongerCountWhatIsUnmapped) {
    const std::uint64_t before = locked_bytes().value();
    {
        const Mapping mapping = make_small_pages();
        lock(mapping, kMiB);
    }
    EXPECT_EQ(locked_bytes(), before);
}

TEST(PinnedBytes, DoNotCountWhatIsOnlyLocked) {
    const Mapping mapping = make_small_pages();
    const std::uint64_t before = pinned_bytes().value();
    lock(mapping, kMiB);
    EXPECT_EQ(pinned_bytes(), before);
}

TEST(ResidentBytes, GrowByWhatComesToExist) {
    const Mapping mapping = make_small_pages();
    const std::uint64_t before = resident_bytes().value();
    // The kernel writes to it: for writes of the program a sanitizer uses memory of its own.
    ASSERT_EQ(::madvise(mapping.data(), kBytes, MADV_POPULATE_WRITE), 0);
    EXPECT_NEAR(static_cast<double>(resident_bytes().value() - before), static_cast<double>(kBytes), 2.0 * kMiB);
}

// What broke: in a root without /proc the summary said "resident beyond guest memory: 0.0 MiB".
TEST(ProcessMemory, ThatCannotBeReadIsUnknownAndNotZero) {
    const testing::TemporaryDirectory empty;
    for (const std::string& proc : {empty.path().native(), std::string("/nonexistent")}) {
        EXPECT_FALSE(resident_bytes(proc));
        EXPECT_FALSE(resident_bytes_outside({}, proc));
        EXPECT_FALSE(resident_memory_of({}, proc));
        EXPECT_FALSE(locked_bytes(proc));
        EXPECT_FALSE(pinned_bytes(proc));
    }
    empty.write("statm", "none\n");
    empty.write("status", "VmLck:\tmany kB\n");
    empty.write("smaps", "\n");
    EXPECT_FALSE(resident_bytes(empty.path().native()));
    EXPECT_FALSE(resident_bytes_outside({}, empty.path().native()));
    EXPECT_FALSE(locked_bytes(empty.path().native()));
    EXPECT_FALSE(pinned_bytes(empty.path().native()));
}

} // namespace
} // namespace vmm
