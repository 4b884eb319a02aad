#include "loader/x86/bzimage.hpp"

#include <gtest/gtest.h>

#include <array>
#include <functional>
#include <random>

#include "loader/kernel.hpp"
#include "support/loader_images.hpp"

namespace vmm::loader {
namespace {

using testing::error_of;
using testing::guest_memory;
using testing::make_bzimage;
using testing::mentions;
using testing::TestBzImage;

constexpr GuestRange kRam{GuestAddress{0}, 8 * kMiB};

std::string error_after(const std::function<void(TestBzImage&)>& damage) {
    TestBzImage image = make_bzimage();
    damage(image);
    return image.parse_error();
}

Kernel kernel_after(const std::function<void(TestBzImage&)>& change) {
    TestBzImage image = make_bzimage();
    change(image);
    return Kernel::parse(image.file());
}

TEST(BzImage, IsEnteredByThe64BitProtocol) {
    const Kernel kernel = Kernel::parse(make_bzimage().file());
    EXPECT_EQ(kernel.protocol(), EntryProtocol::kLinux64);
    EXPECT_EQ(kernel.format_name(), "bzImage");
    EXPECT_EQ(kernel.max_command_line_bytes(), 2047U);
}

TEST(BzImage, ProtectedModePartIsLoadedWhereItPrefers) {
    const Kernel kernel = Kernel::parse(make_bzimage().file());
    const GuestMemory memory = guest_memory(kRam.size);
    Placement placement{std::span{&kRam, 1}};
    const LoadedKernel loaded = kernel.load(memory, placement);
    const GuestRange expected{GuestAddress{TestBzImage::kPreferredAddress}, TestBzImage::kInitBytes};
    EXPECT_EQ(loaded.range, expected);
    EXPECT_EQ(loaded.entry, GuestAddress{TestBzImage::kPreferredAddress + 0x200});
    EXPECT_EQ(memory.load<std::uint32_t>(expected.base), 0x04030201U);
}

TEST(BzImage, RoomForDecompressionIsTaken) {
    const Kernel kernel = Kernel::parse(make_bzimage().file());
    const GuestMemory memory = guest_memory(kRam.size);
    Placement placement{std::span{&kRam, 1}};
    static_cast<void>(kernel.load(memory, placement));
    const std::uint64_t end = TestBzImage::kPreferredAddress + TestBzImage::kInitBytes;
    EXPECT_FALSE(placement.is_free({GuestAddress{end - 1}, 1}));
    EXPECT_TRUE(placement.is_free({GuestAddress{end}, 1}));
}

TEST(BzImage, InitSizeSmallerThanTheFileIsNotBelieved) {
    const Kernel kernel = kernel_after([](TestBzImage& image) { image.set(0x260, std::uint32_t{0}); });
    const GuestMemory memory = guest_memory(kRam.size);
    Placement placement{std::span{&kRam, 1}};
    EXPECT_EQ(kernel.load(memory, placement).range.size, TestBzImage::kPayloadBytes);
}

TEST(BzImage, RelocatableKernelMakesWay) {
    const Kernel kernel = Kernel::parse(make_bzimage().file());
    const GuestMemory memory = guest_memory(kRam.size);
    Placement placement{std::span{&kRam, 1}};
    placement.claim({GuestAddress{TestBzImage::kPreferredAddress}, 100}, "something");
    EXPECT_EQ(kernel.load(memory, placement).range.base,
              GuestAddress{TestBzImage::kPreferredAddress + TestBzImage::kAlignment});
}

TEST(BzImage, PreferredAddressThatIsNotAlignedIsRoundedUp) {
    const Kernel kernel =
        kernel_after([](TestBzImage& image) { image.set(0x258, TestBzImage::kPreferredAddress + 4096); });
    const GuestMemory memory = guest_memory(kRam.size);
    Placement placement{std::span{&kRam, 1}};
    EXPECT_EQ(kernel.load(memory, placement).range.base,
              GuestAddress{TestBzImage::kPreferredAddress + TestBzImage::kAlignment});
}

TEST(BzImage, FixedKernelDoesNotMakeWay) {
    const Kernel kernel = kernel_after([](TestBzImage& image) { image.set(0x234, std::uint8_t{0}); });
    const GuestMemory memory = guest_memory(kRam.size);
    Placement placement{std::span{&kRam, 1}};
    placement.claim({GuestAddress{TestBzImage::kPreferredAddress}, 100}, "something");
    EXPECT_EQ(error_of([&] { return kernel.load(memory, placement); }),
              "the kernel test-vmlinuz (0x200000-0x2fffff) overlaps something (0x200000-0x200063)");
}

TEST(BzImage, KernelLargerThanRamNamesTheRam) {
    const Kernel kernel = kernel_after([](TestBzImage& image) { image.set(0x260, std::uint32_t{0xffffffff}); });
    const GuestMemory memory = guest_memory(kRam.size);
    Placement placement{std::span{&kRam, 1}};
    const std::string error = error_of([&] { return kernel.load(memory, placement); });
    EXPECT_TRUE(mentions(error, "does not fit into guest memory 0x0-0x7fffff")) << error;
}

TEST(BzImage, PreferredAddressOutsideOfMemoryIsAnError) {
    for (const std::uint64_t address : {UINT64_MAX, UINT64_MAX - TestBzImage::kInitBytes, 5 * kGiB}) {
        const Kernel kernel = kernel_after([address](TestBzImage& image) { image.set(0x258, address); });
        const GuestMemory memory = guest_memory(kRam.size);
        Placement placement{std::span{&kRam, 1}};
        EXPECT_NE(error_of([&] { return kernel.load(memory, placement); }), "") << address;
    }
}

TEST(BzImage, KernelIsNotPutAbove4GiB) {
    const std::array layout{GuestRange{GuestAddress{0}, kMiB}, GuestRange{GuestAddress{4 * kGiB}, kRam.size}};
    const GuestMemory memory{layout, PageSize::k4K};
    Placement placement{layout};
    const Kernel kernel = kernel_after([](TestBzImage& image) { image.set(0x258, 4 * kGiB); });
    const std::string error = error_of([&] { return kernel.load(memory, placement); });
    EXPECT_TRUE(mentions(error, "above 4 GiB")) << error;
}

TEST(BzImage, PreferredAddressZeroIsNotOverTheBootInformation) {
    const Kernel kernel = kernel_after([](TestBzImage& image) { image.set(0x258, std::uint64_t{0}); });
    const GuestMemory memory = guest_memory(kRam.size);
    Placement placement{std::span{&kRam, 1}};
    placement.claim({GuestAddress{0x7000}, 0x1000}, "the zero page");
    EXPECT_EQ(kernel.load(memory, placement).range.base, GuestAddress{kMiB});
}

TEST(BzImage, SetupHeaderIsKeptAsItIs) {
    const TestBzImage image = make_bzimage();
    const Kernel kernel = Kernel::parse(image.file());
    const auto header = kernel.setup_header();
    ASSERT_EQ(header.size(), 0x26cU - 0x1f1U);
    EXPECT_TRUE(std::equal(header.begin(), header.end(), image.bytes.begin() + 0x1f1));
}

TEST(BzImage, SetupHeaderLongerThanItsRoomIsCut) {
    const Kernel kernel = kernel_after([](TestBzImage& image) { image.set(0x201, std::uint8_t{0xff}); });
    EXPECT_EQ(kernel.setup_header().size(), 0x290U - 0x1f1U);
}

TEST(BzImage, InitrdStaysBelowWhatTheKernelSays) {
    EXPECT_EQ(Kernel::parse(make_bzimage().file()).initrd_limit(),
              GuestAddress{std::uint64_t{TestBzImage::kInitrdAddrMax} + 1});
    const Kernel all_ones = kernel_after([](TestBzImage& image) { image.set(0x22c, std::uint32_t{0xffffffff}); });
    EXPECT_EQ(all_ones.initrd_limit(), GuestAddress{4 * kGiB});
}

TEST(BzImage, KernelThatMayBeLoadedAbove4GiBTakesAnInitrdAnywhereBelow) {
    const Kernel kernel = kernel_after([](TestBzImage& image) { image.set(0x236, std::uint16_t{0x03}); });
    EXPECT_EQ(kernel.initrd_limit(), GuestAddress{4 * kGiB});
}

TEST(BzImage, NoSetupSectorsMeanFour) {
    TestBzImage image = make_bzimage();
    image.bytes.resize(5 * 512);
    const auto payload = testing::pattern(TestBzImage::kPayloadBytes);
    image.bytes.insert(image.bytes.end(), payload.begin(), payload.end());
    image.set(0x1f1, std::uint8_t{0});
    const Kernel kernel = Kernel::parse(image.file());
    const GuestMemory memory = guest_memory(kRam.size);
    Placement placement{std::span{&kRam, 1}};
    EXPECT_EQ(memory.load<std::uint32_t>(kernel.load(memory, placement).range.base), 0x04030201U);
}

TEST(BzImage, SetupBeyondTheFileIsRefused) {
    const std::string error = error_after([](TestBzImage& image) { image.set(0x1f1, std::uint8_t{255}); });
    EXPECT_TRUE(mentions(error, "from offset 131072 on, but the file has 5.50 KiB")) << error;
}

TEST(BzImage, MoreCodeThanTheFileHasIsRefused) {
    for (const std::uint32_t paragraphs : {std::uint32_t{TestBzImage::kPayloadBytes / 16 + 1}, 0xffffffffU}) {
        const std::string error = error_after([paragraphs](TestBzImage& image) { image.set(0x1f4, paragraphs); });
        EXPECT_TRUE(mentions(error, "its header promises")) << error;
    }
}

TEST(BzImage, CodeWithoutEntryPointIsRefused) {
    for (const std::uint32_t paragraphs : {0U, 32U}) {
        const std::string error = error_after([paragraphs](TestBzImage& image) { image.set(0x1f4, paragraphs); });
        EXPECT_TRUE(mentions(error, "ends before the entry point")) << error;
    }
}

TEST(BzImage, LastParagraphNeedNotBeWhole) {
    const Kernel kernel = kernel_after([](TestBzImage& image) { image.bytes.resize(image.bytes.size() - 15); });
    const GuestMemory memory = guest_memory(kRam.size);
    Placement placement{std::span{&kRam, 1}};
    EXPECT_EQ(memory.load<std::uint32_t>(kernel.load(memory, placement).range.base), 0x04030201U);
    EXPECT_NE(error_after([](TestBzImage& image) { image.bytes.resize(image.bytes.size() - 16); }), "");
}

TEST(BzImage, BootProtocolOlderThanAnyBzImageIsNamed) {
    const std::string error = error_after([](TestBzImage& image) { image.set(0x206, std::uint16_t{0x201}); });
    EXPECT_TRUE(mentions(error, "boot protocol 2.01")) << error;
    EXPECT_EQ(error_after([](TestBzImage& image) { image.set(0x206, std::uint16_t{0x202}); }), "");
}

TEST(BzImage, KernelWithout64BitEntryIsEnteredAtItsFirstByteByThe32BitProtocol) {
    const auto kernels = std::array{
        kernel_after([](TestBzImage& image) { image.set(0x236, std::uint16_t{0}); }),
        kernel_after([](TestBzImage& image) { image.set(0x206, std::uint16_t{0x20b}); }), // before xloadflags
    };
    for (const Kernel& kernel : kernels) {
        EXPECT_EQ(kernel.protocol(), EntryProtocol::kLinux32);
        EXPECT_EQ(kernel.format_name(), "32-bit bzImage");
        const GuestMemory memory = guest_memory(kRam.size);
        Placement placement{std::span{&kRam, 1}};
        EXPECT_EQ(kernel.load(memory, placement).entry, GuestAddress{TestBzImage::kPreferredAddress});
    }
}

TEST(BzImage, Of32BitsIsHandedADeviceTreeInsteadOfAborting) {
    const Kernel kernel = kernel_after([](TestBzImage& image) { image.set(0x236, std::uint16_t{0}); });
    ASSERT_EQ(kernel.protocol(), EntryProtocol::kLinux32);
    EXPECT_EQ(kernel.device_tree_hand_over(), DeviceTreeHandOver::kSetupData);
}

TEST(BzImage, IsHandedADeviceTreeIfItsProtocolHasTheList) {
    for (const std::uint16_t version : std::to_array<std::uint16_t>({0x206, 0x208, 0x209, 0x20b, 0x20c, 0x20f})) {
        const Kernel kernel = kernel_after([version](TestBzImage& image) { image.set(0x206, version); });
        EXPECT_EQ(kernel.device_tree_hand_over(),
                  version >= 0x209 ? DeviceTreeHandOver::kSetupData : DeviceTreeHandOver::kNone)
            << version;
    }
}

TEST(BzImage, FieldsThatAnOldProtocolDoesNotHaveAreNotRead) {
    const Kernel kernel = kernel_after([](TestBzImage& image) {
        image.set(0x201, std::uint8_t{0x2a}); // up to 0x22c
        image.set(0x206, std::uint16_t{0x202});
    });
    EXPECT_EQ(kernel.max_command_line_bytes(), 255U);
    EXPECT_EQ(kernel.initrd_limit(), GuestAddress{0x38000000});
    const GuestMemory memory = guest_memory(kRam.size);
    Placement placement{std::span{&kRam, 1}};
    const GuestRange expected{GuestAddress{kMiB}, 4 * TestBzImage::kPayloadBytes};
    EXPECT_EQ(kernel.load(memory, placement).range, expected);
}

TEST(BzImage, ZImageIsNamed) {
    const std::string error = error_after([](TestBzImage& image) { image.set(0x211, std::uint8_t{0}); });
    EXPECT_TRUE(mentions(error, "it is a zImage")) << error;
}

TEST(BzImage, ShortSetupHeaderIsRefused) {
    struct Row {
        std::uint16_t version;
        std::uint8_t jump; // of the shortest header, from 0x202 on
    };
    for (const Row row :
         {Row{0x202, 0x2a}, Row{0x203, 0x2e}, Row{0x205, 0x33}, Row{0x206, 0x3a}, Row{0x20a, 0x66}, Row{0x20f, 0x66}}) {
        const auto error = [row](std::uint8_t jump) {
            return error_after([row, jump](TestBzImage& image) {
                image.set(0x206, row.version);
                image.set(0x201, jump);
            });
        };
        EXPECT_TRUE(mentions(error(row.jump - 1), "setup header is shorter")) << row.version << error(row.jump - 1);
        EXPECT_EQ(error(row.jump), "") << row.version;
    }
}

TEST(BzImage, OddAlignmentIsRefused) {
    for (const std::uint32_t alignment : {0U, 3U, 0xffffffffU}) {
        const std::string error = error_after([alignment](TestBzImage& image) { image.set(0x230, alignment); });
        EXPECT_TRUE(mentions(error, "is no power of two")) << error;
    }
}

TEST(BzImage, FileCutShortAnywhereIsRefused) {
    const auto bytes = make_bzimage().bytes;
    constexpr std::size_t kParagraph = 16; // the last one may be incomplete
    for (std::size_t length = 0; length + kParagraph <= bytes.size(); ++length) {
        const auto start = std::span{bytes}.first(length);
        EXPECT_NE(error_of([&] { return Kernel::parse(ImageFile::from_bytes("cut", start)); }), "") << length;
    }
}

TEST(BzImage, DamagedHeadersAreNeverAccidents) {
    const TestBzImage sound = make_bzimage();
    const GuestMemory memory = guest_memory(kRam.size);
    std::mt19937 random{42}; // NOLINT(cert-msc32-c,cert-msc51-cpp): the same damage in every run
    for (unsigned i = 0; i < 3000; ++i) {
        TestBzImage image = sound;
        for (unsigned j = 0; j < 1 + i % 4; ++j) {
            image.bytes[0x1f1 + random() % 0x7b] = static_cast<std::byte>(random());
        }
        static_cast<void>(error_of([&] {
            Placement placement{std::span{&kRam, 1}};
            return Kernel::parse(image.file()).load(memory, placement);
        }));
    }
}

} // namespace
} // namespace vmm::loader
