#include "loader/x86/bzimage.hpp"

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <optional>
#include <string>
#include <string_view>
#include <type_traits>

#include "loader/foreign_image.hpp"
#include "loader/x86/setup_header.hpp"

namespace vmm::loader {
namespace {

constexpr std::uint64_t kSectorBytes = 512;
constexpr unsigned kDefaultSetupSectors = 4;  // what 0 in the header means
constexpr std::uint64_t kParagraphBytes = 16; // the unit of syssize
constexpr std::uint16_t kXlfKernel64 = 1U << 0U;
constexpr std::uint16_t kXlfCanBeLoadedAbove4G = 1U << 1U;
constexpr std::uint64_t kEntry64Offset = 0x200; // of the 64-bit entry point, in the protected-mode part

// The versions of the boot protocol that brought each field.
constexpr std::uint16_t kHasCommandLinePointer = 0x202;
constexpr std::uint16_t kHasInitrdAddrMax = 0x203;
constexpr std::uint16_t kHasRelocation = 0x205;
constexpr std::uint16_t kHasCommandLineSize = 0x206;
constexpr std::uint16_t kHasSetupData = 0x209;
constexpr std::uint16_t kHasInitSize = 0x20a;
constexpr std::uint16_t kHasXLoadFlags = 0x20c;

// The values for kernels that do not state them.
constexpr std::uint32_t kOldInitrdAddrMax = 0x37ffffff;
constexpr std::uint32_t kOldCommandLineBytes = 255;
constexpr std::uint64_t kOldPreferredAddress = kMiB;
constexpr std::uint64_t kOldExpansion = 4; // decompressed kernel and its tables, as a multiple of the compressed one

/// The lowest address at which a kernel is loaded. The boot information lies below it.
constexpr std::uint64_t kLowestKernelAddress = kMiB;

std::string protocol_name(std::uint16_t version) {
    const std::string minor = std::to_string(version & 0xffU);
    return std::to_string(version >> 8U) + "." + (minor.size() < 2 ? "0" : "") + minor;
}

/// The least end of the setup header for a protocol `version`.
std::size_t least_end(std::uint16_t version) {
    if (version >= kHasInitSize) {
        return setup_header::kEndOfProtocol212;
    }
    if (version >= kHasCommandLineSize) {
        return setup_header::kCommandLineSize + 4;
    }
    if (version >= kHasRelocation) {
        return setup_header::kRelocatableKernel + 1;
    }
    return setup_header::kCommandLinePointer + (version >= kHasInitrdAddrMax ? 8U : 4U);
}

/// Copies the setup header. Its length is in the offset of a jump instruction at 0x201.
std::vector<std::byte> read_setup_header(const ImageFile& file) {
    const auto jump_offset = file.load<std::uint8_t>(setup_header::kJumpOffset);
    const auto version = file.load<std::uint16_t>(setup_header::kVersion);
    if (!jump_offset || !version) {
        refuse_kernel(file, "its setup header is cut short", kDamaged);
    }
    if (*version < kHasCommandLinePointer) {
        refuse_kernel(file, "it has boot protocol " + protocol_name(*version), "use Linux 2.4 or later");
    }
    const std::size_t end = setup_header::kMagic + std::size_t{*jump_offset};
    if (end < least_end(*version)) {
        refuse_kernel(file, "its setup header is shorter than its boot protocol asks for", kDamaged);
    }
    std::vector<std::byte> header(std::min(end, setup_header::kEndOfRoom) - setup_header::kBegin);
    if (!file.read_at(setup_header::kBegin, header)) {
        refuse_kernel(file, "its setup header is cut short", kDamaged);
    }
    return header;
}

/// The fields of a setup header that has been copied out of the file.
class SetupHeaderView {
  public:
    explicit SetupHeaderView(std::span<const std::byte> bytes) : bytes_(bytes) {}

    /// The field at `offset` of the file. The caller has checked that the header has it.
    template <typename T>
    [[nodiscard]] T at(std::size_t offset) const {
        std::array<std::byte, sizeof(T)> raw{};
        const auto field = bytes_.subspan(offset - setup_header::kBegin, sizeof(T));
        std::ranges::copy(field, raw.begin());
        return std::bit_cast<T>(raw);
    }
    /// As above, but returns `otherwise` if the header's protocol is older than `version`.
    template <typename T>
    [[nodiscard]] T at(std::size_t offset, std::uint16_t version, T otherwise) const {
        return at<std::uint16_t>(setup_header::kVersion) >= version ? at<T>(offset) : otherwise;
    }

  private:
    std::span<const std::byte> bytes_;
};

} // namespace

bool BzImage::recognises(const ImageFile& file) {
    return file.load<std::uint32_t>(setup_header::kMagic) == setup_header::kMagicValue;
}

BzImage BzImage::parse(const ImageFile& file) {
    BzImage image;
    image.setup_header_ = read_setup_header(file);
    const SetupHeaderView header{image.setup_header_};
    if ((header.at<std::uint8_t>(setup_header::kLoadFlags) & setup_header::kLoadedHigh) == 0) {
        refuse_kernel(file, "it is a zImage, which is loaded below 1 MiB", "use a bzImage");
    }
    const auto flags = header.at<std::uint16_t>(setup_header::kXLoadFlags, kHasXLoadFlags, 0);
    image.protocol_ = (flags & kXlfKernel64) != 0 ? EntryProtocol::kLinux64 : EntryProtocol::kLinux32;

    image.takes_setup_data_ = header.at<std::uint16_t>(setup_header::kVersion) >= kHasSetupData;

    const unsigned setup_sectors = header.at<std::uint8_t>(setup_header::kSetupSectors);
    // The boot sector comes before the setup sectors and is not in their count.
    image.file_offset_ = (1 + std::uint64_t{setup_sectors == 0 ? kDefaultSetupSectors : setup_sectors}) * kSectorBytes;
    image.file_bytes_ = std::uint64_t{header.at<std::uint32_t>(setup_header::kSysSize)} * kParagraphBytes;
    const std::uint64_t there = file.size() - std::min(image.file_offset_, file.size());
    if (image.file_offset_ > file.size() || image.file_bytes_ >= there + kParagraphBytes) {
        refuse_kernel(file,
                      "its header promises " + format_bytes(image.file_bytes_) + " from offset " +
                          std::to_string(image.file_offset_) + " on, but the file has " + format_bytes(file.size()),
                      kDamaged);
    }
    image.file_bytes_ = std::min(image.file_bytes_, there); // The last paragraph of some files is not whole.
    if (image.file_bytes_ <= image.entry_offset()) {
        refuse_kernel(file, "its protected-mode part ends before the entry point", kDamaged);
    }

    const auto needed =
        header.at(setup_header::kInitSize, kHasInitSize,
                  static_cast<std::uint32_t>(std::min<std::uint64_t>(kOldExpansion * image.file_bytes_, UINT32_MAX)));
    image.memory_bytes_ = std::max<std::uint64_t>(needed, image.file_bytes_);
    image.preferred_address_ = GuestAddress{header.at(setup_header::kPrefAddress, kHasInitSize, kOldPreferredAddress)};
    if (header.at(setup_header::kRelocatableKernel, kHasRelocation, std::uint8_t{0}) != 0) {
        image.alignment_ = header.at<std::uint32_t>(setup_header::kKernelAlignment);
        if (!std::has_single_bit(image.alignment_)) {
            refuse_kernel(file, "its alignment " + std::to_string(image.alignment_) + " is no power of two", kDamaged);
        }
    }

    image.max_command_line_bytes_ =
        header.at(setup_header::kCommandLineSize, kHasCommandLineSize, kOldCommandLineBytes);
    // A kernel with this flag accepts an initrd anywhere, but the 32-bit fields hold only addresses below 4 GiB.
    image.initrd_limit_ = GuestAddress{
        (flags & kXlfCanBeLoadedAbove4G) != 0
            ? 4 * kGiB
            : std::uint64_t{header.at(setup_header::kInitrdAddrMax, kHasInitrdAddrMax, kOldInitrdAddrMax)} + 1};
    return image;
}

std::uint64_t BzImage::entry_offset() const noexcept {
    return protocol_ == EntryProtocol::kLinux64 ? kEntry64Offset : 0;
}

LoadedKernel BzImage::load(const ImageFile& file, const GuestMemory& memory, Placement& placement) const {
    GuestAddress base = preferred_address_;
    const bool is_relocatable = alignment_ != 0;
    // At an address that is not aligned, the kernel would move itself up, out of the range that we claim for it.
    if (is_relocatable && (!is_aligned(to_integer(base), alignment_) || !placement.is_free({base, memory_bytes_}))) {
        const std::uint64_t lowest = std::clamp(to_integer(base), kLowestKernelAddress, 4 * kGiB);
        const GuestRange bounds{GuestAddress{lowest}, (4 * kGiB) - lowest};
        base = placement.find_above(memory_bytes_, alignment_, bounds).value_or(base);
    }
    const GuestRange range{base, memory_bytes_};
    placement.claim(range, "the kernel " + file.name());
    const GuestAddress entry{to_integer(base) + entry_offset()};
    if (to_integer(entry) >= 4 * kGiB) {
        refuse_kernel(file, "it wants to lie at " + to_string(base) + ", above 4 GiB");
    }
    file.read_into(memory, base, file_offset_, file_bytes_);
    return {range, entry};
}

} // namespace vmm::loader
