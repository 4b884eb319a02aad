#include "loader/x86/boot_params.hpp"

#include <algorithm>
#include <cassert>
#include <concepts>
#include <cstdint>

#include "loader/little_endian.hpp"
#include "loader/x86/setup_header.hpp"

namespace vmm::loader {
namespace {

// Documentation/arch/x86/zero-page.rst
constexpr std::size_t kAcpiRsdp = 0x070;    // 8
constexpr std::size_t kE820Entries = 0x1e8; // 1
constexpr std::size_t kE820Table = 0x2d0;   // 20 each: 8 address, 8 size, 4 type
constexpr std::size_t kE820EntryBytes = 20;
static_assert(kE820Table + kMaxMemoryMapEntries * kE820EntryBytes <= kZeroPageBytes);

constexpr std::uint8_t kUndefinedLoader = 0xff;
constexpr std::uint16_t kProtocolOfElf = 0x20c;
constexpr std::uint32_t kAlignmentOfElf = 16 * kMiB;

template <std::unsigned_integral T>
void put(ZeroPage& page, std::size_t offset, T value) {
    assert(offset <= page.size() - sizeof(T));
    const auto raw = to_little_endian(value);
    std::ranges::copy(raw, page.begin() + static_cast<std::ptrdiff_t>(offset));
}

std::uint32_t low_address(std::uint64_t value) {
    assert(value <= UINT32_MAX);
    return static_cast<std::uint32_t>(value);
}

void put_setup_header(ZeroPage& page, std::span<const std::byte> header) {
    assert(header.size() <= setup_header::kEndOfRoom - setup_header::kBegin);
    if (!header.empty()) {
        std::ranges::copy(header, page.begin() + setup_header::kBegin);
        return;
    }
    put(page, setup_header::kBootFlag, setup_header::kBootFlagValue);
    put(page, setup_header::kMagic, setup_header::kMagicValue);
    put(page, setup_header::kVersion, kProtocolOfElf);
    put(page, setup_header::kLoadFlags, setup_header::kLoadedHigh);
    put(page, setup_header::kKernelAlignment, kAlignmentOfElf);
}

void put_memory_map(ZeroPage& page, std::span<const MemoryMapEntry> map) {
    assert(map.size() <= kMaxMemoryMapEntries);
    put(page, kE820Entries, static_cast<std::uint8_t>(map.size()));
    std::size_t offset = kE820Table;
    for (const MemoryMapEntry& entry : map) {
        put(page, offset, to_integer(entry.range.base));
        put(page, offset + 8, entry.range.size);
        put(page, offset + 16, static_cast<std::uint32_t>(entry.kind));
        offset += kE820EntryBytes;
    }
}

} // namespace

ZeroPage build_zero_page(const BootInfo& info, std::span<const std::byte> setup_header, GuestAddress kernel) {
    ZeroPage page{};
    put_setup_header(page, setup_header);
    put(page, setup_header::kTypeOfLoader, kUndefinedLoader);
    put(page, setup_header::kCode32Start, low_address(to_integer(kernel)));
    put(page, setup_header::kCommandLinePointer, low_address(to_integer(info.command_line)));
    // The file's values of these fields are not used, because only the loader can know the addresses.
    put(page, setup_header::kRamdiskImage, info.initrd ? low_address(to_integer(info.initrd->base)) : 0U);
    put(page, setup_header::kRamdiskSize, info.initrd ? low_address(info.initrd->size) : 0U);
    put(page, setup_header::kSetupData, info.setup_data ? to_integer(*info.setup_data) : std::uint64_t{0});
    put(page, kAcpiRsdp, info.rsdp ? to_integer(*info.rsdp) : std::uint64_t{0});
    put_memory_map(page, info.memory_map);
    return page;
}

std::vector<std::byte> build_setup_dtb(std::span<const std::byte> tree) {
    constexpr std::uint32_t kSetupDtb = 2;
    // struct setup_data: 8 next, which is 0; 4 type; 4 length; then the data.
    std::vector<std::byte> bytes(kSetupDataHeaderBytes + tree.size());
    std::ranges::copy(to_little_endian(kSetupDtb), bytes.begin() + 8);
    std::ranges::copy(to_little_endian(static_cast<std::uint32_t>(tree.size())), bytes.begin() + 12);
    std::ranges::copy(tree, bytes.begin() + kSetupDataHeaderBytes);
    return bytes;
}

} // namespace vmm::loader
