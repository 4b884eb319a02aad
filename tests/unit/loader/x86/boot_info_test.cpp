#include <asm/bootparam.h>
#include <gtest/gtest.h>

#include <array>
#include <bit>
#include <cstring>

#include "loader/x86/boot_params.hpp"
#include "loader/x86/pvh_start_info.hpp"
#include "support/loader_images.hpp"

namespace vmm::loader {
namespace {

constexpr std::array kLongMap{
    MemoryMapEntry{{GuestAddress{0}, 0x9fc00}, MemoryKind::kRam},
    MemoryMapEntry{{GuestAddress{0x9fc00}, 0x60400}, MemoryKind::kReserved},
    MemoryMapEntry{{GuestAddress{0x100000}, 0x7ff00000}, MemoryKind::kRam},
    MemoryMapEntry{{GuestAddress{0x100000000}, 0x180000000}, MemoryKind::kRam},
};
constexpr GuestAddress kCommandLine{0x20000};
constexpr GuestRange kInitrd{GuestAddress{0x7f000000}, 0xabcdef};
constexpr GuestAddress kRsdp{0xe0000};
constexpr GuestAddress kKernel{0x1000000};

constexpr BootInfo full_info() {
    return {.command_line = kCommandLine, .initrd = kInitrd, .rsdp = kRsdp, .memory_map = kLongMap};
}
constexpr BootInfo bare_info() {
    return {.command_line = kCommandLine, .initrd = std::nullopt, .rsdp = std::nullopt, .memory_map = kLongMap};
}

/// The page as the kernel sees it: its own headers check our offsets.
boot_params as_kernel_sees(const ZeroPage& page) {
    static_assert(sizeof(boot_params) == kZeroPageBytes);
    boot_params params;
    std::memcpy(&params, page.data(), sizeof params);
    return params;
}

/// The fields of these structures are not aligned, and GoogleTest takes references.
template <typename T>
constexpr T value_of(T field) {
    return field;
}

TEST(ZeroPage, HoldsTheAddressesWhereTheKernelLooks) {
    const boot_params params = as_kernel_sees(build_zero_page(full_info(), {}, kKernel));
    EXPECT_EQ(value_of(params.hdr.cmd_line_ptr), 0x20000U);
    EXPECT_EQ(value_of(params.hdr.ramdisk_image), 0x7f000000U);
    EXPECT_EQ(value_of(params.hdr.ramdisk_size), 0xabcdefU);
    EXPECT_EQ(value_of(params.ext_ramdisk_image), 0U);
    EXPECT_EQ(value_of(params.ext_ramdisk_size), 0U);
    EXPECT_EQ(value_of(params.acpi_rsdp_addr), 0xe0000U);
    EXPECT_EQ(value_of(params.hdr.code32_start), 0x1000000U);
    EXPECT_EQ(value_of(params.hdr.type_of_loader), 0xff);
    EXPECT_EQ(value_of(params.sentinel), 0); // else the kernel distrusts the page and clears parts of it
}

TEST(ZeroPage, SaysWhereTheListOfSetupDataBegins) {
    EXPECT_EQ(value_of(as_kernel_sees(build_zero_page(full_info(), {}, kKernel)).hdr.setup_data), 0U);
    BootInfo info = full_info();
    info.setup_data = GuestAddress{0xc0000};
    EXPECT_EQ(value_of(as_kernel_sees(build_zero_page(info, {}, kKernel)).hdr.setup_data), 0xc0000U);
}

TEST(SetupData, HoldsADeviceTreeAsTheKernelSeesIt) {
    const auto tree = testing::pattern(21);
    const auto bytes = build_setup_dtb(tree);
    static_assert(sizeof(setup_data) == kSetupDataHeaderBytes);
    setup_data header{};
    ASSERT_EQ(bytes.size(), sizeof header + tree.size());
    std::memcpy(&header, bytes.data(), sizeof header);
    EXPECT_EQ(value_of(header.next), 0U);
    EXPECT_EQ(value_of(header.type), std::uint32_t{SETUP_DTB});
    EXPECT_EQ(value_of(header.len), 21U);
    EXPECT_EQ(std::memcmp(bytes.data() + sizeof header, tree.data(), tree.size()), 0);
}

TEST(ZeroPage, HoldsTheMemoryMap) {
    const boot_params params = as_kernel_sees(build_zero_page(full_info(), {}, kKernel));
    ASSERT_EQ(value_of(params.e820_entries), kLongMap.size());
    for (std::size_t i = 0; i < kLongMap.size(); ++i) {
        const boot_e820_entry entry = params.e820_table[i];
        EXPECT_EQ(value_of(entry.addr), to_integer(kLongMap[i].range.base));
        EXPECT_EQ(value_of(entry.size), kLongMap[i].range.size);
        EXPECT_EQ(value_of(entry.type), static_cast<std::uint32_t>(kLongMap[i].kind));
    }
}

TEST(ZeroPage, HasRoomForAsManyEntriesAsTheKernel) {
    static_assert(kMaxMemoryMapEntries == E820_MAX_ENTRIES_ZEROPAGE);
    std::vector<MemoryMapEntry> map;
    for (std::uint64_t i = 0; i < kMaxMemoryMapEntries; ++i) {
        map.push_back({{GuestAddress{i * 2 * kMiB}, kMiB}, MemoryKind::kRam});
    }
    BootInfo info = full_info();
    info.memory_map = map;
    const boot_params params = as_kernel_sees(build_zero_page(info, {}, kKernel));
    EXPECT_EQ(value_of(params.e820_entries), 128);
    EXPECT_EQ(value_of(params.e820_table[127].addr), 127 * 2 * kMiB);
}

TEST(ZeroPage, WithoutInitrdAndAcpiHasZerosThere) {
    const boot_params params = as_kernel_sees(build_zero_page(bare_info(), {}, kKernel));
    EXPECT_EQ(value_of(params.hdr.ramdisk_image), 0U);
    EXPECT_EQ(value_of(params.hdr.ramdisk_size), 0U);
    EXPECT_EQ(value_of(params.acpi_rsdp_addr), 0U);
}

TEST(ZeroPage, MakesUpASetupHeaderForAnElfKernel) {
    const boot_params params = as_kernel_sees(build_zero_page(bare_info(), {}, kKernel));
    EXPECT_EQ(value_of(params.hdr.boot_flag), 0xaa55);
    EXPECT_EQ(value_of(params.hdr.header), 0x53726448U);
    EXPECT_EQ(value_of(params.hdr.version), 0x20c);
    EXPECT_EQ(value_of(params.hdr.loadflags), 1);
    EXPECT_EQ(value_of(params.hdr.kernel_alignment), 16 * kMiB);
}

TEST(ZeroPage, KeepsWhatTheKernelFileSaysButNotItsPointers) {
    testing::TestBzImage image = testing::make_bzimage();
    image.set(0x218, std::uint32_t{0xdead0000}); // ramdisk_image
    image.set(0x21c, std::uint32_t{0xdead});     // ramdisk_size
    image.set(0x228, std::uint32_t{0xdeadbeef}); // cmd_line_ptr
    image.set(0x250, std::uint64_t{0xdeadbeef}); // setup_data
    const Kernel kernel = Kernel::parse(image.file());
    const boot_params params = as_kernel_sees(build_zero_page(bare_info(), kernel.setup_header(), kKernel));
    EXPECT_EQ(value_of(params.hdr.version), 0x20f);
    EXPECT_EQ(value_of(params.hdr.loadflags), 1);
    EXPECT_EQ(value_of(params.hdr.pref_address), testing::TestBzImage::kPreferredAddress);
    EXPECT_EQ(value_of(params.hdr.init_size), testing::TestBzImage::kInitBytes);
    EXPECT_EQ(value_of(params.hdr.ramdisk_image), 0U);
    EXPECT_EQ(value_of(params.hdr.ramdisk_size), 0U);
    EXPECT_EQ(value_of(params.hdr.cmd_line_ptr), 0x20000U);
    EXPECT_EQ(value_of(params.hdr.setup_data), 0U);
}

/// Reads the bytes of the start info as a guest does, by address.
class StartInfoReader {
  public:
    explicit StartInfoReader(const BootInfo& info) : bytes_(build_pvh_start_info(info, GuestAddress{kBase})) {}

    template <typename T>
    [[nodiscard]] T at(std::uint64_t address) const {
        T value{};
        EXPECT_LE(address - kBase + sizeof value, bytes_.size());
        std::memcpy(&value, bytes_.data() + (address - kBase), sizeof value);
        return value;
    }

    static constexpr std::uint64_t kBase = 0x6000;

  private:
    std::vector<std::byte> bytes_;
};

TEST(PvhStartInfo, HoldsEverything) {
    constexpr std::uint64_t kBase = StartInfoReader::kBase;
    const StartInfoReader info{full_info()};
    EXPECT_EQ(info.at<std::uint32_t>(kBase), 0x336ec578U);
    EXPECT_EQ(info.at<std::uint32_t>(kBase + 4), 1U);  // version
    EXPECT_EQ(info.at<std::uint32_t>(kBase + 8), 0U);  // flags
    EXPECT_EQ(info.at<std::uint32_t>(kBase + 12), 1U); // modules
    EXPECT_EQ(info.at<std::uint64_t>(kBase + 24), to_integer(kCommandLine));
    EXPECT_EQ(info.at<std::uint64_t>(kBase + 32), to_integer(kRsdp));
    EXPECT_EQ(info.at<std::uint32_t>(kBase + 48), kLongMap.size());

    const auto module = info.at<std::uint64_t>(kBase + 16);
    EXPECT_EQ(info.at<std::uint64_t>(module), to_integer(kInitrd.base));
    EXPECT_EQ(info.at<std::uint64_t>(module + 8), kInitrd.size);

    const auto map = info.at<std::uint64_t>(kBase + 40);
    for (std::size_t i = 0; i < kLongMap.size(); ++i) {
        EXPECT_EQ(info.at<std::uint64_t>(map + i * 24), to_integer(kLongMap[i].range.base));
        EXPECT_EQ(info.at<std::uint64_t>(map + i * 24 + 8), kLongMap[i].range.size);
        EXPECT_EQ(info.at<std::uint32_t>(map + i * 24 + 16), static_cast<std::uint32_t>(kLongMap[i].kind));
    }
}

TEST(PvhStartInfo, WithoutInitrdHasNoModules) {
    const StartInfoReader info{bare_info()};
    EXPECT_EQ(info.at<std::uint32_t>(StartInfoReader::kBase + 12), 0U);
    EXPECT_EQ(info.at<std::uint64_t>(StartInfoReader::kBase + 16), 0U);
    EXPECT_EQ(info.at<std::uint64_t>(StartInfoReader::kBase + 32), 0U); // no RSDP, either
}

TEST(PvhStartInfo, FitsIntoAPageWithTheLargestMap) {
    const std::vector<MemoryMapEntry> map(kMaxMemoryMapEntries);
    BootInfo info = full_info();
    info.memory_map = map;
    EXPECT_LE(build_pvh_start_info(info, GuestAddress{0x6000}).size(), 4096U);
}

} // namespace
} // namespace vmm::loader
