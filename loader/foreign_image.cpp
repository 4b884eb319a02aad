#include "loader/foreign_image.hpp"

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "kvm/host/error.hpp"

namespace vmm::loader {
namespace {

using namespace std::string_view_literals;

struct Magic {
    std::size_t offset;
    std::string_view bytes;
    std::string_view what;
    std::string_view advice;
};

constexpr std::string_view kDecompress = "decompress it first: Linux' scripts/extract-vmlinux does";
constexpr std::string_view kOtherMachine = "use a kernel built for x86-64";
constexpr std::string_view kInsideDisk = "name the kernel in it: vmlinuz or vmlinux";
constexpr std::string_view kNotInitrd = "name the kernel here, and this as the initrd";

/// More specific magics come first.
constexpr auto kMagics = std::to_array<Magic>({
    {0, "\x1f\x8b"sv, "gzip-compressed data", kDecompress},
    {0, "\xfd\x37zXZ\0"sv, "xz-compressed data", kDecompress},
    {0, "\x28\xb5\x2f\xfd"sv, "zstd-compressed data", kDecompress},
    {0, "BZh"sv, "bzip2-compressed data", kDecompress},
    {0, "\x04\x22\x4d\x18"sv, "LZ4-compressed data", kDecompress},
    {0, "\x02\x21\x4c\x18"sv, "LZ4-compressed data", kDecompress},
    {0, "\x89LZO"sv, "LZO-compressed data", kDecompress},
    {0, "\x5d\0\0"sv, "LZMA-compressed data", kDecompress},
    {0x38, "ARMd"sv, "an ARM64 Image", kOtherMachine},
    {0x38, "RSC\x05"sv, "a RISC-V Image", kOtherMachine},
    {4, "zimg"sv, "a compressed EFI kernel of another architecture", kOtherMachine},
    {0, "\x27\x05\x19\x56"sv, "a U-Boot uImage", kOtherMachine},
    {0, "\xd0\x0d\xfe\xed"sv, "a device tree or a FIT image", kOtherMachine},
    {0, "MZ"sv, "an EFI or Windows program without a Linux kernel's setup header",
     "a unified kernel image holds the kernel in its section .linux: objcopy -O binary -j .linux"},
    {0, "070701"sv, "a cpio archive, as initrds are", kNotInitrd},
    {0, "070702"sv, "a cpio archive, as initrds are", kNotInitrd},
    {0, "hsqs"sv, "a squashfs file system", kInsideDisk},
    {0, "QFI\xfb"sv, "a qcow2 disk image", kInsideDisk},
    {0, "!<arch>\n"sv, "an archive, e.g. a Debian package", "unpack it first: dpkg-deb -x"},
    {0, "\xed\xab\xee\xdb"sv, "an RPM package", "unpack it first"},
    {0x1fe, "\x55\xaa"sv, "a boot sector or a disk image", kInsideDisk},
    {0, "#!"sv, "a script", {}},
});

bool is_text(std::string_view bytes) {
    return std::ranges::all_of(bytes,
                               [](char c) { return (c >= ' ' && c <= '~') || c == '\n' || c == '\r' || c == '\t'; });
}

std::string hex_bytes(std::string_view bytes) {
    constexpr std::string_view kDigits = "0123456789abcdef";
    std::string text;
    for (const char c : bytes) {
        const auto value = static_cast<unsigned char>(c);
        text += text.empty() ? "" : " ";
        text += kDigits[value >> 4U];
        text += kDigits[value & 0xfU];
    }
    return text;
}

/// The first bytes of the file, at most `count`.
std::string head_of(const ImageFile& file, std::uint64_t count) {
    std::string head(static_cast<std::size_t>(std::min(file.size(), count)), '\0');
    return file.read_at(0, std::as_writable_bytes(std::span{head})) ? head : std::string{};
}

} // namespace

ForeignImage describe_foreign_image(const ImageFile& file) {
    const std::string head = head_of(file, 512);
    if (head.empty()) {
        return {"empty", {}};
    }
    for (const Magic& magic : kMagics) {
        if (head.size() > magic.offset && std::string_view{head}.substr(magic.offset).starts_with(magic.bytes)) {
            return {std::string{magic.what}, magic.advice};
        }
    }
    constexpr std::string_view kAdvice = "a kernel for vmm is a bzImage (vmlinuz) or an ELF vmlinux";
    if (is_text(head)) {
        return {"a text file", kAdvice};
    }
    return {"no kernel we know: it starts with " + hex_bytes(std::string_view{head}.substr(0, 8)), kAdvice};
}

void refuse_kernel(const ImageFile& file, std::string_view why, std::string_view advice) {
    std::string message = "cannot boot " + file.name() + ": ";
    message += why;
    if (!advice.empty()) {
        message += " (";
        message += advice;
        message += ")";
    }
    throw Error(message);
}

} // namespace vmm::loader
