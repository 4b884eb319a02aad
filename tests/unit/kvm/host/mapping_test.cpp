#include "kvm/host/mapping.hpp"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/mman.h>

#include <cstdint>
#include <fstream>
#include <string>
#include <utility>

#include "kvm/host/guest_address.hpp"
#include "kvm/host/unique_fd.hpp"
#include "support/host_errors.hpp"
#include "support/host_process_facts.hpp"
#include "support/host_temporary_directory.hpp"

namespace vmm {
namespace {

using testing::error_of;
using testing::is_mapped;
using testing::mapped_address_space;
using testing::mentions;

TEST(Mapping, StartsOnAMultipleOfTheAlignment) {
    for (const std::size_t alignment : {4 * kKiB, 2 * kMiB, kGiB}) {
        const Mapping mapping = Mapping::anonymous(64 * kKiB, alignment, 0, "a test");
        EXPECT_EQ(reinterpret_cast<std::uintptr_t>(mapping.data()) % alignment, 0U);
        EXPECT_EQ(mapping.size(), 64 * kKiB);
    }
}

TEST(Mapping, IsReadableAndWritableToItsEnds) {
    const Mapping mapping = Mapping::anonymous(64 * kKiB, 4 * kKiB, 0, "a test");
    EXPECT_EQ(mapping.bytes().front(), std::byte{0});
    mapping.bytes().front() = std::byte{1};
    mapping.bytes().back() = std::byte{2};
    EXPECT_EQ(mapping.bytes().back(), std::byte{2});
}

TEST(Mapping, GivesBackTheRoomItNeededForAlignment) {
    const std::uint64_t before = mapped_address_space();
    const Mapping mapping = Mapping::anonymous(64 * kKiB, kGiB, 0, "a test");
    EXPECT_LT(mapped_address_space(), before + 16 * kMiB);
}

TEST(Mapping, GivesBackTheRoomItNeededForAlignmentOfAnOddSize) {
    const std::uint64_t before = mapped_address_space();
    const Mapping mapping = Mapping::anonymous(64 * kKiB + 1, kGiB, 0, "a test");
    EXPECT_LT(mapped_address_space(), before + 16 * kMiB);
}

TEST(Mapping, IsGoneWithItsOwner) {
    const std::byte* address = nullptr;
    {
        const Mapping mapping = Mapping::anonymous(kMiB, 2 * kMiB, 0, "a test");
        address = mapping.data();
        EXPECT_TRUE(is_mapped(address, kMiB));
    }
    EXPECT_FALSE(is_mapped(address, kMiB));
}

TEST(Mapping, MovesWithItsBytes) {
    Mapping first = Mapping::anonymous(kMiB, 4 * kKiB, 0, "a test");
    first.bytes().front() = std::byte{42};
    Mapping second = std::move(first);
    EXPECT_EQ(second.bytes().front(), std::byte{42});
    EXPECT_EQ(first.data(), nullptr); // NOLINT(bugprone-use-after-move): what is left of it is the point.
    first = std::move(second);
    EXPECT_EQ(first.bytes().front(), std::byte{42});
}

TEST(Mapping, AssignmentDoesNotLeakWhatWasThere) {
    const std::byte* old = nullptr;
    {
        Mapping mapping = Mapping::anonymous(kMiB, 4 * kKiB, 0, "a test");
        old = mapping.data();
        Mapping other = Mapping::anonymous(kMiB, 4 * kKiB, 0, "a test");
        mapping = std::move(other);
    }
    EXPECT_FALSE(is_mapped(old, kMiB));
}

TEST(Mapping, RefusesSizesThatCannotBe) {
    EXPECT_TRUE(mentions(error_of([] { return Mapping::anonymous(0, 4096, 0, "a test"); }), "no such size"));
    EXPECT_TRUE(mentions(error_of([] { return Mapping::anonymous(SIZE_MAX, 4096, 0, "a test"); }), "no such size"));
}

TEST(Mapping, FailureNamesThePurposeAndTheSize) {
    const std::string error = error_of([] { return Mapping::anonymous(1ULL << 60, 4096, 0, "the moon"); });
    EXPECT_TRUE(mentions(error, "cannot map 1048576")) << error;
    EXPECT_TRUE(mentions(error, " TiB for the moon: ")) << error;
}

TEST(Mapping, FailureLeavesNoReservationBehind) {
    const std::uint64_t before = mapped_address_space();
    // The address space can be reserved, but the pool of 1 GiB pages does not have so many.
    const std::string error =
        error_of([] { return Mapping::anonymous(kTiB, kGiB, MAP_HUGETLB | (30 << MAP_HUGE_SHIFT), "a test"); });
    EXPECT_NE(error, "");
    EXPECT_LT(mapped_address_space(), before + 16 * kMiB);
}

TEST(Mapping, OfAFileIsShared) {
    const testing::TemporaryDirectory directory;
    const std::string path = directory.write("file", std::string(4096, 'a'));
    const UniqueFd fd(::open(path.c_str(), O_RDWR | O_CLOEXEC));
    {
        const Mapping mapping = Mapping::shared_file(fd.get(), 4096, "a test");
        EXPECT_EQ(mapping.bytes()[7], std::byte{'a'});
        mapping.bytes()[7] = std::byte{'b'};
    }
    EXPECT_EQ(testing::content_of(path).substr(6, 3), "aba");
}

TEST(Mapping, OfADescriptorThatIsNoFileIsAnError) {
    EXPECT_TRUE(mentions(error_of([] { return Mapping::shared_file(-1, 4096, "nothing"); }), "nothing"));
}

} // namespace
} // namespace vmm
