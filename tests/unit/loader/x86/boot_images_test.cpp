#include "loader/x86/boot_images.hpp"

#include <gtest/gtest.h>

#include <array>

#include "loader/x86/boot_params.hpp"
#include "loader/x86/entry_tables.hpp"
#include "support/loader_images.hpp"

namespace vmm::loader {
namespace {

using testing::error_of;
using testing::guest_memory;
using testing::make_bzimage;
using testing::make_elf;
using testing::make_pvh_elf;
using testing::mentions;
using testing::pattern;
using testing::TestBzImage;
using testing::TestElf;

constexpr std::uint64_t kRamBytes = 8 * kMiB;
constexpr std::array kMap{
    MemoryMapEntry{{GuestAddress{0}, 0xa0000}, MemoryKind::kRam},
    MemoryMapEntry{{GuestAddress{0xa0000}, 0x60000}, MemoryKind::kReserved},
    MemoryMapEntry{{GuestAddress{kMiB}, kRamBytes - kMiB}, MemoryKind::kRam},
};
constexpr BootLayout kLayout{
    .zero_page = GuestAddress{0x7000},
    .command_line = {GuestAddress{0x20000}, 4096},
    .start_info = {GuestAddress{0x6000}, 4096},
    .gdt = GuestAddress{0x500},
    .page_tables = GuestAddress{0x9000},
    .rsdp = GuestAddress{0xe0000},
    .memory_map = kMap,
};

class BootImagesTest : public ::testing::Test {
  protected:
    BootEntry boot(const Kernel& kernel, const ImageFile* initrd, std::string_view command_line) const {
        return load_boot_images(memory_, {kernel, initrd, command_line}, kLayout);
    }
    [[nodiscard]] std::string error(const Kernel& kernel, const ImageFile* initrd,
                                    std::string_view command_line) const {
        return error_of([&] { return boot(kernel, initrd, command_line); });
    }

    const Kernel elf_ = Kernel::parse(make_elf().file());
    const Kernel pvh_ = Kernel::parse(make_pvh_elf().file());
    const Kernel bzimage_ = Kernel::parse(make_bzimage().file());
    const GuestMemory memory_ = guest_memory(kRamBytes);
};

TEST_F(BootImagesTest, BzImageGetsTheZeroPageAndTheTablesToStartWith) {
    const BootEntry entry = boot(bzimage_, nullptr, "console=ttyS0");
    EXPECT_EQ(entry.protocol, EntryProtocol::kLinux64);
    EXPECT_EQ(entry.entry, GuestAddress{TestBzImage::kPreferredAddress + 0x200});
    EXPECT_EQ(entry.argument, kLayout.zero_page);
    EXPECT_EQ(entry.initrd, std::nullopt);
    EXPECT_EQ(memory_.load<std::uint32_t>(GuestAddress{0x7228}), 0x20000U);
    EXPECT_EQ(memory_.load<std::uint64_t>(GuestAddress{0x7070}), 0xe0000U);
    EXPECT_EQ(memory_.load<std::uint8_t>(GuestAddress{0x71e8}), 3);
    EXPECT_EQ(memory_.load<BootGdt>(kLayout.gdt), build_boot_gdt(CodeSize::k64Bit));
    EXPECT_EQ(memory_.load<std::uint64_t>(kLayout.page_tables), 0xa023U);
}

TEST_F(BootImagesTest, ThirtyTwoBitBzImageGetsTheZeroPageAndADescriptorTableForIt) {
    auto image = make_bzimage();
    image.set(0x236, std::uint16_t{0});
    const BootEntry entry = boot(Kernel::parse(image.file()), nullptr, "console=ttyS0");
    EXPECT_EQ(entry.protocol, EntryProtocol::kLinux32);
    EXPECT_EQ(entry.entry, GuestAddress{TestBzImage::kPreferredAddress});
    EXPECT_EQ(entry.argument, kLayout.zero_page);
    EXPECT_EQ(memory_.load<std::uint32_t>(GuestAddress{0x7228}), 0x20000U);
    EXPECT_EQ(memory_.load<BootGdt>(kLayout.gdt), build_boot_gdt(CodeSize::k32Bit));
    EXPECT_EQ(memory_.load<std::uint64_t>(kLayout.page_tables), 0U);
}

TEST_F(BootImagesTest, CommandLineEndsWithNul) {
    constexpr std::string_view kText = "console=ttyS0 quiet";
    ASSERT_TRUE(memory_.store(GuestAddress{0x20000 + kText.size()}, char{'x'}));
    static_cast<void>(boot(bzimage_, nullptr, kText));
    const auto bytes = memory_.at({GuestAddress{0x20000}, kText.size() + 1});
    ASSERT_TRUE(bytes);
    EXPECT_TRUE(std::equal(kText.begin(), kText.end(), bytes->begin(),
                           [](char c, std::byte b) { return static_cast<std::byte>(c) == b; }));
    EXPECT_EQ(bytes->back(), std::byte{0});
}

TEST_F(BootImagesTest, ElfKernelWithoutNoteGetsTheZeroPage) {
    const BootEntry entry = boot(elf_, nullptr, "");
    EXPECT_EQ(entry.protocol, EntryProtocol::kLinux64);
    EXPECT_EQ(entry.entry, GuestAddress{TestElf::kEntry});
    EXPECT_EQ(entry.argument, kLayout.zero_page);
}

TEST_F(BootImagesTest, PvhKernelGetsTheStartInfo) {
    const BootEntry entry = boot(pvh_, nullptr, "");
    EXPECT_EQ(entry.protocol, EntryProtocol::kPvh);
    EXPECT_EQ(entry.entry, GuestAddress{TestElf::kPvhEntry});
    EXPECT_EQ(entry.argument, kLayout.start_info.base);
    EXPECT_EQ(memory_.load<std::uint32_t>(kLayout.start_info.base), 0x336ec578U);
}

TEST_F(BootImagesTest, LinuxWithPvhEntryIsEnteredByTheOtherProtocolForSetupData) {
    TestElf elf = make_elf();
    auto notes = testing::make_note("Linux", 257, testing::bytes_of("x"));
    const auto pvh = testing::make_note("Xen", testing::kPvhNoteType, std::as_bytes(std::span{&TestElf::kPvhEntry, 1}));
    notes.insert(notes.end(), pvh.begin(), pvh.end());
    testing::add_notes(elf, notes);
    const Kernel linux_kernel = Kernel::parse(elf.file());
    EXPECT_EQ(boot(linux_kernel, nullptr, "").protocol, EntryProtocol::kPvh);

    BootLayout layout = kLayout;
    layout.setup_data = GuestAddress{0xc0000};
    const BootEntry entry = load_boot_images(memory_, {linux_kernel, nullptr, ""}, layout);
    EXPECT_EQ(entry.protocol, EntryProtocol::kLinux64);
    EXPECT_EQ(entry.entry, GuestAddress{TestElf::kEntry});
    EXPECT_EQ(entry.argument, kLayout.zero_page);
    EXPECT_EQ(memory_.load<std::uint64_t>(GuestAddress{0x7250}), 0xc0000U);

    EXPECT_EQ(load_boot_images(memory_, {pvh_, nullptr, ""}, layout).protocol, EntryProtocol::kPvh);
}

TEST_F(BootImagesTest, WithoutTablesTheZeroPageNamesNone) {
    BootLayout layout = kLayout;
    layout.rsdp.reset();
    static_cast<void>(load_boot_images(memory_, {bzimage_, nullptr, ""}, layout));
    EXPECT_EQ(memory_.load<std::uint64_t>(GuestAddress{0x7070}), 0U);
}

TEST_F(BootImagesTest, InitrdGoesToTheTopOfRam) {
    const ImageFile initrd = ImageFile::from_bytes("initrd", pattern(5000));
    const BootEntry entry = boot(bzimage_, &initrd, "");
    const GuestRange expected{GuestAddress{kRamBytes - 8192}, 5000};
    EXPECT_EQ(entry.initrd, expected);
    EXPECT_EQ(memory_.load<std::uint32_t>(expected.base), 0x04030201U);
    EXPECT_EQ(memory_.load<std::uint32_t>(GuestAddress{0x7218}), kRamBytes - 8192);
    EXPECT_EQ(memory_.load<std::uint32_t>(GuestAddress{0x721c}), 5000U);
}

TEST_F(BootImagesTest, InitrdStaysBelowTheKernelsLimit) {
    TestBzImage image = make_bzimage();
    image.set(0x22c, std::uint32_t{0x1fffff});
    const Kernel kernel = Kernel::parse(image.file());
    const ImageFile initrd = ImageFile::from_bytes("initrd", pattern(4096));
    const BootEntry entry = boot(kernel, &initrd, "");
    EXPECT_EQ(entry.initrd, (GuestRange{GuestAddress{0x1ff000}, 4096}));
}

TEST_F(BootImagesTest, InitrdStaysOutOfTheRoomForDecompression) {
    TestBzImage image = make_bzimage();
    image.set(0x260, static_cast<std::uint32_t>(kRamBytes - TestBzImage::kPreferredAddress));
    const Kernel kernel = Kernel::parse(image.file());
    const ImageFile initrd = ImageFile::from_bytes("initrd", pattern(4096));
    const BootEntry entry = boot(kernel, &initrd, "");
    EXPECT_EQ(entry.initrd, (GuestRange{GuestAddress{TestBzImage::kPreferredAddress - 4096}, 4096}));
}

TEST_F(BootImagesTest, InitrdThatDoesNotFitNamesItsSizeAndTheRoom) {
    const ImageFile initrd = ImageFile::from_bytes("initrd.img", pattern(7 * kMiB));
    EXPECT_EQ(error(bzimage_, &initrd, ""),
              "the initrd initrd.img has 7 MiB, but the largest free piece of guest memory below 0x38000000 has 5 MiB: "
              "give the guest more memory (Config::memory_bytes)");
}

TEST_F(BootImagesTest, EmptyInitrdIsRefused) {
    const ImageFile initrd = ImageFile::from_bytes("initrd.img", {});
    EXPECT_EQ(error(bzimage_, &initrd, ""), "cannot use initrd.img as the initrd: it is empty");
}

TEST_F(BootImagesTest, CommandLineTooLongForTheKernelNamesBothNumbers) {
    EXPECT_EQ(error(bzimage_, nullptr, std::string(2047, 'x')), "");
    EXPECT_EQ(error(bzimage_, nullptr, std::string(2048, 'x')),
              "the kernel command line has 2048 bytes, but test-vmlinuz takes 2047 at most: shorten it");
}

TEST_F(BootImagesTest, CommandLineIsNeverLongerThanItsRoom) {
    TestBzImage image = make_bzimage();
    image.set(0x238, std::uint32_t{0xffffffff});
    const Kernel kernel = Kernel::parse(image.file());
    EXPECT_EQ(error(kernel, nullptr, std::string(4095, 'x')), "");
    EXPECT_TRUE(mentions(error(kernel, nullptr, std::string(4096, 'x')), "takes 4095 at most"));
}

TEST_F(BootImagesTest, CommandLineWithNulIsRefused) {
    EXPECT_TRUE(mentions(error(bzimage_, nullptr, std::string_view{"a\0b", 3}), "NUL"));
}

TEST_F(BootImagesTest, KernelOverTheBootInformationIsRefused) {
    TestElf elf = make_elf();
    elf.program_headers[0].p_paddr = 0x6800;
    elf.header.e_entry = 0x6800;
    const Kernel kernel = Kernel::parse(elf.file());
    EXPECT_EQ(error(kernel, nullptr, ""),
              "the kernel test-vmlinux (0x6800-0x87ff) overlaps the PVH start info (0x6000-0x6fff)");
}

TEST_F(BootImagesTest, KernelInReservedMemoryIsRefused) {
    TestElf elf = make_elf();
    elf.program_headers[0].p_paddr = 0xe0000;
    elf.header.e_entry = 0xe0000;
    const Kernel kernel = Kernel::parse(elf.file());
    EXPECT_TRUE(mentions(error(kernel, nullptr, ""), "does not fit into guest memory"));
}

TEST_F(BootImagesTest, KernelOf32BitsFindsSetupDataInItsZeroPage) {
    testing::TestBzImage image = make_bzimage();
    image.set(0x236, std::uint16_t{0});
    const Kernel kernel = Kernel::parse(image.file());
    BootLayout layout = kLayout;
    layout.setup_data = GuestAddress{0xc0000};
    const BootEntry entry = load_boot_images(memory_, {kernel, nullptr, ""}, layout);
    EXPECT_EQ(entry.protocol, EntryProtocol::kLinux32);
    EXPECT_EQ(memory_.load<std::uint64_t>(GuestAddress{to_integer(layout.zero_page) + 0x250}), 0xc0000U);
}

} // namespace
} // namespace vmm::loader
