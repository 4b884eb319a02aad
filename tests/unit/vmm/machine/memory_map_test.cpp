#include "vmm/machine/memory_map.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <vector>

#include "loader/x86/boot_params.hpp"
#include "loader/x86/entry_tables.hpp"
#include "loader/x86/reset_vector.hpp"
#include "prefault/x86/scratch.hpp"
#include "support/host_guest_range.hpp"
#include "vmm/config.hpp"

namespace vmm::memory_map {
namespace {

using testing::range;

using loader::MemoryKind;
using loader::MemoryMapEntry;
using Ranges = std::vector<GuestRange>;

constexpr std::array kSizes{Config::kMinMemoryBytes, 512 * kMiB, 3 * kGiB, 3 * kGiB + 4 * kKiB,
                            3 * kGiB + 2 * kMiB,     4 * kGiB,   kTiB,     kMaxMemoryBytes};

void expect_disjoint(const Ranges& ranges) {
    for (std::size_t i = 0; i < ranges.size(); ++i) {
        for (std::size_t j = 0; j < i; ++j) {
            EXPECT_FALSE(ranges[i].overlaps(ranges[j])) << to_string(ranges[i]) << " and " << to_string(ranges[j]);
        }
    }
}

bool is_within(const Ranges& outer, GuestRange inner) {
    return std::ranges::any_of(outer, [&](const GuestRange& range) { return range.contains(inner); });
}

TEST(RamLayout, IsOnePieceUpToTheHole) {
    EXPECT_EQ(ram_layout(2 * kMiB), Ranges{range(0, 2 * kMiB)});
    EXPECT_EQ(ram_layout(3 * kGiB), Ranges{range(0, 3 * kGiB)});
}

TEST(RamLayout, GoesOnAboveTheHole) {
    EXPECT_EQ(ram_layout(3 * kGiB + 2 * kMiB), (Ranges{range(0, 3 * kGiB), range(4 * kGiB, 2 * kMiB)}));
    EXPECT_EQ(ram_layout(16 * kTiB), (Ranges{range(0, 3 * kGiB), range(4 * kGiB, 16 * kTiB - 3 * kGiB)}));
}

TEST(RamLayout, GivesEveryByteThatWasAskedFor) {
    for (const std::uint64_t size : kSizes) {
        std::uint64_t total = 0;
        for (const GuestRange& ram : ram_layout(size)) {
            total += ram.size;
            EXPECT_FALSE(ram.overlaps(kHole)) << size;
        }
        EXPECT_EQ(total, size);
    }
}

TEST(RamLayout, StartsPiecesWhereOneGibPagesCan) {
    for (const GuestRange& ram : ram_layout(kMaxMemoryBytes)) {
        EXPECT_TRUE(is_aligned(to_integer(ram.base), kGiB));
    }
}

TEST(AddressSpace, EndsWithTheHighestRamButNotBelowFourGib) {
    EXPECT_EQ(address_space_bytes(2 * kMiB), 4 * kGiB);
    EXPECT_EQ(address_space_bytes(3 * kGiB), 4 * kGiB);
    EXPECT_EQ(address_space_bytes(3 * kGiB + 2 * kMiB), 4 * kGiB + 2 * kMiB);
    EXPECT_EQ(address_space_bytes(16 * kTiB), 16 * kTiB + kGiB);
}

TEST(GuestMemoryMap, DoesNotOverlapItself) {
    for (const std::uint64_t size : kSizes) {
        Ranges ranges;
        for (const MemoryMapEntry& entry : guest_memory_map(size, false)) {
            EXPECT_NE(entry.range.size, 0U) << size;
            ranges.push_back(entry.range);
        }
        expect_disjoint(ranges);
        EXPECT_TRUE(std::ranges::is_sorted(ranges, {}, &GuestRange::base)) << size;
    }
}

TEST(GuestMemoryMap, CallsOnlyRamRam) {
    for (const std::uint64_t size : kSizes) {
        const Ranges ram = ram_layout(size);
        for (const MemoryMapEntry& entry : guest_memory_map(size, false)) {
            EXPECT_TRUE(is_within(ram, entry.range)) << size << ": " << to_string(entry.range);
        }
    }
}

// Linux uses ECAM only if the map reserves it.
TEST(GuestMemoryMap, WithPciReservesItsConfigurationSpacesAndNothingElseMore) {
    for (const std::uint64_t size : kSizes) {
        std::vector<MemoryMapEntry> with = guest_memory_map(size, true);
        Ranges ranges;
        for (const MemoryMapEntry& entry : with) {
            ranges.push_back(entry.range);
        }
        expect_disjoint(ranges);
        EXPECT_TRUE(std::ranges::is_sorted(ranges, {}, &GuestRange::base)) << size;
        const auto ecam = std::ranges::find(with, kPciEcam, &MemoryMapEntry::range);
        ASSERT_NE(ecam, with.end()) << size;
        EXPECT_EQ(ecam->kind, MemoryKind::kReserved);
        with.erase(ecam);
        const std::vector<MemoryMapEntry> without = guest_memory_map(size, false);
        ASSERT_EQ(with.size(), without.size()) << size;
        for (std::size_t i = 0; i < with.size(); ++i) {
            EXPECT_EQ(with[i].range, without[i].range) << size;
            EXPECT_EQ(with[i].kind, without[i].kind) << size;
        }
    }
}

TEST(GuestMemoryMap, AccountsForEveryByteOfRamButThePageOfTheGenerationIdentifier) {
    for (const std::uint64_t size : kSizes) {
        std::uint64_t total = 0;
        for (const MemoryMapEntry& entry : guest_memory_map(size, false)) {
            EXPECT_FALSE(entry.range.overlaps(kGenerationIdPage)) << to_string(entry.range);
            total += entry.range.size;
        }
        EXPECT_EQ(total + kGenerationIdPage.size, size);
    }
}

TEST(GuestMemoryMap, ReservesWhatAPcReservesBelowOneMib) {
    for (const MemoryMapEntry& entry : guest_memory_map(512 * kMiB, false)) {
        if (entry.range.overlaps({kLowRam.end(), to_integer(kHighRamStart) - to_integer(kLowRam.end())})) {
            EXPECT_EQ(entry.kind, MemoryKind::kReserved);
        } else {
            EXPECT_EQ(entry.kind, MemoryKind::kRam);
        }
    }
}

TEST(GuestAddresses, OfBootInformationAreInLowRamAndDisjoint) {
    const Ranges boot{{kGdt, sizeof(loader::BootGdt)},
                      {kBootPageTables, loader::kIdentityMapBytes},
                      {kZeroPage, loader::kZeroPageBytes},
                      kStartInfo,
                      kCommandLine};
    expect_disjoint(boot);
    for (const GuestRange& piece : boot) {
        EXPECT_TRUE(kLowRam.contains(piece)) << to_string(piece);
        EXPECT_GE(piece.base, GuestAddress{0x500}) << "below lie the real-mode vectors and the BIOS data area";
    }
}

TEST(GuestAddresses, OfFirmwareAreReservedAndDisjoint) {
    expect_disjoint(
        {kLowRam, kDeviceTree, kGenerationIdPage, kAcpiTables, {loader::kResetVector, 16}, {kHighRamStart, 4096}});
    EXPECT_TRUE(kGenerationIdPage.contains(kGenerationId));
    EXPECT_TRUE(is_aligned(to_integer(kGenerationId.base), 8));
    for (const GuestRange& piece :
         {kDeviceTree, kGenerationIdPage, kAcpiTables, GuestRange{loader::kResetVector, 16}}) {
        for (const MemoryMapEntry& entry : guest_memory_map(Config::kMinMemoryBytes, false)) {
            EXPECT_TRUE(!entry.range.overlaps(piece) || entry.kind == MemoryKind::kReserved) << to_string(piece);
        }
    }
}

TEST(GuestAddresses, OfDevicesAreInTheHoleAndDisjoint) {
    const Ranges devices{kScratchWindow,  kVirtioWindow,      {kPowerRegisters, 4096},
                         {kIoApic, 4096}, {kLocalApic, 4096}, {kRealModePages, 4 * 4096},
                         kPciEcam,        kPciWindow};
    expect_disjoint(devices);
    for (const GuestRange& piece : devices) {
        EXPECT_TRUE(kHole.contains(piece)) << to_string(piece);
    }
}

TEST(ScratchWindow, HoldsThePageTablesOfTheLargestGuestAndOfWhatItCanBeGiven) {
    const std::uint64_t mapped = *align_up(address_space_bytes(kMaxMemoryBytes), kGiB);
    for (const bool one_gib_pages : {false, true}) {
        const prefault::Scratch::Layout layout{kScratchWindow.base, mapped,
                                               std::min(mapped + kRoomForMoreMemory, kMaxAddressBytes), one_gib_pages};
        EXPECT_LE(prefault::Scratch::bytes_for(layout), kScratchWindow.size);
    }
    EXPECT_TRUE(is_aligned(to_integer(kScratchWindow.base), 2 * kMiB));
}

TEST(AddressSpace, OfTheLargestGuestLeavesRoomForMoreMemory) {
    EXPECT_LE(address_space_bytes(kMaxMemoryBytes) + kRoomForMoreMemory, kMaxAddressBytes);
}

TEST(Memslots, OfRamComeBeforeTheScratchSlot) {
    EXPECT_LT(ram_layout(kMaxMemoryBytes).size(), kScratchMemslot);
}

TEST(Memslots, OfEveryRegionThereCanBeComeBeforeTheScratchSlot) {
    EXPECT_LE(GuestMemory::kMaxRegions, kScratchMemslot);
}

} // namespace
} // namespace vmm::memory_map
